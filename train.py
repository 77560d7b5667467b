"""Train a student with On-policy Verbal Distillation: sample, score, update, log.

    python train.py --one-shot                   # ONE problem, tested on 500 never seen
    python train.py                              # fresh problems at every step
    python train.py --one-shot --method judge    # another method through the same loop
    python train.py --student Qwen/Qwen3-0.6B --teacher Qwen/Qwen3-4B-Instruct-2507

The pair of the last line is the default on a machine with a CUDA GPU; on any other it is the
embedded miniature in tiny/, which runs on any laptop. The methods:

    ovd      what the teacher rejects is replaced by its own trajectory; the outcome is the reward
    judge    the teacher's score is the reward, nothing is replaced
    grpo     the outcome is the reward, no teacher
    logits   token-level distillation, reverse KL to the teacher's whole distribution at each token

A run leaves in --out: metrics.csv, a row a step; samples.jsonl, every trajectory with its score;
adapter/, in PEFT's format; and result.json, before and after with all settings and versions.
"""
import time

BEGAN = time.time()  # the imports below take seconds that count

import argparse
import csv
import json
import math
import random
import subprocess
import sys
import tempfile
from dataclasses import replace
from importlib.metadata import version
from itertools import islice, repeat
from pathlib import Path
from statistics import mean

import torch
from tqdm import tqdm

from ovd import (accept, free_bytes, group_advantages, peak_bytes, reset_peak, reverse_kl,
                 tied_groups, token_logprobs, trajectory_loss)
from sample import (TINY, as_data, left_pad, load_model, load_student, pick_device, quiet,
                    sample_trajectories, save_adapter, without_lora)
from score import score_trajectories, write_solutions
from tasks import (DIFFICULTY, JSONL, UserError, fail_in_one_line, is_correct, problem_stream,
                   read_problems)

# The two default pairs. Names apart, they differ in nothing but these numbers.
TINY_PAIR = dict(student=str(TINY / "student"), teacher=str(TINY / "teacher"), difficulty=1,
                 lr=3e-4, max_new_tokens=64, batch=256, micro_batch=32, chunk=1024)
HUB_PAIR = dict(student="Qwen/Qwen3-0.6B", teacher="Qwen/Qwen3-4B-Instruct-2507", difficulty=4,
                lr=5e-5, max_new_tokens=512, batch=32, micro_batch=1, chunk=128)

PEAKS = {}  # phase: the most memory held in it, see mark()


def knobs():
    """Every knob, a line each. [a | b]: defaults with the embedded | with the hub pair."""
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    a = p.add_argument
    a("--method", choices=["ovd", "judge", "grpo", "logits"], default="ovd", help="see above")
    a("--one-shot", action="store_true", help="ONE random problem is every prompt of the run")
    a("--student", help="folder, hub name, or the adapter/ of an earlier run [by machine]")
    a("--teacher", help="folder or hub name [by machine]")
    a("--bits", type=int, choices=[4, 16], default=4, help="4: NF4, both models; 16: as stored")
    a("--data", help=f"your own problems, JSONL of {JSONL}; a fifth is held out")
    a("--difficulty", type=int, choices=DIFFICULTY, help="of problems written here [1 | 4]")
    a("--seed", type=int, default=0, help="of the problems, the sampling, the adapters' start")
    a("--steps", type=int, help="updates [40 one-shot, else 60]")
    a("--problems", type=int, default=4, help="problems a step; one-shot: copies of the one")
    a("--samples", type=int, default=8, help="N, trajectories sampled for each problem")
    a("--theta", type=float, default=5.0, help="a trajectory is accepted where S(y) >= theta")
    a("--score", choices=["expected", "digit", "reply"], default="expected",
      help="S(y): mean over ten probabilities, likeliest digit, or the digit of a text reply")
    a("--baseline", choices=["none", "own", "mixed"], default="own",
      help="what ovd subtracts from the outcome: nothing; the mean of the student's own group "
           "before replacement; that of the mixed group (the literal reading; it fails, try it)")
    a("--temperature", type=float, default=1.0, help="of sampling and of the log-probabilities")
    a("--max-new-tokens", type=int, help="a trajectory is cut off here [64 | 512]")
    a("--lr", type=float, help="learning rate of AdamW on the adapters [3e-4 | 5e-5]")
    a("--kl", type=float, default=0.0, help="strength of the pull to the student's start")
    a("--batch", type=int, help="trajectories sampled side by side [256 | 32]")
    a("--micro-batch", type=int, help="trajectories a backward pass: memory, not the step [32 | 1]")
    a("--chunk", type=int, help="tokens a slice of vocabulary logits, 0: all at once [1024 | 128]")
    a("--eval-problems", type=int, default=500, help="unseen problems for the tests")
    a("--checkpointing", action="store_true",
      help="keep a layer's input alone, make the rest again going back: memory for time")
    a("--compare-memory", action="store_true",
      help="3 steps of ovd and of logits, chunked and dense: peak memory by phase, and no more")
    a("--plan", nargs="?", const=pick_device(), choices=["cpu", "cuda"],
      help="predict the peak memory from the shapes alone, here or for that device, and no more")
    a("--json", help="file for the rows of --plan or --compare-memory")
    a("--out", help="folder for the results [runs/<time>]")
    return p.parse_args()


