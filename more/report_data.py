"""What the page of more.report shows of a run or of a comparison, gathered from its folder.

    python -m more.report runs/NAME

Only what has to be worked out is here: which words differ, who said them, what a card is counted
among, and the path of each curve. How all of it looks is in report.py.
"""
import csv
import json
import re
from difflib import SequenceMatcher
from itertools import groupby
from math import isnan
from operator import itemgetter
from pathlib import PureWindowsPath

from more.explain import read_run
from more.flags import WITHOUT_TEACHER
from tasks import INFORMATION

CURVES = {"reward": ("outcome", 1), "score": ("score S(y)", 9), "replaced": ("replaced", 1)}
KINDS = ["all", "wrong but accepted", "right but rejected", "replaced"]
WORD = re.compile(rf"{INFORMATION.pattern}\s*|\S+\s*|\s+")  # all an environment said counts as one
NOTES = {  # what to say of the cards of a method in which no teacher gives a score
    "grpo": "grpo asks no teacher, so the cards have no bars: the outcome alone is the reward.",
    "format": "format asks no teacher, so the cards have no bars: the form alone is rewarded.",
    "sft": "In sft the teacher writes all texts and scores none, so the cards have no bars.",
    "logits": "In logits the teacher is matched token by token and gives no score, so the cards "
              "have no bars, and the advantages play no part."}


# ------------------------------------------------------------------------------- attempts
def mark_words(text, other, label=""):
    """[[words, do they differ from `other`?, label], ...] of a text; label: who said them."""
    words, others = WORD.findall(text), WORD.findall(other)
    matcher = SequenceMatcher(None, [w.strip() for w in words], [w.strip() for w in others])
    marked = [(tag != "equal", "environment" if INFORMATION.match(word) else label, word)
              for tag, start, end, _, _ in matcher.get_opcodes() for word in words[start:end]]
    runs = []
    for (differs, who), run in groupby(marked, key=itemgetter(0, 1)):
        said = "".join(word for _, _, word in run)
        end = len(said.rstrip()) if differs and not who else len(said)
        runs += [[said[:end], differs, who]] + [[said[end:], False, ""]] * (end < len(said))
    return runs


def say_result(t, verbal):
    """What a text earned: its outcome in words; and its sign, [class, words], of its advantage.

    verbal: R is the teacher's own score, and nobody knows what is right.
    """
    words = {} if verbal else {0: "wrong", 1: "right"}
    outcome = words.get(t["reward"], f"{'R' if verbal else 'F1'} {t['reward']:.2f}")
    advantage = t["advantage"]
    sign = ["", "not trained on" if advantage is None else "advantage 0"]
    if advantage:
        sign = ["plus" if advantage > 0 else "minus",
                f"advantage {advantage:+.2f}".replace("-", "−")]
    return {"outcome": outcome + ", cut off" * (not t.get("stopped", True)), "sign": sign}


def judge_attempt(t, theta):
    """{verdict, drawings, says} of the teacher: ten bars, with theta and S(y) on their axis."""
    if t["score"] is None:
        return {"verdict": "no score", "drawings": [], "says": "no score"}
    probs = list(enumerate(t["probs"]))
    bars = "".join(f"M{10 * digit + 5} 100V{100 - 100 * p:.1f}" for digit, p in probs)
    side = "≥ θ, accepted" if t["score"] >= theta else "< θ, rejected"
    return {"verdict": f"S(y) {t['score']:.2f} {side}", "drawings": [
        ["bar", bars], ["theta", f"M{10 * theta + 5} 0V100"],
        ["dot", f"M{10 * t['score'] + 5:.1f} 100h0"]],
        "says": ", ".join(f"{digit}: {p:.0%}" for digit, p in probs)}


def kinds_of(t, theta, verbal):
    """Which of KINDS a line of samples.jsonl is counted among."""
    scored, right = t["score"] is not None and not verbal, t["reward"] == 1
    accepted = scored and t["score"] >= theta
    fits = [True, accepted and not right, scored and right and not accepted, bool(t["replaced_by"])]
    return [kind for kind, fit in zip(KINDS, fits) if fit]


