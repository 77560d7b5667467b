"""Train a student with On-policy Verbal Distillation: sample, score, reject and replace, update.

    python train.py --one-shot                   # ONE problem, tested on 500 never seen
    python train.py                              # fresh problems at every step
    python train.py --one-shot --method judge    # another method through the same loop
    python train.py --task search                # a student that asks a search engine
    python train.py --student Qwen/Qwen3-0.6B --teacher Qwen/Qwen3-4B-Instruct-2507

The pair of the last line is the default on a machine with a CUDA GPU. On any other it is the
embedded miniature in tiny/, which runs on any laptop. The methods:

    ovd      what the teacher rejects is replaced by its own trajectory, where that earns more;
             the outcome is the reward
    judge    the teacher's score is the reward, nothing is replaced
    grpo     the outcome is the reward, no teacher
    format   reward for showing some work and then an answer, right or wrong; no teacher
    logits   token-level distillation, reverse KL to the teacher's whole distribution at each token
    sft      the teacher's own trajectories alone, nothing is sampled: off-policy

One run is an anecdote: python -m more.compare takes several methods through several seeds. In
[a | b] below, a is the default with the embedded pair and b that with the hub's on a GPU; without
one a real model gets CPU_PAIR. A run leaves metrics.csv, samples.jsonl, adapter/ and result.json
in --out, see more/record.py.
"""
import os
import time

BEGAN = time.time()  # the imports below take seconds that count
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # nothing is compiled; its compiler loads slowly

import math
import re
import sys
from dataclasses import replace
from itertools import islice, repeat
from statistics import mean

import torch
from tqdm import tqdm

from ovd import (accept, group_advantages, peak_bytes, reset_peak, reverse_kl, tied_groups,
                 token_logprobs, trajectory_loss)
from sample import (Trajectory, as_data, check_words, embedded, entropy, left_pad, load_student,
                    pick_device, prompt_ids, quiet, sample_trajectories, without_lora)
from score import auc, check_teacher_flags, is_server, load_teacher, scores_of, teacher_flags
from tasks import INFORMATION, UserError, fail_in_one_line, number, task_stream

METHODS = ("ovd", "judge", "grpo", "format", "logits", "sft")
PEAKS = {}  # phase: the most memory held in it, in bytes, see mark()


# ------------------------------------------------------------------------------- reject and replace
def is_rejected(t, theta):
    """a(y) = 0. A trajectory without a score was not judged, so it is not rejected either."""
    return t.score is not None and not accept(t.score, theta)


def append_teacher(t, text, stopped, tokenizer, mask=1):
    """Lengthen t by a text of the teacher's, in the student's tokens: no alignment is needed."""
    # Every other part is what an environment told the teacher: read, and never trained on.
    parts = re.split(rf"(\s*{INFORMATION.pattern}\s*)", as_data(text, tokenizer))
    for i, part in enumerate(parts):
        ids = tokenizer.encode(part, add_special_tokens=False)
        author, trained = ("environment", 0) if i % 2 else ("teacher", mask)
        t.append(ids, [0.0] * len(ids), author, trained)
    if stopped:  # to stop is learned like any token
        t.append([tokenizer.eos_token_id], [0.0], "teacher", mask)


def teacher_trajectory(solution, tokenizer):
    """y': the teacher's whole solution, as a trajectory of the student's.

    It is rewarded like any other. Where the teacher's own answer is wrong, R = 0 and the update
    leads away from it.
    """
    prompt = prompt_ids(tokenizer, solution.problem)
    t = Trajectory(solution.problem, prompt, stopped=solution.stopped, text=solution.text,
                   reward=solution.reward)
    append_teacher(t, solution.text, solution.stopped, tokenizer)
    return t


