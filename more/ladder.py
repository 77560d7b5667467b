"""The memory ladder: six ways to a loss over the vocabulary, and the memory each really takes.

    python -m more.ladder                                     # every rung at one shape
    python -m more.ladder --tokens 4096 --json ladder.json    # at a length of your own
    python -m more.ladder --runs --student NAME --teacher NAME    # three whole runs, by phase

A rung gets the last hidden states of student and teacher for M completion tokens and both frozen
heads, and makes one number of them, forward and backward, in a process of its own. Counted is what
it holds above its inputs. Of M tokens, V words and chunks of c tokens that is 20 M V bytes for the
dense reverse KL, 12 M V for the teacher's top 64, 20 c V in chunks and 12 c V for the last two
updates, and with chunks the gradient of the hidden states beside it.

--runs takes 3 steps of ovd and of logit matching, chunked and dense, and train.py's other flags.
"""
import argparse
import json
import math
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import torch
import torch.nn.functional as F

from more.machine import peak_bytes, reset_peak, return_freed_memory, status_bytes
from more.terminal import UserError, fail_in_one_line
from ovd import (chunked_kl, dense_kl, expected_score, loss_inputs, ovd_update, token_logprobs,
                 trajectory_loss)


# ------------------------------------------------------------------------------- the rungs
# Each has the form of ovd.ovd_update: hidden states of student and teacher, (M, H) and (M, H_T),
# with their frozen heads, (V, H) and (V, H_T), the tokens that were sampled (M,), and a chunk.
def top_k_kl(states, head, teacher_states, teacher_head, k=64, chunk=None):
    """reverse_kl over the teacher's k likeliest tokens alone -> (M,) float32.

    The teacher shrinks to k numbers and k ids a token, as when it is stored or sent. What it drops
    is what a reverse KL is about, mass the student puts where the teacher puts none.
    """
    with torch.no_grad():
        tops = [F.log_softmax((part @ teacher_head.T).float(), -1).topk(k)
                for part in teacher_states.split(chunk or len(teacher_states))]
        teacher, ids = (torch.cat(part) for part in zip(*tops))  # (M, k) each
    student = F.log_softmax((states @ head.T).float(), -1).gather(1, ids)  # (M, k)
    return (student.exp() * (student - teacher)).sum(-1)  # (M,)


def kl_to_top_64(states, head, teacher_states, teacher_head, sampled, chunk):
    """The KL to the teacher's 64 likeliest tokens."""
    return top_k_kl(states, head, teacher_states, teacher_head, 64, chunk).sum()


def sampled_token_kl(states, head, teacher_states, teacher_head, sampled, chunk):
    """The sampled tokens' two log-probabilities: the mean of its gradient is that of the KL."""
    student = token_logprobs(states, head, sampled, chunk=chunk)  # (M,)
    teacher = token_logprobs(teacher_states, teacher_head, sampled, chunk=chunk)  # (M,)
    return trajectory_loss(student, 0.0, teacher, kl=1.0)


def ovd_scoring(states, head, teacher_states, teacher_head, sampled, chunk):
    """The mean of the teacher's ten probabilities, from the last position."""
    logits = teacher_states[-1:] @ teacher_head.T  # (1, V)
    return expected_score(logits[:, :10].float().softmax(-1)).sum()


# Each rung's function, and: is it the reverse KL itself?
RUNGS = {
    "dense reverse KL": (dense_kl, "yes"),
    "teacher's top 64": (kl_to_top_64, "no"),
    "chunked reverse KL": (chunked_kl, "yes"),
    "sampled-token KL": (sampled_token_kl, "on average"),
    "OVD's update": (ovd_update, "not a KL"),
    "OVD's scoring": (ovd_scoring, "not a KL"),
}