def check(args):
    """Refuse what makes no sense before anything is loaded. Returns the output folder."""
    group = args.samples * (args.problems if args.one_shot else 1)
    rules = [(k, getattr(args, k) is None or getattr(args, k) >= 1, "must be at least 1") for k in
             ("samples", "problems", "max_new_tokens", "batch", "micro_batch", "eval_problems")]
    rules += [("theta", 0 <= args.theta <= 9, "must lie between 0 and 9"),
              ("samples", group >= 2 or args.method == "logits",
               "makes a group of one, which has no mean to be compared with; use at least 2"),
              ("temperature", args.temperature > 0, "must be above 0"),
              ("lr", args.lr is None or 0 < args.lr < 1, "must lie between 0 and 1"),
              ("kl", args.kl >= 0, "must be at least 0"),
              ("steps", args.steps is None or args.steps >= 0, "must be at least 0"),
              ("chunk", args.chunk is None or args.chunk >= 0, "must be at least 0")]
    for knob, holds, rule in rules:
        if not holds:
            raise UserError(f"--{knob.replace('_', '-')} {getattr(args, knob)} {rule}")
    out = Path(args.out or time.strftime("runs/%Y%m%d-%H%M%S"))
    if (out / "metrics.csv").exists():
        raise UserError(f"--out {out} holds another run; give a new folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"--out {out}: no folder can be made there ({type(e).__name__})")
    return out


# ------------------------------------------------------------------------------- what is trained
def load_pair(args, device):
    """(student, tokenizer, base's name, teacher, tokenizer). Says what runs, where and why."""
    pair = HUB_PAIR if device == "cuda" else TINY_PAIR
    where = torch.cuda.get_device_name() if device == "cuda" else "the CPU, no CUDA GPU was found"
    print(f"student {args.student or pair['student']}, {args.bits}-bit, on {where}")
    try:
        student, tokenizer, base = load_student(args.student or pair["student"], args.bits, device)
        if student.num_parameters() < 50e6:  # the knobs and the default teacher go by its size
            pair = TINY_PAIR
        elif args.student:
            pair = HUB_PAIR
        name, teacher, teacher_tok = args.teacher or pair["teacher"], None, None
        if args.method != "grpo":  # which needs none
            print(f"teacher {name}, {args.bits}-bit")
            teacher, teacher_tok = load_model(name, args.bits, device, "--teacher")
    except UserError as e:
        if args.student or args.teacher or pair is TINY_PAIR:
            raise
        print(f"the default pair for a GPU cannot be had, so the embedded one is used; {e}")
        args.student, args.teacher = TINY_PAIR["student"], TINY_PAIR["teacher"]
        return load_pair(args, device)
    args.student, args.teacher = args.student or pair["student"], name
    for knob, value in {**pair, "steps": 40 if args.one_shot else 60}.items():
        if getattr(args, knob) is None:
            setattr(args, knob, value)
    return student, tokenizer, base, teacher, teacher_tok


def load_problems(args, rows):
    """(endless training problems, list of test problems). One-shot: the same one for ever.

    rows: the problems of --data, a fifth of which is held out; without them they are written here.
    """
    if rows:
        random.Random(0).shuffle(rows)  # whatever the seed, the same fifth is held out
        cut = max(1, len(rows) // 5)
        test, rng = rows[:cut][:args.eval_problems], random.Random(args.seed)
        stream = iter(lambda: rng.choice(rows[cut:]), None)
    else:
        stream = problem_stream(args.seed, args.difficulty)
        test = islice(problem_stream(0, args.difficulty, held_out=True), args.eval_problems)
    return repeat(next(stream)) if args.one_shot else stream, list(test)


def evaluate(student, tokenizer, test, args):
    """Shares of `test` right when sampled once at T = 1 and when greedy; and the greedy ones."""
    torch.manual_seed(args.seed)
    sampled, greedy = (sample_trajectories(student, tokenizer, test, temperature,
                                           args.max_new_tokens, args.batch)
                       for temperature in (1.0, 0.0))
    mark("testing")
    return {"pass_at_1": mean(t.reward for t in sampled),
            "greedy": mean(t.reward for t in greedy), "n": len(test)}, greedy


# ------------------------------------------------------------------------------- memory
def mark(phase):
    """The most memory held since the last mark was held by `phase`: noted in PEAKS, in bytes.

    On a CPU it is the whole process; where the peak cannot be reset (not Linux), the peak so far.
    """
    device = pick_device()
    PEAKS[phase] = max(PEAKS.get(phase, 0), peak_bytes(device))
    reset_peak(device)


def compare_memory(args):
    """--compare-memory: three short runs alike in all but the method, and their peaks by phase."""
    phases = ["loading", "sampling", "scoring", "teacher forward", "update"]
    print(f"peak memory by phase, GiB\n{'':18}" + "".join(f"{p:>17}" for p in phases))
    rows = []
    for name, flags in {"ovd": ["--method", "ovd"], "logits, chunked": ["--method", "logits"],
                        "logits, dense": ["--method", "logits", "--chunk", "0"]}.items():
        mine = [x for x in sys.argv[1:] if not x.startswith("--co")]
        with tempfile.TemporaryDirectory() as out:
            done = subprocess.run([sys.executable, __file__, "--steps", "3", "--eval-problems", "1",
                                   *mine, *flags, "--out", out], capture_output=True, text=True)
            if done.returncode:
                why = (done.stderr.strip().splitlines() or ["killed, out of memory?"])[-1]
                print(f"{name:18}  does not run: {why}")
                rows.append({"method": name, "peak_by_phase": None})
                continue
            result = json.loads((Path(out) / "result.json").read_text())
        peaks = result["peak_by_phase"]
        rows.append({"method": name, "peak_by_phase": peaks, "seconds": result["seconds"]})
        print(f"{name:18}" + "".join(f"{peaks[p] / 2**30:17.3f}" if p in peaks else f"{'-':>17}"
                                     for p in phases))
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1))
    top = {r["method"]: max(r["peak_by_phase"].values()) / 2**30 for r in rows
           if r["peak_by_phase"]}
    print("\nhighest of all phases: " + ", ".join(f"{k} {v:.2f} GiB" for k, v in top.items()) + ".")


