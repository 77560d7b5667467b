"""Compares methods over seeds, a run each, in a table with 95% intervals: one run is an anecdote.

    python -m more.compare --one-shot
    python -m more.compare --one-shot --methods "ovd, ovd --theta 3, grpo" --seeds 5 --jobs 2

Every other flag is train.py's and holds for all runs; a method may bring flags of its own. In
--out are left a folder for each run, with its words in log.txt; compare.csv, a row a run; and
compare.md, a row a method.

Stopped and started again, the same command goes on where it was: what is finished is not run
again, and what was cut short goes on from its checkpoint. Nothing is ever deleted, and a folder
with anything else in it is refused.
"""
import csv
import io
import json
import math
import multiprocessing
import os
import re
import shlex
import signal
import traceback
from argparse import Namespace
from contextlib import redirect_stderr, redirect_stdout, suppress
from multiprocessing.connection import wait
from pathlib import Path
from statistics import mean, stdev
from textwrap import shorten
from threading import RLock, Thread

import torch
from tqdm import tqdm

import train
from more.checkpoint import check_place, refuse_changes, write_whole
from more.flags import check_run_flags, run_flags
from more.machine import pick_device
from more.terminal import UserError, fail_in_one_line, number
from sample import sample_trajectories

COMPARED = ("ovd, ovd --literal, ovd --replace suffix, ovd --replace none, judge, grpo, format, "
            "logits, sft")
MARK = "run.json"  # in a run's folder: the flags it was asked for, see more/checkpoint.py
# Runs with the same of these have the same student before training: it is tested once a process.
SAME_START = ["student", "bits", "task", "data", "corpus", "turns", "eval_data", "question_field",
              "answer_field", "difficulty", "seed", "eval_problems", "max_new_tokens", "batch"]
STARTS = {}  # what train.run keeps of such a test
# The table's columns beyond the gain: where there is such a figure, its heading and its form.
COLUMNS = {"greedy": ("greedy", "{:.1f}"), "pass_at_8": ("pass@8", "{:.1f}"),
           "entropy": ("entropy", "{:.2f}"), "tied_groups": ("tied", "{:.1f}"),
           "f1": ("F1", "{:.2f}"), "searches": ("searches", "{:.1f}"),
           "two_searches": ("twice", "{:.0%}"), "supported": ("supported", "{:.0%}"),
           "seconds": ("s", "{:.0f}"), "student_sampled": ("sampled", "{:.1f}k"),
           "teacher_read": ("read", "{:.1f}k"), "teacher_written": ("written", "{:.1f}k")}
# Student's t, two-sided 95%, for 1, 2, ... degrees of freedom; from eleven on rounded up.
T95 = [12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23] + 9 * [2.20] + [2.09]


# ------------------------------------------------------------------------------- which runs
def flags():
    """train.py's flags, and those of a comparison."""
    parser = run_flags(__doc__)
    parser.add_argument("--methods", default=COMPARED, help="to compare, between commas; each may "
                        "carry flags [%(default)s]")
    parser.add_argument("--seeds", type=number(int, 1, 10**4), default=5,
                        help="how many: 0, 1, ... [%(default)s]")
    parser.add_argument("--jobs", type=number(int, 1, 10**4),
                        help="runs side by side [1 on a GPU, else a core each]")
    return parser


def split_methods(methods):
    """"ovd, grpo --kl 1" -> {"ovd": ["ovd"], "grpo --kl 1": ["grpo", "--kl", "1"]}."""
    names = [" ".join(name.split()) for name in methods.split(",") if name.strip()]
    try:
        words = {name: shlex.split(name) for name in names}
    except ValueError:  # a quote that is never closed
        words = {}
    if not words:
        raise UserError(f"--methods {methods!r}: give methods with commas between them, like "
                        "'ovd, ovd --theta 3, grpo'")
    return words


def make_runs(args, out):
    """{(method, seed): what train.run takes}, a seed after the other. UserError for a bad flag."""
    shared = {k: v for k, v in vars(args).items() if k not in ("methods", "seeds", "jobs")}
    if args.method != "ovd":
        raise UserError(f"--method {args.method}: name what is compared in --methods")
    if args.seed:
        raise UserError(f"--seed {args.seed}: a comparison takes the seeds 0, 1, ...; use --seeds, "
                        "how many")
    parser, methods, runs = run_flags(__doc__), split_methods(args.methods), {}
    for seed in range(args.seeds):
        for name, words in methods.items():
            folder = out / f"{re.sub('[^a-z0-9.-]+', '_', name)}-{seed}"
            last = ["--seed", str(seed), "--out", str(folder)]
            try:  # a slip in a flag shows now and not in an hour
                run = parser.parse_args(["--method", *words, *last], Namespace(**shared))
                check_run_flags(run)
            except UserError as e:
                raise UserError(f"--methods '{name}': {e}")
            runs[name, seed] = run
    if len({run.out for run in runs.values()}) < len(runs):
        raise UserError(f"--methods {args.methods!r}: two would write to one folder; drop what is "
                        "there twice, or rename what they load")
    return runs


