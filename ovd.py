"""On-policy Verbal Distillation (OVD): the method on plain tensors, nothing but torch.

A student pi samples N whole trajectories y_1 .. y_N for a prompt x. A teacher reads each as text
and says how good it is in one word out of ten, the digits 0 .. 9. With p_j(k) the probability it
gives digit k after reading y_j, and theta a threshold:

    S(y_j) = sum_k k p_j(k)                        verbal score, 0 .. 9        expected_score
    a(y_j) = 1[S(y_j) >= theta]                    verbal rejection            accept
    y'_j   = y_j if a(y_j) = 1, else the teacher's own trajectory
    A_j    = R(y'_j) - mean_i R(y_i)               group-relative advantage    group_advantages
    L      = - 1/M sum_j A_j sum_t log pi(y'_jt)   trajectory-level update     trajectory_loss

R is the outcome (1 if the answer is right), M the number of trained tokens in the whole batch (the
division by it comes last, in train.py). Ten numbers a trajectory are all that is ever asked of the
teacher's distribution, so any tokenizer and any black box can teach. What that replaces is here
too: token-level distillation, the reverse KL over the whole vocabulary at every student token
(reverse_kl), dense and in chunks.

Source: arXiv 2601.21968, sections 3.2-3.4 as quoted in public; the authors' code was not at hand.
How a replacement enters the update is not in those quotes, and it decides whether the method works
at all: see group_advantages.

    python ovd.py                                     # a group by numbers, then the memory ladder
    python ovd.py --tokens 4096 --json ladder.json    # the ladder at a length of your own
"""
import argparse
import ctypes
import json
import math
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint


# ------------------------------------------------------------------------------- digits to scores
def expected_score(probs):
    """S(y) = sum_k k p(k): (B, 10) -> (B,) in 0..9.

    The default. Where the likeliest digit ties for half a group, the expectation still tells its
    members apart (G-Eval, arXiv 2303.16634; the mean beats the mode in arXiv 2503.03064).
    """
    return probs @ torch.arange(10, dtype=probs.dtype, device=probs.device)


def most_likely_score(probs):
    """The likeliest digit, all that a teacher which only speaks can give: (B, 10) -> (B,)."""
    return probs.argmax(-1).to(probs.dtype)


def accept(scores, theta):
    """a(y) = 1[S(y) >= theta], scores (...) and theta in 0..9 -> bool (...)."""
    return scores >= theta


# ------------------------------------------------------------------------------- advantages
def group_advantages(rewards, baseline=None):
    """A = R - mean of the group's baseline. rewards (P, N), N trajectories a prompt -> (P, N).

    baseline (P, M): the rewards the mean is taken over, the same ones unless given. This is GRPO
    (arXiv 2402.03300) without its division by the group's standard deviation, which favours
    prompts that are almost always or almost never solved (arXiv 2503.20783). Each trajectory is
    part of the mean it is compared with, so what is expected of the update is (1 - 1/N) of the
    policy gradient: shorter, not turned. A reward that is NaN takes no part: it is left out of the
    mean, and its advantage is 0.

    For OVD the baseline is the student's own group, *before* replacement. Within the mixed group
    it would fail: what was accepted is right, what replaced the rest is right, so all rewards tie,
    all advantages vanish, and what gradient is left comes of the exceptions, noise. Rejection
    throws away the contrast a group-relative update lives on.
    """
    baseline = rewards if baseline is None else baseline
    return (rewards - baseline.nanmean(dim=1, keepdim=True)).nan_to_num(0.0)


def tied_groups(advantages):
    """How many groups of (P, N) give no gradient, every advantage being 0 -> int."""
    return int((advantages.abs() < 1e-6).all(dim=1).sum())


# ------------------------------------------------------------------------------- losses
def in_chunks(function, chunk, *tensors):
    """function(*tensors) -> (M,), for `chunk` of the M rows at a time; 0 or None: all at once.

    Exact in value and gradient, for a row's result depends on that row alone. What is inside is
    not kept but made again in the backward pass, so the peak is that of one chunk.
    """
    if not chunk:
        return function(*tensors)
    parts = zip(*(t.split(chunk) for t in tensors))
    return torch.cat([checkpoint(function, *part, use_reentrant=False, preserve_rng_state=False)
                      for part in parts])  # (M,); nothing in a loss is random


def token_logprobs(hidden, head, targets, temperature=1.0, chunk=None):
    """log pi(target) from the states that predict them: (M, H), (V, H), (M,) -> (M,) float32.

    temperature must be the one the tokens were sampled at: sampled from one distribution and
    scored under another, an update is off-policy whatever it is called.
    """
    def logprobs(hidden, targets):
        """Of some of the M rows."""
        logits = (hidden @ head.T).float() / temperature  # (M, V)
        return -F.cross_entropy(logits, targets, reduction="none")  # (M,)
    return in_chunks(logprobs, chunk, hidden, targets)


