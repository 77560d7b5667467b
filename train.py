"""Train a student with On-policy Verbal Distillation: sample, score, reject and replace, update.

    python train.py --one-shot                   # ONE problem, tested on 500 never seen
    python train.py                              # fresh problems at every step
    python train.py --task search                # a student that asks a search engine
    python train.py --student Qwen/Qwen3-0.6B --teacher Qwen/Qwen3-4B-Instruct-2507

The pair of the last line is the default on a machine with a CUDA GPU. On any other it is the
embedded miniature in tiny/, which runs on any laptop. The methods:

    ovd      the outcome is the reward; the teacher's own replaces what it rejects, if it earns more
    judge    the teacher's score is the reward, nothing is replaced
    grpo     the outcome is the reward, no teacher
    format   reward for showing some work and then an answer, right or wrong; no teacher
    logits   token-level distillation, reverse KL to the teacher's whole distribution at each token
    sft      the teacher's own trajectories alone, nothing is sampled: off-policy

One run is an anecdote: python -m more.compare takes several methods through several seeds. A run
leaves metrics.csv, samples.jsonl, adapter/ and result.json in --out. The rules of the flags stand
in more/flags.py. In --help a default [a | b] is a with the embedded pair, b with the hub's on a
GPU; a real student without a GPU has lr 2e-4, difficulty 1, 64 new tokens, 100 test problems.
"""
import math
import re
import time
from itertools import islice

from more.libraries import BEGAN  # first of all, as it loads these quickly
import torch
from tqdm import tqdm
from transformers import DynamicCache

from more import adapter, checkpoint, plan, record  # what a run leaves behind, and its memory
from more.checks import check_same_vocabulary, check_student, default_student
from more.data import load_problems
from more.flags import WITHOUT_TEACHER, check_run_flags, fill_in, run_flags
from more.machine import PEAKS, mark, pick_device
from more.quick import distinct, unpacked
from more.safe_text import as_data
from more.terminal import UserError, fail_in_one_line, quiet
from ovd import accept, group_advantages, reverse_kl, tied_groups, token_logprobs, trajectory_loss
from sample import (Trajectory, left_pad, load_student, prompt_ids, read_beginnings,
                    sample_trajectories, without_lora)
from score import load_teacher
from tasks import INFORMATION


# ------------------------------------------------------------------------------- reject and replace
def is_rejected(t, theta):
    """a(y) = 0. A trajectory without a score was not judged, so it is not rejected either."""
    return t.score is not None and not accept(t.score, theta)


def append_teacher(t, text, stopped, tokenizer, mask=1):
    """Lengthen t by a text of the teacher's, in the student's tokens: no alignment is needed."""
    # Every other part is what an environment told the teacher: read, and never trained on.
    parts = re.split(rf"(\s*{INFORMATION.pattern}\s*)", as_data(text, tokenizer))
    for i, part in enumerate(parts):
        author, trained = ("environment", 0) if i % 2 else ("teacher", mask)
        ids = tokenizer.encode(part, add_special_tokens=False)  # no log pi: it was never sampled
        t.append(ids, [0.0] * len(ids), author, trained)
    if stopped:  # to stop is learned like any token
        t.append([tokenizer.eos_token_id], [0.0], "teacher", mask)


def teacher_trajectory(solution, tokenizer):
    """y': the teacher's whole solution, as a trajectory of the student's.

    It is rewarded like any other. Where the teacher's own answer is wrong, R = 0, and the rule in
    replace_rejected keeps it out. (With --literal and in sft it is taken all the same.)
    """
    t = Trajectory(solution.problem, prompt_ids(tokenizer, solution.problem), text=solution.text,
                   stopped=solution.stopped, reward=solution.reward)
    append_teacher(t, solution.text, solution.stopped, tokenizer)
    return t


