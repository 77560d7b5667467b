"""A run that is stopped goes on where it was, to the last digit.

The kills at random moments: python -m pytest -m slow tests/test_resume.py
"""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

import train
from more import checkpoint, record
from more.terminal import UserError
from sample import Trajectory
from tasks import Problem

ROOT = Path(__file__).parent.parent
SMALL = ["--steps", "4", "--problems", "2", "--samples", "4", "--eval-problems", "4", "--seed", "3"]
# The same as `python train.py`, with a checkpoint after every step.
EVERY_STEP = "from more import checkpoint; checkpoint.SECONDS = 0; import sys, train; " \
    "from more.terminal import fail_in_one_line; fail_in_one_line(lambda: train.run(train.parse(sys.argv[1:])))"
KINDS = {
    "ovd": [],
    "suffix": ["--replace", "suffix"],
    "logits": ["--method", "logits"],
    "search": ["--task", "search"],
    "auto": ["--theta", "auto", "--reward", "verbal"],
}


def left_behind(folder):
    """All that must not depend on a stop: seconds and memory are measured, so they may."""
    rows = [{k: v for k, v in row.items() if k != "seconds"}
            for row in csv.DictReader(open(folder / "metrics.csv"))]
    result = json.loads((folder / "result.json").read_text())
    for measured in ("seconds", "peak_bytes", "peak_by_phase"):
        del result[measured]
    for settings in ("settings", "asked"):
        del result[settings]["out"]
    adapter = load_file(folder / "adapter/adapter_model.safetensors")
    return rows, (folder / "samples.jsonl").read_text(), result, {
        name: tensor.tolist() for name, tensor in adapter.items()}


def run_to_the_end(folder, *flags):
    return train.run(train.parse([*SMALL, *flags, "--out", str(folder)]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_stopped_after_any_step_ends_as_one_left_alone(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(checkpoint, "SECONDS", 0)
    run_to_the_end(tmp_path / "alone", *KINDS[kind])
    real, calls = train.update, []

    def power_cut(*args):
        calls.append(1)
        if len(calls) in (2, 4):  # in step 2; then, going on, in step 3
            raise RuntimeError("power cut")
        return real(*args)

    monkeypatch.setattr(train, "update", power_cut)
    for _ in range(2):
        with pytest.raises(RuntimeError):
            run_to_the_end(tmp_path / "cut", *KINDS[kind])
    run_to_the_end(tmp_path / "cut", *KINDS[kind])
    assert len(calls) == 6  # four steps and two cuts: no finished step is taken again
    assert left_behind(tmp_path / "cut") == left_behind(tmp_path / "alone")
    assert not (tmp_path / "cut" / checkpoint.NAME).exists()


def test_lines_of_a_step_that_was_not_kept_are_not_there_twice(tmp_path, monkeypatch):
    """Killed between the log of a step and its checkpoint."""
    monkeypatch.setattr(checkpoint, "SECONDS", 0)
    run_to_the_end(tmp_path / "alone")
    real, calls = checkpoint.save, []

    def cut(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("power cut")
        return real(*args, **kwargs)

    monkeypatch.setattr(checkpoint, "save", cut)
    with pytest.raises(RuntimeError):
        run_to_the_end(tmp_path / "cut")
    assert len((tmp_path / "cut/metrics.csv").read_text().splitlines()) == 1 + 3
    run_to_the_end(tmp_path / "cut")
    assert left_behind(tmp_path / "cut") == left_behind(tmp_path / "alone")


def test_a_stop_before_the_first_new_step_keeps_the_adapter(tmp_path, monkeypatch):
    """Going on, a run is stopped in its first test: what it had learned is still in adapter/."""
    monkeypatch.setattr(checkpoint, "SECONDS", 0)
    real = record.log_step

    def stop_at_three(out, row, *rest):
        if row["step"] == 3:
            raise RuntimeError("power cut")
        return real(out, row, *rest)

    monkeypatch.setattr(record, "log_step", stop_at_three)
    with pytest.raises(RuntimeError):
        run_to_the_end(tmp_path / "r")
    weights = (tmp_path / "r/adapter/adapter_model.safetensors").read_bytes()

    def stop(*_):
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        train.run(train.parse([*SMALL, "--out", str(tmp_path / "r")]), test=stop)
    monkeypatch.setattr(record, "warn_unsolved", stop)
    with pytest.raises(RuntimeError):
        run_to_the_end(tmp_path / "r")
    kept = load_file(tmp_path / "r/adapter/adapter_model.safetensors")
    assert weights and any(t.any() for name, t in kept.items() if "lora_B" in name)


def test_a_finished_run_says_what_it_found_and_changes_nothing(tmp_path, capsys):
    run_to_the_end(tmp_path / "r")
    last = capsys.readouterr().out.splitlines()[-1]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "r").rglob("*")}
    run_to_the_end(tmp_path / "r")
    out = capsys.readouterr().out.splitlines()
    assert out[-1] == last and "it is finished" in out[0]
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "r").rglob("*")}
    run_to_the_end(tmp_path / "r", "--report")  # its page may be asked for later
    assert (tmp_path / "r/report.html").exists()


