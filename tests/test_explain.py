"""Why a run learned little, told from the files that it left."""

import csv
import json
import runpy
import sys
from pathlib import Path

import pytest

from more.explain import explain
from more.terminal import UserError

ROOT = Path(__file__).parent.parent


def figures(**changed):
    usual = dict(
        reward=0.4, score=4.0, auc=0.99, scored=1.0, accepted=0.4, replaced=0.6, tied_groups=0
    )
    usual |= dict(spread=0.5, advantage=0.4, entropy=0.3, cut_off=0.0, grad_norm=0.5, kl=0.5)
    return [
        {k: v[i // 3] if isinstance(v, tuple) else v for k, v in (usual | changed).items()}
        for i in range(6)
    ]


def write_run(folder, rows, after, **settings):
    """A finished run's folder with these rows of metrics.csv."""
    test = {"pass_at_1": 0.3, "greedy": 0.2, "entropy": 0.3, "n": 500}
    with open(folder / "metrics.csv", "w", newline="") as f:
        writer = csv.DictWriter(f, ["step", *rows[0]])
        writer.writeheader()
        writer.writerows({"step": i + 1, **row} for i, row in enumerate(rows))
    settings = dict(method="ovd", one_shot=True, problems=4, baseline="own") | settings
    result = {"before": test, "after": {**test, "pass_at_1": after}, "settings": settings}
    (folder / "result.json").write_text(json.dumps({**result, "one_shot": True}))


@pytest.mark.parametrize(
    "method, changed, says",
    [
        ("ovd", {"cut_off": 0.9}, "--max-new-tokens"),
        ("grpo", {"tied_groups": 1, "reward": 0.0}, "hardly anything was right"),
        ("grpo", {"tied_groups": 1, "reward": 1.0}, "nearly all was right"),
        ("format", {"tied_groups": 1, "reward": 0.3}, "nearly all earned the same"),
        ("ovd", {"tied_groups": 1, "reward": 0.0}, "right; try more --samples"),  # it is ovd
        ("logits", {"tied_groups": 1, "auc": float("nan")}, "none of the usual"),  # compares none
        ("judge", {"score": (3.0, 6.0), "reward": (0.4, 0.1)}, "please the teacher"),
        ("ovd", {"auc": 0.5}, "do not tell right from wrong"),
        ("ovd", {"kl": 0.001}, "hardly moved"),
        ("ovd", {}, "none of the usual reasons"),
    ],
)
def test_a_run_that_learned_nothing_says_why(tmp_path, capsys, method, changed, says):
    write_run(tmp_path, figures(**changed), 0.3, method=method)
    explain(tmp_path)
    assert says in capsys.readouterr().out.splitlines()[-1]
    write_run(tmp_path, figures(**changed), 0.6, method=method)
    explain(tmp_path)
    assert "little was learned" not in capsys.readouterr().out


def test_the_literal_reading_and_a_teacher_that_never_scored(tmp_path, capsys):
    """Four groups a step, all tied; NaN is left out of a mean, and a mean of nothing is said so."""
    rows = figures(tied_groups=4, kl=float("nan"), score=float("nan"))
    write_run(tmp_path, rows, 0.3, baseline="mixed", one_shot=False)
    explain(tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert "100% tied" in lines[1] and "KL to the base model not measured" in lines[2]
    assert "use --baseline own" in lines[3]


def test_where_nothing_is_replaced_the_mixed_mean_is_no_reason(tmp_path, capsys):
    rows = figures(tied_groups=1, reward=0.0)
    write_run(tmp_path, rows, 0.3, baseline="mixed", method="grpo")
    explain(tmp_path)
    assert "hardly anything was right" in capsys.readouterr().out


def test_what_is_no_finished_run_is_one_line_that_names_the_file(tmp_path):
    with pytest.raises(UserError, match=r"result\.json"):
        explain(tmp_path)
    write_run(tmp_path, figures(), 0.3)
    whole = (tmp_path / "metrics.csv").read_text()
    for broken in (whole[:-20], whole.splitlines()[0] + "\n"):
        (tmp_path / "metrics.csv").write_text(broken)
        with pytest.raises(UserError, match=r"metrics\.csv"):
            explain(tmp_path)
    for broken in ('{"before": {"pass', "[]", '{"before": {"pass_at_1": 0.1}}'):
        (tmp_path / "result.json").write_text(broken)
        with pytest.raises(UserError, match=r"result\.json"):
            explain(tmp_path)


@pytest.mark.parametrize("name", ["explain", "picture"])
def test_from_the_command_line(tmp_path, monkeypatch, capsys, name):
    if name == "picture":
        pytest.importorskip("matplotlib")
    write_run(tmp_path, figures(), 0.3)
    target = [str(tmp_path / "p.png")] * (name == "picture")
    monkeypatch.setattr(sys, "argv", [name, str(tmp_path), *target])
    runpy.run_path(str(ROOT / "more" / f"{name}.py"), run_name="__main__")
    last = capsys.readouterr().out.splitlines()[-1]
    assert "500" in last and "6" in last
    assert not target or (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "result.json").unlink()
    with pytest.raises(SystemExit) as e:
        runpy.run_path(str(ROOT / "more" / f"{name}.py"), run_name="__main__")
    assert e.value.code == 2 and capsys.readouterr().err.count("\n") == 1