def replace_rejected(trajectories, solutions, teacher, tokenizer, args):
    """Verbal rejection sampling -> (for each y_j what takes its place or None, tokens read).

    solutions: the teacher's own, one a trajectory.
    """
    replacements, written, tokens = [None] * len(trajectories), [], 0
    rejected = [j for j, t in enumerate(trajectories) if is_rejected(t, args.theta)]
    if args.replace == "whole":  # version 1 of the paper
        written = [teacher_trajectory(solutions[j], tokenizer) for j in rejected]
    elif args.replace == "suffix":  # version 2: its good steps stay
        from more.suffix import replace_suffixes
        written, tokens = replace_suffixes([trajectories[j] for j in rejected],
                                           [solutions[j] for j in rejected], teacher, tokenizer,
                                           args.theta, args.suffix == "trained")
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
    if args.method == "judge":  # the teacher's word for it, 0..1
        return None if t.score is None else t.score / 9
    if args.method == "format":  # form alone, right or wrong
        return float(t.stopped and t.problem.is_well_formed(t.text))
    if args.method == "sft":  # the teacher's own, imitated
        return 1.0
    if args.method == "ovd":
        dropped = args.replace == "none" and is_rejected(t, args.theta)
        # in the union alone an attempt stays beside what replaces it
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
        own, put = trajectories[i:i + n], replacements[i:i + n]
        group = [(t, reward_of(t, new, args)) for t, new in zip(own, put)]
        group += [(t, t.reward) for t in put if t and any(t.mask)]
        group = [(t, reward) for t, reward in group if reward is not None]
        rewards = baseline = torch.tensor([reward for _, reward in group])  # (K,) R(y')
        # the mean of this group is subtracted, unless:
        if args.method == "sft" or args.method == "ovd" and args.baseline == "none":
            baseline = torch.zeros(1)
        elif args.method == "ovd" and args.baseline == "own":  # R(y) of those that have a score
            baseline = torch.tensor([t.reward for t in own if t.score is not None])
        advantages = group_advantages(rewards, baseline)  # (K,)
        for (t, _), advantage in zip(group, advantages.tolist()):
            t.advantage = advantage  # each of its tokens will have this one
        tied += tied_groups(advantages[None])
    return tied


# ------------------------------------------------------------------------------- loss and update
def trained_positions(model, trajectories, pad):
    """hidden (M, H) before each of the M trained tokens, targets (M,): their ids, row (M,): whose.

    The decoder alone is run. The vocabulary's logits are made later, a chunk of the M at a time.
    """
    # Of B rows the U different ones go through the model. index_select adds up their gradients.
    unique, source = distinct([t.prompt_ids + t.ids for t in trajectories])
    prompts = {u: t.prompt_ids for u, t in zip(source, trajectories)}  # of each of the U
    source = torch.tensor(source, device=model.device)  # (B,) which unique row is whose
    # What prompts share is read once. Checkpointing, which is train mode, allows no cache for it.
    kv = None if model.training else DynamicCache(config=model.config)
    # (U, t), (U, T), (U, t)
    ids, seen, positions = read_beginnings(model, list(prompts.values()), unique, kv, pad)
    hidden = model.get_decoder()(input_ids=ids, attention_mask=seen, position_ids=positions,
                                 cache=kv, use_cache=kv is not None).last_hidden_state  # (U, t, H)
    trained, _, _ = left_pad([t.mask for t in trajectories], 0, model.device)  # (B, n)
    n = trained.shape[1]  # rows end together: texts fill the last n columns, behind a prompt
    row, column = trained.nonzero().T  # (M,) each, of the trained tokens
    at = source[row] * n + column  # (M,) where in the (U, n) they were read
    hidden = hidden[:, -n - 1:-1].flatten(0, 1)  # (U n, H), one to the left: it predicts the next
    return hidden.index_select(0, at), ids[:, -n:].flatten()[at], row


def policy_loss(student, part, ref, args, pad):
    """(OVD's loss, summed over the M trained tokens of `part`; log pi of each (M,)).

    ref: log pi_ref of the same tokens and of later ones, needed where --kl pulls to it.
    """
    hidden, targets, row = trained_positions(student, part, pad)  # (M, H), (M,), (M,)
    head = student.get_output_embeddings().weight  # (V, H)
    logprobs = token_logprobs(hidden, head, targets, args.temperature, args.chunk)  # (M,)
    advantages = torch.tensor([t.advantage for t in part], device=row.device)[row]  # (M,)
    ref = ref[:len(row)].to(row.device)  # (M,)
    return trajectory_loss(logprobs, advantages, ref, args.kl), logprobs.detach().cpu()


def matching_loss(student, teacher, part, args, pad):
    """Logit matching, what OVD is compared with: (summed reverse KL, log pi of each token (M,))."""
    hidden, targets, _ = trained_positions(student, part, pad)  # (M, H), (M,)
    head = student.get_output_embeddings().weight  # (V, H)
    with torch.no_grad():
        logprobs = token_logprobs(hidden, head, targets, args.temperature, args.chunk)  # (M,)
        mark("update")  # the peak of what has just ended, so far the student's forward pass
        # This is why a vocabulary must be shared: the teacher reads the very same token ids.
        teacher_hidden, _, _ = trained_positions(teacher.model, part, pad)  # (M, H_T)
        mark("teacher forward")
    teacher_head = teacher.model.get_output_embeddings().weight  # (V_T, H_T)
    v = min(len(head), len(teacher_head))  # one vocabulary may be padded to two lengths
    kl = reverse_kl(hidden, head[:v], teacher_hidden, teacher_head[:v], args.temperature,
                    args.chunk)  # (M,)
    return kl.sum(), logprobs.cpu()