# ------------------------------------------------------------------------------- measuring
def free_bytes(device):
    """What can still be had: of the GPU's memory, or of the machine's."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    import psutil  # which accelerate brings along
    return psutil.virtual_memory().available


def limit_memory(extra):
    """Make more than `extra` bytes beyond what this process holds an error. Linux alone.

    Otherwise a rung that does not fit would make the whole machine swap.
    """
    if sys.platform == "linux":
        import resource
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_DATA, (status_bytes("VmData") + extra, hard))


def measure(rung, shape, chunk, dtype, device, free):
    """One rung, forward and backward, in this process -> (bytes at its peak, reserved, seconds).

    Bytes are those above the inputs: on a CPU what the process really held, on a GPU what was
    allocated, and what the allocator reserved for it (None on a CPU). The gradient of the (M, H)
    states is among them, it is what a loss is for; the model's own activations are not.
    """
    if device == "cpu":
        limit_memory(free)
    small = min(shape[0], 64), min(shape[1], 1024), *shape[2:]
    for size in (small, shape):  # the small one, unrecorded, loads what libraries load lazily
        inputs = loss_inputs(*size, dtype, device)
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
    """Yield a row for each rung, run in a process of its own; what dies in one does not fit.

    shape: tokens, vocabulary, width of the student's states, width of the teacher's.
    """
    way = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(way)
    context.set_forkserver_preload(["torch._dynamo"])  # what checkpoint loads: once, not per rung
    for rung, (_, exact) in RUNGS.items():
        peak = reserved = seconds = None
        free = int(0.9 * free_bytes(device))
        try:
            with ProcessPoolExecutor(1, context) as pool:
                peak, reserved, seconds = pool.submit(measure, rung, shape, chunk, dtype, device,
                                                      free).result()
        except (MemoryError, RuntimeError) as e:  # CUDA's and a killed process's among them
            if not isinstance(e, BrokenProcessPool) and "memory" not in str(e):
                raise
        yield {"rung": rung, "tokens": shape[0], "peak_bytes": peak, "seconds": seconds,
               "exact": exact, "reserved_bytes": reserved}


def show_ladder(rows, tokens):
    """The rows as a table with bars, and in a sentence."""
    highest = max(row["peak_bytes"] or 0 for row in rows) or 1
    peaks = {row["rung"]: row["peak_bytes"] for row in rows}
    update = peaks["OVD's update"] or math.nan
    print(f"{'':20}{'peak, MiB':>11}{'x OVD':>8}{'seconds':>9}  the reverse KL?")
    for row in rows:
        peak, reserved = row["peak_bytes"], row["reserved_bytes"]
        line = f"{'does not fit':>28}  {row['exact']}" if peak is None else (
            f"{peak / 2**20:11,.1f}{peak / update:8.2f}{row['seconds']:9.2f}  "
            f"{row['exact']:10}  {'#' * round(40 * peak / highest)}")
        print(f"{row['rung']:20}{line}" + (f" {reserved / 2**20:,.0f} reserved" if reserved else
                                           ""))
    dense, chunked = (f"{peaks[rung] / update:.1f} times that"
                      if peaks[rung] and peaks["OVD's update"] else "more than there is"
                      for rung in ("dense reverse KL", "chunked reverse KL"))
    print(f"\nAt {tokens:,} tokens OVD's update takes {update / 2**20:,.0f} MiB; logit matching "
          f"takes {dense} dense, and {chunked} in chunks.")


# ------------------------------------------------------------------------------- whole runs
PHASES = ["loading", "sampling", "scoring", "teacher forward", "update"]
RUNS = {"ovd": ["--method", "ovd"], "logits, chunked": ["--method", "logits"],
        "logits, dense": ["--method", "logits", "--chunk", "0"]}


def run_of_three_steps(flags):
    """train.py in a process of its own -> (what result.json holds or None, why it did not run)."""
    script = Path(__file__).parent.parent / "train.py"
    with tempfile.TemporaryDirectory() as out:
        short = ["--steps", "3", "--eval-problems", "1", *flags, "--out", out]
        done = subprocess.run([sys.executable, script, *short], capture_output=True, text=True)
        if done.returncode:
            return None, (done.stderr.strip().splitlines() or ["killed, out of memory?"])[-1]
        return json.loads((Path(out) / "result.json").read_text(encoding="utf-8")), None


def compare_runs(argv):
    """--runs: three short runs alike in all but the method, and their peaks by phase."""
    import train  # which takes seconds to load, and only this needs
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--runs", action="store_true")
    parser.add_argument("--json")
    args, rest = parser.parse_known_args(argv)
    train.parse(rest)  # a slip in a flag shows now, and once
    check_writable(args.json)
    print(f"peak memory by phase, GiB\n{'':18}" + "".join(f"{phase:>17}" for phase in PHASES))
    rows = []
    for name, method in RUNS.items():
        result, why = run_of_three_steps([*rest, *method])
        peaks, seconds = (result and result[key] for key in ("peak_by_phase", "seconds"))
        rows.append({"method": name, "peak_by_phase": peaks, "seconds": seconds})
        print(f"{name:18}" + (in_columns(peaks) if peaks else f"  does not run: {why}"))
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1), encoding="utf-8")
    ran = [row for row in rows if row["peak_by_phase"]]
    if not ran:
        raise UserError(f"--runs: none of the {len(rows)} runs ran; the last said: {why}")
    print("\nhighest of all phases: " + ", ".join(
        f"{row['method']} {max(row['peak_by_phase'].values()) / 2**30:.2f} GiB" for row in ran)
        + ".")


def in_columns(peaks):
    """A run's peak of each phase in GiB, a dash where it had no such phase."""
    return "".join(f"{peaks[phase] / 2**30:17.3f}" if phase in peaks else f"{'-':>17}"
                   for phase in PHASES)