def replace_rejected(trajectories, solutions, teacher, tokenizer, args):
    """Verbal rejection sampling -> (for each y_j what takes its place or None, tokens read).

    solutions: the teacher's own, one a trajectory.
    """
    replacements, tokens = [None] * len(trajectories), 0
    rejected = [j for j, t in enumerate(trajectories) if is_rejected(t, args.theta)]
    if args.replace == "whole":  # version 1 of the paper
        written = [teacher_trajectory(solutions[j], tokenizer) for j in rejected]
    elif args.replace == "suffix":  # version 2: its good steps stay
        from more.suffix import replace_suffixes
        written, tokens = replace_suffixes([trajectories[j] for j in rejected],
                                           [solutions[j] for j in rejected], teacher, tokenizer,
                                           args.theta, args.suffix == "trained")
    else:
        written = []
    for j, t in zip(rejected, written):
        # The rule. A teacher may be wrong, and its judgement too. To put a wrong text where the
        # attempt was and then push away from it teaches nothing, and a right attempt that was
        # rejected by mistake would be lost. So a replacement must earn more than the attempt; else
        # the attempt stays, with its own reward. What was cut off is no lesson at all.
        if t.stopped and (args.literal or t.reward > trajectories[j].reward):
            replacements[j] = t
    return replacements, tokens


# ------------------------------------------------------------------------------- advantages
def reward_of(t, replacement, args):
    """R of a student's trajectory, None where it has no part in the update. Here methods differ."""
    if args.method == "judge":
        return None if t.score is None else t.score / 9
    if args.method == "format":
        return float(t.stopped and t.problem.is_well_formed(t.text))
    if args.method == "sft":
        return 1.0
    if args.method == "ovd":
        dropped = args.replace == "none" and is_rejected(t, args.theta)
        replaced = replacement is not None and args.baseline != "union"
        if t.score is None or dropped or replaced:
            return None
    return t.reward


def give_advantages(trajectories, replacements, groups, args):
    """Set A of all that the update trains on -> how many groups tied.

    Both lists hold `groups` groups of equal size, one after the other. What has no part in the
    update keeps an advantage of None.
    """
    n, tied = len(trajectories) // groups, 0
    for i in range(0, len(trajectories), n):
        # the mixed group: what is left of the student's own, and what was put in its place
        group = [(t, reward_of(t, new, args))
                 for t, new in zip(trajectories[i:i + n], replacements[i:i + n])]
        group += [(t, t.reward) for t in replacements[i:i + n] if t and any(t.mask)]
        group = [(t, reward) for t, reward in group if reward is not None]
        rewards = baseline = torch.tensor([reward for _, reward in group])  # (K,) R(y')
        if args.method == "sft" or args.method == "ovd" and args.baseline == "none":
            baseline = torch.zeros(1)
        elif args.method == "ovd" and args.baseline == "own":
            baseline = torch.tensor([t.reward for t in trajectories[i:i + n]])  # (n,) R(y)
        advantages = group_advantages(rewards, baseline)  # (K,)
        for (t, _), advantage in zip(group, advantages.tolist()):
            t.advantage = advantage
        tied += tied_groups(advantages[None])
    return tied


# ------------------------------------------------------------------------------- loss and update
def trained_positions(model, trajectories, pad):
    """hidden (M, H), targets (M,), row (M,): of the M trained tokens, the state that predicts each.

    The decoder alone is run. The vocabulary's logits are made later, a chunk of the M at a time.
    """
    rows = [t.prompt_ids + t.ids for t in trajectories]
    ids, seen, positions = left_pad(rows, pad, model.device)  # (B, T) each
    trained, _, _ = left_pad([[0] * len(t.prompt_ids) + t.mask for t in trajectories], 0,
                             model.device)  # (B, T), 1: trained on
    hidden = model.get_decoder()(input_ids=ids, attention_mask=seen, position_ids=positions,
                                 use_cache=False).last_hidden_state  # (B, T, H)
    trained = trained[:, 1:].bool()  # the token at t is predicted from the state at t - 1
    return hidden[:, :-1][trained], ids[:, 1:][trained], trained.nonzero()[:, 0]


def policy_loss(student, part, start, args, pad):
    """(OVD's loss, summed over the M trained tokens of `part`; log pi of each (M,)).

    start: log pi_start of the same tokens and of later ones, needed where --kl pulls to it.
    """
    hidden, targets, row = trained_positions(student, part, pad)  # (M, H), (M,), (M,)
    head = student.get_output_embeddings().weight  # (V, H)
    logprobs = token_logprobs(hidden, head, targets, args.temperature, args.chunk)  # (M,)
    advantages = torch.tensor([t.advantage for t in part], device=row.device)[row]  # (M,)
    start = start[:len(row)].to(row.device)  # (M,)
    return trajectory_loss(logprobs, advantages, start, args.kl), logprobs.detach().cpu()