# ------------------------------------------------------------------------------- a step
def mixed_group(own, solutions, theta, tokenizer):
    """Verbal rejection sampling: where the teacher rejects, what it wrote itself, in our tokens.

    It is rewarded like any trajectory: where the teacher's own answer is wrong, R = 0 and the
    update leads away from it.
    """
    def by_teacher(t, solution):
        ids = tokenizer.encode(as_data(solution.text, tokenizer), add_special_tokens=False)
        if solution.stopped:
            ids.append(tokenizer.eos_token_id)  # to stop is learned like any token
        correct = solution.stopped and is_correct(solution.text, t.problem)
        return replace(t, ids=ids, logprobs=[math.nan] * len(ids), sampled=[1] * len(ids),
                       text=solution.text, stopped=solution.stopped, reward=float(correct))
    return [t if t.score is None or accept(t.score, theta) else by_teacher(t, s)
            for t, s in zip(own, solutions)]


def advantages_of(method, own, mixed, groups, baseline):
    """(groups, N) advantages of the trajectories trained on: what sets the methods apart."""
    def table(values):  # (groups, N); None, where the teacher gave no score, as NaN: takes no part
        return torch.tensor([math.nan if v is None else v for v in values]).view(groups, -1)

    outcome = table(t.reward for t in own)
    if method == "ovd":
        rewards = table(None if t.score is None else t.reward for t in mixed)
        return group_advantages(rewards, {"own": outcome, "mixed": rewards,
                                          "none": torch.zeros_like(rewards)}[baseline])
    if method == "judge":
        return group_advantages(table(None if t.score is None else t.score / 9 for t in own))
    return group_advantages(outcome)