def read_attempts(path, theta, verbal):
    """The lines of samples.jsonl as cards. ValueError names a line that is no JSON."""
    lines = path.read_text(encoding="utf-8").strip().replace("\n", ",\n")
    attempts = json.loads(f"[{lines}]", parse_constant={}.get)  # NaN, which is no JSON, as None
    scored = any(t["score"] is not None for t in attempts)
    return [make_card(t, theta, scored, verbal) for t in attempts]


def make_card(t, theta, scored, verbal):
    """What the page shows of one line; scored: does the teacher of this run give scores?"""
    text, put = t["text"], t["replaced_by"]
    card = {key: t[key] for key in ("step", "question", "answer", "score", "advantage")}
    card |= say_result(t, verbal) | {
        "kinds": kinds_of(t, theta, verbal), "replaced_by": None,
        "judged": judge_attempt(t, theta) if scored else None,
        "words": mark_words(text, put["text"] if put else text)}
    if put:
        new, kept = put["text"], put.get("kept", 0)
        words = mark_words(new[:kept], text[:kept], "kept") + mark_words(new[kept:], text[kept:])
        card["replaced_by"] = {"advantage": put["advantage"], "words": words,
                               **say_result(put, verbal)}
    if verbal:
        card["answer"] = "unknown to this run"
    return card


# ------------------------------------------------------------------------------- drawings
# A drawing is [class, path]; its place is 100 wide and 100 high, and y goes down.
def draw_line(number, label, values, most):
    """The number-th curve over the updates: its path, and its values as texts. NaN leaves a gap."""
    across, path, pen = 100 / max(1, len(values) - 1), "", "M"
    for i, value in enumerate(values):
        if not isnan(value):  # h0: a value between two gaps shows as a dot
            path += f"{pen}{across * i:.2f} {100 - 100 * value / most:.2f}h0"
        pen = "M" if isnan(value) else "L"
    form = "{:.0%}" if most == 1 else "{:.2f}"
    says = ["–" if isnan(value) else form.format(value) for value in values]
    return {"label": label, "style": f"line{number % 5}", "path": path, "says": says}


def draw_change(name, before, after, form, most=1):
    """A row: a figure before training, a tick, and after it, a dot."""
    start, end = (round(100 * min(1, value / most), 2) for value in (before, after))
    drawings = [["thin", "M0 50H100"], ["", f"M{start} 50H{end}M{start} 20V80"],
                ["dot", f"M{end} 50h0"]]
    words = f"{before:{form}} → {after:{form}}"
    return {"name": name, "words": words, "labels": [], "drawings": drawings}


def draw_gain(name, gains, mean, half, low, high):
    """A row: ticks for the seeds, a line for the interval and a dot for the mean gain."""
    def place(gain):
        """Where a gain is drawn, in per cent of the width."""
        return round(100 * (gain - low) / (high - low), 2)

    ticks = "".join(f"M{place(gain)} 25V75" for gain in gains)
    reach = "" if isnan(half) else f"M{place(mean - half)} 50H{place(mean + half)}"
    return {"name": name, "words": f"{mean:+.1f} ± {half:.1f}".replace("nan", "–"), "labels": [],
            "drawings": [["thin", f"M{place(0)} -20V120"], ["thin", ticks], ["", reach],
                         ["dot", f"M{place(mean)} 50h0"]]}


# ------------------------------------------------------------------------------- pages
def say_facts(result):
    """What a run was and cost, in a line. Of a model's folder the last two names are said."""
    settings = result["settings"]
    facts = [f"{result['steps']} updates", f"{result['seconds']:.0f} s",
             f"peak {result['peak_bytes'] / 2**30:.2f} GiB", f"seed {result['seed']}"]
    for who in ["student"] + ["teacher"] * (result["method"] not in WITHOUT_TEACHER):
        name = str(settings.get(f"{who}_model") or settings[who])
        facts.append(f"{who} {'/'.join(PureWindowsPath(name).parts[-2:])}")
    return " · ".join(facts)


