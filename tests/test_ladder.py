"""The memory ladder: its rungs against closed forms, its order, and whole runs by phase."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from more import ladder
from ovd import reverse_kl

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("chunk", [1, 5, 20])
def test_top_k_over_the_whole_vocabulary_is_the_reverse_kl(chunk):
    torch.manual_seed(0)
    hidden, head = torch.randn(7, 4), torch.randn(64, 4)
    teacher_hidden, teacher_head = torch.randn(7, 6), torch.randn(64, 6)
    exact = reverse_kl(hidden, head, teacher_hidden, teacher_head)
    every = ladder.top_k_kl(hidden, head, teacher_hidden, teacher_head, 64, chunk)
    some = ladder.top_k_kl(hidden, head, teacher_hidden, teacher_head, 8, chunk)
    assert torch.allclose(every, exact, atol=1e-5) and not torch.allclose(some, exact, atol=1e-2)


def test_the_rungs_that_say_so_are_the_reverse_kl():
    """In loss and gradient; the sampled tokens' is (log pi - log pi_T)^2 / 2, by hand."""
    torch.manual_seed(0)
    h, W = torch.randn(12, 8, requires_grad=True), torch.randn(80, 8)
    g, U, y = torch.randn(12, 12), torch.randn(80, 12), torch.randint(80, (12,))
    exact = reverse_kl(h, W, g, U).sum()
    (slope,) = torch.autograd.grad(exact, h)
    for rung, (function, is_kl) in ladder.RUNGS.items():
        value = function(h, W, g, U, y, 5)
        if is_kl == "yes":
            assert value.item() == pytest.approx(exact.item(), rel=1e-5), rung
            assert torch.allclose(torch.autograd.grad(value, h)[0], slope, atol=1e-5)
    student, teacher = ((a @ b.T).log_softmax(-1)[range(12), y] for a, b in ((h, W), (g, U)))
    value = ladder.sampled_token_kl(h, W, g, U, y, 5)
    assert value.item() == pytest.approx(((student - teacher) ** 2).sum().item() / 2, rel=1e-5)
    digits = (g[-1] @ U.T)[:10].softmax(-1)
    score = sum(k * p for k, p in enumerate(digits.tolist()))
    assert ladder.ovd_scoring(h, W, g, U, y, 5).item() == pytest.approx(score, rel=1e-5)


def peaks(shape, chunk):
    rows = ladder.ladder(shape, chunk, torch.bfloat16, "cpu")
    return {r["rung"]: r["peak_bytes"] for r in rows}


def test_the_ladder_stands_in_its_order():
    """V = 32,768 and 8 chunks of 32: a float32 (c, V) tensor is 4 MiB, well above what is noise."""
    cv = 32 * 32768
    at = peaks((256, 32768, 32, 48), 32)
    assert at["OVD's scoring"] < at["OVD's update"] <= at["chunked reverse KL"]
    assert at["chunked reverse KL"] < at["teacher's top 64"] < at["dense reverse KL"]
    assert 4 * cv < at["OVD's update"] < 16 * cv  # 12 c V and a few MiB
    assert at["dense reverse KL"] > 8 * 16 * cv  # 20 N V


def test_the_update_s_peak_does_not_grow_with_the_tokens(monkeypatch):
    """Four times the tokens add their own hidden states, the gradient of them, and little else."""
    monkeypatch.setattr(ladder, "RUNGS", {"OVD's update": ladder.RUNGS["OVD's update"]})
    (few,), (many,) = (peaks((n, 32768, 32, 32), 32).values() for n in (128, 512))
    states = (512 - 128) * 32 * 2
    assert many - few < 4 * states + 2 * 2**20


def test_a_rung_that_does_not_fit_is_a_row_and_the_others_go_on(monkeypatch):
    monkeypatch.setattr(ladder, "free_bytes", lambda device: 100 * 2**20)
    at = peaks((256, 32768, 32, 48), 32)
    assert at["dense reverse KL"] is None and at["teacher's top 64"] is None
    assert at["OVD's update"] > 0 and at["chunked reverse KL"] > 0


@pytest.fixture
def script(monkeypatch):
    def run_script(*args, name="ladder.py"):
        monkeypatch.setattr(sys, "argv", [name, *map(str, args)])
        runpy.run_path(str(ROOT / "more" / name), run_name="__main__")

    return run_script