@torch.no_grad()
def ref_logprobs(student, trajectories, args, pad):
    """log pi_ref of their trained tokens (M,): the student without its adapters."""
    rows = []
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
    if not batch:  # --replace none rejected all, or nothing was scored: nothing to learn from
        return dict.fromkeys(("loss", "grad_norm", "tokens", "kl", "logprob_gap"), 0.0)
    # log pi_ref of all tokens for --kl; for the column kl of metrics.csv 8 trajectories will do
    ref = ref_logprobs(student, batch if args.kl else batch[:8], args, pad)  # (M,)
    total, logprobs, done = 0.0, [], 0  # done: trained tokens so far
    optimiser.zero_grad()
    if args.checkpointing:  # in train mode only: sampling needs the cache, which this forbids
        student.activation_checkpointing_enable({"use_reentrant": False})
        student.train()
    for i in range(0, len(batch), args.micro_batch):
        part = batch[i:i + args.micro_batch]
        if args.method == "logits":
            loss, part_logprobs = matching_loss(student, teacher, part, args, pad)
        else:
            loss, part_logprobs = policy_loss(student, part, ref[done:], args, pad)
        loss.backward()
        total += loss.item()
        logprobs.append(part_logprobs)
        done += len(part_logprobs)
    student.eval()
    tokens = max(1, done)  # empty texts alone leave none
    parameters = checkpoint.trained(student)  # A and B of each LoRALinear
    for p in parameters:
        p.grad /= tokens  # the 1/M of the loss
    norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0).item()  # before it is clipped to 1
    if not math.isfinite(norm):
        raise UserError(f"--lr {args.lr}: the gradient is no longer finite; lower it")
    optimiser.step()
    return {"loss": total / tokens, "grad_norm": norm, "tokens": tokens,
            **record.drift(batch, torch.cat(logprobs), ref, args.student)}


# ------------------------------------------------------------------------------- the loop
def train(student, tokenizer, teacher, stream, args, out):
    """The method. Returns the rows of metrics.csv."""
    groups = 1 if args.one_shot else args.problems  # copies of one problem make one large group
    n = args.problems * args.samples // groups  # N: --samples; in one-shot times --problems
    prompts = list(islice(stream, args.steps * groups))  # of all steps
    optimiser = torch.optim.AdamW(checkpoint.trained(student), lr=args.lr, weight_decay=0.0)
    torch.manual_seed(args.seed)
    # [] at the beginning, or all steps of a run that was stopped and goes on here
    rows = checkpoint.load(out, student, optimiser, teacher, prompts, args)
    if args.method in ("ovd", "judge", "sft"):
        solutions = teacher.solve(prompts)  # all at once costs no more; below they are looked up
        record.warn_unsolved(solutions, args)
    left = range(len(rows) + 1, args.steps + 1)
    for step in (bar := tqdm(left, "training", args.steps, initial=len(rows), unit="step")):
        began = time.time()
        x = [p for p in prompts[(step - 1) * groups:step * groups] for _ in range(n)]  # n of each

        # 1. Sample: y_j ~ pi(. | x), n whole trajectories for each prompt.
        if args.method == "sft":  # n copies of one text, so that batches are alike
            y = [teacher_trajectory(solution, tokenizer) for solution in teacher.solve(x)]
        else:
            y = sample_trajectories(student, tokenizer, x, args.temperature, args.max_new_tokens,
                                    args.batch)
        mark("sampling")

        # 2. and 3. Score: S(y_j). Reject and replace: y'_j.
        y_new, tokens_read = score_and_replace(y, teacher, tokenizer, args)
        mark("scoring")

        # 4. Update: A_j = R(y'_j) - mean_i R(y_i), and a step on L = -1/M sum_j A_j log pi(y'_j).
        tied = give_advantages(y, y_new, groups, args)
        batch = [t for t in y + y_new if t and t.advantage is not None]  # what the update trains on
        with unpacked(student):
            figures = update(student, teacher, optimiser, batch, args, tokenizer.pad_token_id)
        mark("update")

        rows.append({"step": step, **record.step_figures(y, y_new, batch, tied, args), **figures,
                     "teacher_read": tokens_read, "seconds": time.time() - began})
        record.log_step(out, rows[-1], y, y_new)
        record.check_scored(rows[-1], args, teacher)
        checkpoint.save(out, student, optimiser, teacher, rows, prompts, args)
        record.show_step(bar, rows)
    return rows