def matching_loss(student, teacher, part, args, pad):
    """Logit matching, what OVD is compared with: (summed reverse KL, log pi of each token (M,))."""
    hidden, targets, _ = trained_positions(student, part, pad)  # (M, H), (M,)
    head = student.get_output_embeddings().weight  # (V, H)
    with torch.no_grad():
        logprobs = token_logprobs(hidden, head, targets, args.temperature, args.chunk)  # (M,)
        mark("update")
        teacher_hidden, _, _ = trained_positions(teacher.model, part, pad)  # (M, H_T)
        mark("teacher forward")
    teacher_head = teacher.model.get_output_embeddings().weight  # (V_T, H_T)
    v = min(len(head), len(teacher_head))  # one vocabulary may be padded to two lengths
    kl = reverse_kl(hidden, head[:v], teacher_hidden, teacher_head[:v], args.temperature,
                    args.chunk)  # (M,)
    return kl.sum(), logprobs.cpu()


@torch.no_grad()
def start_logprobs(student, trajectories, args, pad):
    """log pi_start of their trained tokens (M,): the student without its adapters."""
    rows = [torch.tensor([])]
    head = student.get_output_embeddings().weight  # (V, H)
    with without_lora(student):
        for i in range(0, len(trajectories), args.micro_batch):
            part = trajectories[i:i + args.micro_batch]
            hidden, targets, _ = trained_positions(student, part, pad)  # (m, H), (m,)
            rows.append(token_logprobs(hidden, head, targets, args.temperature, args.chunk).cpu())
    return torch.cat(rows)


def update(student, teacher, optimiser, batch, args, pad):
    """One gradient step on the whole batch of trajectories. Returns its figures.

    A micro-batch adds the gradient of its *summed* loss. The division by the whole batch's token
    count comes once, at the end, so the size of a micro-batch cannot change the step.
    """
    if not batch:  # all rejected and none replaced: nothing to learn from
        return dict.fromkeys(("loss", "grad_norm", "tokens", "kl", "logprob_gap"), 0.0)
    # log pi_start of what --kl pulls on; for the log alone, eight trajectories will do
    start = start_logprobs(student, batch if args.kl else batch[:8], args, pad)  # (M,)
    total, logprobs, done = 0.0, [], 0
    optimiser.zero_grad()
    if args.checkpointing:  # in train mode only: sampling needs the cache, which this forbids
        student.activation_checkpointing_enable({"use_reentrant": False})
        student.train()
    for i in range(0, len(batch), args.micro_batch):
        part = batch[i:i + args.micro_batch]
        if args.method == "logits":
            loss, part_logprobs = matching_loss(student, teacher, part, args, pad)
        else:
            loss, part_logprobs = policy_loss(student, part, start[done:], args, pad)
        loss.backward()
        total += loss.item()
        logprobs.append(part_logprobs)
        done += len(part_logprobs)
    student.eval()
    tokens = max(1, done)  # empty texts alone leave none
    parameters = [p for p in student.parameters() if p.requires_grad]
    for p in parameters:
        p.grad /= tokens
    norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0).item()
    if not math.isfinite(norm):
        raise UserError(f"--lr {args.lr}: the gradient is no longer finite; lower it")
    optimiser.step()
    return {"loss": total / tokens, "grad_norm": norm, "tokens": tokens,
            **drift(batch, torch.cat(logprobs), start, args)}


def drift(batch, logprobs, start, args):
    """Of the student's own tokens: how far log pi (M,) is from the start, and from its sampling."""
    tokens = [token for t in batch for token in zip(t.authors, t.logprobs, t.mask) if token[2]]
    sampled = torch.tensor([lp if author == "student" else math.nan for author, lp, _ in tokens])
    chosen = torch.where(sampled.isnan(), math.nan, logprobs)  # (M,) NaN: not the student's token
    gap = (chosen - sampled).abs().nanmean().item()
    if gap > 0.2:  # it should be rounding; else the update is not on-policy
        raise UserError(f"--student {args.student}: a token's log-probability when trained is "
                        f"{gap:.2f} off that when sampled; its head is more than a matrix product, "
                        "so use a Qwen- or Llama-like model")
    return {"kl": (chosen[:len(start)] - start).nanmean().item(), "logprob_gap": gap}


