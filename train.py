"""Train a student with On-policy Verbal Distillation: sample, score, update, log.

    python train.py --one-shot                   # ONE problem, tested on 500 never seen
    python train.py                              # fresh problems at every step
    python train.py --one-shot --method judge    # another method through the same loop
    python train.py --task search                # a student that asks a search engine
    python train.py --student Qwen/Qwen3-0.6B --teacher Qwen/Qwen3-4B-Instruct-2507

The pair of the last line is the default on a machine with a CUDA GPU; on any other it is the
embedded miniature in tiny/, which runs on any laptop. The methods:

    ovd      what the teacher rejects is replaced by its own trajectory; the outcome is the reward
    judge    the teacher's score is the reward, nothing is replaced
    grpo     the outcome is the reward, no teacher
    format   reward for showing some work and then an answer, right or wrong; no teacher
    logits   token-level distillation, reverse KL to the teacher's whole distribution at each token
    sft      the teacher's own trajectories alone, nothing is sampled: off-policy

One run is an anecdote. --compare takes several methods, each with flags of its own if you like,
through several seeds, goes on where it was interrupted, and ends in a table with intervals:

    python train.py --compare --one-shot
    python train.py --compare --one-shot --methods "ovd, ovd --theta 3, ovd --baseline mixed"

In [a | b] below, a is the default with the embedded pair and b that with the hub's.

A run leaves in --out: metrics.csv, a row a step; samples.jsonl, every trajectory with its score;
adapter/, in PEFT's format; and result.json, before and after with all settings and versions. A
comparison leaves such a folder for each run, with its words in log.txt, and compare.md and .csv.
"""
import os
import time

BEGAN = time.time()  # the imports below take seconds that count
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # nothing is compiled; its compiler loads slowly

import argparse
import csv
import json
import math
import random
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from bisect import bisect_right
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from importlib.metadata import version
from itertools import islice, repeat
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean, mean, pstdev, stdev
from textwrap import shorten

import torch
from tqdm import tqdm
from transformers import AutoConfig, AutoTokenizer

from ovd import (accept, free_bytes, group_advantages, peak_bytes, reset_peak, reverse_kl,
                 tied_groups, token_logprobs, trajectory_loss)
from sample import (Trajectory, as_data, chat_ids, check_words, embedded, left_pad, load_student,
                    pick_device, quiet, sample_trajectories, save_adapter, without_lora)
from score import (auc, good_beginnings, is_server, load_teacher, score_trajectories, scores_of,
                   verdict, write_solutions)
from tasks import (DIFFICULTY, INFORMATION, JSONL, UserError, fail_in_one_line, is_correct,
                   is_supported, is_well_formed, messages, open_corpus, pass_at_k,
                   problem_stream, read_problems, task_stream)

# The default pairs. Names apart, they differ in nothing but these numbers.
TINY_PAIRS = {task: dict(student=embedded(task, "student"), teacher=embedded(task, "teacher"),
                         difficulty=1, lr=5e-4, max_new_tokens=tokens, batch=256, micro_batch=32,
                         chunk=1024) for task, tokens in (("math", 64), ("search", 32))}
HUB_PAIR = dict(student="Qwen/Qwen3-0.6B", teacher="Qwen/Qwen3-4B-Instruct-2507", difficulty=4,
                lr=5e-5, max_new_tokens=512, batch=32, micro_batch=1, chunk=128)
STARTS = {}  # of a comparison's students: what each was before, see evaluate_start()
PEAKS = {}  # phase: the most memory held in it, see mark()
COMPARED = "ovd, ovd --replace suffix, ovd --replace none, judge, grpo, format, logits, sft"
METHODS = ("ovd", "judge", "grpo", "format", "logits", "sft")


def knobs(argv=None):
    """Every knob, a line each."""
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    a = p.add_argument
    a("--method", choices=METHODS, default="ovd", help="see above [ovd]")
    a("--task", choices=["math", "search"], default="math", help="stories of numbers; or questions "
      "to be answered by searching")
    a("--one-shot", action="store_true", help="ONE random problem is every prompt of the run")
    a("--student", help="folder, hub name, or the adapter/ of an earlier run [by machine]")
    a("--teacher", help="folder or hub name; http://HOST:PORT/v1 of a server; or self, the student "
      "without its adapters [by machine]")
    a("--teacher-model", help="name of the teacher on that server")
    a("--teacher-sees-answer", action="store_true", help="it reads the right answer as it scores")
    a("--bits", type=int, choices=[4, 16], default=4, help="4: NF4, both models; 16: as stored")
    a("--data", help=f"your own problems, JSONL of {JSONL}, a file here or "
      "hf://datasets/OWNER/NAME/FILE.jsonl; a fifth is held out")
    a("--corpus", help="passages to search, JSONL of id, title, text; --data has the questions")
    a("--turns", type=int, default=4, help="searches a trajectory may make [%(default)s]")
    a("--eval-data", help="problems to test on in place of that fifth, JSONL alike")
    a("--question-field", default="question", help="the question in --data and --eval-data")
    a("--answer-field", default="answer", help="the answer")
    a("--difficulty", type=int, choices=DIFFICULTY, help="of problems written here [1 | 4]")
    a("--seed", type=int, default=0, help="of the problems, the sampling, the adapters' start")
    a("--steps", type=int, default=16, help="updates [%(default)s]")
    a("--problems", type=int, default=4, help="a step; one-shot: copies [%(default)s]")
    a("--samples", type=int, default=8, help="N, sampled for each problem [%(default)s]")
    a("--theta", type=float, default=5.0, help="a trajectory is accepted where S(y) >= theta [5]")
    a("--score", choices=["expected", "digit", "reply"], default="expected",
      help="S(y): mean over ten probabilities, likeliest digit, or the digit of a text reply")
    a("--replace", choices=["none", "whole", "suffix"], default="whole",
      help="what ovd puts in place of a rejected trajectory: nothing, it is dropped; the teacher's "
           "own; or its good steps with the teacher's continuation")
    a("--suffix", choices=["trained", "read"], default="trained",
      help="with --replace suffix what the teacher wrote is trained on, or only read to judge what "
           "was kept")
    a("--baseline", choices=["none", "own", "mixed", "union"], default="own",
      help="what ovd subtracts from the outcome: nothing; the mean of the student's own group "
           "before replacement; that of the mixed group (the literal reading; it fails, try it); "
           "that of both together, the rejected ones staying as negatives")
    a("--temperature", type=float, default=1.0, help="of sampling, and of the loss [%(default)s]")
    a("--max-new-tokens", "--tokens", type=int,
      help="a trajectory, or a turn of its search, is cut off here [64, search 32 | 512]")
    a("--lr", type=float, help="learning rate of AdamW on the adapters [5e-4 | 5e-5]")
    a("--kl", type=float, default=0.0, help="strength of the pull to the bare model [%(default)s]")
    a("--batch", type=int, help="trajectories sampled side by side [256 | 32]")
    a("--micro-batch", type=int, help="trajectories a backward pass: memory, not the step [32 | 1]")
    a("--chunk", type=int, help="tokens a slice of vocabulary logits, 0: all at once [1024 | 128]")
    a("--eval-problems", type=int, default=500, help="unseen problems for the tests [%(default)s]")
    a("--checkpointing", action="store_true",
      help="keep a layer's input alone, make the rest again going back: memory for time")
    a("--out", help="folder for the results [runs/<time>; runs/compare]")
    a("--compare", action="store_true", help="several methods and seeds, and a table of them")
    a("--methods", help=f"to compare, between commas; each may carry flags [{COMPARED}]")
    a("--seeds", type=int, default=5, help="to compare: seeds 0, 1, ... [%(default)s]")
    a("--jobs", type=int, help="to compare: runs side by side [1 on a GPU, else a core each]")
    a("--compare-memory", action="store_true",
      help="3 steps of ovd and of logits, chunked and dense: peak memory by phase, and no more")
    a("--plan", nargs="?", const=pick_device(), choices=["cpu", "cuda"],
      help="predict the peak memory from the shapes alone, here or for that device, and no more")
    a("--json", help="file for the rows of --plan or --compare-memory")
    return p.parse_args(argv)