def trained_positions(model, trajectories, pad):
    """hidden (M, H), targets (M,), row (M,): of the M trained tokens, the state that predicts each.

    The decoder alone is run; the vocabulary's logits are made later, a chunk of the M at a time.
    """
    rows = [t.prompt_ids + t.ids for t in trajectories]
    ids, seen, positions = left_pad(rows, pad, model.device)  # (B, T) each
    trained = torch.tensor([[0] * (ids.shape[1] - len(t.sampled)) + t.sampled
                            for t in trajectories], device=model.device).bool()  # (B, T)
    hidden = model.get_decoder()(input_ids=ids, attention_mask=seen, position_ids=positions,
                                 use_cache=False).last_hidden_state  # (B, T, H)
    trained = trained[:, 1:]  # the token at t is predicted from the state at t - 1
    return hidden[:, :-1][trained], ids[:, 1:][trained], trained.nonzero()[:, 0]


def update(student, teacher, optimiser, batch, advantages, args, pad):
    """One gradient step on the whole batch of trajectories, advantages (B,). Returns its figures.

    A micro-batch adds the gradient of its *summed* loss; the division by the whole batch's token
    count comes once, at the end. So its size cannot change the step, and no float16 gradient
    vanishes on the way.
    """
    parameters = [p for p in student.parameters() if p.requires_grad]
    tokens, head = sum(sum(t.sampled) for t in batch), student.get_output_embeddings().weight
    loss_sum, gaps = 0.0, []
    optimiser.zero_grad()
    if args.checkpointing:  # in train mode only; sampling needs the cache it does without
        student.gradient_checkpointing_enable({"use_reentrant": False})
        student.train()
    for i in range(0, len(batch), args.micro_batch):
        part = batch[i:i + args.micro_batch]
        hidden, targets, row = trained_positions(student, part, pad)  # (M, H), (M,), (M,)
        if args.method == "logits":
            mark("update")
            with torch.no_grad():
                theirs, _, _ = trained_positions(teacher, part, pad)  # (M, H_T)
            mark("teacher forward")
            their_head = teacher.get_output_embeddings().weight  # (V_T, H_T)
            v = min(len(head), len(their_head))  # one vocabulary may be padded to two lengths
            loss = reverse_kl(hidden, head[:v], theirs, their_head[:v], args.temperature,
                              args.chunk).sum()
        else:
            start = None
            if args.kl:
                with torch.no_grad(), without_lora(student):
                    start = token_logprobs(trained_positions(student, part, pad)[0], head, targets,
                                           args.temperature, args.chunk)  # (M,)
            logprobs = token_logprobs(hidden, head, targets, args.temperature, args.chunk)  # (M,)
            each = advantages[i:i + len(part)].to(row.device)[row]  # (M,) its trajectory's
            loss = trajectory_loss(logprobs, each, start, args.kl)
            when_sampled = [lp for t in part for lp, s in zip(t.logprobs, t.sampled) if s]
            gaps.append((logprobs.detach().cpu() - torch.tensor(when_sampled)).abs())
        loss.backward()
        loss_sum += loss.item()
    student.eval()
    for p in parameters:
        p.grad /= tokens
    norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0).item()
    if not math.isfinite(norm):
        raise UserError(f"--lr {args.lr}: the gradient is no longer finite; lower it")
    optimiser.step()
    return {"loss": loss_sum / tokens, "grad_norm": norm, "tokens": tokens,
            "logprob_gap": torch.cat(gaps).nanmean().item() if gaps else 0.0}


