"""The plan of a run's memory, against arithmetic by hand and against a run's measured peak."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import train
from more import plan as planning
from tasks import Problem

ROOT = Path(__file__).parent.parent


def run(*args):
    """Python in a process of its own, without a GPU."""
    return subprocess.run([sys.executable, *map(str, args)], cwd=ROOT, capture_output=True,
                          text=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})


@pytest.fixture
def script(monkeypatch):
    """more/plan.py as from the command line, in this process, which has imported all."""

    def run_script(*args, name="plan.py"):
        monkeypatch.setattr(sys, "argv", [name, *map(str, args)])
        runpy.run_path(str(ROOT / "more" / name), run_name="__main__")

    return run_script


def plan(tmp_path, script, device, *flags):
    script("--device", device, *flags, "--json", tmp_path / "plan.json")
    return {r["method"]: r for r in json.loads((tmp_path / "plan.json").read_text())}


def test_the_plan_is_within_15_percent_of_the_measured_peak(tmp_path):
    """Of the embedded pair on a CPU, both in processes of their own."""
    done = run("-m", "more.plan", "--device", "cpu", "--json", tmp_path / "plan.json")
    assert done.returncode == 0, done.stderr
    planned = json.loads((tmp_path / "plan.json").read_text())[0]["peak_bytes"]
    quick = ["--one-shot", "--steps", 2, "--eval-problems", 256]  # one batch of sampling
    done = run("train.py", *quick, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["peak_bytes"] == max(result["peak_by_phase"].values())
    assert set(result["peak_by_phase"]) == {"loading", "testing", "sampling", "scoring", "update"}
    assert planned == pytest.approx(result["peak_bytes"], rel=0.15)


def test_a_plan_knows_weights_rungs_cards_and_vocabularies(tmp_path, script, capsys):
    pair = ["--student", "Qwen/Qwen3-0.6B", "--teacher", "Qwen/Qwen3-4B-Instruct-2507"]
    rows = plan(tmp_path, script, "cuda", *pair)
    held = rows["ovd"]["held"]
    # 0.440 and 3.633 billion linear weights; 151,936 x (1,024 + 2,560) embeddings, tied, 2 bytes
    assert held["4-bit weights"] == pytest.approx(0.516 * (0.4404e9 + 3.6333e9), rel=1e-3)
    assert held["embeddings and heads"] == 151936 * (1024 + 2560) * 2
    assert rows["logits, dense"]["loss"] > 3 * rows["logits, chunked"]["loss"]
    assert rows["ovd"]["loss"] < rows["logits, chunked"]["loss"]
    assert rows["ovd"]["fits"]["24"] == "fits" and "--batch" in rows["ovd"]["fits"]["6"]
    more = plan(tmp_path, script, "cuda", *pair, "--batch", 16)
    assert more["ovd"]["fits"]["6"] == "fits"  # what was advised does it
    assert plan(tmp_path, script, "cuda", *pair, "--bits", 16)["ovd"]["fits"]["8"] is None
    rows = plan(tmp_path, script, "cuda", "--student", "Qwen/Qwen2.5-3B-Instruct", *pair[2:])
    assert rows["ovd"]["peak_bytes"] and rows["logits, dense"]["peak_bytes"] is None
    assert "cannot be matched" in capsys.readouterr().out


def test_every_part_of_a_small_plan_by_hand():
    """Two layers of width 8 on a GPU in 16-bit: two bytes a number, nothing to unpack."""
    student = planning.Sizes(2, 8, 16, 8, 4, 100, 1, 90)
    teacher = planning.Sizes(3, 10, 20, 10, 10, 120, 2, 90)
    flags = "--bits 16 --batch 4 --micro-batch 2 --chunk 5 --samples 2 --problems 1"
    args = train.parse([*flags.split(), "--difficulty", "1", "--max-new-tokens", "10"])
    work = planning.work_of(args, "cuda", real=False)
    assert work[:3] == (2, False, False) and work.new == 10 and work.prompt > 40
    length = work.prompt + 10
    held, phases = planning.predict(args, student, teacher, "cuda")
    linear = 2 * 8 * (16 + 8 + 48) + 3 * 10 * (20 + 20 + 60)
    adapters = 8 * 2 * (56 + 16 + 8 + 48)
    assert list(held.values()) == [2 * linear, 2 * (800 + 2400), 4 * adapters, 12 * adapters, 0]
    # the prompts of 4 attempts at 2 problems, which needs more than 4 rows of logits
    reading = 2 * 2 * work.prompt * (4 * 16 + 2 * 8)
    assert phases["ovd"].sampling == pytest.approx(2 * 4 * length * 2 * 4 * 2 + reading)
    # trained: 2 rows of 10 tokens; states in three copies, five tokens' logits at a time
    assert phases["ovd"].loss == 3 * 20 * 8 * 2 + 12 * 5 * 100
    assert phases["logits, dense"].loss == 3 * 20 * 8 * 2 + 20 * 10 * 2 + 20 * 20 * 100
    layer = 2 * 6 * 8 + 2 * (16 + 16 + 64)
    passing = 2 * 2 * length * (4 * 16 + 16)
    assert phases["ovd"].activations == pytest.approx(2 * length * (2 * layer + 16) + passing)
    peak = planning.peak_of((held, phases), "ovd", 1000)
    update = phases["ovd"].activations + phases["ovd"].loss
    assert peak == 1000 + sum(held.values()) + max(*phases["ovd"][:2], update)


def test_a_plan_reads_how_long_the_problems_of_a_file_are(tmp_path):
    """200 words each, and those of the instruction; two tokens a word."""
    rows = [json.dumps({"question": f"{i} " * 200, "answer": "7"}) for i in range(50)]
    (tmp_path / "long.jsonl").write_text("\n".join(rows))
    args = planning.settle(train.parse(["--data", str(tmp_path / "long.jsonl")]), "cpu")[0]
    words = 200 + len(Problem.instruction.split())
    assert planning.work_of(args, "cpu", real=False).prompt == 2 * words


def test_a_run_beyond_the_free_memory_is_warned_of_in_one_line(monkeypatch, capsys):
    for free, lines in ((10**12, 0), (10**6, 1)):
        monkeypatch.setattr(planning, "free_bytes", lambda device, free=free: free)
        planning.warn(train.parse([]), "cpu")
        assert capsys.readouterr().out.count("\n") == lines


def test_a_teacher_behind_a_server_and_the_student_itself_take_no_memory(monkeypatch):
    """And where a method has no teacher there is none."""
    for flags in ("--teacher self", "--teacher http://localhost:1/v1 --teacher-model m",
                  "--method grpo"):
        args = planning.settle(train.parse(flags.split()), "cpu")
        held, _ = planning.predict(*args, "cpu")
        alone = args[1].vocab * args[1].hidden * args[1].matrices * 4
        assert held["embeddings and heads"] == alone and args[2].words == 0


@pytest.mark.parametrize(
    "flags, says",
    [
        (["--device", "gpu"], "--device: invalid choice: 'gpu'"),  # without the whole usage
        (["--device", "cuda", "--student", "./nowhere"], "--student ./nowhere"),
        (["--device", "cuda", "--chunk", "-1"], "--chunk"),
        (["--json", "/no/such/folder/x.json"], "--json /no/such/folder/x.json"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(script, capsys, flags, says):
    with pytest.raises(SystemExit) as e:
        script(*flags)
    assert e.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert says in line and line.startswith("error: ")


def test_a_pair_of_random_weights_has_the_sizes_it_is_named_for(
    tmp_path, monkeypatch, script, capsys
):
    """Of a table's row, read back from its own config and counted by hand."""
    small = planning.Sizes(3, 64, 96, 256, 128, 1000, 1, 0)
    monkeypatch.setitem(planning.SHAPES, "some/Qwen3", small)
    names = ["--student", "some/Qwen3", "--teacher", "some/Qwen3"]
    script(tmp_path, *names, "--layers", 1, name="pair.py")
    assert "million random weights" in capsys.readouterr().out.splitlines()[-1]
    for role in ("student", "teacher"):
        found = planning.sizes_of(str(tmp_path / role), f"--{role}")
        assert found[1:7] == small[1:7] and found.layers == 1
    with pytest.raises(SystemExit):
        script(tmp_path, "--layers", 0, name="pair.py")
    assert "--layers 0" in capsys.readouterr().err