# ------------------------------------------------------------------------------- the loop
def train(student, tokenizer, teacher, stream, args, out):
    """The method. Returns the rows of metrics.csv."""
    from more import checkpoint, record  # what a run leaves in its folder, and how it goes on there
    groups = 1 if args.one_shot else args.problems  # copies of one problem make one large group
    n = args.problems * args.samples // groups
    prompts = list(islice(stream, args.steps * groups))
    optimiser = torch.optim.AdamW((p for p in student.parameters() if p.requires_grad), lr=args.lr,
                                  weight_decay=0.0)
    torch.manual_seed(args.seed)
    rows = checkpoint.load(out, student, optimiser, teacher, prompts, args)  # [] at the beginning
    if args.method in ("ovd", "judge", "sft"):
        solve_ahead(teacher, prompts, args)
    for step in (bar := tqdm(range(len(rows) + 1, args.steps + 1), desc="training", unit="step")):
        began = time.time()
        x = [p for p in prompts[(step - 1) * groups:step * groups] for _ in range(n)]

        # 1. Sample: y_j ~ pi(. | x), n whole trajectories for each prompt.
        if args.method == "sft":
            y = [teacher_trajectory(solution, tokenizer) for solution in teacher.solve(x)]
        else:
            y = sample_trajectories(student, tokenizer, x, args.temperature, args.max_new_tokens,
                                    args.batch)
        mark("sampling")

        # 2. and 3. Score: S(y_j). Reject and replace: y'_j.
        y_new, tokens_read = judge(y, teacher, tokenizer, args)
        mark("scoring")

        # 4. Update: A_j = R(y'_j) - mean_i R(y_i), and a step on L = -1/M sum_j A_j log pi(y'_j).
        tied = give_advantages(y, y_new, groups, args)
        batch = [t for t in y + y_new if t and t.advantage is not None]
        figures = update(student, teacher, optimiser, batch, args, tokenizer.pad_token_id)
        mark("update")

        rows.append({"step": step, **record.step_figures(y, y_new, batch, tied, args), **figures,
                     "teacher_read": tokens_read, "seconds": time.time() - began})
        record.log_step(out, rows[-1], y, y_new)
        if args.method in ("ovd", "judge") and rows[-1]["scored"] < 0.5:
            raise UserError(f"--teacher {args.teacher}: more than half of the trajectories got no "
                            f"score in step {step}; {teacher.why}")
        checkpoint.save(out, student, optimiser, teacher, rows, args)
        record.show_step(bar, rows)
    return rows


def solve_ahead(teacher, prompts, args):
    """Let the teacher work out the problems of all steps at once: a pass costs no more for many.

    In the loop it only looks them up.
    """
    solutions = teacher.solve(prompts)
    if args.one_shot and args.reward == "outcome" and solutions and not solutions[0].right:
        cut = "" if solutions[0].stopped else " (cut off, raise --max-new-tokens)"
        print("the teacher does not solve the one problem of this run, so it has nothing better to "
              f"put in the place of an attempt; it says{cut}: {solutions[0].text}")


def judge(y, teacher, tokenizer, args):
    """Score and reject -> (for each y_j what takes its place or None, tokens the teacher read)."""
    y_new, tokens = [None] * len(y), 0
    if args.method == "logits":  # its teacher reads along in update()
        tokens = sum(len(t.prompt_ids + t.ids) for t in y)
    if args.method in ("ovd", "judge"):
        # The teacher, who has worked the problem out, reads each y_j and says a digit.
        solutions = teacher.solve([t.problem for t in y])
        tokens = teacher.score(y, solutions)
        if args.reward == "verbal":  # nobody knows an answer: R is the teacher's own word for it
            distinct = list({id(s): s for s in solutions}.values())
            tokens += teacher.score(distinct, distinct)
            for t in y + distinct:
                t.reward = 0.0 if t.score is None else t.score / 9
        if args.theta == "auto":
            from more.judge import choose_theta
            args.theta = choose_theta(y)
    if args.method == "ovd":
        y_new, more = replace_rejected(y, solutions, teacher, tokenizer, args)
        tokens += more
    return y_new, tokens