def check(args):
    """Refuse what makes no sense before anything is loaded."""
    group = args.samples * (args.problems if args.one_shot else 1)
    apart = is_server(args.teacher)
    least = {"samples": 1, "problems": 1, "max_new_tokens": 1, "batch": 1, "micro_batch": 1,
             "eval_problems": 1, "seeds": 1, "jobs": 1, "steps": 0, "turns": 0, "chunk": 0, "kl": 0}
    rules = [(k, (value := getattr(args, k)) is None or value >= low, f"must be at least {low}")
             for k, low in least.items()]
    rules += [("theta", 0 <= args.theta <= 9, "must lie between 0 and 9"),
              ("samples", group >= 2 or args.method in ("logits", "sft"),
               "makes a group of one, which has no mean to be compared with; use at least 2"),
              ("temperature", args.temperature > 0, "must be above 0"),
              ("lr", args.lr is None or 0 < args.lr < 1, "must lie between 0 and 1"),
              ("teacher", not apart or args.replace != "suffix" or args.method != "ovd",
               "is a server, which cannot go on from the middle of a text; use --replace whole"),
              ("teacher", args.method != "logits" or not apart and args.teacher != "self",
               "has no other logits to match here; use --method ovd, which needs text alone"),
              ("corpus", not args.corpus or args.task == "search" and args.data,
               "is for --task search, with --data for the questions"),
              ("data", not args.data or args.task == "math" or args.corpus,
               "has questions to search for; give --corpus, the passages to find them in"),
              ("methods", args.compare or args.methods is None, "is for --compare"),
              ("eval_data", not args.eval_data or args.task == "math" or args.corpus,
               "has questions to search for; give --corpus, and --data to train on"),
              ("teacher", args.task == "math" or not apart,
               "is a server, which cannot search here; use a folder or a hub name")]
    for knob, holds, rule in rules:
        if not holds:
            raise UserError(f"--{knob.replace('_', '-')} {getattr(args, knob)} {rule}")
    try:
        open(args.json or os.devnull, "a").close()
    except OSError as e:
        raise UserError(f"--json {args.json}: cannot be written ({type(e).__name__}); name a file")


