"""What a run leaves in its folder, to be read by people and by the scripts around this one.

    metrics.csv      a row a step; more/README.md explains the columns
    samples.jsonl    a line for each trajectory: text, ten probabilities, score, advantage, and by
                     what it was replaced
    result.json      before and after, what it cost, all settings and versions
    adapter/         what was learned, in PEFT's format (more/adapter.py)

train.py calls the functions below. more/checkpoint.py writes what is needed to go on.

    python -m more.record runs/NAME    # what a finished run came to
"""
import csv
import json
import math
import os
import sys
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from statistics import mean, pstdev

import torch
from tqdm import tqdm

from more.machine import pick_device
from more.terminal import UserError, fail_in_one_line, make_parser
from ovd import accept
from score import auc, scores_of


# ------------------------------------------------------------------------------- a step
def entropy(trajectories):
    """Nats a token, as the mean of -log pi over what the student chose; NaN where that is none."""
    chosen = [lp for t in trajectories for lp, author, trained in zip(t.logprobs, t.authors, t.mask)
              if author == "student" and trained]
    return -sum(chosen) / len(chosen) if chosen else math.nan


def drift(batch, logprobs, ref, name):
    """Of the student's own tokens: how far is log pi (M,) from log pi_ref and from its sampling?"""
    tokens = [token for t in batch for token in zip(t.authors, t.logprobs, t.mask) if token[2]]
    sampled = torch.tensor([lp if author == "student" else math.nan for author, lp, _ in tokens])
    chosen = torch.where(sampled.isnan(), math.nan, logprobs)  # (M,) NaN: not the student's token
    gap = (chosen - sampled).abs().nanmean().item()
    if gap > 0.2:  # it should be rounding; else the update is not on-policy
        raise UserError(f"--student {name}: a token's log-probability when trained is "
                        f"{gap:.2f} off that when sampled; its head is more than a matrix product, "
                        "so use a Qwen- or Llama-like model")
    return {"kl": (chosen[:len(ref)] - ref).nanmean().item(), "logprob_gap": gap}


def step_figures(y, y_new, batch, tied, args):
    """What is logged of a step beside the update's own figures; more/README.md explains each."""
    right, wrong = scores_of(y)
    sizes = [t.advantage for t in batch] or [0.0]
    known = [t.reward for t in y if args.reward == "outcome" or t.score is not None]
    return {"reward": mean(known or [math.nan]), "score": mean(right + wrong or [math.nan]),
            "auc": auc(right, wrong) if args.reward == "outcome" else math.nan,
            "scored": len(right + wrong) / len(y),
            "accepted": mean(t.score is not None and accept(t.score, args.theta) for t in y),
            "replaced": mean(t is not None for t in y_new),
            "tied_groups": tied, "advantage": mean(map(abs, sizes)), "spread": pstdev(sizes),
            "entropy": entropy(y), "cut_off": mean(not t.stopped for t in y),
            "student_tokens": sum(t.authors.count("student") for t in y),
            "new_tokens": sum(t.authors.count("teacher") for t in y_new if t)}


def show_step(bar, rows):
    """Put the last step's figures on the bar; after a slow first step say how long all will take.
    """
    bar.set_postfix({k: f"{rows[-1][k]:.2f}" for k in ("reward", "score", "replaced")
                     if not math.isnan(rows[-1][k])})
    minutes = bar.total * rows[0]["seconds"] / 60
    if len(rows) == 1 and minutes > 2:
        tqdm.write(f"a step took {rows[0]['seconds']:.0f} s, so {bar.total} of them take about "
                   f"{minutes:.0f} minutes; stopped, the same command with the same --out goes on")


def log_step(out, row, y, y_new):
    """Append a row to metrics.csv and a line for each trajectory to samples.jsonl."""
    with open(out / "metrics.csv", "a", encoding="utf-8", newline="") as f:
        if row["step"] == 1:
            csv.writer(f).writerow(row)
        csv.writer(f).writerow(f"{v:.6g}" for v in row.values())
    with open(out / "samples.jsonl", "a", encoding="utf-8") as f:
        for t, new in zip(y, y_new):
            # how much of the attempt is left in what replaced it, in characters
            kept = len(os.path.commonprefix([t.text, new.text])) if new and "student" in \
                new.authors else 0
            line = {"step": row["step"], "question": t.problem.question, "answer": t.problem.answer,
                    "text": t.text, "stopped": t.stopped, "reward": t.reward, "probs": t.probs,
                    "score": t.score, "advantage": t.advantage, "replaced_by": new and {
                        "text": new.text, "kept": kept, "reward": new.reward,
                        "advantage": new.advantage}}
            f.write(json.dumps(line) + "\n")


def check_scored(row, args, teacher):
    """Raise UserError where a teacher gave most trajectories of a step no score."""
    if args.method in ("ovd", "judge") and row["scored"] < 0.5:
        raise UserError(f"--teacher {args.teacher}: more than half of the trajectories got no "
                        f"score in step {row['step']}; {teacher.why}")


# ------------------------------------------------------------------------------- a run
def first_look(teacher, sampled):
    """One line on how good the teacher is, from attempts made before any training."""
    teacher.score(sampled, teacher.solve([t.problem for t in sampled]))
    teacher.written.clear()  # these are no part of what the run costs
    right, wrong = scores_of(sampled)
    found = (f"AUC {auc(right, wrong):.2f} (1: it knows right from wrong, 0.5: it guesses)"
             if right and wrong else "there are not right and wrong ones to tell apart")
    print(f"the teacher on {len(sampled)} of these attempts: {found}")