def mark(phase):
    """Note in PEAKS that the most memory held since the last mark was held by `phase`.

    On a CPU it is the whole process. Off Linux it cannot be reset and is the peak so far.
    """
    device = pick_device()
    PEAKS[phase] = max(PEAKS.get(phase, 0), peak_bytes(device))
    reset_peak(device)


# ------------------------------------------------------------------------------- before and after
def evaluate(student, tokenizer, test, args):
    """How good it is on `test`: (figures, a trajectory each sampled at T = 1, a greedy one each).

    The figures: the shares that are right when sampled and when greedy, and the entropy.
    """
    torch.manual_seed(args.seed)
    # Both attempts at a problem side by side: its prompt is read once.
    both = sample_trajectories(student, tokenizer, [p for p in test for _ in range(2)],
                               [1.0, 0.0] * len(test), args.max_new_tokens, args.batch)
    sampled, greedy = both[::2], both[1::2]
    mark("testing")
    right, right_greedy = (mean(t.stopped and t.problem.is_right(t.text) for t in attempts)
                           for attempts in (sampled, greedy))
    figures = {"pass_at_1": right, "greedy": right_greedy, "n": len(test),
               "entropy": entropy(sampled)}
    if args.task == "search":
        from more.search import search_figures
        figures |= search_figures(sampled)
    return figures, sampled, greedy


def first_look(teacher, sampled):
    """One line on how good the teacher is, from attempts made before any training."""
    teacher.score(sampled, teacher.solve([t.problem for t in sampled]))
    teacher.written.clear()  # these are no part of what the run costs
    print(f"the teacher on {len(sampled)} of these attempts: AUC {auc(*scores_of(sampled)):.2f} "
          "(1: it knows right from wrong, 0.5: it guesses)")


# ------------------------------------------------------------------------------- the flags
# The default pairs. Names apart, they differ in nothing but these numbers.
TINY_PAIRS = {task: dict(
    student=embedded(task, "student"), teacher=embedded(task, "teacher"), difficulty=1, lr=5e-4,
    max_new_tokens=tokens, batch=256, micro_batch=32, chunk=0, eval_problems=500)
    for task, tokens in (("math", 64), ("search", 32))}
HUB_PAIR = dict(student="Qwen/Qwen3-0.6B", teacher="Qwen/Qwen3-4B-Instruct-2507", difficulty=4,
                lr=5e-5, max_new_tokens=512, batch=32, micro_batch=1, chunk=128, eval_problems=500)
# What a real model without a GPU was run with, see RESULTS.md: a step takes minutes.
CPU_PAIR = HUB_PAIR | dict(difficulty=1, lr=2e-4, max_new_tokens=160, micro_batch=2,
                           eval_problems=32)


def defaults_of(small, device, task):
    """The defaults of a pair. small: it is an embedded student, of 0.7 million weights."""
    return TINY_PAIRS[task] if small else HUB_PAIR if device == "cuda" else CPU_PAIR