def test_a_changed_flag_is_named(tmp_path):
    run_to_the_end(tmp_path / "r")
    with pytest.raises(UserError, match="--lr None, not 0.001"):
        run_to_the_end(tmp_path / "r", "--lr", "0.001")


def test_a_damaged_checkpoint_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SECONDS", 0)
    monkeypatch.setattr(record, "step_figures", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_to_the_end(tmp_path / "r")
    (tmp_path / "r" / checkpoint.NAME).write_bytes(b"no tensors at all")
    with pytest.raises(UserError, match="checkpoint.safetensors is damaged"):
        run_to_the_end(tmp_path / "r")


def test_a_folder_of_somebody_else_is_left_alone(tmp_path):
    (tmp_path / "metrics.csv").write_text("mine")
    with pytest.raises(UserError, match="holds another run"):
        run_to_the_end(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.csv"]
    assert (tmp_path / "metrics.csv").read_text() == "mine"


def test_sigterm_ends_like_ctrl_c(tmp_path):
    process = start(tmp_path / "r", "--steps", "500")
    wait_for_a_step(tmp_path / "r", process)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err
    assert (tmp_path / "r/adapter/adapter_model.safetensors").exists() and "goes on" in out


def start(folder, *flags):
    return subprocess.Popen([sys.executable, "-c", EVERY_STEP, *SMALL, *flags, "--out", str(folder)],
                            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})


def wait_for_a_step(folder, process):
    while not (folder / checkpoint.NAME).exists() and process.poll() is None:
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ovd", "suffix", "logits", "search"])
def test_killed_five_times_at_random_moments(tmp_path, kind):
    """Twenty kills over the four kinds."""
    flags = [*KINDS[kind], "--steps", "40"]
    assert start(tmp_path / "alone", *flags).wait() == 0
    rng, kills = random.Random(kind), 0
    while kills < 5:
        process = start(tmp_path / "cut", *flags)
        wait_for_a_step(tmp_path / "cut", process)
        time.sleep(rng.uniform(0, 2))
        process.kill()
        kills += process.wait() == -signal.SIGKILL
    assert start(tmp_path / "cut", *flags).wait() == 0
    assert left_behind(tmp_path / "cut") == left_behind(tmp_path / "alone")


def test_a_checkpoint_holds_no_pickle(tmp_path, monkeypatch):
    """It is safetensors, and what is not a tensor is JSON in its header."""
    monkeypatch.setattr(checkpoint, "SECONDS", 0)
    real = record.log_step

    def stop_at_two(out, row, *rest):
        if row["step"] == 2:
            raise RuntimeError
        return real(out, row, *rest)

    monkeypatch.setattr(record, "log_step", stop_at_two)
    with pytest.raises(RuntimeError):
        run_to_the_end(tmp_path / "r")
    tensors = load_file(tmp_path / "r" / checkpoint.NAME)
    assert tensors["random"].dtype == torch.uint8 and "0.exp_avg" in tensors


def test_a_first_step_of_minutes_is_kept_at_once(tmp_path, monkeypatch):
    """As with a real model on a CPU: what is younger than half a minute is not kept, older is."""
    now = [0.0]
    monkeypatch.setattr(checkpoint, "time", SimpleNamespace(time=lambda: now[0], strftime=time.strftime))
    for seconds, kept in ((5, False), (200, True)):
        real, out = train.update, tmp_path / f"r{seconds}"

        def slow(*args, real=real, seconds=seconds):
            if now[0]:
                raise RuntimeError("killed in the second step")
            now[0] = float(seconds)
            return real(*args)

        now[0] = 0.0
        monkeypatch.setattr(train, "update", slow)
        with pytest.raises(RuntimeError):
            run_to_the_end(out)
        monkeypatch.setattr(train, "update", real)
        assert (out / checkpoint.NAME).exists() == kept


def test_two_problems_with_one_question_keep_their_own_solutions():
    """In search two worlds may share a question. Stopped twice, each has what it had."""
    problems = [Problem("Who?", "A"), Problem("Who?", "B"), Problem("Who?", "A")]
    teacher = SimpleNamespace(written={
        (p, ""): Trajectory(p, prompt_ids=[1] * 5, mask=[1] * 3, text=p.answer, reward=1.0)
        for p in reversed(problems)})
    for _ in range(2):
        rows = checkpoint.pack(teacher, problems)
        teacher = SimpleNamespace(written={})
        checkpoint.unpack(rows, teacher, list(dict.fromkeys(problems)))
        assert {p.answer: t.text for (p, _), t in teacher.written.items()} == {"A": "A", "B": "B"}
    with pytest.raises(UserError, match="on other problems"):
        checkpoint.unpack(rows, teacher, problems[:1])


def test_without_a_step_there_is_no_page_and_the_run_ends_well(tmp_path, capsys):
    """--report --steps 0 tests and does not train."""
    for _ in range(2):  # and the same command again
        run_to_the_end(tmp_path / "r", "--steps", "0", "--method", "grpo", "--report")
        *_, line, last = capsys.readouterr().out.splitlines()
        assert line.startswith("no page was written: ") and last.startswith("grpo: ")