def test_figures(sampled, greedy, task):
    """What a test came to, from a sampled and a greedy attempt at each problem."""
    right, right_greedy = (mean(t.stopped and t.problem.is_right(t.text) for t in attempts)
                           for attempts in (sampled, greedy))
    figures = {"pass_at_1": right, "greedy": right_greedy, "n": len(sampled),
               "cut_off": mean(not t.stopped for t in sampled), "entropy": entropy(sampled)}
    if task == "search":
        from more.search import search_figures
        figures |= search_figures(sampled)
    return figures


def announce(args, unseen, out):
    """One line on what a run is about to do."""
    print(f"{args.method}{', one-shot' if args.one_shot else ''}: {args.steps} updates of "
          f"{args.problems * args.samples} trajectories, tested on {len(unseen)} unseen problems; "
          f"results in {out}\n")


def warn_unsolved(solutions, args):
    """Where a one-shot run has a problem that the teacher does not solve, say so."""
    if not args.one_shot or args.reward != "outcome" or not solutions or solutions[0].right:
        return
    solution = solutions[0]
    cut = "" if solution.stopped else " (cut off, raise --max-new-tokens)"
    print("the teacher does not solve the one problem of this run, so it has nothing better to put "
          f"in the place of an attempt; it says{cut}: {solution.text}")


@contextmanager
def named_stops(args, out):
    """Inside this block Ctrl-C, and a GPU that runs out of memory, end in a line that helps."""
    try:
        yield
    except torch.cuda.OutOfMemoryError:
        raise UserError(f"out of GPU memory; try --batch {max(1, args.batch // 4)} --micro-batch 1 "
                        "--chunk 64; python -m more.plan says what fits")
    except KeyboardInterrupt:
        print(f"\nstopped; what was learned so far is in {out / 'adapter'}, and the same command "
              f"with --out {out} goes on from the last step that was kept")
        sys.exit(130)


def result_of(args, asked, before, after, rows, teacher, peaks):
    """What result.json holds of a run, but for its seconds: figures, costs, settings, versions.

    asked: its flags before the defaults were filled in. peaks: {phase: bytes}. Read by the teacher
    is what it scored, and the problems it solved.
    """
    sampled, read, placed, tied = (
        int(sum(row[column] for row in rows))
        for column in ("student_tokens", "teacher_read", "new_tokens", "tied_groups"))
    solutions = teacher.written.values() if teacher else ()
    return {**{k: getattr(args, k) for k in ("method", "task", "seed", "one_shot", "steps")},
            "before": before, "after": after, "tied_groups": tied, "budget": {
                "student_sampled": sampled, "updates": len(rows), "put_in_place": placed,
                "teacher_read": read + sum(len(t.prompt_ids) for t in solutions),
                "teacher_written": sum(sum(t.mask) for t in solutions)},
            "peak_bytes": max(peaks.values()), "peak_by_phase": peaks, "device": pick_device(),
            "versions": {p: version(p) for p in ("torch", "transformers", "bitsandbytes")},
            "settings": vars(args), "asked": asked}


def show_change(unseen, was, now):
    """Print one problem that the student had wrong before, with its greedy attempts was and now."""
    i = next((i for i, t in enumerate(was) if not t.right), None)
    if i is not None:
        print(f"\nan unseen problem it had wrong: {unseen[i].question} ({unseen[i].answer})\n"
              f"  before, greedy  {was[i].text}\n  after, greedy   {now[i].text}\n")


def where_to_look(out, report):
    """The page of a run, written if `report`, or the command that writes it."""
    if not report:
        return f"python -m more.report {out} shows this run as a page; more.explain sums it up"
    from more.report import write_report
    try:
        return f"the page of this run is {write_report(out)}"
    except UserError as e:  # no step was taken: the run itself went well
        return f"no page was written: {e}"


def say_again(result, out, report):
    """What a finished run came to, when its command is given once more."""
    print(f"{out} holds this run, and it is finished")
    return say_in_one_sentence(result, where_to_look(out, report))


def say_in_one_sentence(result, first):
    """Print a line and then what happened, from what result.json holds; returns that."""
    print(first)
    before, after, settings = result["before"], result["after"], result["settings"]
    changes = {k: f"{before[k]:{form}} -> {after[k]:{form}}" for k, form in
               (("pass_at_1", ".1%"), ("greedy", ".1%"), ("f1", ".2f"), ("searches", ".1f"))
               if k in after}
    searches = f"; F1 {changes['f1']}; searches a trajectory {changes['searches']}" \
        if "f1" in after else ""
    print(f"{result['method']}{' from one problem' if settings['one_shot'] else ''}: "
          f"{changes['pass_at_1']} of {after['n']} unseen problems right when sampled "
          f"({100 * (after['pass_at_1'] - before['pass_at_1']):+.1f} points; greedy "
          f"{changes['greedy']}{searches}), {settings['steps']} updates, "
          f"{result['seconds']:.0f} s, peak {result['peak_bytes'] / 2**30:.2f} GiB.")
    return result


def main():
    """Say again what a finished run came to."""
    parser = make_parser(__doc__)
    parser.add_argument("folder", help="the --out of a finished run")
    folder = Path(parser.parse_args().folder)
    try:
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        say_in_one_sentence(result, where_to_look(folder, False))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise UserError(f"{folder}: no finished run ({type(e).__name__}); give the --out of one")


if __name__ == "__main__":
    fail_in_one_line(main)