def test_a_peak_of_zero_bytes_was_measured_and_fits(script, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    measured = {"tokens": 70, "vocab": 1000, "chunk": 32, "device": "cpu", "exact": "yes"}
    rows = [measured | {"rung": rung, "peak_bytes": 0 if "scoring" in rung else 10**6,
                        "seconds": 1.0, "reserved_bytes": None} for rung in ladder.RUNGS]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    script(tmp_path / "rows.json", tmp_path / "p.png", name="ladder_picture.py")
    assert (tmp_path / "p.png").stat().st_size > 1000


def test_rows_are_written_shown_and_drawn(script, tmp_path, capsys):
    shape = ["--tokens", 70, "--vocab", 1000, "--hidden", 8, "--teacher-hidden", 8]
    script(*shape, "--chunk", 32, "--json", tmp_path / "rows.json")
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [r["rung"] for r in rows] == list(ladder.RUNGS)
    assert all(r["tokens"] == 70 and r["peak_bytes"] >= 0 and r["seconds"] > 0 for r in rows)
    assert [r["exact"] for r in rows[:4]] == ["yes", "no", "yes", "on average"]
    shown = capsys.readouterr().out
    assert all(rung in shown for rung in ladder.RUNGS)
    pytest.importorskip("matplotlib")
    for row in rows:  # one more length, at which the textbook does not fit
        dense = row["rung"].startswith("dense")
        row |= {"tokens": 140, "peak_bytes": None if dense else 2 * row["peak_bytes"]}
    (tmp_path / "more.json").write_text(json.dumps(rows))
    picture = tmp_path / "p.png"
    script(tmp_path / "rows.json", tmp_path / "more.json", picture, name="ladder_picture.py")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "12 rows of 2 files" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        script(ROOT / "README.md", picture, name="ladder_picture.py")
    assert "README.md" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags",
    [("--tokens", 0), ("--vocab", 9), ("--hidden", -1), ("--chunk", 0), ("--tokens", 10**12)],
)
def test_a_nonsense_shape_is_one_line(script, capsys, flags):
    with pytest.raises(SystemExit) as e:
        script(*flags)
    out, err = capsys.readouterr()
    assert e.value.code == 2 and out == ""
    assert err.count("\n") == 1 and err.startswith(f"error: {flags[0]} {flags[1]} ")


def test_a_file_that_cannot_be_written_is_one_line_before_anything_is_measured(script, capsys):
    with pytest.raises(SystemExit):
        script("--json", "/no/such/folder/x.json")
    assert "--json /no/such/folder/x.json" in capsys.readouterr().err


def run(*args):
    """more/ladder.py in a process of its own, without a GPU."""
    return subprocess.run([sys.executable, "-m", "more.ladder", *map(str, args)], cwd=ROOT,
                          capture_output=True, text=True,
                          env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})


def test_whole_runs_are_compared_by_phase(tmp_path):
    """A process each; one that cannot run is a row, and the others go on."""
    small = ["--steps", 1, "--problems", 1, "--samples", 4, "--max-new-tokens", 8]
    done = run("--runs", *small, "--json", tmp_path / "c.json")
    assert done.returncode == 0, done.stderr
    rows = {r["method"]: r["peak_by_phase"] for r in json.loads((tmp_path / "c.json").read_text())}
    assert set(rows) == {"ovd", "logits, chunked", "logits, dense"}
    assert {"loading", "sampling", "scoring", "update"} <= set(rows["ovd"])
    for logits in ("logits, chunked", "logits, dense"):
        assert {"loading", "sampling", "teacher forward", "update"} <= set(rows[logits])


def test_when_no_run_runs_that_is_one_line_and_exit_code_2(script, monkeypatch, capsys):
    """And a slip in train.py's flags shows before any run."""
    died = subprocess.CompletedProcess([], 2, "", "noise\nerror: --student x: no such folder\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: died)
    with pytest.raises(SystemExit) as e:
        script("--runs", "--steps", 1)
    out, err = capsys.readouterr()
    assert e.value.code == 2 and err.count("\n") == 1 and "no such folder" in err
    assert out.count("does not run: error: --student x: no such folder") == 3
    with pytest.raises(SystemExit) as e:
        script("--runs", "--theta", 12)
    out, err = capsys.readouterr()
    assert e.value.code == 2 and out == "" and err.count("\n") == 1 and "--theta" in err
