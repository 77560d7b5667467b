"""Draws a run of train.py: the problem it trained on, and the problems it never saw.

python notebooks/picture.py runs/NAME picture.png
"""

import csv
import json
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

try:
    folder, target = sys.argv[1:]
    lines = list(csv.DictReader(open(f"{folder}/metrics.csv")))
    result = json.load(open(f"{folder}/result.json"))
except (ValueError, OSError) as e:
    print(f"error: give a run's folder and a name for the picture ({e})", file=sys.stderr)
    sys.exit(2)
rows = [{k: float(v) for k, v in line.items()} for line in lines]
steps = [r["step"] for r in rows]

plt.rcParams.update({"font.size": 13, "axes.spines.top": False, "axes.spines.right": False})
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), width_ratios=[1.7, 1])
left.plot(
    steps,
    [100 * r["reward"] for r in rows],
    "-",
    color="black",
    lw=2.5,
    label="right, % of the samples",
)
left.plot(
    steps,
    [100 * r["score"] / 9 for r in rows],
    "--",
    color="tab:blue",
    lw=2,
    label="teacher's score, % of 9",
)
left.plot(
    steps,
    [100 * r["replaced"] for r in rows],
    ":",
    color="tab:orange",
    lw=2.5,
    label="replaced by the teacher, %",
)
left.set(
    xlabel="update",
    ylim=(-2, 102),
    title="The one problem it trains on" if result["one_shot"] else "In training",
)
left.legend(frameon=False, fontsize=11, handlelength=1.5, loc="center right")
names = [("sampled", "pass_at_1"), ("greedy", "greedy")]
for i, (name, key) in enumerate(names):
    for j, (when, colour) in enumerate((("before", "0.75"), ("after", "0.2"))):
        value = 100 * result[when][key]
        right.bar(i + 0.4 * j, value, 0.36, color=colour, label=when if i == 0 else None)
        right.text(i + 0.4 * j, value + 1.5, f"{value:.0f}", ha="center")
right.set(
    xticks=[0.2, 1.2],
    xticklabels=[n for n, _ in names],
    ylim=(0, 110),
    ylabel="right, %",
    title=f"{result['after']['n']} problems it never saw",
)
right.legend(frameon=False, loc="upper left")
figure.tight_layout()
figure.savefig(target, dpi=110)