def score_and_replace(y, teacher, tokenizer, args):
    """Steps 2 and 3 -> (for each y_j what takes its place or None, tokens the teacher read)."""
    y_new, tokens = [None] * len(y), 0
    if args.method == "logits":  # its teacher reads along in update()
        tokens = sum(len(t.prompt_ids + t.ids) for t in y)
    if args.method in ("ovd", "judge"):
        # The teacher, who has worked the problem out, reads each y_j and says a digit.
        solutions = teacher.solve([t.problem for t in y])
        tokens = teacher.score(y, solutions)
        if args.theta == "auto":  # at the first step; from then on it is a number
            from more.judge import choose_theta
            args.theta = choose_theta(y)
        if args.reward == "verbal":  # nobody knows an answer: R is the teacher's own word for it
            distinct = list({id(s): s for s in solutions}.values())
            tokens += teacher.score(distinct, distinct)
            for t in y + distinct:
                t.reward = 0.0 if t.score is None else t.score / 9
    if args.method == "ovd":
        y_new, extra = replace_rejected(y, solutions, teacher, tokenizer, args)
        tokens += extra
    return y_new, tokens


# ------------------------------------------------------------------------------- before and after
def evaluate(student, tokenizer, test, args):
    """How good it is on `test`: (record.test_figures, the attempts at T = 1, the greedy ones)."""
    torch.manual_seed(args.seed)
    # Both attempts at a problem side by side, T = 1 and T = 0: its prompt is read once.
    both = sample_trajectories(student, tokenizer, [p for p in test for _ in range(2)],
                               [1.0, 0.0] * len(test), args.max_new_tokens, args.batch)
    sampled, greedy = both[::2], both[1::2]
    mark("testing")
    return record.test_figures(sampled, greedy, args.task), sampled, greedy


# ------------------------------------------------------------------------------- a run
def parse(argv=None):
    """The flags of a command line. UserError where they do not go together."""
    return check_run_flags(run_flags(__doc__).parse_args(argv))


def load_pair(args, device):
    """(student, tokenizer, base's name, Teacher or None), and args filled in with its defaults."""
    name = args.student or default_student(args.task, device)
    where = torch.cuda.get_device_name() if device == "cuda" else "the CPU, no CUDA GPU was found"
    print(f"student {name}, {args.bits}-bit, on {where}")
    student, tokenizer, base = load_student(name, args.bits, device)
    fill_in(args, student.num_parameters() < 50e6, device)
    if args.method in WITHOUT_TEACHER:
        return student, tokenizer, base, None
    print(f"teacher {args.teacher_model or f'{args.teacher}, {args.bits}-bit'}")
    teacher = load_teacher(args, (student, tokenizer), device, args.batch)
    if args.method == "logits":
        check_same_vocabulary(tokenizer, teacher, args.teacher)
    return student, tokenizer, base, teacher


def run(args, test=evaluate, began=None):
    """Test, train, test again, and say what happened. Returns what result.json holds.

    test: evaluate(), or what a comparison calls in its place, before training and after it. began:
    when its seconds are counted from, now if it is not given.
    """
    began, asked, device = began or time.time(), dict(vars(args)), pick_device()
    out, finished = checkpoint.find_run(args)
    if finished is not None:
        return record.say_again(finished, out, args.report)
    quiet()
    PEAKS.clear()  # of a run before this one, in a comparison
    torch.manual_seed(args.seed)
    plan.warn(args, device)  # one line, before anything is loaded, where it will hardly fit
    student, tokenizer, base, teacher = load_pair(args, device)
    mark("loading")
    stream, unseen = load_problems(args)
    check_student(student, tokenizer, unseen[0], args.student)
    checkpoint.begin(out, asked, student)
    record.announce(args, unseen, out)
    with record.named_stops(args, out):
        before, sampled, was = test(student, tokenizer, unseen, args)
        print(f"before: {before['pass_at_1']:.1%} right sampled, {before['greedy']:.1%} greedy")
        if args.method in ("ovd", "judge") and test is evaluate:  # and no comparison
            record.first_look(teacher, sampled[:min(32, max(8, len(unseen) // 4))])
        try:
            rows = train(student, tokenizer, teacher, stream, args, out)
        finally:  # whatever happened, what was learned is kept
            adapter.save_adapter(student, out / "adapter", base)
        after, _, now = test(student, tokenizer, unseen, args)
    result = record.result_of(args, asked, before, after, rows, teacher, PEAKS)
    result["seconds"] = time.time() - began
    checkpoint.finish(out, result)
    record.show_change(unseen, was, now)
    return record.say_in_one_sentence(result, record.where_to_look(out, args.report))


if __name__ == "__main__":
    fail_in_one_line(lambda: run(parse(), began=BEGAN))  # loading is part of a run