# ------------------------------------------------------------------------------- the command line
def check_writable(path):
    """Raise UserError where --json names a file that cannot be written."""
    try:
        open(path or os.devnull, "ab").close()
    except OSError as e:
        raise UserError(f"--json {path}: cannot be written ({type(e).__name__}); name a file")


def flags(device):
    """Every flag of the ladder, a line each."""
    parser = argparse.ArgumentParser(prog="python -m more.ladder", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    add, gpu = parser.add_argument, device == "cuda"
    add("--tokens", type=int, default=4096 if gpu else 128,
        help="M, completion tokens in one pass [4096 on a GPU | 128 on a CPU]")
    add("--vocab", type=int, default=151936, help="V [Qwen3's and small Qwen2.5's]")
    add("--hidden", type=int, default=1024, help="H, the student's width [Qwen3-0.6B's]")
    add("--teacher-hidden", type=int, default=2560, help="H_T, the teacher's [Qwen3-4B's]")
    add("--chunk", type=int, default=128 if gpu else 32,
        help="c, tokens at a time where a rung has chunks [128 | 32]")
    add("--dtype", choices=["bfloat16", "float32"], default="bfloat16",
        help="of states and heads, as on a GPU; logits are float32 in any case. float32 is far "
        "quicker on a CPU without bfloat16 arithmetic")
    add("--json", help="write the rows to this file")
    add("--runs", action="store_true", help="three whole runs in place of the rungs, with the "
        "flags of train.py in place of those above")
    return parser


def check(args):
    """Raise UserError for a shape that makes no sense and a file that cannot be written."""
    least = {"tokens": 1, "vocab": 64, "hidden": 1, "teacher_hidden": 1, "chunk": 1}
    for name, low in least.items():
        value = getattr(args, name)
        if not low <= value <= 10**8:
            raise UserError(f"--{name.replace('_', '-')} {value} must lie between {low} and "
                            f"{10**8}")
    check_writable(args.json)


def main():
    """The memory of every rung at one shape, or of whole runs."""
    if "--runs" in sys.argv[1:] and not {"-h", "--help"} & set(sys.argv):
        compare_runs(sys.argv[1:])
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    args = flags(device).parse_args()
    check(args)
    print(f"the loss stage at M = {args.tokens:,} tokens, V = {args.vocab:,}, chunks of "
          f"{args.chunk}, {args.dtype}, on {device}:\nmemory above the inputs, each rung in a "
          "process of its own\n")
    shape = args.tokens, args.vocab, args.hidden, args.teacher_hidden
    rows = list(ladder(shape, args.chunk, getattr(torch, args.dtype), device))
    if args.json:
        extra = {"vocab": args.vocab, "chunk": args.chunk, "dtype": args.dtype, "device": device}
        text = json.dumps([{**row, **extra} for row in rows], indent=1)
        Path(args.json).write_text(text, encoding="utf-8")
    show_ladder(rows, args.tokens)


if __name__ == "__main__":
    fail_in_one_line(main)