def new_folder(args):
    """The folder for a run's results, made; UserError where it holds another run's."""
    out = Path(args.out or time.strftime("runs/%Y%m%d-%H%M%S"))
    if (out / "metrics.csv").exists():
        raise UserError(f"--out {out} holds another run; give a new folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
        open(out / "samples.jsonl", "a").close()
    except OSError as e:
        raise UserError(f"--out {out}: no folder to write to ({type(e).__name__}); name another")
    return out


# ------------------------------------------------------------------------------- what is trained
def load_pair(args, device):
    """(student, tokenizer, base's name, teacher, tokenizer). Says what runs, where and why."""
    tiny = TINY_PAIRS[args.task]
    pair = HUB_PAIR if device == "cuda" else tiny
    where = torch.cuda.get_device_name() if device == "cuda" else "the CPU, no CUDA GPU was found"
    print(f"student {args.student or pair['student']}, {args.bits}-bit, on {where}")
    try:
        student, tokenizer, base = load_student(args.student or pair["student"], args.bits, device)
        if student.num_parameters() < 50e6:  # the knobs and the default teacher go by its size
            pair = tiny
        elif args.student:
            pair = HUB_PAIR
        name, teacher, teacher_tok = args.teacher or pair["teacher"], None, None
        if args.method not in ("grpo", "format"):  # which need none
            print(f"teacher {args.teacher_model or f'{name}, {args.bits}-bit'}")
            teacher, teacher_tok = load_teacher(name, args.teacher_model, args.bits,
                                                (student, tokenizer), device)
    except UserError as e:
        if args.student or args.teacher or pair is tiny:
            raise
        print(f"the default pair for a GPU cannot be had, so the embedded one is used; {e}")
        args.student, args.teacher = tiny["student"], tiny["teacher"]
        return load_pair(args, device)
    vars(args).update((k, v) for k, v in pair.items() if getattr(args, k) is None)
    return student, tokenizer, base, teacher, teacher_tok


def read_data(args):
    """(problems of --data, those of --eval-data), each None where it is not named."""
    search = open_corpus(args.corpus, args.turns) if args.corpus else None
    data, held = (path and read_problems(path, args.question_field, args.answer_field, flag, search)
                  for flag, path in (("--data", args.data), ("--eval-data", args.eval_data)))
    if data and len(data) < 2 and not held:
        raise UserError(f"--data {args.data}: one problem is too few, one trains and one tests")
    return data, held


def load_problems(args, rows, test):
    """(endless training problems, list of test problems). One-shot: the same one for ever.

    rows: the problems of --data; without them they are written here. test: those of --eval-data;
    without them a fifth of the rows is held out.
    """
    if rows:
        random.Random(0).shuffle(rows)  # whatever the seed, the same fifth is held out
        test, rng = test or rows[:max(1, len(rows) // 5)], random.Random(args.seed)
        asked = {p.question for p in test}
        if not (rows := [p for p in rows if p.question not in asked]):
            raise UserError(f"--data {args.data}: all its problems are in --eval-data too")
        stream = iter(lambda: rng.choice(rows), None)
    else:
        stream = task_stream(args.task, args.seed, args.difficulty, False, args.turns)
        test = test or task_stream(args.task, 0, args.difficulty, True, args.turns)
    return repeat(next(stream)) if args.one_shot else stream, list(islice(test, args.eval_problems))


def evaluate(student, tokenizer, test, args, many=False):
    """How good it is on `test`: (figures, the trajectories sampled once at T = 1, the greedy ones).

    Shares right when sampled and when greedy, and the entropy; with `many` also pass@8, from 16
    samples of each of 25 problems. Of a search also exact match and F1, searches a trajectory, and
    the shares of trajectories with two or more and with an answer that stands in what was found.
    """
    torch.manual_seed(args.seed)
    run = lambda ps, t: sample_trajectories(student, tokenizer, ps, t,  # noqa: E731
                                            args.max_new_tokens, args.batch)
    sampled, greedy = run(test, 1.0), run(test, 0.0)
    mark("testing")
    right = lambda ts: mean(t.stopped and is_correct(t.text, t.problem) for t in ts)  # noqa: E731
    figures = {"pass_at_1": right(sampled), "greedy": right(greedy), "n": len(test),
               "entropy": entropy(sampled)}
    if args.task == "search":
        searches = [t.text.count("<information>") for t in sampled]
        figures |= {"em": figures["pass_at_1"], "f1": mean(t.reward for t in sampled),
                    "searches": mean(searches),
                    "two_searches": mean(n >= 2 for n in searches),
                    "supported": mean(is_supported(t.text) for t in sampled)}
    if many:
        tries = [t.right for t in run([p for p in test[:25] for _ in range(16)], 1.0)]
        figures["pass_at_8"] = mean(pass_at_k(16, sum(tries[i:i + 16]), 8)
                                    for i in range(0, len(tries), 16))
    return figures, sampled, greedy


def entropy(trajectories):
    """Nats a token, as the mean of -log pi over what the student chose."""
    chosen = [lp for t in trajectories for lp, own in zip(t.logprobs, t.sampled) if own]
    return -fmean(chosen or [math.nan])


def evaluate_start(student, tokenizer, test, args):
    """evaluate() before training. In a comparison all methods start alike: once a seed will do."""
    same = (args.student, args.bits, args.task, args.data, args.corpus, args.turns, args.eval_data,
            args.question_field, args.answer_field, args.difficulty, args.seed, args.eval_problems,
            args.max_new_tokens, args.batch)
    if not args.compare or same not in STARTS:
        STARTS[same] = evaluate(student, tokenizer, test, args)
    return STARTS[same]


def as_read(solution, args):
    """The teacher's solution as it reads it when it scores, with the right answer if it may."""
    if not args.teacher_sees_answer:
        return solution
    return replace(solution, text=f"{solution.text}\nRight answer: {solution.problem.answer}")


def first_look(teacher, teacher_tok, sampled, args):
    """One line on how good the teacher is, from attempts made before any training."""
    solutions = write_solutions(teacher, teacher_tok, [t.problem for t in sampled], {},
                                args.max_new_tokens, args.batch)
    score_trajectories(teacher, teacher_tok, sampled, [as_read(s, args) for s in solutions],
                       args.score, args.batch)
    area = auc(*scores_of(sampled))
    print(f"the teacher on {len(sampled)} of these attempts: AUC {area:.2f}, {verdict(area)}")


# ------------------------------------------------------------------------------- a step
def by_teacher(t, solution, kept, tokenizer, train_suffix=True):
    """Trajectory t up to the text `kept`, and from there what the teacher wrote, in our tokens.

    It is rewarded like any trajectory: where the teacher's own answer is wrong, R = 0 and the
    update leads away from it. What the teacher wrote is trained on by default, for it holds what
    the student could not do; without it, the update only tells good beginnings from bad ones.
    """
    ids, marks, logprobs = [], [], []
    said = lambda k: len(tokenizer.decode(t.ids[:k]).lstrip())  # noqa: E731
    # our tokens within `kept`; one that reaches beyond is left out, its beginning is written anew
    k = bisect_right(range(len(t.ids) + 1), len(kept), key=said) - 1 if kept else 0
    theirs = as_data(solution.text[said(k):], tokenizer)
    for i, part in enumerate(re.split(rf"(\s*{INFORMATION.pattern}\s*)", theirs)):
        new, told = tokenizer.encode(part, add_special_tokens=False), i % 2  # by the environment
        ids, marks = ids + new, marks + [int(train_suffix and not told)] * len(new)
        logprobs += [0.0 if told else math.nan] * len(new)
    if solution.stopped:  # to stop is learned like any token
        ids, marks = [*ids, tokenizer.eos_token_id], [*marks, int(train_suffix)]
        logprobs.append(math.nan)
    return replace(t, ids=t.ids[:k] + ids, logprobs=t.logprobs[:k] + logprobs,
                   sampled=t.sampled[:k] + marks, text=solution.text, stopped=solution.stopped,
                   reward=solution.reward)


def written_by_teacher(solution, tokenizer):
    """The teacher's solution as a trajectory of ours from the first token on."""
    prompt = chat_ids(tokenizer, messages(solution.problem))
    return by_teacher(Trajectory(solution.problem, prompt, [], [], [], False, "", 0.0), solution,
                      "", tokenizer)


def is_rejected(t, theta):
    """Did the teacher read it and find it wanting? What has no score was not judged."""
    return t.score is not None and not accept(t.score, theta)


def replace_rejected(own, solutions, worked, tokenizer, teacher, teacher_tok, args):
    """Verbal rejection sampling. Returns (a list beside `own`, tokens the teacher read for it).

    The list holds what takes the place of each, None where nothing does. `worked`: what the
    teacher has written so far, see write_solutions.
    """
    new, read = [None] * len(own), 0
    where = [i for i, t in enumerate(own) if is_rejected(t, args.theta)]
    if args.replace == "none" or not where:
        return new, read
    rejected, kept = [own[i] for i in where], [""] * len(where)
    if args.replace == "suffix":
        kept, read = good_beginnings(teacher, teacher_tok, rejected, [solutions[i] for i in where],
                                     args.theta, args.score, args.batch)
    ends = write_solutions(teacher, teacher_tok, [t.problem for t in rejected], worked,
                           args.max_new_tokens, args.batch, kept)
    for i, t, end, head in zip(where, rejected, ends, kept):
        new[i] = by_teacher(t, end, head, tokenizer, args.suffix == "trained")
    return new, read


def reward_of(t, args):
    """What a trajectory of the student's earns, None: takes no part. It sets the methods apart."""
    if args.method == "judge":
        return None if t.score is None else t.score / 9
    if args.method == "format":
        return float(t.stopped and is_well_formed(t.text, t.problem))
    if args.method == "sft":
        return 1.0
    if args.method == "ovd" and (t.score is None or
                                 is_rejected(t, args.theta) and args.baseline != "union"):
        return None
    return t.reward


def give_advantages(own, new, groups, args):
    """Set the advantage of what is trained on; returns the table of them, (groups, 2 n).

    The left half is the student's own, the right half what the teacher put in their place. What
    takes no part is None as a reward, NaN in the table of rewards, and 0 in that of advantages.
    """
    def table(values):
        """(groups, n), None as NaN."""
        return torch.tensor([math.nan if v is None else v for v in values]).view(groups, -1)

    rewards = torch.cat([table(reward_of(t, args) for t in own),
                         table(u.reward if u and any(u.sampled) else None for u in new)], 1)
    baseline = rewards  # the group itself: for ovd the mixed group, or the union
    if args.method == "sft" or args.method == "ovd" and args.baseline == "none":
        baseline = torch.zeros_like(rewards)
    elif args.method == "ovd" and args.baseline == "own":
        baseline = table(t.reward for t in own)
    advantages = group_advantages(rewards, baseline)
    for ts, *half in zip((own, new), rewards.chunk(2, 1), advantages.chunk(2, 1)):
        for t, r, a in zip(ts, *(x.flatten().tolist() for x in half)):
            if not math.isnan(r):
                t.advantage = a
    return advantages


def trained_positions(model, trajectories, pad):
    """hidden (M, H), targets (M,), row (M,): of the M trained tokens, the state that predicts each.

    The decoder alone is run; the vocabulary's logits are made later, a chunk of the M at a time.
    """
    rows = [t.prompt_ids + t.ids for t in trajectories]
    ids, seen, positions = left_pad(rows, pad, model.device)  # (B, T) each
    trained, _, _ = left_pad([[0] * len(t.prompt_ids) + t.sampled for t in trajectories], 0,
                             model.device)  # (B, T), 1: trained on
    hidden = model.get_decoder()(input_ids=ids, attention_mask=seen, position_ids=positions,
                                 use_cache=False).last_hidden_state  # (B, T, H)
    trained = trained[:, 1:].bool()  # the token at t is predicted from the state at t - 1
    return hidden[:, :-1][trained], ids[:, 1:][trained], trained.nonzero()[:, 0]


def loss_of(student, teacher, part, few, args, pad):
    """(loss summed over the M trained tokens of `part`, gap (M,), moved (those of `few`,)).

    gap: by how much log pi differs from when the token was sampled, NaN where the teacher wrote it.
    moved: log pi - log pi_start, likewise; its mean is the KL to the start. It costs a pass of its
    own, so only `few` are looked at, with which `part` begins.
    """
    head, at = student.get_output_embeddings().weight, (args.temperature, args.chunk)  # (V, H)
    hidden, targets, row = trained_positions(student, part, pad)  # (M, H), (M,), (M,)
    start = torch.tensor([])
    if few:
        with torch.no_grad(), without_lora(student):
            look, words, _ = trained_positions(student, few, pad)
            start = token_logprobs(look, head, words, *at)
    with torch.set_grad_enabled(args.method != "logits"):
        logprobs = token_logprobs(hidden, head, targets, *at)  # (M,)
    if args.method == "logits":
        mark("update")
        with torch.no_grad():
            theirs, _, _ = trained_positions(teacher, part, pad)  # (M, H_T)
        mark("teacher forward")
        their_head = teacher.get_output_embeddings().weight  # (V_T, H_T)
        v = min(len(head), len(their_head))  # one vocabulary may be padded to two lengths
        loss = reverse_kl(hidden, head[:v], theirs, their_head[:v], *at).sum()
    else:
        each = torch.tensor([t.advantage for t in part], device=row.device)[row]  # (M,)
        loss = trajectory_loss(logprobs, each, start, args.kl)
    now = logprobs.detach().cpu()
    then = torch.tensor([lp for t in part for lp, s in zip(t.logprobs, t.sampled) if s])  # (M,)
    own = torch.where(then.isnan(), math.nan, now)
    return loss, (now - then).abs(), own[:len(start)] - start.cpu()


def update(student, teacher, optimiser, batch, args, pad):
    """One gradient step on the whole batch of trajectories. Returns its figures.

    A micro-batch adds the gradient of its *summed* loss; the division by the whole batch's token
    count comes once, at the end. So its size cannot change the step, and no float16 gradient
    vanishes on the way.
    """
    if not batch:  # all rejected and none replaced: nothing to learn from
        return dict.fromkeys(("loss", "grad_norm", "tokens", "kl", "logprob_gap"), 0.0)
    parameters = [p for p in student.parameters() if p.requires_grad]
    tokens = max(1, sum(sum(t.sampled) for t in batch))  # empty solutions alone leave none
    losses, gaps, moved = [], [], []
    optimiser.zero_grad()
    if args.checkpointing:  # in train mode only; sampling needs the cache it does without
        student.activation_checkpointing_enable({"use_reentrant": False})
        student.train()
    for i in range(0, len(batch), args.micro_batch):
        part = batch[i:i + args.micro_batch]  # eight trajectories do for the log, --kl needs all
        few = part if args.kl else part[:max(0, 8 - i)]
        loss, gap, far = loss_of(student, teacher, part, few, args, pad)
        loss.backward()
        losses.append(loss.item())
        gaps.append(gap)
        moved.append(far)
    student.eval()
    for p in parameters:
        p.grad /= tokens
    norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0).item()
    if not math.isfinite(norm):
        raise UserError(f"--lr {args.lr}: the gradient is no longer finite; lower it")
    optimiser.step()
    return {"loss": sum(losses) / tokens, "grad_norm": norm, "tokens": tokens,
            "kl": torch.cat(moved).nanmean().item(),
            "logprob_gap": torch.cat(gaps).nanmean().item()}


# ------------------------------------------------------------------------------- the run
def step_figures(own, new, used, advantages, args):
    """What is logged of a step beside the update's own figures; every column is in the README."""
    right, wrong = scores_of(own)
    sizes = [t.advantage for t in used] or [0.0]
    return {"reward": mean(t.reward for t in own),
            "score": mean(right + wrong or [math.nan]), "auc": auc(right, wrong),
            "scored": len(right + wrong) / len(own),
            "accepted": mean(t.score is not None and not is_rejected(t, args.theta) for t in own),
            "replaced": mean(u is not None for u in new),
            "tied_groups": tied_groups(advantages), "advantage": mean(map(abs, sizes)),
            "spread": pstdev(sizes),
            "entropy": entropy(own),
            "cut_off": mean(not t.stopped for t in own),
            "student_tokens": sum(s and not math.isnan(lp) for t in own
                                  for lp, s in zip(t.logprobs, t.sampled)),
            "new_tokens": sum(math.isnan(lp) for u in new if u for lp in u.logprobs)}


def log_step(out, row, own, new):
    """Append a row to metrics.csv and a line for each trajectory to samples.jsonl."""
    with open(out / "metrics.csv", "a", newline="") as f:
        if row["step"] == 1:
            csv.writer(f).writerow(row)
        csv.writer(f).writerow(f"{v:.6g}" for v in row.values())
    with open(out / "samples.jsonl", "a", encoding="utf-8") as f:
        for t, u in zip(own, new):
            line = {"step": row["step"], "question": t.problem.question, "answer": t.problem.answer,
                    "text": t.text, "reward": t.reward, "probs": t.probs, "score": t.score,
                    "advantage": t.advantage, "replaced_by": u and {
                        "text": u.text, "reward": u.reward, "advantage": u.advantage}}
            f.write(json.dumps(line) + "\n")


def train(student, tokenizer, teacher, teacher_tok, stream, args, out):
    """The loop. Returns (the rows of metrics.csv, all that the teacher wrote)."""
    groups = 1 if args.one_shot else args.problems  # copies of one problem make one large group
    n = args.problems * args.samples // groups
    todo, worked, rows = list(islice(stream, args.steps * groups)), {}, []
    if args.method in ("ovd", "judge", "sft"):  # all at once: a pass costs no more for many
        write_solutions(teacher, teacher_tok, todo, worked, args.max_new_tokens, args.batch)
    parameters = [p for p in student.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=args.lr, weight_decay=0.0)
    torch.manual_seed(args.seed)
    for step in (bar := tqdm(range(1, args.steps + 1), desc="training", unit="step")):
        began = time.time()
        problems = [p for p in todo[(step - 1) * groups:step * groups] for _ in range(n)]
        solutions = [worked.get((p, "")) for p in problems]
        # sample: n whole trajectories for each problem, from the student as it is now
        if args.method == "sft":
            own = [written_by_teacher(s, tokenizer) for s in solutions]
        else:
            own = sample_trajectories(student, tokenizer, problems, args.temperature,
                                      args.max_new_tokens, args.batch)
        mark("sampling")
        # score: the teacher, who has worked the problem out, reads each and says a digit
        new, read, more = [None] * len(own), 0, 0
        if args.method in ("ovd", "judge"):
            solutions = [as_read(s, args) for s in solutions]
            read = score_trajectories(teacher, teacher_tok, own, solutions, args.score,
                                      args.batch)
        elif args.method == "logits":  # or nothing is said, and it reads along in update
            read = sum(len(t.prompt_ids + t.ids) for t in own)
        if args.method == "ovd":
            new, more = replace_rejected(own, solutions, worked, tokenizer, teacher, teacher_tok,
                                         args)
        mark("scoring")
        # update: one gradient step, each token weighted by its trajectory's advantage
        advantages = give_advantages(own, new, groups, args)  # (groups, 2 n)
        used = [t for t in own + new if t and t.advantage is not None]
        figures = update(student, teacher, optimiser, used, args, tokenizer.pad_token_id)
        mark("update")
        # log
        row = {"step": step, **step_figures(own, new, used, advantages, args), **figures,
               "teacher_read": read + more, "seconds": time.time() - began}
        log_step(out, row, own, new)
        rows.append(row)
        if args.method in ("ovd", "judge") and row["scored"] < 0.5:
            why = getattr(teacher, "why", "its replies hold no digit; use --score expected")
            raise UserError(f"--teacher {args.teacher}: more than half of the trajectories got no "
                            f"score in step {step}; {why}")
        bar.set_postfix({k: f"{row[k]:.2f}" for k in ("reward", "score", "replaced")
                         if not math.isnan(row[k])})
        if figures["logprob_gap"] > 0.2:
            raise UserError(f"--student {args.student}: a token's log-probability when trained is "
                            f"{figures['logprob_gap']:.2f} off that when sampled; its head is more "
                            "than a matrix product, so use a Qwen- or Llama-like model")
    return rows, worked


def mark(phase):
    """The most memory held since the last mark was held by `phase`: noted in PEAKS, in bytes.

    On a CPU it is the whole process; where the peak cannot be reset (not Linux), the peak so far.
    """
    device = pick_device()
    PEAKS[phase] = max(PEAKS.get(phase, 0), peak_bytes(device))
    reset_peak(device)


def budget(rows, worked):
    """What a run cost: tokens, and updates.

    Read by the teacher is what it scores, and the prompts of its own solutions; not what it is
    given to go on from, nor what the environment tells it.
    """
    total = lambda column: int(sum(r[column] for r in rows))  # noqa: E731
    written = worked.values()
    return {"student_sampled": total("student_tokens"),
            "teacher_read": total("teacher_read") + sum(len(t.prompt_ids) for t in written),
            "teacher_written": sum(sum(t.sampled) for t in written),
            "put_in_place": total("new_tokens"), "updates": len(rows)}


def explain(rows, before, after, args):
    """Print what the steps had in common and, where little was learned, the likely reason."""
    def average(column, part=rows):
        """Mean of a column over some steps, without those that have no such figure."""
        return fmean([r[column] for r in part if not math.isnan(r[column])] or [math.nan])

    third = max(1, len(rows) // 3)
    first, last = rows[:third], rows[-third:]
    tied = average("tied_groups") / (1 if args.one_shot else args.problems)  # share of groups
    if args.method in ("ovd", "judge"):
        print(f"scores: AUC {average('auc'):.2f} on its own samples, {average('accepted'):.0%} "
              f"accepted, {average('replaced'):.0%} replaced")
    if args.method not in ("logits", "sft"):
        print(f"groups: {tied:.0%} tied (advantages all zero: nothing to compare, no gradient), "
              f"advantages {average('advantage'):.2f} in size, {average('spread'):.2f} in spread")
    print(f"update: gradient norm {average('grad_norm'):.2f}, KL to the start {average('kl'):.2f}, "
          f"entropy {before['entropy']:.2f} -> {after['entropy']:.2f} nats a token, "
          f"{average('cut_off'):.0%} cut off".replace("nan", "not measured"))
    noise = 1.96 * math.sqrt(0.5 / after["n"])  # of a difference of two shares, at its widest
    if after["pass_at_1"] - before["pass_at_1"] > noise:
        return
    reasons = {
        "most were cut off before an answer; raise --max-new-tokens": average("cut_off") > 0.5,
        "replacement made the rewards of a group equal; use --baseline own":
            args.baseline == "mixed" and tied > 0.8,
        "the groups tied, for hardly anything was right; try --method ovd, more --samples, or "
        "easier problems": tied > 0.8 and average("reward") < 0.1,
        "the groups tied, for nearly all was right; try harder problems": tied > 0.8,
        "the scores rose and the share of right ones did not, so it learned to please the teacher; "
        "see python score.py --check": average("score", last) > average("score", first) + 0.5
            and average("reward", last) < average("reward", first) + 0.02,
        "the teacher's scores do not tell right from wrong; see python score.py --check":
            average("auc") < 0.8,
        "it hardly moved from its start; raise --lr or --steps": average("kl", last) < 0.02,
        "it came to say one thing only; lower --lr or set --kl": after["entropy"] < 0.02}
    print("little was learned: " + next((why for why, holds in reasons.items() if holds),
                                        "none of the usual reasons; a longer run may tell"))


def run(args):
    """Test, train, test again, and say what happened. Returns what result.json holds."""
    began, asked, out, device = time.time(), dict(vars(args)), new_folder(args), pick_device()
    quiet()
    PEAKS.clear()
    torch.manual_seed(args.seed)
    data, held = read_data(args)
    warn(args, device)
    student, tokenizer, base, teacher, teacher_tok = load_pair(args, device)
    if args.method == "logits" and tokenizer.get_vocab() != teacher_tok.get_vocab():
        raise UserError("--method logits: student and teacher have different vocabularies, so "
                        "there is nothing to match; use --method ovd, which needs text alone")
    mark("loading")
    stream, test = load_problems(args, data, held)
    check_words(tokenizer, test[0], args.student)
    print(f"{args.method}{', one-shot' if args.one_shot else ''}: {args.steps} updates of "
          f"{args.problems * args.samples} trajectories, tested on {len(test)} unseen problems; "
          f"results in {out}\n")
    try:
        before, sampled, old = evaluate_start(student, tokenizer, test, args)
        print(f"before: {before['pass_at_1']:.1%} right sampled, {before['greedy']:.1%} greedy")
        if args.method in ("ovd", "judge"):
            first_look(teacher, teacher_tok, sampled[:64], args)
        rows, worked = train(student, tokenizer, teacher, teacher_tok, stream, args, out)
        after, _, new = evaluate(student, tokenizer, test, args, many=args.compare)
    except torch.cuda.OutOfMemoryError:
        raise UserError(f"out of GPU memory; try --batch {max(1, args.batch // 4)} --micro-batch 1 "
                        f"--chunk 64, then --samples {max(2, args.samples // 2)} or "
                        f"--max-new-tokens {max(16, args.max_new_tokens // 2)}")
    except KeyboardInterrupt:
        print(f"\nstopped; the adapter so far is in {out / 'adapter'}")
        sys.exit(130)
    finally:  # whatever happened, what was learned is kept
        save_adapter(student, out / "adapter", base)

    seconds, peak = time.time() - (began if args.compare else BEGAN), max(PEAKS.values())
    result = {"method": args.method, "task": args.task, "seed": args.seed,
              "one_shot": args.one_shot, "steps": args.steps, "before": before, "after": after,
              "seconds": seconds, "peak_bytes": peak, "peak_by_phase": PEAKS,
              "tied_groups": sum(r["tied_groups"] for r in rows), "budget": budget(rows, worked),
              "device": device, "settings": vars(args), "asked": asked,
              "versions": {p: version(p) for p in ("torch", "transformers", "bitsandbytes")}}
    write_whole(out / "result.json", json.dumps(result, indent=2) + "\n")
    i = next((i for i, t in enumerate(old) if not t.right), 0)
    print(f"\nan unseen problem it had wrong: {test[i].question} ({test[i].answer})\n"
          f"  before  {old[i].text}\n  after   {new[i].text}\n")
    if rows:
        explain(rows, before, after, args)
    say_in_one_sentence(result)
    return result


def say_in_one_sentence(result):
    """What happened, from what result.json holds."""
    before, after = result["before"], result["after"]
    change = lambda k, form: f"{before[k]:{form}} -> {after[k]:{form}}"  # noqa: E731
    print(f"{result['method']}{' from one problem' if result['one_shot'] else ''}: "
          f"{change('pass_at_1', '.1%')} of {after['n']} unseen problems right when sampled "
          f"({100 * (after['pass_at_1'] - before['pass_at_1']):+.1f} points; greedy "
          f"{change('greedy', '.1%')}" + (f"; F1 {change('f1', '.2f')}; searches a trajectory "
                                          f"{change('searches', '.1f')}" if "f1" in after else "")
          + f"), {result['steps']} updates, {result['seconds']:.0f} s, "
          f"peak {result['peak_bytes'] / 2**30:.2f} GiB.")


# ------------------------------------------------------------------------------- several runs
# Student's t, two-sided 95%, for 1, 2, ... degrees of freedom; from eleven on rounded up
T95 = [12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23] + 9 * [2.20] + [2.09]


def interval(values):
    """(mean, half the width of its 95% interval) over seeds; NaN for the width of one value."""
    df = len(values) - 1
    half = T95[min(df, len(T95)) - 1] * stdev(values) / math.sqrt(df + 1) if df else math.nan
    return mean(values), half


def write_whole(path, text):
    """Write a file that is either there and complete, or not there."""
    Path(f"{path}.part").write_text(text, encoding="utf-8")
    os.replace(f"{path}.part", path)


def run_apart(argv, threads):
    """One run in a process of its own, its words in log.txt. Returns what result.json holds."""
    args = knobs(argv)
    if threads:
        torch.set_num_threads(threads)
    Path(args.out).mkdir(parents=True, exist_ok=True)
    with open(Path(args.out) / "log.txt", "w", encoding="utf-8") as log:
        with redirect_stdout(log), redirect_stderr(log):
            return run(args)


def finished(argv):
    """What the result.json of an earlier, equal run holds; None where it is still to be run."""
    args = vars(knobs(argv))
    try:
        result = json.loads((Path(args["out"]) / "result.json").read_text())
    except FileNotFoundError:  # never begun, or interrupted
        shutil.rmtree(args["out"], ignore_errors=True)
        return None
    aside = ("out", "methods", "seeds", "jobs")
    changed = [k for k in args if k not in aside and args[k] != result["asked"].get(k)]
    if changed:
        raise UserError(f"--out: {args['out']} holds a run with another "
                        f"--{changed[0].replace('_', '-')}; give a new folder")
    return result


def compare(args):
    """Every method with every seed, a few side by side; what is finished is not run again."""
    out = Path(args.out or "runs/compare" + ("-one-shot" if args.one_shot else ""))
    methods = COMPARED if args.methods is None else args.methods
    names = [" ".join(name.split()) for name in methods.split(",") if name.strip()]
    try:
        flags = {name: shlex.split(name) for name in names}
    except ValueError:  # a quote that is never closed
        flags = {}
    if not flags:
        raise UserError(f"--methods {methods!r}: give methods with commas between them, like "
                        "'ovd, ovd --theta 3, grpo'")
    todo = {(name, seed): [*sys.argv[1:], "--method", *flags[name], "--seed", str(seed),
                           "--out", str(out / f"{re.sub('[^a-z0-9.-]+', '_', name)}-{seed}")]
            for seed in range(args.seeds) for name in names}
    if len({argv[-1] for argv in todo.values()}) < len(todo):
        raise UserError(f"--methods {methods!r}: two would write to one folder; drop what is "
                        "there twice, or rename what they load")
    for argv in todo.values():  # a slip in a flag shows now and not in an hour
        check(knobs(argv))
    done = {key: finished(argv) for key, argv in todo.items()}
    on_gpu = pick_device() == "cuda"
    jobs = args.jobs or (1 if on_gpu else os.cpu_count())
    threads = None if on_gpu else max(1, os.cpu_count() // jobs)
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        left = {pool.submit(run_apart, todo[key], threads): key for key in todo if not done[key]}
        try:
            for future in tqdm(as_completed(left), total=len(left), desc="comparing", unit="run"):
                done[left[future]] = future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            print(f"\nwhat is finished is kept in {out}; the same command goes on from there")
            raise
    write_table(out, names, args.seeds, done)


# A comparison's columns beyond the gain: where there is such a figure, its heading and its form.
COLUMNS = {"greedy": ("greedy", "{:.1f}"), "pass_at_8": ("pass@8", "{:.1f}"),
           "entropy": ("entropy", "{:.2f}"), "tied_groups": ("tied", "{:.1f}"),
           "f1": ("F1", "{:.2f}"), "searches": ("searches", "{:.1f}"),
           "two_searches": ("twice", "{:.0%}"), "supported": ("supported", "{:.0%}"),
           "seconds": ("s", "{:.0f}"), "student_sampled": ("sampled", "{:.1f}k"),
           "teacher_read": ("read", "{:.1f}k"), "teacher_written": ("written", "{:.1f}k")}


def write_table(out, names, seeds, done):
    """compare.csv, a row a run, and compare.md, a row a method. Prints the second."""
    figures = {(name, seed): {
        "before": 100 * r["before"]["pass_at_1"], "after": 100 * r["after"]["pass_at_1"],
        "gain": 100 * (r["after"]["pass_at_1"] - r["before"]["pass_at_1"]),
        **{c: x for c, x in r["after"].items() if c in COLUMNS},
        "greedy": 100 * r["after"]["greedy"], "pass_at_8": 100 * r["after"]["pass_at_8"],
        "tied_groups": r["tied_groups"], "seconds": r["seconds"], **r["budget"]}
        for (name, seed), r in done.items()}
    with open(out / "compare.csv", "w", newline="") as f:
        rows = csv.writer(f)
        rows.writerow(["method", "seed", *figures[names[0], 0]])
        rows.writerows([name, seed, *(f"{v:.6g}" for v in row.values())]
                       for (name, seed), row in figures.items())
    columns = {c: how for c, how in COLUMNS.items() if c in figures[names[0], 0]}
    lines = [" | ".join(["| method", "before", "after", "gain", f"{names[0]} beyond it",
                         *(head for head, _ in columns.values())]) + " |"]
    lines.append("|" + " --- |" * lines[0].count(" | ") + " --- |")
    for name in names:
        column = lambda c: [figures[name, seed][c] for seed in range(seeds)]  # noqa: E731
        ahead = [figures[names[0], seed]["gain"] - gain for seed, gain in enumerate(column("gain"))]
        plus = ["{:+.1f} ± {:.1f}".format(*interval(v)) for v in (column("gain"), ahead)]
        cells = [f"| `{name}`", f"{mean(column('before')):.1f}", f"{mean(column('after')):.1f}",
                 plus[0], plus[1] if name != names[0] else "–"]
        cells += [form.format(mean(column(c)) / (1000 if form.endswith("k") else 1))
                  for c, (_, form) in columns.items()]
        lines.append(" | ".join(cells) + " |")
    write_whole(out / "compare.md", "\n".join(lines) + "\n")
    gains = {name: interval([figures[name, seed]["gain"] for seed in range(seeds)])
             for name in names}
    best = max(names, key=lambda name: gains[name][0])
    print("\n".join(lines) + f"\n\n{len(done)} runs of {len(names)} methods with {seeds} seeds, in "
          f"{out}: {best} gained most, {gains[best][0]:+.1f} ± {gains[best][1]:.1f} points.")


# ------------------------------------------------------------------------------- memory
# What --plan knows without a network. Layers, width, MLP, queries, keys, vocabulary (rows of the
# head), whether head and embeddings are one matrix, and how many tokens the tokenizer has.
SHAPES = {
    "Qwen/Qwen3-0.6B": (28, 1024, 3072, 2048, 1024, 151936, True, 151669),
    "Qwen/Qwen3-1.7B": (28, 2048, 6144, 2048, 1024, 151936, True, 151669),
    "Qwen/Qwen3-4B": (36, 2560, 9728, 4096, 1024, 151936, True, 151669),
    "Qwen/Qwen3-4B-Instruct-2507": (36, 2560, 9728, 4096, 1024, 151936, True, 151669),
    "Qwen/Qwen3-8B": (36, 4096, 12288, 4096, 1024, 151936, False, 151669),
    "Qwen/Qwen2.5-0.5B-Instruct": (24, 896, 4864, 896, 128, 151936, True, 151665),
    "Qwen/Qwen2.5-1.5B-Instruct": (28, 1536, 8960, 1536, 256, 151936, True, 151665),
    "Qwen/Qwen2.5-3B-Instruct": (36, 2048, 11008, 2048, 256, 151936, True, 151665),
    "Qwen/Qwen2.5-7B-Instruct": (28, 3584, 18944, 3584, 512, 152064, False, 151665),
    "Qwen/QwQ-32B": (64, 5120, 27648, 5120, 1024, 152064, False, 151669),
    "meta-llama/Llama-3.2-1B-Instruct": (16, 2048, 8192, 2048, 512, 128256, True, 128256),
    "meta-llama/Llama-3.2-3B-Instruct": (28, 3072, 8192, 3072, 1024, 128256, True, 128256),
}


def compare_memory(args):
    """--compare-memory: three short runs alike in all but the method, and their peaks by phase."""
    phases = ["loading", "sampling", "scoring", "teacher forward", "update"]
    print(f"peak memory by phase, GiB\n{'':18}" + "".join(f"{p:>17}" for p in phases))
    rows = []
    for name, flags in {"ovd": ["--method", "ovd"], "logits, chunked": ["--method", "logits"],
                        "logits, dense": ["--method", "logits", "--chunk", "0"]}.items():
        mine = [x for x in sys.argv[1:] if not x.startswith("--compare")]
        with tempfile.TemporaryDirectory() as out:
            done = subprocess.run([sys.executable, __file__, "--steps", "3", "--eval-problems", "1",
                                   *mine, *flags, "--out", out], capture_output=True, text=True)
            result = {} if done.returncode else json.loads((Path(out) / "result.json").read_text())
        peaks = result.get("peak_by_phase")
        rows.append({"method": name, "peak_by_phase": peaks, "seconds": result.get("seconds")})
        if peaks:
            print(f"{name:18}" + "".join(f"{peaks[p] / 2**30:17.3f}" if p in peaks else f"{'-':>17}"
                                         for p in phases))
        else:
            why = (done.stderr.strip().splitlines() or ["killed, out of memory?"])[-1]
            print(f"{name:18}  does not run: {why}")
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1))
    top = {r["method"]: max(r["peak_by_phase"].values()) / 2**30 for r in rows
           if r["peak_by_phase"]}
    print("\nhighest of all phases: " + ", ".join(f"{k} {v:.2f} GiB" for k, v in top.items()) + ".")


def shape_of(name, flag):
    """Namespace of a model's sizes, from SHAPES or from its config alone. UserError: neither."""
    try:
        if (adapter := Path(name) / "adapter_config.json").exists():
            name = json.loads(adapter.read_text())["base_model_name_or_path"]
        sizes = SHAPES.get(name)
        if not sizes:
            c = AutoConfig.from_pretrained(name).get_text_config()
            width = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
            sizes = (c.num_hidden_layers, c.hidden_size, c.intermediate_size,
                     width * c.num_attention_heads, width * c.num_key_value_heads, c.vocab_size,
                     c.tie_word_embeddings, len(AutoTokenizer.from_pretrained(name)))
    except Exception as e:  # as many kinds as in load_model
        raise UserError(f"{flag} {name}: no sizes to plan with ({shorten(str(e), 120)}); "
                        "give a folder, a hub name, or one of " + ", ".join(SHAPES))
    return argparse.Namespace(**dict(zip("L H I Q K V tied known".split(), sizes)))


def settle(args, device):
    """(args with every open knob filled in as load_pair would, student's sizes, teacher's)."""
    args = argparse.Namespace(**vars(args))
    tiny = TINY_PAIRS[args.task]
    pair = HUB_PAIR if device == "cuda" else tiny
    s = shape_of(args.student or pair["student"], "--student")
    if args.student:
        pair = tiny if s.L * s.H * (2 * s.Q + 3 * s.I) < 50e6 > s.V * s.H else HUB_PAIR
    vars(args).update((k, v) for k, v in pair.items() if getattr(args, k) is None)
    if args.teacher == "self" or is_server(args.teacher):  # no weights, no vocabulary of its own
        return args, s, argparse.Namespace(**{**vars(s), "L": 0, "tied": 2, "known": 0})
    return args, s, shape_of(args.teacher, "--teacher")


def predict(args, s, t, device):
    """Bytes: ({part: held throughout}, {method: (sampling, teacher, activations, loss)} on top).

    s, t: sizes of student and teacher. Counted from what torch keeps for one token in one layer,
    every trajectory taken to run to --max-new-tokens.
    """
    d = 4 if device == "cpu" and args.bits == 4 else 2  # bytes of a number when computing
    turns = 1 + args.turns if args.task == "search" else 1
    stream = task_stream(args.task, 0, args.difficulty)
    words = mean(len(messages(p)[0]["content"].split()) for p in islice(stream, 9))
    words += (turns - 1) * (300 if args.corpus else 25)  # what the environment says
    prompt, new, rows = 2 * words, turns * args.max_new_tokens, args.micro_batch  # 2 tokens a word
    linear = sum(m.L * m.H * (2 * m.Q + 2 * m.K + 3 * m.I) for m in (s, t))
    lora = 8 * s.L * (7 * s.H + 2 * s.Q + 2 * s.K + 3 * s.I)  # r = 8 of in + out, seven matrices
    four = args.bits == 4  # and their scales: 8 bits for 64 weights, 32 for 256 of those
    held = {f"{args.bits}-bit weights": (0.516 if four else d) * linear,
            "embeddings and heads": d * sum(m.V * m.H * (2 - m.tied) for m in (s, t)),
            "adapters": 4 * lora, "gradients and AdamW": 12 * lora}

    def passing(m, tokens, lora=0):
        """The MLP's tensors, the residual's, and a layer unpacked."""
        return tokens * d * ((3 + lora) * m.I + 2 * m.H) + four * d * m.H * m.I

    def cache(m, b):
        """Grown by copying, and on a CPU what the old copies held is not given back."""
        return (4 if device == "cpu" else 2) * b * (prompt + new) * m.L * m.K * d
    sampling = cache(s, args.batch) + max(passing(s, args.batch * prompt, 1),
                                          args.batch * s.V * (d + 12))
    b = min(16, args.batch, args.samples * args.problems)
    scoring = max(cache(t, min(args.batch, args.problems)), passing(t, b * (prompt + 2 * new + 60)))
    M, n = rows * new, rows * (prompt + new)  # of a micro-batch: trained tokens, all tokens
    # two norms (float32 in, d out), queries, keys, values, attention's output, four of the MLP's
    kept = 2 * (4 + d) * s.H + d * (2 * s.Q + 2 * (s.K if rows == 1 else s.Q)) + 4 * d * s.I
    activations = n * kept * (1 if args.checkpointing else s.L) + passing(s, n, 1)
    activations += n * s.H * d * (s.L if args.checkpointing else 1)
    c, states = min(args.chunk or M, M), 3 * M * s.H * d
    theirs, teacher = M * t.H * d, passing(t, n)
    V = min(s.V, t.V)
    return held, {
        "ovd": (sampling, scoring, activations, states + 12 * c * V),
        "logits, sampled token": (sampling, teacher, activations, states + theirs + 12 * c * V),
        "logits, chunked": (sampling, teacher, activations, states + theirs + 20 * c * V),
        "logits, top 64": (sampling, teacher, activations, states + theirs + 12 * M * V + 768 * M),
        "logits, dense": (sampling, teacher, activations, states + theirs + 20 * M * V)}


def peak_of(predicted, method, own=0):
    """The peak of one method: what is held throughout, and the largest of its phases."""
    held, (sampling, teacher, activations, loss) = predicted[0], predicted[1][method]
    # ovd's teacher reads before the update, that of logit matching during it
    update = activations + (loss if method == "ovd" else max(teacher, loss))
    return own + sum(held.values()) + max(sampling, teacher, update)


def advice(args, s, t, device, own, method, size):
    """"fits" in `size` bytes, or the knobs that make it, mildest first, or None if none do."""
    steps = [("batch", 16), ("batch", 8), ("micro_batch", 8), ("micro_batch", 1), ("chunk", 64),
             ("batch", 4), ("checkpointing", True), ("batch", 1), ("max_new_tokens", 256),
             ("max_new_tokens", 128), ("max_new_tokens", 64)]
    said, peak = {}, peak_of(predict(args, s, t, device), method, own)
    while peak > size:
        for knob, value in steps:
            trial = argparse.Namespace(**{**vars(args), knob: value})
            lower = peak_of(predict(trial, s, t, device), method, own)
            if lower < peak:  # the mildest that helps, and then again from the mildest
                args, peak, said[knob] = trial, lower, "" if value is True else f" {value}"
                break
        else:
            return None
    return " ".join(f"--{k.replace('_', '-')}{v}" for k, v in said.items()) or "fits"


def own_bytes(device):
    """What is there before any model: CUDA's context, or the interpreter and libraries."""
    if device == "cuda":
        return 6e8  # assumed, not measured; the allocator's figures leave it out
    tiny = embedded("math", "student")  # 1.5 MB: all but nothing
    student, tokenizer, _ = load_student(tiny, 4, "cpu")
    sample_trajectories(student, tokenizer, [next(problem_stream(0))], 1.0, 2)
    return reset_peak("cpu")


def show_plan(args):
    """--plan: the predicted peak of each method by part, and what it fits."""
    quiet()
    device, GB = args.plan, 1e9
    args, s, t = settle(args, device)
    own, predicted = own_bytes(device), predict(args, s, t, device)
    first = "CUDA's context, assumed" if device == "cuda" else "interpreter, libraries"
    print(f"predicted for {args.student} taught by {args.teacher} on {device}:\n--batch "
          f"{args.batch} --micro-batch {args.micro_batch} --chunk {args.chunk} --max-new-tokens "
          f"{args.max_new_tokens}\n")
    for part, size in {first: own, **predicted[0]}.items():
        print(f"  {part:24}{size / GB:8.3f} GB")
    heads = "sampling: KV cache", "teacher reads", "update: layers", "its loss", "PEAK, GB"
    print(f"\n{'':21}" + "".join(f"{h:>19}" for h in heads))
    rows = []
    for method, phases in predicted[1].items():
        top = peak_of(predicted, method, own)
        fits = {g: advice(args, s, t, device, own, method, g * GB) for g in (6, 8, 12, 16, 24)}
        if method != "ovd" and s.known != t.known:
            top, fits = None, "cannot be matched: the vocabularies differ"
            print(f"{method:21}  {fits}")
        else:
            print(f"{method:21}" + "".join(f"{x / GB:19.3f}" for x in (*phases, top)))
            for g, how in fits.items():
                print(f"    {g:2} GB: {how or 'no knob here makes it fit'}")
                if how == "fits":
                    break
        rows.append({"method": method, "held": {first: own, **predicted[0]}, "peak_bytes": top,
                     **dict(zip(("sampling", "teacher", "activations", "loss"), phases)),
                     "fits": fits})
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1))
    print(f"\novd: predicted peak {rows[0]['peak_bytes'] / GB:.2f} GB; no weights were loaded.")


def warn(args, device):
    """Say in one line, before anything is loaded, that the run will hardly fit."""
    try:
        args, s, t = settle(args, device)
        need = peak_of(predict(args, s, t, device), "ovd" if args.method != "logits" else
                       "logits, chunked" if args.chunk else "logits, dense")
    except UserError:
        return  # loading will say what is wrong
    if need > free_bytes(device):
        print(f"warning: this needs about {need / 1e9:.1f} GB and {free_bytes(device) / 1e9:.1f} "
              "GB are free; --plan says which knobs make it fit")


def main():
    """One run, or one of the things that --compare, --compare-memory and --plan say."""
    args = knobs()
    check(args)
    what = (show_plan if args.plan else compare_memory if args.compare_memory else
            compare if args.compare else run)
    what(args)


if __name__ == "__main__":
    fail_in_one_line(main)