# ------------------------------------------------------------------------------- the run
def log_step(out, row, own, used, advantages):
    """Append a row to metrics.csv and a line for each trajectory to samples.jsonl."""
    with open(out / "metrics.csv", "a", newline="") as f:
        if row["step"] == 1:
            csv.writer(f).writerow(row)
        csv.writer(f).writerow(f"{v:.6g}" for v in row.values())
    with open(out / "samples.jsonl", "a", encoding="utf-8") as f:
        for t, u, a in zip(own, used, advantages.flatten().tolist()):
            line = {"step": row["step"], "question": t.problem.question, "answer": t.problem.answer,
                    "text": t.text, "reward": t.reward, "probs": t.probs, "score": t.score,
                    "replaced_by": None if u is t else u.text, "advantage": a}
            f.write(json.dumps(line) + "\n")


def train(student, tokenizer, teacher, teacher_tok, stream, args, out):
    """The loop. Returns (groups that tied, groups)."""
    groups = 1 if args.one_shot else args.problems  # copies of one problem make one large group
    n = args.problems * args.samples // groups
    parameters = [p for p in student.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=args.lr, weight_decay=0.0)
    worked, tied = {}, 0
    for step in (bar := tqdm(range(1, args.steps + 1), desc="training", unit="step")):
        began = time.time()
        # sample: n whole trajectories for each problem, from the student as it is now
        problems = [p for p in islice(stream, groups) for _ in range(n)]
        own = used = sample_trajectories(student, tokenizer, problems, args.temperature,
                                         args.max_new_tokens, args.batch)
        mark("sampling")
        # score: the teacher works a problem out once, then reads each trajectory and says a digit
        scores = []
        if args.method in ("ovd", "judge"):
            solutions = write_solutions(teacher, teacher_tok, problems, worked,
                                        args.max_new_tokens, args.batch)
            score_trajectories(teacher, teacher_tok, own, solutions, args.score)
            scores = [t.score for t in own if t.score is not None]
            mark("scoring")
        if args.method == "ovd":
            used = mixed_group(own, solutions, args.theta, tokenizer)
        # update: one gradient step, each token weighted by its trajectory's advantage
        advantages = advantages_of(args.method, own, used, groups, args.baseline)  # (groups, n)
        figures = update(student, teacher, optimiser, used, advantages.flatten(), args,
                         tokenizer.pad_token_id)
        mark("update")
        # log
        row = {"step": step, "reward": mean(t.reward for t in own),
               "score": mean(scores or [math.nan]), "scored": len(scores) / len(own),
               "replaced": mean(t is not u for t, u in zip(own, used)),
               "tied_groups": tied_groups(advantages), "cut_off": mean(not t.stopped for t in own),
               **figures, "seconds": time.time() - began}
        log_step(out, row, own, used, advantages)
        bar.set_postfix({k: f"{row[k]:.2f}" for k in ("reward", "score", "replaced")})
        tied += row["tied_groups"]
        if figures["logprob_gap"] > 0.2:
            raise UserError(f"--student {args.student}: a token's log-probability when trained is "
                            f"{figures['logprob_gap']:.2f} off that when sampled; its head is more "
                            "than a matrix product, so use a Qwen- or Llama-like model")
    return tied, args.steps * groups