def trajectory_loss(logprobs, advantages, start_logprobs=None, kl=0.0):
    """-sum A log pi over M tokens, each with its trajectory's advantage: (M,), (M,) -> scalar.

    A sum and not a mean: the caller divides once by the *whole* batch's token count, so the size
    of a micro-batch changes nothing. One gradient step is taken a batch, so a student token's
    policy ratio is 1. A teacher's token has it set to 1: a black box has no probability to show.

    kl > 0 pulls towards the start by kl/2 (log pi - log pi_start)^2. On the student's own tokens
    the mean of its gradient is that of the reverse KL (k2 in joschu.net/blog/kl-approx.html).
    """
    loss = -(advantages * logprobs).sum()
    if kl:
        loss = loss + kl / 2 * (logprobs - start_logprobs).square().sum()
    return loss


def reverse_kl(hidden, head, teacher_hidden, teacher_head, temperature=1.0, chunk=None):
    """KL(pi || teacher) at M tokens: (M, H), (V, H), (M, H_T), (V, H_T) -> (M,) float32.

    Logit matching on the student's own trajectories, as in arXiv 2306.13649. Both models must have
    the same V token ids at the same M positions, and dense it holds several (M, V) tensors.
    """
    def kl(hidden, teacher_hidden):
        """Of some of the M rows."""
        student = F.log_softmax((hidden @ head.T).float() / temperature, -1)  # (M, V)
        teacher = F.log_softmax((teacher_hidden @ teacher_head.T).float() / temperature, -1)
        return (student.exp() * (student - teacher)).sum(-1)  # (M,)
    return in_chunks(kl, chunk, hidden, teacher_hidden)


def top_k_kl(hidden, head, teacher_hidden, teacher_head, k=64, chunk=None):
    """reverse_kl over the teacher's k likeliest tokens alone -> (M,) float32.

    The teacher shrinks to k numbers and k ids a token, as when it is stored or sent. What it drops
    is what a reverse KL is about, mass the student puts where the teacher puts none.
    """
    with torch.no_grad():
        tops = [F.log_softmax((t @ teacher_head.T).float(), -1).topk(k)
                for t in teacher_hidden.split(chunk or len(teacher_hidden))]
        teacher, ids = (torch.cat(part) for part in zip(*tops))  # (M, k) each
    student = F.log_softmax((hidden @ head.T).float(), -1).gather(1, ids)  # (M, k)
    return (student.exp() * (student - teacher)).sum(-1)  # (M,)


# ------------------------------------------------------------------------------- the memory ladder
# Six ways to a scalar from h (M, H) and g (M, H_T), the last hidden states of student and teacher,
# their frozen heads W (V, H) and U (V, H_T), the sampled tokens y (M,) and a chunk c. And: is it
# the reverse KL itself? Measured, the peak is 20 M V bytes dense, 12 M V for the top 64, 20 c V in
# chunks and 12 c V for the last two updates, and with chunks the gradient of h beside it.
RUNGS = {
    "dense reverse KL": (lambda h, W, g, U, y, c: reverse_kl(h, W, g, U).sum(), "yes"),
    "teacher's top 64": (lambda h, W, g, U, y, c: top_k_kl(h, W, g, U, 64, c).sum(), "no"),
    "chunked reverse KL": (lambda h, W, g, U, y, c: reverse_kl(h, W, g, U, chunk=c).sum(), "yes"),
    "sampled-token KL": (lambda h, W, g, U, y, c: trajectory_loss(  # its mean gradient is the KL's
        token_logprobs(h, W, y, chunk=c), 0, token_logprobs(g, U, y, chunk=c), 1), "on average"),
    "OVD's update": (lambda h, W, g, U, y, c: trajectory_loss(
        token_logprobs(h, W, y, chunk=c), torch.ones_like(y)), "not a KL"),
    "OVD's scoring": (lambda h, W, g, U, y, c: expected_score(  # from the last position alone
        (g[-1:] @ U.T)[:, :10].float().softmax(-1)).sum(), "not a KL"),
}


def status_bytes(field):
    """VmRSS (held now), VmHWM (its peak) or VmData of this process, in bytes. Linux alone."""
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) * 1024 for line in f if line.startswith(field))