def flags():
    """Every flag of a run: those of score.py and sample.py, and these. Their help is their rule."""
    parser = teacher_flags(__doc__)
    # What is None goes by the pair: --max-new-tokens [64, search 32 | 512], --difficulty [1 | 4].
    parser.set_defaults(problems=4, samples=8, difficulty=None, max_new_tokens=None)
    a, size = parser.add_argument, number(int, 1, 10**6)
    a("--method", choices=METHODS, default="ovd", help="see above [ovd]")
    a("--one-shot", action="store_true", help="ONE random problem is every prompt of the run")
    a("--steps", type=number(int, 0, 10**6), default=16, help="updates [16]")
    a("--theta", type=threshold, default=5.0, help="accepted where S(y) >= theta; auto: "
      "the cut that tells right from wrong best among the first attempts [5]")
    a("--literal", action="store_true", help="replace even by what earns no more than the attempt")
    a("--reward", choices=["outcome", "verbal"], default="outcome", help="R: is the answer right; "
      "or, where nobody knows, the teacher's own score / 9 [outcome]")
    a("--replace", choices=["none", "whole", "suffix"], default="whole", help="a rejected one by: "
      "nothing; the teacher's own; its good steps and the teacher's continuation [whole]")
    a("--suffix", choices=["trained", "read"], default="trained", help="is the latter trained on?")
    a("--baseline", choices=["none", "own", "mixed", "union"], default="own", help="subtracted "
      "from R: nothing; the mean of the student's own group before replacement; of the mixed group "
      "(it fails, try it); of both together, the rejected ones staying in [own]")
    a("--lr", type=number(float, 1e-12, 1), help="learning rate of AdamW [5e-4 | 5e-5]")
    a("--kl", type=number(float, 0, 1e6), default=0.0, help="pull to the untrained student [0]")
    a("--eval-problems", type=size, help="unseen ones, to test on [500]")
    a("--turns", type=number(int, 0, 1000), default=4, help="searches a trajectory may make [4]")
    # what the machine can hold
    a("--batch", type=size, help="trajectories sampled side by side [256 | 32]")
    a("--micro-batch", type=size, help="trajectories a backward pass: saves memory [32 | 1]")
    a("--chunk", type=number(int, 0, 10**9), help="tokens a slice of logits, 0: all [0 | 128]")
    a("--checkpointing", action="store_true", help="recompute layers going back: memory for time")
    # problems and passages of your own, see more/README.md
    a("--data", help='problems, {"question": "...", "answer": "..."} a line, a file or '
      "hf://datasets/OWNER/NAME/FILE.jsonl; a fifth is held out")
    a("--eval-data", help="problems to test on in place of that fifth")
    a("--question-field", default="question", help="the question in --data and --eval-data")
    a("--answer-field", default="answer", help="the answer")
    a("--corpus", help="passages to search, JSONL of id, title, text; --data has the questions")
    a("--out", help="folder for the results; a run that was stopped there goes on [runs/<time>]")
    a("--report", action="store_true", help="write a page that shows the run, see more/report.py")
    return parser


def threshold(text):
    """A number in 0..9, or "auto"."""
    return text if text == "auto" else number(float, 0, 9)(text)


def parse(argv=None):
    """The flags of a command line. UserError where they do not go together."""
    args = flags().parse_args(argv)
    check(args)
    return args


def check(args):
    """Refuse flags that do not go together, before anything is loaded."""
    check_teacher_flags(args)
    group, server = args.samples * (args.problems if args.one_shot else 1), is_server(args.teacher)
    for wrong, message in (
            (args.temperature < 1e-3, "--temperature is what the loss divides by; give 1e-3 or "
             "more"),
            (group < 2 and args.method not in ("logits", "sft"), f"--samples {args.samples} makes "
             "a group of one, which has no mean to be compared with; use at least 2"),
            (args.method == "logits" and (server or args.teacher == "self"), "--teacher has no "
             "other logits to match; use --method ovd: text alone"),
            (server and args.method == "ovd" and args.replace == "suffix", "--teacher is a server, "
             "which cannot go on from the middle of a text; use --replace whole"),
            (args.reward == "verbal" and args.method not in ("ovd", "judge"), "--reward verbal is "
             "the teacher's score, and only ovd and judge ask for it"),
            (args.reward == "verbal" and args.teacher_sees_answer, "--teacher-sees-answer: with "
             "--reward verbal there is no answer to see"),
            (max(args.problems * args.samples, args.steps * (args.one_shot or args.problems)) > 1e6,
             f"--steps {args.steps} --problems {args.problems} --samples {args.samples}: more than "
             "a million problems, or attempts a step; lower one of them"),
            (args.corpus and not (args.task == "search" and args.data), "--corpus is for --task "
             "search, with --data for the questions"),
            (args.task == "search" and (args.data or args.eval_data) and not args.corpus, "--data "
             "and --eval-data need --corpus, to find their answers in")):
        if wrong:
            raise UserError(message)