def describe_run(folder):
    """All that the page of a run shows. UserError or ValueError where a file cannot be read."""
    rows, result = read_run(folder)
    before, after, settings = result["before"], result["after"], result["settings"]
    method, theta = result["method"], settings["theta"]
    verbal = settings.get("reward") == "verbal"
    attempts = read_attempts(folder / "samples.jsonl", theta, verbal)
    scored = any(t["judged"] for t in attempts)
    figures = {"pass_at_1": ("right, sampled", ".1%"), "greedy": ("right, greedy", ".1%"),
               "f1": ("F1", ".2f"),
               "searches": ("searches an attempt", ".1f", max(1, settings["turns"]))}
    return {
        "sentence": f"{method}{' from one problem' * result['one_shot']}: "
        f"{before['pass_at_1']:.1%} → {after['pass_at_1']:.1%} of {after['n']} unseen problems "
        f"right ({100 * (after['pass_at_1'] - before['pass_at_1']):+.1f} points)",
        "facts": say_facts(result), "note": NOTES.get(method, "") if not scored else
        f"Bars: how likely each digit is to the teacher. Dashed: θ = {theta:g}. Dot: S(y). "
        "Words that differ are underlined. " + ("R is the teacher's own score / 9." if verbal else
        "Wrong but accepted: the teacher was taken in. Right but rejected: what was good would get "
        "lost, if not for the rule."),
        "rows": [draw_change(name, before[key], after[key], *form)
                 for key, (name, *form) in figures.items() if key in after],
        "charts": [{"title": "In training", "top": "100% or 9" if scored else "100%", "lines": [
            draw_line(i, "R" if verbal and not i else name, [row[column] for row in rows], most)
            for i, (column, (name, most)) in enumerate(CURVES.items()) if scored or not i]}],
        "writer": "teacher" if method == "sft" else "student",
        "kinds": [] if not scored else ["all", "replaced"] if verbal else KINDS,
        "attempts": attempts}


def draw_seeds(runs):
    """The charts of a method: a line a seed in each. runs: {label: rows of its metrics.csv}."""
    charts = []
    for column, (name, most) in CURVES.items():
        curves = {label: [row[column] for row in rows] for label, rows in runs.items()}
        if any(value > 0 for values in curves.values() for value in values):
            charts.append({"title": name, "top": "100%" if most == 1 else str(most), "lines": [
                draw_line(i, label, values, most)
                for i, (label, values) in enumerate(curves.items())]})
    return charts


def read_gains(folder):
    """{method: (mean gain, half its interval, {seed: gain})}, from compare.md and compare.csv."""
    with open(folder / "compare.csv", encoding="utf-8", newline="") as file:
        runs = [(row["method"], row["seed"], float(row["gain"])) for row in csv.DictReader(file)]
    table = (folder / "compare.md").read_text(encoding="utf-8")
    found = re.findall(r"^\| `(.+?)` \|.*? ([+-][\d.]+) ± ([\d.]+|nan) \|", table, re.M)
    if not found:
        raise ValueError("compare.md has no gains")
    return {name: (float(mean), float(half),
                   {seed: gain for method, seed, gain in runs if method == name})
            for name, mean, half in found}


def describe_comparison(folder):
    """All that the page of a comparison shows. UserError where a run of it cannot be read."""
    gains, rows = read_gains(folder), []
    ends = [0, 10]
    for mean, half, seeds in gains.values():
        ends += [*seeds.values(), mean] + [mean - half, mean + half] * (not isnan(half))
    low, high = min(ends), max(ends)
    for name, (mean, half, seeds) in gains.items():
        start = folder / re.sub("[^a-z0-9.-]+", "_", name)  # of the names of its runs' folders
        charts = draw_seeds({f"seed {s}": read_run(f"{start}-{s}")[0] for s in seeds})
        rows.append({**draw_gain(name, seeds.values(), mean, half, low, high), "charts": charts})
    best = max(rows, key=lambda row: gains[row["name"]][0])
    axis = [[round(100 * (v - low) / (high - low), 2), f"{v:+d}" if v else "0"]
            for v in range(-400, 401, 20) if low <= v <= high]
    rows.append({"name": "gain in points", "words": "± 95%", "drawings": [], "labels": axis})
    return {"sentence": f"{best['name']} gained most: {best['words']} points", "rows": rows,
            "facts": f"{len(gains)} methods, {len(seeds)} seeds each. Dot: mean gain. Line: its "
            "95% interval, Student's t over the seeds. Ticks: the seeds. Choose a method to see "
            "its curves.",
            "charts": [], "note": ""}
