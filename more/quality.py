"""How good must a teacher be? Gain against the quality of the teacher, in two settings.

tiny/weak-teacher and tiny/teacher are two moments of one training, and the weights between them on
a straight line (more/mix.py) are teachers of every quality in between. Each method is taught by
each of them, with several seeds. Two settings: fresh problems, where the student is right now and
then by itself; and rare success, longer stories of which it gets few right.

    python -m more.quality --out runs/quality            # the tables: 430 short runs
    python -m more.quality --out runs/quality --draw quality.png    # and the picture of them

Stopped and started again, it goes on where it was. Other flags are those of more.compare, but for
those that the two settings and the teachers stand for.
"""
import csv
import json
from argparse import Namespace
from itertools import islice
from pathlib import Path

from more.checkpoint import read_object, write_whole
from more.compare import compare, flags, interval
from more.flags import embedded
from more.machine import pick_device
from more.mix import mix
from more.picture import Figure, need_matplotlib, save
from more.terminal import UserError, fail_in_one_line, quiet
from sample import load_model
from score import Teacher
from tasks import task_stream

SHARES = (0, 0.4, 0.5, 0.6, 0.7, 0.8, 1)  # of the full teacher in the mixture
SETTINGS = {"fresh": ["--difficulty", "1"],
            "rare": ["--difficulty", "2", "--samples", "2", "--max-new-tokens", "96"]}
# How each is drawn: colour, dash and mark differ, so that it can be read in print.
METHODS = {"ovd": ("black", "-", "o"), "ovd --literal": ("tab:red", "--", "s"),
           "ovd --reward verbal": ("tab:purple", "-.", "D"), "judge": ("tab:blue", ":", "^"),
           "sft": ("tab:orange", "--", "v"), "logits": ("tab:green", "-.", "x")}


def make_teachers(out):
    """{share: folder of the mixture}, made where they are not there yet."""
    folders = {share: out / "teachers" / f"{share:g}" for share in SHARES}
    for share, folder in folders.items():
        if not (folder / "model.safetensors").exists():
            mix(str(Path(embedded("math", "teacher")).with_name("weak-teacher")),
                embedded("math", "teacher"), share, folder)
    return folders


def share_solved(folder, difficulty, max_new_tokens, problems=500):
    """The share of unseen problems that a teacher solves."""
    teacher = Teacher(*load_model(folder, 4, pick_device()), max_new_tokens=max_new_tokens)
    solutions = teacher.solve(list(islice(task_stream("math", 0, difficulty, True), problems)))
    return sum(solution.right for solution in solutions) / problems


def measure_teachers(out, folders):
    """{setting: {share: share of the problems that this teacher solves}}, kept in teachers.json."""
    path = out / "teachers.json"
    if not path.exists():
        quiet()
        solved = {name: {f"{share:g}": share_solved(folder, *size)
                         for share, folder in folders.items()}
                  for name, size in (("fresh", (1, 64)), ("rare", (2, 96)))}
        write_whole(path, json.dumps(solved, indent=1) + "\n")
    return read_object(path)


def read_gains(path):
    """{method: [gain of each seed]} of a comparison's table."""
    gains = {}
    with open(path, encoding="utf-8", newline="") as f:
        for row in csv.DictReader(f):
            gains.setdefault(row["method"], []).append(float(row["gain"]))
    return gains


def draw(out, folders, solved, target):
    """Gain against the share that the teacher solves, an axis a setting, 95% intervals."""
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    for axes, setting in zip(figure.subplots(1, 2), SETTINGS):
        gains = read_gains(out / setting / "compare.csv")
        x = [100 * solved[setting][f"{share:g}"] for share in SHARES]
        for method, (colour, dash, mark) in METHODS.items():
            means, halves = zip(*(interval(gains[f"{method} --teacher {folder}"])
                                  for folder in folders.values()))
            axes.errorbar(x, means, halves, label=method, color=colour, linestyle=dash, marker=mark,
                          capsize=3)
        mean, half = interval(gains["grpo"])
        axes.axhspan(mean - half, mean + half, color="0.85")
        axes.axhline(mean, color="0.5", label="grpo, no teacher")
        axes.set(xlabel="problems the teacher solves, %", ylabel="gain, points",
                 title={"fresh": "Fresh problems", "rare": "Success is rare"}[setting])
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False, fontsize=9, loc="lower right")
    save(figure, target)


def main():
    """Run what is missing, and draw it."""
    parser = flags()
    parser.prog, parser.description = "python -m more.quality", __doc__
    parser.add_argument("--draw", metavar="FILE", help="write the picture to this file")
    parser.set_defaults(student=embedded("math", "student"))
    args = parser.parse_args()
    for name in ("methods", "teacher", "task", "difficulty", "samples", "max_new_tokens", "bits"):
        if getattr(args, name) != parser.get_default(name):
            raise UserError(f"--{name.replace('_', '-')} is set by the two settings here; leave it "
                            "out, or use python -m more.compare")
    if args.draw:
        need_matplotlib()  # before 430 runs, and not after them
    target, out = args.draw, Path(args.out or "runs/quality")
    del args.draw
    folders = make_teachers(out)
    solved = measure_teachers(out, folders)
    taught = [f"{method} --teacher {folder}" for method in METHODS for folder in folders.values()]
    for name, words in SETTINGS.items():
        # the flags that were given, and over them those of the setting
        setting = parser.parse_args([*words, "--out", str(out / name), "--methods",
                                     ", ".join(["grpo", *taught])], Namespace(**vars(args)))
        del setting.draw
        compare(setting)
    if target:
        draw(out, folders, solved, target)
    print(f"{len(SHARES)} teachers, {len(METHODS) + 1} methods and {args.seeds} seeds in 2 "
          f"settings: the tables are in {out}" + (f", the picture is {target}." if target else "."))


if __name__ == "__main__":
    fail_in_one_line(main)