# ------------------------------------------------------------------------------- its folder
def read_json(path):
    """What a JSON object in a file holds. UserError names the file where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if path.name == "result.json":
            figures_of(content)
            content["asked"].get("seed")
        elif not isinstance(content, dict):
            raise TypeError("not an object")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise UserError(f"{path}: cut short, or not of a comparison ({type(e).__name__}); move "
                        f"{path.parent} away and it is run again")
    return content


def finished(run):
    """What the result.json of this run holds; None where it is still to be made.

    Nothing is changed. Raises UserError where the folder holds anything that is not this run's.
    """
    folder = Path(run.out)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out: {folder} is no folder; give a new one")
    found = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if MARK in found:
        refuse_changes(read_json(folder / MARK), vars(run), folder)
    elif found - {f"{MARK}.part", "log.txt"}:
        raise UserError(f"--out: {folder} is not empty, and no run began it; give a new folder")
    return read_json(folder / "result.json") if "result.json" in found else None


# ------------------------------------------------------------------------------- running them
def run_one(run):
    """One run in this process, its words in log.txt. Returns what result.json holds."""
    def test(student, tokenizer, problems, args):
        """train.evaluate; before training once for all runs that start alike, after it pass@8."""
        same = tuple(getattr(args, flag) for flag in SAME_START)
        if not tested:
            tested.append(same)
            if same not in STARTS:
                STARTS[same] = train.evaluate(student, tokenizer, problems, args)
            return STARTS[same]
        figures, sampled, greedy = train.evaluate(student, tokenizer, problems, args)
        figures["pass_at_8"] = pass_at_8(student, tokenizer, problems, args)
        return figures, sampled, greedy

    tested = []
    try:
        Path(run.out).mkdir(parents=True, exist_ok=True)
        log = open(Path(run.out) / "log.txt", "a", encoding="utf-8", buffering=1)
    except OSError as e:
        raise UserError(f"--out: {run.out} cannot be written to ({type(e).__name__}); name another")
    with log, redirect_stdout(log), redirect_stderr(log):
        return train.run(run, test)


def pass_at_8(student, tokenizer, problems, args):
    """The chance that one of 8 attempts is right, from 16 at each of the first 25 problems."""
    repeated = [p for p in problems[:25] for _ in range(16)]
    right = [t.right for t in sample_trajectories(student, tokenizer, repeated, 1.0,
                                                  args.max_new_tokens, args.batch)]
    return mean(pass_at_k(16, sum(right[i:i + 16]), 8) for i in range(0, len(right), 16))


def pass_at_k(n, right, k):
    """Chance that k of n samples, `right` of them right, hold a right one: an unbiased estimate.

    1 - C(n - right, k) / C(n, k), arXiv 2107.03374: the share of all groups of k that hold one.
    """
    return 1 - math.comb(n - right, k) / math.comb(n, k)


def run_here(runs, jobs):
    """Yield (key, result) of each run, one after another in this process."""
    for key, run in runs.items():
        yield key, run_one(run)


def end_with_parent():
    """Wait until the comparison is gone, however it ended, and end this worker at once."""
    multiprocessing.parent_process().join()
    os._exit(1)


def outcome(run):
    """What one run came to: its result, or a UserError that names its folder."""
    try:
        return run_one(run)
    except UserError as e:
        return UserError(f"{run.out}: {e}")
    except Exception as e:
        with open(Path(run.out) / "log.txt", "a", encoding="utf-8") as log:
            traceback.print_exc(file=log)
        why = shorten(f"{type(e).__name__}: {e}", 200)
        return UserError(f"{run.out}: {why}; its log.txt says where")


def work(pipe, threads):
    """A worker: loads the libraries once, takes one run after another, sends back what it came to.
    """
    Thread(target=end_with_parent, daemon=True).start()
    tqdm.set_lock(RLock())  # its own is a semaphore of the system's, left behind by a worker
    if threads:
        torch.set_num_threads(threads)
    with suppress(EOFError):  # the parent is gone
        while True:
            pipe.send(outcome(pipe.recv()))


def next_run(waiting, seed, seeds_at_work):
    """Of the runs that wait, the best for a worker whose last run had this seed.

    A worker tests the student of a seed before training only once, so it stays with its seed, then
    takes one that nobody is at, and at the end helps out.
    """
    return min(waiting, key=lambda key: (key[1] != seed, key[1] in seeds_at_work))


def start_workers(jobs):
    """{pipe: process} of so many workers."""
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    threads = None if pick_device() == "cuda" else max(1, os.cpu_count() // jobs)
    workers = {}
    usual = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited: Ctrl-C is the parent's alone
    try:
        for _ in range(jobs):
            pipe, their_end = context.Pipe()
            workers[pipe] = context.Process(target=work, args=(their_end, threads), daemon=True)
            workers[pipe].start()
            their_end.close()  # so that the pipe breaks when the worker dies
    finally:
        signal.signal(signal.SIGINT, usual)
    return workers


def run_side_by_side(runs, jobs):
    """Yield (key, result) of each run as it ends, `jobs` at a time in workers.

    After an error no new run begins; those under way are finished, and then it is raised.
    """
    waiting, workers, at_work, error = list(runs), start_workers(jobs), {}, None
    idle = dict.fromkeys(workers)  # pipe: the seed of its last run
    try:
        while True:
            while idle and waiting and not error:
                pipe, seed = idle.popitem()
                key = next_run(waiting, seed, {key[1] for key in at_work.values()})
                waiting.remove(key)
                at_work[pipe] = key
                pipe.send(runs[key])
            if not at_work:
                break
            for pipe in wait(list(at_work)):
                key = at_work.pop(pipe)
                try:
                    result = pipe.recv()
                except (EOFError, OSError):
                    result = UserError(f"{runs[key].out}: its process was killed, perhaps for "
                                       "lack of memory; try fewer --jobs")
                if isinstance(result, UserError):
                    error = error or result
                    continue
                idle[pipe] = key[1]
                yield key, result
        if error:
            raise error
    finally:
        for process in workers.values():
            process.terminate()


def compare(args):
    """Every method with every seed, a few side by side; what is finished is not run again."""
    out = Path(args.out or "runs/compare" + ("-one-shot" if args.one_shot else ""))
    runs = make_runs(args, out)
    done = {key: finished(run) for key, run in runs.items()}
    check_place(out)
    left = {key: run for key, run in runs.items() if done[key] is None}
    jobs = args.jobs or (1 if pick_device() == "cuda" else os.cpu_count())
    jobs = max(1, min(jobs, len(left)))
    run_all = run_here if jobs == 1 else run_side_by_side
    try:
        for key, result in tqdm(run_all(left, jobs), total=len(left), desc="comparing", unit="run",
                                leave=False):
            done[key] = result
    except BaseException:
        print(f"\nwhat is finished is kept in {out}; the same command goes on from there")
        raise
    write_tables(out, {key: figures_of(result) for key, result in done.items()})


# ------------------------------------------------------------------------------- the table
def interval(values):
    """(mean, half the width of its 95% interval) over seeds; NaN for the width of one value."""
    degrees = len(values) - 1
    if not degrees:
        return mean(values), math.nan
    t = T95[min(degrees, len(T95)) - 1]
    return mean(values), t * stdev(values) / math.sqrt(len(values))


def figures_of(result):
    """{column: figure} of a run, from what its result.json holds; shares right in per cent."""
    before, after = (100 * result[when]["pass_at_1"] for when in ("before", "after"))
    figures = {"before": before, "after": after, "gain": after - before}
    figures |= {name: value for name, value in result["after"].items() if name in COLUMNS}
    figures |= {name: 100 * result["after"][name] for name in ("greedy", "pass_at_8")
                if name in result["after"]}
    figures |= {name: result[name] for name in ("tied_groups", "seconds")} | result["budget"]
    return {name: float(value) for name, value in figures.items()}


def row_of(name, table, columns):
    """A method's row in Markdown. table: {method: a dict of figures for each seed}."""
    first = next(iter(table))
    values = {column: [figures[column] for figures in table[name]] for column in table[name][0]}
    ahead = [ours["gain"] - theirs["gain"] for ours, theirs in zip(table[first], table[name])]
    gain, beyond = ("{:+.1f} ± {:.1f}".format(*interval(v)) for v in (values["gain"], ahead))
    cells = [f"`{name}`", f"{mean(values['before']):.1f}", f"{mean(values['after']):.1f}", gain,
             "–" if name == first else beyond]
    for column in columns:
        form = COLUMNS[column][1]
        cells.append(form.format(mean(values[column]) / (1000 if form.endswith("k") else 1)))
    return f"| {' | '.join(cells)} |"


