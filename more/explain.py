"""Says why a finished run learned little, from the files it left: metrics.csv and result.json.

    python -m more.explain runs/NAME
"""
import csv
import json
import math
from pathlib import Path
from statistics import fmean

from more.flags import WITHOUT_GROUPS
from more.terminal import UserError, fail_in_one_line, make_parser


def read_run(folder):
    """(rows of metrics.csv as numbers, what result.json holds). UserError names a bad file."""
    path = Path(folder) / "result.json"
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        for when in ("before", "after"):
            for figure in ("pass_at_1", "greedy", "entropy"):
                math.isnan(result[when][figure])  # TypeError: it is no number
        if not result["after"]["n"] > 0:
            raise ValueError("it was tested on nothing")
        result["settings"]["one_shot"]
        path = Path(folder) / "metrics.csv"
        with open(path, encoding="utf-8", newline="") as file:
            rows = [{name: float(cell) for name, cell in row.items()}
                    for row in csv.DictReader(file)]
        [row[name] for row in rows for name in ("step", "reward", "score", "replaced")]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as e:
        raise UserError(f"{path}: not that of a finished run ({type(e).__name__}); give the --out "
                        "of one")
    if not rows:
        raise UserError(f"{path}: no step was taken; give the --out of a run with --steps above 0")
    return rows, result


def average(rows, column):
    """Mean of a column over some steps, without those that have no such figure."""
    return fmean([row[column] for row in rows if not math.isnan(row[column])] or [math.nan])


def share_tied(rows, settings):
    """Of the groups of all steps, the share whose advantages are all zero."""
    return average(rows, "tied_groups") / (1 if settings["one_shot"] else settings["problems"])


def print_averages(rows, result):
    """What the steps had in common: scores, groups, updates."""
    settings = result["settings"]
    if settings["method"] in ("ovd", "judge"):
        print(f"scores: AUC {average(rows, 'auc'):.2f} on its own samples, "
              f"{average(rows, 'accepted'):.0%} accepted, {average(rows, 'replaced'):.0%} replaced")
    if settings["method"] not in WITHOUT_GROUPS:
        print(f"groups: {share_tied(rows, settings):.0%} tied (advantages all zero: nothing to "
              f"compare, no gradient), advantages {average(rows, 'advantage'):.2f} in size, "
              f"{average(rows, 'spread'):.2f} in spread")
    entropy = [result[when]["entropy"] for when in ("before", "after")]
    print(f"update: gradient norm {average(rows, 'grad_norm'):.2f}, KL to the base model "
          f"{average(rows, 'kl'):.2f}, entropy {entropy[0]:.2f} -> {entropy[1]:.2f} nats a token, "
          f"{average(rows, 'cut_off'):.0%} cut off".replace("nan", "not measured"))


def learned_little(result):
    """Is the gain within what chance alone does to the difference of two shares?"""
    noise = 1.96 * math.sqrt(0.5 / result["after"]["n"])  # at its widest
    return result["after"]["pass_at_1"] - result["before"]["pass_at_1"] <= noise


def likely_reason(rows, result):
    """The first of the usual reasons that holds, as a sentence with what to try."""
    settings, third = result["settings"], max(1, len(rows) // 3)
    first, last = rows[:third], rows[-third:]
    method, reward = settings["method"], average(rows, "reward")
    tied = share_tied(rows, settings) * (method not in WITHOUT_GROUPS)
    other = "" if method == "ovd" else "--method ovd, "
    more_score = average(last, "score") - average(first, "score")
    more_reward = average(last, "reward") - average(first, "reward")
    reasons = {
        "most were cut off before an answer; raise --max-new-tokens":
            average(rows, "cut_off") > 0.5,
        "replacement made the rewards of a group equal; use --baseline own":
            method == "ovd" and settings["baseline"] == "mixed" and tied > 0.8,
        f"the groups tied, for hardly anything was right; try {other}more --samples, or easier "
        "problems": tied > 0.8 and reward < 0.1,
        "the groups tied, for nearly all was right; try harder problems":
            tied > 0.8 and reward > 0.9,
        "the groups tied, for nearly all earned the same; try another --method": tied > 0.8,
        "the scores rose and the share of right ones did not, so it learned to please the teacher; "
        "see python -m more.judge": more_score > 0.5 and more_reward < 0.02,
        "the teacher's scores do not tell right from wrong; see python -m more.judge":
            average(rows, "auc") < 0.8,
        "it hardly moved from its start; raise --lr or --steps": average(last, "kl") < 0.02,
        "it came to say one thing only; lower --lr or set --kl": result["after"]["entropy"] < 0.02,
    }
    return next((reason for reason, holds in reasons.items() if holds),
                "none of the usual reasons; a longer run may tell")


def explain(folder):
    """Print what the steps of a finished run had in common, and whether and why it failed."""
    rows, result = read_run(folder)
    try:
        print_averages(rows, result)
        reason = likely_reason(rows, result)
    except (KeyError, TypeError) as e:
        raise UserError(f"{folder}: {e} is missing in metrics.csv or result.json; give the --out "
                        "of a run of train.py")
    if learned_little(result):
        print(f"little was learned: {reason}")


def main():
    """Explain one run."""
    parser = make_parser(__doc__)
    parser.add_argument("folder", help="the --out of a finished run of train.py")
    args = parser.parse_args()
    explain(args.folder)
    rows, result = read_run(args.folder)
    before, after = (100 * result[when]["pass_at_1"] for when in ("before", "after"))
    print(f"{len(rows)} steps: {before:.1f}% -> {after:.1f}% of {result['after']['n']} unseen "
          "problems right.")


if __name__ == "__main__":
    fail_in_one_line(main)