def peak_bytes(device):
    """The most memory held: by the GPU's allocator, or without a GPU by this process."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    if sys.platform == "linux":
        return status_bytes("VmHWM")  # ru_maxrss would count what this process was forked from
    if sys.platform == "win32":
        import psutil  # which accelerate brings along
        return psutil.Process().memory_info().peak_wset
    import resource
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS counts bytes


def reset_peak(device):
    """Forget the peak so far -> bytes held now. On a CPU only Linux can; elsewhere, the peak."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    try:
        with open("/proc/self/clear_refs", "w") as f:
            f.write("5")
        return status_bytes("VmRSS")
    except OSError:
        return peak_bytes(device)


def free_bytes(device):
    """What can still be had: of the GPU's memory, or of the machine's."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    import psutil
    return psutil.virtual_memory().available


def return_freed_memory():
    """Have glibc give every block of 1 MiB or more back to the system once it is freed.

    Otherwise its heap keeps them, small objects settle in the holes, the next block no longer fits
    and a loop over chunks grows with every chunk: to 1.4 GiB at 4,096 tokens in place of 27 MiB.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "mallopt"):
        libc.mallopt(-3, 1 << 20)  # M_MMAP_THRESHOLD
        libc.malloc_trim(0)


def rung_inputs(tokens, vocab, hidden, teacher_hidden, dtype, device):
    """What every rung finds in place: h, W, g, U, y as in RUNGS, the heads frozen."""
    def random(rows, width):
        """(rows, width): a thousand random rows over and over, which is quick to make."""
        block = (torch.randn(min(rows, 1000), width, device=device) / width ** 0.5).to(dtype)
        return block.repeat(-(-rows // len(block)), 1)[:rows]  # (rows, width)
    return (random(tokens, hidden).requires_grad_(), random(vocab, hidden),
            random(tokens, teacher_hidden), random(vocab, teacher_hidden),
            torch.randint(vocab, (tokens,), device=device))  # (M, H) (V, H) (M, H_T) (V, H_T) (M,)


def measure(rung, shape, chunk, dtype, device, free):
    """One rung, forward and backward, in this process -> (bytes at its peak, reserved, seconds).

    Bytes are those above the inputs: on a CPU what the process really held, on a GPU what was
    allocated, and what the allocator reserved for it (None on a CPU). The gradient of the (M, H)
    states is among them, it is what a loss is for; the model's own activations are not.
    """
    if sys.platform == "linux" and device == "cpu":
        # beyond `free` bytes is an error, and not a machine that swaps
        import resource
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_DATA, (status_bytes("VmData") + free, hard))
    small = min(shape[0], 64), min(shape[1], 1024), *shape[2:]
    for size in (small, shape):  # the small one, unrecorded, loads what libraries load lazily
        inputs = rung_inputs(*size, dtype, device)
        return_freed_memory()
        before, began = reset_peak(device), time.time()
        value = RUNGS[rung][0](*inputs, chunk)  # a scalar
        if value.requires_grad:  # scoring trains nothing
            value.backward()
        value.item()  # waits for a GPU
        seconds, peak = time.time() - began, peak_bytes(device) - before
    reserved = torch.cuda.max_memory_reserved() - before if device == "cuda" else None
    return peak, reserved, seconds


def ladder(shape, chunk, dtype, device):
    """Yield a row for each rung, run in a process of its own; what dies in one does not fit."""
    way = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(way)
    context.set_forkserver_preload(["torch._dynamo"])  # what checkpoint loads: once, not per rung
    for rung, (_, exact) in RUNGS.items():
        peak = reserved = seconds = None
        try:
            with ProcessPoolExecutor(1, context) as pool:
                peak, reserved, seconds = pool.submit(measure, rung, shape, chunk, dtype, device,
                                                      int(0.9 * free_bytes(device))).result()
        except (MemoryError, RuntimeError) as e:  # CUDA's and a killed process's among them
            if not isinstance(e, BrokenProcessPool) and "memory" not in str(e):
                raise
        yield {"rung": rung, "tokens": shape[0], "peak_bytes": peak, "seconds": seconds,
               "exact": exact, "reserved_bytes": reserved}


# ------------------------------------------------------------------------------- a look at it
def show_group():
    """One group, by numbers."""
    theta = 5
    outcome = torch.tensor([[1., 0, 0, 1, 0, 0, 0, 0]])  # (1, 8) R(y_j): two have the right answer
    opinion = torch.tensor([8.6, 0.7, 1.2, 7.9, 2.3, 0.4, 3.1, 4.2])  # of the teacher, roughly
    probs = (-0.5 * (torch.arange(10) - opinion[:, None]).square()).softmax(-1)  # (8, 10)
    scores, digits = expected_score(probs), most_likely_score(probs)  # (8,), (8,)
    kept = accept(scores, theta)  # (8,)
    mixed = torch.where(kept, outcome, 1.0)  # (1, 8) R(y'_j): the teacher's own are right
    own, literal = group_advantages(mixed, outcome), group_advantages(mixed)  # (1, 8)
    print(f"one prompt, eight trajectories, theta = {theta}\n\n"
          "                                              advantage A_j against the mean of\n"
          " j  likeliest  S(y_j)  verdict   R(y_j) R(y'_j)   the student's own   the mixed group")
    for j in range(8):
        print(f"{j + 1:2}  {digits[j]:9.0f}  {scores[j]:6.2f}  "
              f"{'kept    ' if kept[j] else 'replaced'}  {outcome[0, j]:6.0f} {mixed[0, j]:7.0f}   "
              f"{own[0, j]:17.2f}   {literal[0, j]:15.2f}")
    print(f"\n{int(kept.sum())} of 8 trajectories were kept. In the mixed group the rewards tie "
          f"and every advantage is {literal.abs().max():.2f}: no gradient. Against the student's "
          f"own mean of {outcome.mean():.2f} they are {own[0, 0]:+.2f}.")


def show_ladder(rows, tokens):
    """The rows as a table with bars, and in a sentence."""
    most, ovd = max(r["peak_bytes"] or 0 for r in rows) or 1, rows[-2]["peak_bytes"]
    print(f"{'':20}{'peak, MiB':>11}{'of OVD':>8}{'seconds':>9}  the reverse KL?")
    for r in rows:
        peak, reserved = r["peak_bytes"], r["reserved_bytes"]
        told = f"{'does not fit':>28}  {r['exact']}" if peak is None else (
            f"{peak / 2**20:11,.1f}{peak / (ovd or math.nan):8.2f}{r['seconds']:9.2f}  "
            f"{r['exact']:10}  {'#' * round(40 * peak / most)}")
        print(f"{r['rung']:20}{told}" + (f" {reserved / 2**20:,.0f} reserved" if reserved else ""))
    dense, _, chunked = (f"{r['peak_bytes'] / ovd:.1f} times that" if r["peak_bytes"] and ovd else
                         "more than there is" for r in rows[:3])
    print(f"\nAt {tokens:,} tokens OVD's update takes {(ovd or math.nan) / 2**20:,.0f} MiB; logit "
          f"matching takes {dense} dense, and {chunked} in chunks.")


def knobs(device):
    """Every knob, a line each. What makes no sense ends in one line and exit code 2."""
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    a, gpu = p.add_argument, device == "cuda"
    a("--tokens", type=int, default=4096 if gpu else 128,
      help="M, completion tokens in one pass [4096 on a GPU | 128 on a CPU]")
    a("--vocab", type=int, default=151936, help="V [Qwen3's and small Qwen2.5's]")
    a("--hidden", type=int, default=1024, help="H, the student's width [Qwen3-0.6B's]")
    a("--teacher-hidden", type=int, default=2560, help="H_T, the teacher's [Qwen3-4B's]")
    a("--chunk", type=int, default=128 if gpu else 32,
      help="c, tokens at a time where a rung has chunks [128 | 32]")
    a("--dtype", choices=["bfloat16", "float32"], default="bfloat16",
      help="of states and heads, as on a GPU; logits are float32 in any case")
    a("--json", help="write the rows to this file")
    args = p.parse_args()
    wrong = [f"--{k.replace('_', '-')} {v} must lie between {low} and {10**8}"
             for k, v in vars(args).items() for low in [64 if k == "vocab" else 1]
             if isinstance(v, int) and not low <= v <= 10**8]
    try:
        open(args.json or os.devnull, "a").close()
    except OSError as e:
        wrong.append(f"--json {args.json}: cannot be written ({type(e).__name__}); name a file")
    if wrong:
        print(f"error: {wrong[0]}", file=sys.stderr)
        sys.exit(2)
    return args


def main():
    """One group by numbers, then the memory of every rung at one shape."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    args = knobs(device)
    show_group()
    print(f"\nthe loss stage at M = {args.tokens:,} tokens, V = {args.vocab:,}, chunks of "
          f"{args.chunk}, {args.dtype}, on {device}:\nmemory above the inputs, each rung in a "
          "process of its own\n")
    shape = args.tokens, args.vocab, args.hidden, args.teacher_hidden
    rows = list(ladder(shape, args.chunk, getattr(torch, args.dtype), device))
    if args.json:
        extra = {"vocab": args.vocab, "chunk": args.chunk, "dtype": args.dtype, "device": device}
        with open(args.json, "w") as f:
            json.dump([{**row, **extra} for row in rows], f, indent=1)
    show_ladder(rows, args.tokens)


if __name__ == "__main__":
    main()