def write_tables(out, figures):
    """compare.csv, a row a run, and compare.md, a row a method. Prints the second."""
    shared = [column for column in next(iter(figures.values()))
              if all(column in row for row in figures.values())]
    lines = io.StringIO()
    rows = csv.writer(lines, lineterminator="\n")
    rows.writerow(["method", "seed", *shared])
    rows.writerows([*key, *(f"{row[column]:.6g}" for column in shared)]
                   for key, row in figures.items())
    write_whole(out / "compare.csv", lines.getvalue())

    table = {}
    for (name, _), row in figures.items():
        table.setdefault(name, []).append(row)
    columns = [column for column in COLUMNS if column in shared]
    heads = ["method", "before", "after", "gain", f"{next(iter(table))} beyond it",
             *(COLUMNS[column][0] for column in columns)]
    text = "\n".join([f"| {' | '.join(heads)} |", "|" + len(heads) * " --- |",
                      *(row_of(name, table, columns) for name in table)])
    write_whole(out / "compare.md", text + "\n")
    gains = {name: interval([row["gain"] for row in rows]) for name, rows in table.items()}
    best = max(gains, key=lambda name: gains[name][0])
    print(f"{text}\n\n{len(figures)} runs of {len(table)} methods with "
          f"{len(figures) // len(table)} seeds, in {out}: {best} gained most, "
          f"{gains[best][0]:+.1f} ± {gains[best][1]:.1f} points.")


def main():
    """Run what is missing of a comparison, and print its table."""
    compare(flags().parse_args())


if __name__ == "__main__":
    fail_in_one_line(main)