# ------------------------------------------------------------------------------- a run
def load_pair(args, device):
    """(student, tokenizer, base's name, Teacher or None), and args filled in with its defaults.

    On a GPU whose default student is out of reach it is the embedded pair.
    """
    pair = HUB_PAIR if device == "cuda" else TINY_PAIRS[args.task]
    where = torch.cuda.get_device_name() if device == "cuda" else "the CPU, no CUDA GPU was found"
    print(f"student {args.student or pair['student']}, {args.bits}-bit, on {where}")
    try:
        student, tokenizer, base = load_student(args.student or pair["student"], args.bits, device)
    except UserError as e:
        if args.student or pair is not HUB_PAIR:
            raise
        print(f"the default pair for a GPU cannot be had, so the embedded one is used; {e}")
        student, tokenizer, base = load_student(embedded(args.task, "student"), args.bits, device)
    pair = defaults_of(student.num_parameters() < 50e6, device, args.task)
    vars(args).update((k, v) for k, v in pair.items() if getattr(args, k) is None)
    if args.method in ("grpo", "format"):
        return student, tokenizer, base, None
    print(f"teacher {args.teacher_model or f'{args.teacher}, {args.bits}-bit'}")
    teacher = load_teacher(args, (student, tokenizer), device, args.batch)
    if args.method == "logits" and tokenizer.get_vocab() != teacher.tokenizer.get_vocab():
        raise UserError("--method logits: student and teacher have different vocabularies, so "
                        "there is nothing to match; use --method ovd, which needs text alone")
    return student, tokenizer, base, teacher


def load_problems(args):
    """(endless training problems, list of test problems). One-shot: the same one for ever."""
    if args.data or args.eval_data:
        from more.data import split_problems
        stream, test = split_problems(args)
    else:
        stream = task_stream(args.task, args.seed, args.difficulty, False, args.turns)
        test = task_stream(args.task, 0, args.difficulty, True, args.turns)
    if args.reward == "verbal":  # what is not there cannot be read by mistake
        stream = (replace(p, answer=None, solution=None) for p in stream)
    return repeat(next(stream)) if args.one_shot else stream, list(islice(test, args.eval_problems))


def run(args, test=evaluate):
    """Test, train, test again, and say what happened. Returns what result.json holds.

    test: evaluate(), or what a comparison calls in its place, before training and after it.
    """
    from more import adapter, checkpoint, plan, record
    began, asked, device = time.time(), dict(vars(args)), pick_device()
    out, finished = checkpoint.find_run(args)
    if finished is not None:
        print(f"{out} holds this run, and it is finished")
        return record.say_in_one_sentence(finished, record.where_to_look(out, args.report))
    quiet()
    PEAKS.clear()
    torch.manual_seed(args.seed)
    plan.warn(args, device)  # one line, before anything is loaded, where it will hardly fit
    student, tokenizer, base, teacher = load_pair(args, device)
    mark("loading")
    stream, unseen = load_problems(args)
    check_words(tokenizer, unseen[0], args.student)
    checkpoint.begin(out, asked, student)
    print(f"{args.method}{', one-shot' if args.one_shot else ''}: {args.steps} updates of "
          f"{args.problems * args.samples} trajectories, tested on {len(unseen)} unseen problems; "
          f"results in {out}\n")
    try:
        before, sampled, _ = test(student, tokenizer, unseen, args)
        print(f"before: {before['pass_at_1']:.1%} right sampled, {before['greedy']:.1%} greedy")
        if args.method in ("ovd", "judge"):
            first_look(teacher, sampled[:min(64, max(8, len(unseen) // 4))])
        try:
            rows = train(student, tokenizer, teacher, stream, args, out)
        finally:  # whatever happened, what was learned is kept
            adapter.save_adapter(student, out / "adapter", base)
        after, _, greedy = test(student, tokenizer, unseen, args)
    except torch.cuda.OutOfMemoryError:
        raise UserError(f"out of GPU memory; try --batch {max(1, args.batch // 4)} --micro-batch 1 "
                        "--chunk 64; python -m more.plan says what fits")
    except KeyboardInterrupt:
        print(f"\nstopped; what was learned so far is in {out / 'adapter'}, and the same command "
              f"with --out {out} goes on from the last step that was kept")
        sys.exit(130)
    result = record.result_of(args, asked, before, after, rows, teacher, PEAKS)
    result["seconds"] = time.time() - (BEGAN if test is evaluate else began)
    checkpoint.finish(out, result)
    record.show_change(unseen, sampled, greedy)
    return record.say_in_one_sentence(result, record.where_to_look(out, args.report))


if __name__ == "__main__":
    fail_in_one_line(lambda: run(parse()))
