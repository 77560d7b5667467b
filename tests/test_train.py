"""The whole loop, through the command line a user types."""

import csv
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import pytest
import torch

import train
from sample import sample_trajectories
from tasks import fail_in_one_line, problem_stream

ROOT = Path(__file__).parent.parent
QUICK = ["--one-shot", "--steps", "3", "--eval-problems", "20"]


def run(*args, name="train.py", env=None):
    """A script in a process of its own, without a GPU unless `env` gives it one."""
    return subprocess.run(
        [sys.executable, name, *map(str, args)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", **(env or {})},
    )


def test_one_shot_learns_and_leaves_its_results(tmp_path):
    done = run("--one-shot", "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert (
        result["method"] == "ovd"
        and result["task"] == "math"
        and result["one_shot"]
        and result["seed"] == 0
    )
    assert result["before"]["n"] == result["after"]["n"] == 500
    assert result["after"]["pass_at_1"] - result["before"]["pass_at_1"] >= 0.20
    assert result["peak_bytes"] > 0 and result["seconds"] > 0 and result["versions"]["torch"]
    rows = list(csv.DictReader(open(tmp_path / "run/metrics.csv")))
    assert [int(float(r["step"])) for r in rows] == list(range(1, 41))
    assert all(float(r["logprob_gap"]) < 1e-3 for r in rows)  # what is trained is what was sampled
    samples = [json.loads(line) for line in open(tmp_path / "run/samples.jsonl")]
    assert len(samples) == 40 * 32 and len({s["question"] for s in samples}) == 1
    assert all(len(s["probs"]) == 10 and 0 <= s["score"] <= 9 for s in samples)
    assert f"{result['after']['pass_at_1']:.1%}" in done.stdout.splitlines()[-1]
    # the adapter is where it says, and does what it says
    again = run(
        "--student",
        tmp_path / "run/adapter",
        "--problems",
        "40",
        "--samples",
        "4",
        name="sample.py",
    )
    assert again.returncode == 0, again.stderr
    assert (
        float(again.stdout.split("second: ")[1].split("%")[0]) / 100
        > result["before"]["pass_at_1"] + 0.1
    )


@pytest.fixture
def script(monkeypatch):
    """Run a script as `python script args` would, in this process, which has imported all."""

    def run_script(name, *args):
        monkeypatch.setattr(sys, "argv", [name, *map(str, args)])
        runpy.run_path(str(ROOT / name), run_name="__main__")

    return run_script


@pytest.mark.parametrize(
    "flags",
    [
        ["--method", "judge"],
        ["--method", "grpo"],
        ["--method", "logits"],
        ["--method", "ovd"],
        ["--kl", 0.1],
        ["--bits", 16],
        ["--score", "reply"],
        ["--score", "digit"],
        ["--baseline", "none"],
    ],
    ids=lambda flags: " ".join(map(str, flags)),
)
def test_every_knob_runs(tmp_path, script, flags):
    script("train.py", "--steps", 2, "--eval-problems", 10, "--out", tmp_path / "r", *flags)
    rows = list(csv.DictReader(open(tmp_path / "r/metrics.csv")))
    assert len(rows) == 2 and all(float(r["grad_norm"]) > 0 for r in rows)


def test_the_literal_reading_ties_its_groups(tmp_path, script):
    """Accepted is right, replaced is right: within the mixed group there is nothing to learn from."""
    for baseline in ("mixed", "own"):
        out = tmp_path / baseline
        flags = ["--steps", 3, "--eval-problems", 10, "--baseline", baseline, "--out", out]
        script("train.py", *flags)
    tied = [
        json.loads((tmp_path / b / "result.json").read_text())["tied_groups"]
        for b in ("mixed", "own")
    ]
    assert tied[0] >= 10 and tied[1] <= 2  # of 3 x 4


def settings(**changed):
    return Namespace(
        **{
            **dict(
                method="ovd", micro_batch=32, chunk=0, temperature=1.0, kl=0.0, checkpointing=False
            ),
            **changed,
        }
    )


def gradient(student, teacher, **changed):
    """The gradient of one update on a fixed batch, without taking the step."""
    model, tokenizer = student
    torch.manual_seed(0)
    stream = problem_stream(5)
    batch = sample_trajectories(
        model, tokenizer, [p for p in (next(stream), next(stream)) for _ in range(5)]
    )
    advantages = torch.tensor([0.7, -0.3, 0.2, -1.0, 0.4, 0.9, -0.1, 0.3, -0.6, 0.5])
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.SGD(parameters, lr=0.0)
    row = train.update(
        model, teacher[0], optimiser, batch, advantages, settings(**changed), tokenizer.pad_token_id
    )
    return row["loss"], torch.cat([p.grad.flatten() for p in parameters])


@pytest.mark.parametrize("method", ["ovd", "logits"])
@pytest.mark.parametrize(
    "changed",
    [
        dict(micro_batch=1),
        dict(micro_batch=3),
        dict(chunk=1),
        dict(chunk=37),
        dict(micro_batch=4, chunk=16),
        dict(checkpointing=True),
    ],
)
def test_micro_batch_and_chunk_change_nothing(student, teacher, method, changed):
    """With LoRA on a 4-bit model, and padding: the trajectories have many lengths."""
    loss, grad = gradient(student, teacher, method=method)
    other_loss, other_grad = gradient(student, teacher, method=method, **changed)
    wide = 10 if "micro_batch" in changed else 1  # another padding, so another order of sums
    assert other_loss == pytest.approx(loss, rel=wide * 1e-6)
    assert (other_grad - grad).norm() <= wide * 1e-5 * grad.norm()


@pytest.mark.parametrize(
    "flags, says",
    [
        (["--theta", "12"], "--theta"),
        (["--samples", "0"], "--samples 0 must be at least 1"),
        (["--samples", "1"], "group of one"),
        (["--steps", "-1"], "--steps"),
        (["--temperature", "0"], "--temperature"),
        (["--lr", "5"], "--lr"),
        (["--student", "./nowhere"], "--student ./nowhere"),
        (["--teacher", "./nowhere"], "--teacher ./nowhere"),
        (["--data", "none.jsonl"], "--data none.jsonl"),
        (["--max-new-tokens", "500"], "--max-new-tokens"),
        (["--out", "tests"], "--out tests"),
        (["--chunk", "-1"], "--chunk"),
        (["--plan", "cuda", "--student", "./nowhere"], "--student ./nowhere"),
        (["--plan", "cuda", "--chunk", "-1"], "--chunk"),
        (["--plan", "cuda", "--json", "/no/such/folder/x.json"], "--json /no/such/folder/x.json"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, flags, says):
    if flags[0] == "--out":
        (tmp_path / "metrics.csv").write_text("")
        flags, says = ["--out", str(tmp_path)], str(tmp_path)
    monkeypatch.setattr(
        sys, "argv", ["train.py", "--eval-problems", "5", "--out", str(tmp_path / "new"), *flags]
    )
    with pytest.raises(SystemExit) as e:
        fail_in_one_line(train.main)
    assert e.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert says in line and line.startswith("error: ")


def plan(tmp_path, script, *flags):
    script("train.py", "--plan", *flags, "--json", tmp_path / "plan.json")
    return {r["method"]: r for r in json.loads((tmp_path / "plan.json").read_text())}


def test_the_plan_is_within_15_percent_of_the_measured_peak(tmp_path):
    """Of the embedded pair on a CPU, both in processes of their own."""
    done = run("--plan", "cpu", "--json", tmp_path / "plan.json")
    assert done.returncode == 0, done.stderr
    planned = json.loads((tmp_path / "plan.json").read_text())[0]["peak_bytes"]
    done = run("--one-shot", "--steps", 2, "--out", tmp_path / "r")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "r/result.json").read_text())
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


def test_a_run_beyond_the_free_memory_is_warned_of_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train.py"])
    for free, lines in ((10**12, 0), (10**6, 1)):
        monkeypatch.setattr(train, "free_bytes", lambda device, free=free: free)
        train.warn(train.knobs(), "cpu")
        assert capsys.readouterr().out.count("\n") == lines


def test_whole_runs_are_compared_by_phase(tmp_path):
    """A process each; one that cannot run is a row, and the others go on."""
    small = ["--steps", 1, "--problems", 1, "--samples", 4, "--max-new-tokens", 8]
    done = run("--compare-memory", *small, "--json", tmp_path / "c.json")
    assert done.returncode == 0, done.stderr
    rows = {r["method"]: r["peak_by_phase"] for r in json.loads((tmp_path / "c.json").read_text())}
    assert set(rows) == {"ovd", "logits, chunked", "logits, dense"}
    assert {"loading", "sampling", "scoring", "update"} <= set(rows["ovd"])
    for logits in ("logits, chunked", "logits, dense"):
        assert {"loading", "sampling", "teacher forward", "update"} <= set(rows[logits])


def test_bad_input_from_the_command_line(tmp_path):
    done = run("--theta", "12", "--out", tmp_path / "r")
    assert done.returncode == 2 and done.stderr == "error: --theta 12.0 must lie between 0 and 9\n"
    assert not (tmp_path / "r").exists()


def test_a_hub_name_without_a_network_is_one_line(tmp_path):
    done = run(
        "--student", "nobody/no-such-model", "--out", tmp_path / "r", env={"HF_HUB_OFFLINE": "1"}
    )
    assert done.returncode == 2
    assert (
        len(done.stderr.strip().splitlines()) == 1
        and "--student nobody/no-such-model" in done.stderr
    )


def test_own_data(tmp_path, script):
    stream = problem_stream(11)
    with open(tmp_path / "d.jsonl", "w") as f:
        for _ in range(20):
            p = next(stream)
            f.write(json.dumps({"question": p.question, "answer": p.answer}) + "\n")
    script("train.py", *QUICK, "--data", tmp_path / "d.jsonl", "--out", tmp_path / "r")
    assert json.loads((tmp_path / "r/result.json").read_text())["after"]["n"] == 4


def test_ctrl_c_saves_the_adapter(tmp_path):
    process = subprocess.Popen(
        [
            sys.executable,
            "train.py",
            "--steps",
            "500",
            "--eval-problems",
            "5",
            "--out",
            str(tmp_path / "r"),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    metrics = tmp_path / "r/metrics.csv"
    for _ in range(600):
        if metrics.exists() and len(metrics.read_text().splitlines()) > 2:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err
    assert (tmp_path / "r/adapter/adapter_model.safetensors").exists() and str(
        tmp_path / "r/adapter"
    ) in out + err


@pytest.mark.parametrize("name", ["ovd.py", "sample.py", "score.py", "tasks.py"])
def test_every_script_shows_its_stage(script, capsys, name):
    began = time.time()
    script(name)
    assert time.time() - began < 20
    assert any(c.isdigit() for c in capsys.readouterr().out.splitlines()[-1])
    with pytest.raises(SystemExit) as e:
        script(name, "--help")
    assert e.value.code == 0 and f"python {name}" in capsys.readouterr().out
