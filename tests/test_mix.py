"""Mixtures of two checkpoints: the ends bit for bit, the middle by hand; and the folder's list."""

import runpy
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file, save_file

from more import quality
from more.flags import TINY
from more.mix import mix, mix_tensors
from more.terminal import UserError, quiet
from sample import load_model

WEAK, GOOD = TINY / "weak-teacher", TINY / "teacher"


def weights(folder):
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("share, end", [(0, WEAK), (1, GOOD)])
def test_the_ends_are_bit_for_bit(tmp_path, share, end):
    mix(WEAK, GOOD, share, tmp_path / "m")
    mixed, expected = weights(tmp_path / "m"), weights(end)
    assert mixed.keys() == expected.keys()
    for name, tensor in mixed.items():
        bits = [t.contiguous().view(torch.uint8) for t in (tensor, expected[name])]
        assert tensor.dtype == expected[name].dtype and torch.equal(*bits), name


def test_a_quarter_by_hand_and_it_loads_like_any_model(tmp_path):
    count = mix(WEAK, GOOD, 0.25, tmp_path / "m")
    a, b, mixed = weights(WEAK), weights(GOOD), weights(tmp_path / "m")
    assert count == sum(t.numel() for t in a.values())
    for name, tensor in mixed.items():
        exact = 0.75 * a[name].double() + 0.25 * b[name].double()
        assert torch.allclose(tensor.double(), exact, rtol=2**-8, atol=1e-6), name
    quiet()
    model, tokenizer = load_model(tmp_path / "m", 16, "cpu")
    assert tokenizer.chat_template and model.num_parameters() > 1e6
    zero = torch.zeros(2)
    assert torch.signbit(mix_tensors(zero, -zero, 1.0, "w")).all()  # not even the sign of a zero


def refused(tmp_path, monkeypatch, capsys, *args):
    monkeypatch.setattr(sys, "argv", ["mix.py", *map(str, args)])
    with pytest.raises(SystemExit) as e:
        runpy.run_path(str(ROOT / "more/mix.py"), run_name="__main__")
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert e.value.code == 2 and line.startswith("error: ")
    return line


def test_what_is_refused_is_one_line(tmp_path, monkeypatch, capsys):
    def says(*args):
        return refused(tmp_path, monkeypatch, capsys, *args)

    new = tmp_path / "new"
    for share in ("x", "-0.1", "1.01", "nan", "inf"):
        assert "SHARE" in says(WEAK, GOOD, share, new)
    assert "two checkpoints of one model" in says(WEAK, TINY / "student", 0.5, new)
    assert "no-such-folder" in says(WEAK, tmp_path / "no-such-folder", 0.5, new)
    assert not new.exists()
    (tmp_path / "mine.txt").write_text("mine")
    assert f"FOLDER {tmp_path}" in says(WEAK, GOOD, 0.5, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]
    packed = torch.zeros(2, dtype=torch.uint8)
    for name, tensor in {"wide": torch.zeros(3), "packed": packed}.items():
        (tmp_path / name).mkdir()
        save_file({"w": tensor}, tmp_path / name / "model.safetensors")
    (tmp_path / "a").mkdir()
    save_file({"w": torch.zeros(2)}, tmp_path / "a/model.safetensors")
    assert "(2,)" in says(tmp_path / "a", tmp_path / "wide", 0.5, new)
    assert "uint8" in says(tmp_path / "packed", tmp_path / "packed", 0.5, new)
    (tmp_path / "a/model.safetensors").write_bytes(b"cut short")
    assert "cannot be read" in says(tmp_path / "a", tmp_path / "wide", 0.5, new)


def test_the_folder_lists_its_scripts_with_a_line_each():
    done = subprocess.run([sys.executable, "-m", "more"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.splitlines()
    names = sorted(p.stem for p in (ROOT / "more").glob("*.py") if p.stem != "__main__")
    lines = [line.split(" more.")[1].split() for line in lines if " more." in line]
    assert sorted(line[0] for line in lines) == names
    assert all(len(line) > 4 for line in lines) and " scripts, and " in last


def test_a_flag_that_the_two_settings_stand_for_is_refused(monkeypatch, tmp_path):
    """And a picture that nobody could draw, before 430 runs."""
    for flags, says in ((["--difficulty", "3"], "--difficulty"), (["--bits", "16"], "--bits"),
                        (["--max-new-tokens", "9"], "--max-new-tokens"),
                        (["--draw", "x.png"], "needs matplotlib")):
        monkeypatch.setattr("more.picture.Figure", None)
        monkeypatch.setattr("sys.argv", ["quality", "--out", str(tmp_path / "q"), *flags])
        with pytest.raises(UserError, match=says):
            quality.main()
    assert not (tmp_path / "q").exists()
