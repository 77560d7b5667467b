"""Draws the memory ladder and how it grows: rows from ovd.py, a file for each number of tokens.

for n in 512 1024 2048 4096 8192; do python ovd.py --tokens $n --chunk 128 --json runs/$n.json; done
python notebooks/ladder.py runs/*.json notebooks/memory.png
"""

import json
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

try:
    *files, target = sys.argv[1:]
    rows = [row for file in files for row in json.load(open(file))]
except (ValueError, OSError) as e:
    print(f"error: give files of ovd.py --json, and a name for the picture ({e})", file=sys.stderr)
    sys.exit(2)
rows.sort(key=lambda r: r["tokens"])
tokens = sorted({r["tokens"] for r in rows})
looks = {  # grey to black, dash and mark: told apart without colour
    "dense reverse KL": dict(color="black", ls="-", marker="o"),
    "teacher's top 64": dict(color="0.5", ls="-", marker="s"),
    "chunked reverse KL": dict(color="tab:orange", ls="--", marker="^"),
    "OVD's update": dict(color="tab:blue", ls="-", marker="D"),
}

plt.rcParams.update({"font.size": 14, "axes.spines.top": False, "axes.spines.right": False})
figure, (bars, axes) = plt.subplots(2, 1, figsize=(10.5, 9.4), height_ratios=[1, 1.5])
most = max(r["tokens"] for r in rows if r["rung"] == "dense reverse KL" and r["peak_bytes"])
one = [r for r in rows if r["tokens"] == most]
peaks = [r["peak_bytes"] / 2**20 for r in one]
drawn = bars.barh([r["rung"] for r in one], peaks, color="0.45")
bars.bar_label(drawn, [f" {p:,.0f} MiB" if p >= 10 else f" {p:.1f} MiB" for p in peaks])
bars.invert_yaxis()
bars.set(xticks=[], xlim=(0, 1.15 * max(peaks)), title=f"The ladder at {most:,} completion tokens")
bars.spines["bottom"].set_visible(False)
highest = max(r["peak_bytes"] or 0 for r in rows) / 2**20
for rung, look in looks.items():
    mine = [
        (r["tokens"], r["peak_bytes"] and r["peak_bytes"] / 2**20)
        for r in rows
        if r["rung"] == rung
    ]
    fits = [(n, p) for n, p in mine if p]
    too_many = [n for n, p in mine if not p]
    axes.plot(*zip(*fits), lw=2.5, ms=8, **look)
    label = dict(xytext=(14, 0), ha="left", va="center")
    if too_many:  # marked at the top; no line leads there, nothing was measured
        label = dict(xytext=(-14, 12), ha="right", va="center")
        axes.plot(too_many, [2.5 * highest] * len(too_many), "x", ms=13, mew=3.5, color="black")
        axes.annotate(
            f"{rung} does not fit",
            (too_many[0], 2.5 * highest),
            xytext=(-16, 0),
            textcoords="offset points",
            ha="right",
            va="center",
        )
    axes.annotate(
        rung,
        fits[-1],
        color=look["color"],
        textcoords="offset points",
        annotation_clip=False,
        **label,
    )
axes.set(
    xscale="log",
    yscale="log",
    xlim=(tokens[0] / 1.15, tokens[-1] * 2.6),
    ylim=(100, 5 * highest),
    xticks=tokens,
    xticklabels=[f"{n:,}" for n in tokens],
    yticks=[100, 256, 1024, 4096, 16384],
    yticklabels=["100 MiB", "256 MiB", "1 GiB", "4 GiB", "16 GiB"],
    xlabel=f"completion tokens (V = {rows[0]['vocab']:,}, chunks of {rows[0]['chunk']}, on {rows[0]['device']})",
    ylabel="peak above the inputs",
    title="Chunks keep the loss stage flat, of logit matching and of OVD alike",
)
axes.minorticks_off()
axes.grid(axis="y", color="0.9")
figure.tight_layout()
figure.savefig(target, dpi=110)