def main():
    """Test, train, test again, and say what happened."""
    args = knobs()
    if args.compare_memory:
        return compare_memory(args)
    out = check(args)
    quiet()
    device = pick_device()
    torch.manual_seed(args.seed)
    rows = read_problems(args.data) if args.data else None
    if rows and len(rows) < 2:
        raise UserError(f"--data {args.data}: one problem is too few, one trains and one tests")
    student, tokenizer, base, teacher, teacher_tok = load_pair(args, device)
    if args.method == "logits" and tokenizer.get_vocab() != teacher_tok.get_vocab():
        raise UserError("--method logits: student and teacher have different vocabularies, so "
                        "there is nothing to match; use --method ovd, which needs text alone")
    mark("loading")
    stream, test = load_problems(args, rows)
    print(f"{args.method}{', one-shot' if args.one_shot else ''}: {args.steps} updates of "
          f"{args.problems * args.samples} trajectories, tested on {len(test)} unseen problems; "
          f"results in {out}\n")
    try:
        before, old = evaluate(student, tokenizer, test, args)
        print(f"before: {before['pass_at_1']:.1%} right sampled, {before['greedy']:.1%} greedy")
        tied, of = train(student, tokenizer, teacher, teacher_tok, stream, args, out)
        after, new = evaluate(student, tokenizer, test, args)
    except torch.cuda.OutOfMemoryError:
        raise UserError(f"out of GPU memory; try --batch {max(1, args.batch // 4)} --micro-batch 1 "
                        f"--chunk 64, then --samples {max(2, args.samples // 2)} or "
                        f"--max-new-tokens {max(16, args.max_new_tokens // 2)}")
    except KeyboardInterrupt:
        print(f"\nstopped; the adapter so far is in {out / 'adapter'}")
        sys.exit(130)
    finally:  # whatever happened, what was learned is kept
        save_adapter(student, out / "adapter", base)

    seconds, peak = time.time() - BEGAN, max(PEAKS.values())
    result = {"method": args.method, "task": "math", "seed": args.seed, "one_shot": args.one_shot,
              "steps": args.steps, "before": before, "after": after, "seconds": seconds,
              "peak_bytes": peak, "peak_by_phase": PEAKS, "tied_groups": tied, "device": device, "settings": vars(args),
              "versions": {p: version(p) for p in ("torch", "transformers", "bitsandbytes")}}
    (out / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    i = next((i for i, t in enumerate(old) if not t.reward), 0)
    print(f"\nan unseen problem it had wrong: {test[i].question} ({test[i].answer})\n"
          f"  before  {old[i].text}\n  after   {new[i].text}\n")
    gain = 100 * (after["pass_at_1"] - before["pass_at_1"])
    if args.method != "logits":
        print(f"{tied} of {of} groups tied (rewards all equal: nothing to compare, no gradient)")
    print(f"{args.method}{' from one problem' if args.one_shot else ''}: "
          f"{before['pass_at_1']:.1%} -> {after['pass_at_1']:.1%} of {len(test)} unseen problems "
          f"right when sampled ({gain:+.1f} points; greedy {before['greedy']:.1%} -> "
          f"{after['greedy']:.1%}), {args.steps} updates, {seconds:.0f} s, "
          f"peak {peak / 2**30:.2f} GiB.")


if __name__ == "__main__":
    fail_in_one_line(main)
