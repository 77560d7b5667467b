"""Draws a run of train.py: the problem it trained on, and the problems it never saw.

    pip install matplotlib
    python -m more.picture runs/NAME picture.png
"""
try:
    from matplotlib import rc_context
    from matplotlib.figure import Figure
except ImportError:
    rc_context = Figure = None  # need_matplotlib() says how to get it

from more.explain import read_run
from more.terminal import UserError, fail_in_one_line, make_parser

LOOK = {"font.size": 13, "axes.spines.top": False, "axes.spines.right": False}


def need_matplotlib():
    """Raise UserError where there is no matplotlib, which draws."""
    if not Figure:
        raise UserError("a picture needs matplotlib: pip install -r more/requirements.txt")


def draw_training(axes, rows, settings):
    """Three lines over the updates, told apart without colour."""
    steps = [row["step"] for row in rows]
    reward = ("mean R, %" if settings.get("reward") == "verbal" else
              "mean F1, %" if settings.get("task") == "search" else "right, % of the samples")
    lines = [("reward", 1, reward, dict(ls="-", color="black", lw=2.5)),
             ("score", 9, "teacher's score, % of 9", dict(ls="--", color="tab:blue", lw=2)),
             ("replaced", 1, "replaced by the teacher, %", dict(ls=":", color="tab:orange",
                                                                lw=2.5))]
    for column, most, label, look in lines:
        axes.plot(steps, [100 * row[column] / most for row in rows], label=label, **look)
    axes.set(xlabel="update", ylim=(-2, 102),
             title="The one problem it trains on" if settings["one_shot"] else "In training")
    axes.legend(frameon=False, fontsize=11, handlelength=1.5, loc="best")


def draw_test(axes, result):
    """Shares of the unseen problems right, before and after: a bar each."""
    for i, key in enumerate(("pass_at_1", "greedy")):
        for j, (when, colour) in enumerate((("before", "0.75"), ("after", "0.2"))):
            share = 100 * result[when][key]
            axes.bar(i + 0.4 * j, share, 0.36, color=colour, label=when if i == 0 else None)
            axes.text(i + 0.4 * j, share + 1.5, f"{share:.0f}", ha="center")
    axes.set(xticks=[0.2, 1.2], xticklabels=["sampled", "greedy"], ylim=(0, 110),
             ylabel="right, %", title=f"{result['after']['n']} problems it never saw")
    axes.legend(frameon=False, loc="upper left")


def save(figure, target):
    """Write a figure to a file. UserError where that cannot be."""
    try:
        figure.savefig(target, dpi=110)
    except (OSError, ValueError) as e:  # ValueError: an ending that names no kind of picture
        raise UserError(f"{target}: cannot be written ({e}); name a file like picture.png")


def main():
    """Draw one run."""
    parser = make_parser(__doc__)
    parser.add_argument("folder", help="the --out of a finished run of train.py")
    parser.add_argument("target", help="the picture to write")
    args = parser.parse_args()
    need_matplotlib()
    rows, result = read_run(args.folder)
    with rc_context(LOOK):
        figure = Figure(figsize=(11, 4.2))
        left, right = figure.subplots(1, 2, width_ratios=[1.7, 1])
        draw_training(left, rows, result["settings"])
        draw_test(right, result)
        figure.tight_layout()
        save(figure, args.target)
    print(f"{args.target}: {len(rows)} updates and {result['after']['n']} problems, drawn from "
          f"{args.folder}.")


if __name__ == "__main__":
    fail_in_one_line(main)
