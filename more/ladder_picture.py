"""Draws the memory ladder and how it grows: rows of more/ladder.py, a file for each length.

    mkdir -p runs/ladder
    for n in 512 1024 2048 4096 8192; do
        python -m more.ladder --tokens $n --chunk 128 --json runs/ladder/$n.json; done
    python -m more.ladder_picture runs/ladder/*.json memory.png
"""
import json

from more.ladder import RUNGS
from more.picture import LOOK, Figure, need_matplotlib, rc_context, save
from more.terminal import UserError, fail_in_one_line, make_parser

MIB = 2**20
LINES = {  # grey to black, dash and mark: told apart without colour
    "dense reverse KL": dict(color="black", ls="-", marker="o"),
    "teacher's top 64": dict(color="0.5", ls="-", marker="s"),
    "chunked reverse KL": dict(color="tab:orange", ls="--", marker="^"),
    "OVD's update": dict(color="tab:blue", ls="-", marker="D"),
}


def read_rows(files):
    """The rows of all files, the fewest tokens first. UserError names a file without any."""
    rows = []
    for file in files:
        try:
            with open(file, encoding="utf-8") as f:
                found = json.load(f)
            for row in found:
                if row["rung"] not in RUNGS or row["tokens"] < 1 or (row["peak_bytes"] or 1) < 1:
                    raise ValueError("no rung of the ladder")
                row["vocab"], row["chunk"], row["device"]
            rows += found
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as e:
            raise UserError(f"{file}: not what python -m more.ladder --json writes "
                            f"({type(e).__name__}); make it anew")
    return sorted(rows, key=lambda row: row["tokens"])


def draw_bars(axes, rows):
    """All rungs at the greatest length at which every one of them fits."""
    short = {row["tokens"] for row in rows if row["peak_bytes"] is None}
    fits = [row["tokens"] for row in rows if row["tokens"] not in short]
    longest = [row for row in rows if row["tokens"] == max(fits, default=None)]
    if not LINES.keys() <= {row["rung"] for row in longest}:
        raise UserError("at no length do all rungs fit; add a file of fewer --tokens")
    peaks = [row["peak_bytes"] / MIB for row in longest]
    bars = axes.barh([row["rung"] for row in longest], peaks, color="0.45")
    axes.bar_label(bars, [f" {p:,.0f} MiB" if p >= 10 else f" {p:.1f} MiB" for p in peaks])
    axes.invert_yaxis()
    axes.set(xticks=[], xlim=(0, 1.15 * max(peaks)),
             title=f"The ladder at {max(fits):,} completion tokens")
    axes.spines["bottom"].set_visible(False)


def draw_rung(axes, rung, rows, top):
    """One rung's peak over the tokens; a cross at `top` MiB where it does not fit."""
    fits = [(row["tokens"], row["peak_bytes"] / MIB) for row in rows
            if row["peak_bytes"] is not None]
    too_many = [row["tokens"] for row in rows if row["peak_bytes"] is None]
    axes.plot(*zip(*fits), lw=2.5, ms=8, **LINES[rung])
    place = dict(xytext=(14, 0), ha="left", va="center")
    if too_many:  # no line leads to the cross, nothing was measured there
        place = dict(xytext=(-14, 12), ha="right", va="center")
        axes.plot(too_many, [top] * len(too_many), "x", ms=13, mew=3.5, color="black")
        axes.annotate(f"{rung} does not fit", (too_many[0], top), xytext=(-16, 0),
                      textcoords="offset points", ha="right", va="center")
    axes.annotate(rung, fits[-1], color=LINES[rung]["color"], textcoords="offset points",
                  annotation_clip=False, **place)


def draw_growth(axes, rows):
    """How four of the rungs grow with the tokens."""
    tokens = sorted({row["tokens"] for row in rows})
    highest = max(row["peak_bytes"] or 0 for row in rows) / MIB
    for rung in LINES:
        draw_rung(axes, rung, [row for row in rows if row["rung"] == rung], 2.5 * highest)
    axes.set(xscale="log", yscale="log", xlim=(tokens[0] / 1.15, tokens[-1] * 2.6),
             ylim=(100, 5 * highest), xticks=tokens, xticklabels=[f"{n:,}" for n in tokens],
             yticks=[100, 256, 1024, 4096, 16384],
             yticklabels=["100 MiB", "256 MiB", "1 GiB", "4 GiB", "16 GiB"],
             xlabel=f"completion tokens (V = {rows[0]['vocab']:,}, chunks of {rows[0]['chunk']}, "
                    f"on {rows[0]['device']})", ylabel="peak above the inputs",
             title="Chunks keep the loss stage flat, of logit matching and of OVD alike")
    axes.minorticks_off()
    axes.grid(axis="y", color="0.9")


def main():
    """Draw the ladder."""
    parser = make_parser(__doc__)
    parser.add_argument("files", nargs="+", help="of python -m more.ladder --json")
    parser.add_argument("target", help="the picture to write")
    args = parser.parse_args()
    need_matplotlib()
    rows = read_rows(args.files)
    with rc_context({**LOOK, "font.size": 14}):
        figure = Figure(figsize=(10.5, 9.4))
        bars, growth = figure.subplots(2, 1, height_ratios=[1, 1.5])
        draw_bars(bars, rows)
        draw_growth(growth, rows)
        figure.tight_layout()
        save(figure, args.target)
    print(f"{args.target}: {len(rows)} rows of {len(args.files)} files.")


if __name__ == "__main__":
    fail_in_one_line(main)
