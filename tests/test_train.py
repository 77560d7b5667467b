"""The whole loop, through the command line a user types, and its parts by hand."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from argparse import Namespace
from dataclasses import replace
from functools import cache
from itertools import islice
from pathlib import Path
from threading import Thread

import pytest
import torch
from conftest import rows_of, samples_of
from tqdm import tqdm

import sample
import score
import train
from more import record
from more.data import load_problems
from more.flags import TINY_PAIRS
from more.judge import best_threshold
from more.terminal import UserError, fail_in_one_line
from sample import Trajectory, chat_ids, lora_layers, sample_trajectories
from score import Teacher
from tasks import Problem, problem_stream

ROOT = Path(__file__).parent.parent
QUICK = ["--one-shot", "--steps", "1", "--eval-problems", "20"]
SHORT = ["--steps", "2", "--eval-problems", "4"]


load_once = cache(sample.load_model)


@pytest.fixture
def script(script, monkeypatch):
    """The one of conftest.py; and a teacher, which no run changes, is loaded once for all."""
    monkeypatch.setattr(score, "load_model", load_once)
    return script


# ------------------------------------------------------------------------------- whole runs
@pytest.fixture(scope="module", autouse=True)
def main_job(request, tmp_path_factory):
    """(process, folder) of the main job, just as a user would start it; on a core of its own it
    goes on beside the tests of this file, and those that read what it left come last."""
    if not any("one_shot" in item.fixturenames for item in request.session.items):
        return (yield)
    folder = tmp_path_factory.mktemp("one-shot") / "run"
    process = subprocess.Popen(
        [sys.executable, "train.py", "--one-shot", "--out", str(folder)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # two that wait for one core are slower than one
    yield process, folder
    torch.set_num_threads(threads)
    process.kill()
    process.communicate()


@pytest.fixture(scope="module")
def one_shot(main_job):
    """(folder, last line printed, result.json) of the main job."""
    process, folder = main_job
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert "Warning" not in out + err
    return folder, out.splitlines()[-1], json.loads((folder / "result.json").read_text())


@pytest.mark.parametrize(
    "flags",
    [
        ["--method", "judge"],
        ["--method", "grpo"],
        ["--method", "logits"],
        ["--kl", 0.1],
        ["--bits", 16, "--samples", 4],
        ["--score", "reply"],
        ["--score", "digit"],
        ["--baseline", "none"],
        ["--baseline", "union"],
        ["--replace", "none"],
        ["--replace", "suffix"],
        ["--replace", "suffix", "--suffix", "read"],
        ["--method", "format"],
        ["--method", "sft"],
        ["--literal"],
        ["--checkpointing", "--chunk", 100, "--micro-batch", 5],
    ],
    ids=lambda flags: " ".join(map(str, flags)),
)
def test_every_knob_runs(tmp_path, script, flags):
    script("train.py", "--problems", 2, *SHORT, "--out", tmp_path / "r", *flags)
    rows = rows_of(tmp_path / "r")
    assert len(rows) == 2 and all(float(r["grad_norm"]) > 0 for r in rows)
    for row in rows:  # rounding apart, what is trained is what was sampled
        gap = float(row["logprob_gap"])
        assert gap < (0.2 if "--bits" in flags else 1e-3) or "sft" in flags and math.isnan(gap)


def test_the_literal_reading_ties_its_groups(tmp_path, script):
    """Accepted is right, replaced is right: within the mixed group there is nothing to learn from."""
    for baseline in ("mixed", "own"):
        out = tmp_path / baseline
        flags = ["--method", "ovd", "--steps", 3, "--eval-problems", 4, "--out", out]
        script("train.py", *flags, "--baseline", baseline)
    tied = [
        json.loads((tmp_path / b / "result.json").read_text())["tied_groups"]
        for b in ("mixed", "own")
    ]
    assert tied[0] >= 10 and tied[1] <= 2  # of 3 x 4
    assert all(float(row["grad_norm"]) > 0 for row in rows_of(tmp_path / "own"))


def test_own_data(tmp_path, script):
    stream = problem_stream(11)
    with open(tmp_path / "d.jsonl", "w") as f:
        for _ in range(20):
            p = next(stream)
            f.write(json.dumps({"question": p.question, "answer": p.answer}) + "\n")
    script("train.py", *QUICK, "--data", tmp_path / "d.jsonl", "--out", tmp_path / "r")
    assert json.loads((tmp_path / "r/result.json").read_text())["after"]["n"] == 4


def test_ctrl_c_saves_the_adapter(tmp_path, script, capfd):
    """In a process of its own, and by the other signal that ends a process: test_resume.py."""
    metrics = tmp_path / "r/metrics.csv"

    def interrupt():
        for _ in range(600):
            if metrics.exists() and len(metrics.read_text().splitlines()) > 2:
                break
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    Thread(target=interrupt).start()
    flags = ["--one-shot", "--steps", "500", "--eval-problems", "5", "--out", tmp_path / "r"]
    with pytest.raises(SystemExit) as e:
        script("train.py", *flags)
    out, err = capfd.readouterr()
    assert e.value.code == 130 and "Traceback" not in err
    assert 2 <= len(rows_of(tmp_path / "r")) < 500
    assert (tmp_path / "r/adapter/adapter_model.safetensors").exists() and str(
        tmp_path / "r/adapter"
    ) in out + err


@pytest.mark.parametrize("name", ["ovd.py", "tasks.py", "sample.py", "score.py", "train.py"])
def test_every_script_explains_itself(script, capsys, name):
    with pytest.raises(SystemExit) as e:
        script(name, "--help")
    assert e.value.code == 0 and f"python {name}" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["sample.py", "score.py", "tasks.py"])
def test_every_script_shows_its_stage(script, capsys, name):
    """ovd.py's look at itself is in test_ovd.py."""
    began = time.process_time()  # whatever else the machine is busy with
    script(name)
    assert time.process_time() - began < 20
    assert any(c.isdigit() for c in capsys.readouterr().out.splitlines()[-1])


# ------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    "flags, says",
    [
        (["--theta", "12"], "--theta"),
        (["--theta", "high"], "--theta"),
        (["--samples", "0"], "--samples: 0 must lie between 1 and"),
        (["--samples", "1"], "group of one"),
        (["--steps", "-1"], "--steps"),
        (["--temperature", "0"], "--temperature"),
        (["--lr", "5"], "--lr"),
        (["--lr", "nan"], "--lr"),
        (["--student", "./nowhere"], "--student ./nowhere"),
        (["--teacher", "./nowhere"], "--teacher ./nowhere"),
        (["--data", "none.jsonl"], "--data none.jsonl"),
        (["--max-new-tokens", "500"], "--max-new-tokens"),
        (["--out", "tests"], "--out tests"),
        (["--chunk", "-1"], "--chunk"),
        (["--methods", "ovd, grpo"], "--methods"),  # it is a flag of more.compare
        (["--method", "nonsense"], "--method: invalid choice: 'nonsense'"),  # not the whole usage
        (["--student", "tiny/search-student"], "has no words for these problems"),
        (["--teacher-model", "x"], "--teacher-model names a teacher on a server"),
        (["--method", "logits", "--teacher", "self"], "use --method ovd"),
        (["--replace", "none", "--baseline", "union"], "use --baseline mixed"),
        (["--method", "logits", "--kl", "0.1"], "--kl is no part of --method logits"),
        (["--corpus", "x.jsonl"], "--corpus is for --task search"),
        (["--data", ""], "--data is empty"),
        (["--teacher", ""], "--teacher is empty"),
        (["--task", "search", "--eval-data", "x"], "--eval-data need --corpus"),
        (["--reward", "verbal", "--method", "grpo"], "--reward verbal"),  # who would score?
        (["--reward", "verbal", "--teacher-sees-answer"], "--teacher-sees-answer"),  # there is none
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
        fail_in_one_line(lambda: train.run(train.parse()))
    assert e.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert says in line.replace("argument ", "") and line.startswith("error: ")


def test_bad_input_from_the_command_line(tmp_path, script, capfd):
    with pytest.raises(SystemExit) as e:
        script("train.py", "--theta", "12", "--out", tmp_path / "r")
    assert e.value.code == 2
    assert capfd.readouterr() == ("", "error: argument --theta: 12 must lie between 0 and 9\n")
    assert not (tmp_path / "r").exists()


def test_a_hub_name_without_a_network_is_one_line(tmp_path, script, monkeypatch, capfd):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SystemExit) as e:
        script("train.py", "--student", "nobody/no-such-model", "--out", tmp_path / "r")
    (line,) = capfd.readouterr().err.strip().splitlines()
    assert e.value.code == 2 and "--student nobody/no-such-model" in line


def test_problems_in_words_that_the_student_does_not_know(tmp_path, script, capsys):
    capitals = {"Which city is the capital of France?": "Paris", "And of Peru?": "Lima"}
    lines = [json.dumps({"question": q, "answer": a}) for q, a in capitals.items()]
    (tmp_path / "d.jsonl").write_text("\n".join(lines))
    with pytest.raises(SystemExit) as e:
        script("train.py", *QUICK, "--data", tmp_path / "d.jsonl", "--out", tmp_path / "r")
    said = capsys.readouterr().err.strip().splitlines()
    assert e.value.code == 2 and "has no words for these problems" in said[-1]


def test_a_folder_that_cannot_be_written_to_is_refused_at_once():
    with pytest.raises(UserError, match="--out /proc"):
        train.run(train.parse(["--out", "/proc"]))


# ------------------------------------------------------------------------------- reject and replace
def settings(**changed):
    usual = dict(method="ovd", baseline="own", replace="whole", literal=False, theta=5, suffix="trained")
    usual |= dict(micro_batch=32, chunk=0, temperature=1.0, kl=0.0, checkpointing=False, student="s")
    return Namespace(**usual | changed)


def attempt(text, score, reward, **more):
    return Trajectory(Problem("q", "1"), [1], [5, 6], [-0.5, -0.5], ["student"] * 2, [1, 1], True,
                      text, reward, [], score, **more)


def test_the_teacher_s_solution_is_written_in_the_student_s_tokens(student):
    tokenizer = student[1]
    p = next(problem_stream(0))
    solution = Trajectory(p, [9], [8], [-1.0], ["teacher"], [1], True, p.solution, 1.0)
    new = train.teacher_trajectory(solution, tokenizer)
    assert new.prompt_ids == chat_ids(tokenizer, p.messages())
    assert new.ids == tokenizer.encode(p.solution) + [tokenizer.eos_token_id]  # and where it ends
    assert (set(new.logprobs), set(new.authors), set(new.mask)) == ({0.0}, {"teacher"}, {1})
    assert (new.text, new.reward, new.stopped, new.score) == (p.solution, 1.0, True, None)
    cut = train.teacher_trajectory(replace(solution, stopped=False, text="First 1"), tokenizer)
    assert cut.ids == tokenizer.encode("First 1") and not cut.stopped
    told = "Mia has <information> Leo has 3 </information> 2 <|im_end|>"
    told = train.teacher_trajectory(replace(solution, text=told), tokenizer)
    assert [m == 0 for m in told.mask] == [a == "environment" for a in told.authors]
    own = [i for i, m in zip(told.ids, told.mask) if m]  # what the environment said is read only
    assert own[:3] == tokenizer.encode("Mia has 2") and tokenizer.encode("Leo")[0] not in own
    assert told.ids.count(tokenizer.eos_token_id) == 1  # none is forged


def test_a_replacement_must_earn_more_than_the_attempt(student):
    """Four rejected, by hand: wrong or right, and the teacher's own wrong, right, half, cut off."""
    p = Problem("q", "1")
    own = [attempt("Answer: 2", 0.0, 0.0), attempt("Answer: 1", 3.0, 1.0)]
    own += [attempt("Answer: 3", 4.9, 0.0), attempt("Answer: 1", 5.0, 1.0)]
    own += [attempt("Answer: 4", None, 0.0)]

    def replaced(reward, stopped, **changed):
        solution = Trajectory(p, stopped=stopped, text="So 1. Answer: 1", reward=reward)
        new, read = train.replace_rejected(own, [solution] * 5, None, student[1], settings(**changed))
        assert read == 0 and all(t is None or t.text == solution.text for t in new)
        return [t is not None for t in new]

    assert replaced(1.0, True) == [True, False, True, False, False]
    assert replaced(0.5, True) == [True, False, True, False, False]
    assert replaced(0.0, True) == [False] * 5  # a wrong one teaches nothing
    assert replaced(0.0, True, literal=True) == [True, True, True, False, False]
    for literal in (False, True):  # what was cut off is no lesson at all
        assert replaced(0.0, False, literal=literal) == [False] * 5
        assert replaced(1.0, False, literal=literal) == [False] * 5
        assert replaced(1.0, True, literal=literal, replace="none") == [False] * 5


def advantages(own, new, **changed):
    own, new = ([t and replace(t, advantage=None) for t in ts] for ts in (own, new))
    train.give_advantages(own, new, 1, settings(**changed))
    return [[t and t.advantage for t in ts] for ts in (own, new)]


def test_what_each_method_and_baseline_gives_by_hand():
    """Four attempts: right, wrong and replaced by a right one, blurted right and replaced, unscored.

    What has no score is no part of ovd's update, nor of its mean.
    """
    own = [attempt("w. Answer: 1", 9, 1.0), attempt("Answer: 2", 0, 0.0)]
    own += [attempt("Answer: 1", 3, 1.0), attempt("w. Answer: 3", None, 0.0)]
    whole = attempt("teacher's", None, 1.0)
    new, none = [None, whole, whole, None], [None] * 4
    (a, *others), (_, b, c, _) = advantages(own, new)  # own mean: 2/3
    assert [a, b, c] == pytest.approx([1 / 3] * 3) and others == [None] * 3
    assert advantages(own, new, baseline="none") == [[1, None, None, None], [None, 1, 1, None]]
    assert advantages(own, new, baseline="mixed") == [[0, None, None, None], [None, 0, 0, None]]
    ((a, b, c, d), (e, f, g, h)) = advantages(own, new, baseline="union")  # 4 of 5 right
    assert [a, b, c, f, g] == pytest.approx([0.2, -0.8, 0.2, 0.2, 0.2]) and d is e is h is None
    (a, *others), _ = advantages(own, none, replace="none")  # dropped
    assert a == pytest.approx(1 / 3) and others == none[1:]
    assert advantages(own, none, method="grpo") == [[0.5, -0.5, 0.5, -0.5], none]
    judged, _ = advantages(own, none, method="judge")  # 9, 0, 3 of 9: mean 4/9
    assert judged[:3] == pytest.approx([5 / 9, -4 / 9, -1 / 9]) and judged[3] is None
    assert advantages(own, none, method="format") == [[0.5, -0.5, -0.5, 0.5], none]
    assert advantages(own, none, method="sft") == [[1, 1, 1, 1], none]


def test_an_attempt_that_nothing_better_takes_the_place_of_stays_with_its_own_reward():
    own = [attempt("w. Answer: 1", 9, 1.0), attempt("Answer: 2", 0, 0.0), attempt("Answer: 1", 3, 1.0)]
    whole, none = attempt("teacher's", None, 1.0), [None] * 3
    (a, b, c), new = advantages(own, none)
    assert [a, b, c] == pytest.approx([1 / 3, -2 / 3, 1 / 3]) and new == none
    (a, b, c), (_, d, _) = advantages(own, [None, whole, None])
    assert b is None and [a, c, d] == pytest.approx([1 / 3] * 3)


def test_unscored_takes_no_part():
    own = [attempt("", 9.0, 0.0), attempt("", None, 1.0), attempt("", 0.0, 1.0), attempt("", 4.5, 0.0)]
    assert advantages(own, [None] * 4, method="judge") == [[0.5, None, -0.5, 0], [None] * 4]
    assert advantages(own[1:2], [None], method="judge") == [[None], [None]]  # nobody is left
    assert advantages(own, [None] * 4)[0][1] is None  # of ovd neither


def test_a_text_of_which_nothing_is_trained_is_no_part_of_the_group():
    """As the teacher's whole solution is with --suffix read."""
    own = [attempt("Answer: 2", 0, 0.0), attempt("w. Answer: 1", 9, 1.0)]
    read = replace(attempt("teacher's", None, 1.0), mask=[0, 0])
    assert advantages(own, [read, None]) == [[None, 0.5], [None, None]]


def test_groups_are_compared_within_themselves_and_those_that_tie_are_counted():
    """Means 1/2, 1 and 0: over a group and not over the batch's 1/2."""
    rewards = [1, 0, 1, 1, 0, 0]
    own = [attempt("w. Answer: 1", 9, float(r)) for r in rewards]
    assert train.give_advantages(own, [None] * 6, 3, settings(method="grpo")) == 2
    assert [t.advantage for t in own] == [0.5, -0.5, 0, 0, 0, 0]


# ------------------------------------------------------------------------------- the update
def gradient(student, teacher, **changed):
    """The gradient of one update on a fixed batch, without taking the step."""
    model, tokenizer = student
    torch.manual_seed(0)
    stream = problem_stream(5)
    batch = sample_trajectories(
        model, tokenizer, [p for p in (next(stream), next(stream)) for _ in range(5)]
    )
    for t, a in zip(batch, [0.7, -0.3, 0.2, -1.0, 0.4, 0.9, -0.1, 0.3, -0.6, 0.5]):
        t.advantage = a
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.SGD(parameters, lr=0.0)
    row = train.update(
        model, Teacher(*teacher), optimiser, batch, settings(**changed), tokenizer.pad_token_id
    )
    assert row["tokens"] == sum(len(t.ids) for t in batch)
    return row["loss"], torch.cat([p.grad.flatten() for p in parameters])


@pytest.fixture(scope="module")
def whole(student, teacher):
    """{method: (loss, gradient)} of the batch in one piece."""
    return {method: gradient(student, teacher, method=method) for method in ("ovd", "logits")}


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
def test_micro_batch_and_chunk_change_nothing(student, teacher, whole, method, changed):
    """With LoRA on a 4-bit model, and padding: the trajectories have many lengths."""
    loss, grad = whole[method]
    other_loss, other_grad = gradient(student, teacher, method=method, **changed)
    wide = 10 if "micro_batch" in changed else 1  # another padding, so another order of sums
    assert other_loss == pytest.approx(loss, rel=wide * 1e-6)
    assert (other_grad - grad).norm() <= wide * 1e-5 * grad.norm()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_what_is_alike_is_read_once_and_counts_as_often_as_it_stands_there(student, checkpointing):
    """Copies with advantages of their own, and one with its first half not trained on."""
    model, tokenizer = student
    torch.manual_seed(0)
    a, b = sample_trajectories(model, tokenizer, list(islice(problem_stream(6), 2)))
    half = [0] * (len(a.ids) // 2) + [1] * (len(a.ids) - len(a.ids) // 2)
    batch = [replace(a, advantage=1.0), replace(b, advantage=-0.5), replace(a, advantage=-0.25)]
    batch += [replace(a, mask=half, advantage=2.0), replace(b, advantage=0.75)]
    parameters = [p for p in model.parameters() if p.requires_grad]
    still, read, gradients = torch.optim.SGD(parameters, lr=0.0), [], []
    hook = model.get_decoder().register_forward_pre_hook(
        lambda layer, args, kwargs: read.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    for micro_batch in (5, 1):  # all together, and each alone: the trusted reference
        args = settings(micro_batch=micro_batch, checkpointing=checkpointing)
        row = train.update(model, None, still, batch, args, 0)
        gradients.append((row["loss"], torch.cat([p.grad.flatten() for p in parameters])))
        assert row["tokens"] == 2 * len(a.ids) + sum(half) + 2 * len(b.ids)
    hook.remove()
    assert 2 in read and max(read) == 2  # never five
    (loss, together), (other, one_by_one) = gradients
    assert loss == pytest.approx(other, rel=1e-5)
    assert (together - one_by_one).norm() <= 1e-4 * one_by_one.norm()


def test_an_empty_text_is_no_lesson_and_no_error(student):
    """As a server leaves one in sft: alone in its micro-batch, and beside a full one."""
    model, tokenizer = student
    (full,) = sample_trajectories(model, tokenizer, [next(problem_stream(6))])
    full.advantage = 1.0
    empty = replace(full, ids=[], logprobs=[], authors=[], mask=[])
    still = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
    row = train.update(model, None, still, [empty], settings(), 0)
    assert row["tokens"] == 1 and row["grad_norm"] == 0
    alone = train.update(model, None, still, [full], settings(), 0)
    for micro_batch in (1, 2):
        both = train.update(model, None, still, [empty, full], settings(micro_batch=micro_batch), 0)
        assert both["loss"] == pytest.approx(alone["loss"], rel=1e-5)
        assert both["grad_norm"] == pytest.approx(alone["grad_norm"], rel=1e-4)


def test_the_loss_is_a_mean_over_the_tokens_of_the_whole_batch(student, teacher):
    """-sum A log pi over all M tokens, divided once by M: worked out from what was sampled."""
    model, tokenizer = student
    torch.manual_seed(0)
    batch = sample_trajectories(model, tokenizer, list(islice(problem_stream(6), 6)))
    for t, a in zip(batch, [1.0, -0.5, 0.25, 0.0, -1.0, 2.0]):
        t.advantage = a
    tokens = sum(len(t.ids) for t in batch)
    loss = -sum(t.advantage * sum(t.logprobs) for t in batch) / tokens
    still = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
    for micro_batch in (1, 4, 6):
        row = train.update(model, None, still, batch, settings(micro_batch=micro_batch), 0)
        assert row["loss"] == pytest.approx(loss, abs=1e-4) and row["tokens"] == tokens


def test_eight_trajectories_a_step_are_compared_with_the_start(student, monkeypatch):
    model, tok = student
    own = sample_trajectories(model, tok, list(islice(problem_stream(0), 12)), 1.0, 8)
    for t in own:
        t.advantage = 1.0
    passes = []
    real = train.trained_positions
    monkeypatch.setattr(
        train, "trained_positions", lambda m, ts, pad: passes.append(len(ts)) or real(m, ts, pad)
    )
    parameters = [p for p in model.parameters() if p.requires_grad]
    for kl, micro_batch, looked_at in ((0.0, 1, 8), (0.0, 12, 8), (0.0, 5, 8), (0.1, 5, 12)):
        args = settings(method="grpo", kl=kl, micro_batch=micro_batch)
        passes.clear()
        still = torch.optim.SGD(parameters, lr=0.0)
        figures = train.update(model, None, still, own, args, tok.pad_token_id)
        assert sum(passes) == 12 + looked_at and abs(figures["kl"]) < 1e-5


def test_a_pull_to_the_start_is_felt_once_the_student_has_left_it(fresh_student):
    """Without advantages the gradient is the pull's alone: none at the start, and some away."""
    model, tokenizer = fresh_student
    batch = sample_trajectories(model, tokenizer, list(islice(problem_stream(0), 4)))
    for t in batch:
        t.advantage = 0.0
    still = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
    norms = []
    for std in (0.0, 0.02):
        torch.manual_seed(0)
        for layer in lora_layers(model).values():
            torch.nn.init.normal_(layer.lora_B, std=std) if std else layer.lora_B.data.zero_()
        fresh = [replace(t, logprobs=[]) for t in batch]
        for kl in (0.0, 1.0):
            fresh = sample_trajectories(model, tokenizer, [t.problem for t in batch])
            for t in fresh:
                t.advantage = 0.0
            norms.append(train.update(model, None, still, fresh, settings(kl=kl), 0)["grad_norm"])
    assert norms[:3] == pytest.approx([0, 0, 0], abs=1e-6) and norms[3] > 1e-3


def test_an_update_that_is_not_on_policy_is_refused(student):
    """Sampled at one temperature and scored at another, say, or under another head."""
    model, tokenizer = student
    torch.manual_seed(0)
    batch = sample_trajectories(model, tokenizer, list(islice(problem_stream(0), 4)), 3.0)
    for t in batch:
        t.advantage = 1.0
    still = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
    with pytest.raises(UserError, match="--student s: .* off that when sampled"):
        train.update(model, None, still, batch, settings(temperature=1.0), 0)
    gap = train.update(model, None, still, batch, settings(temperature=3.0), 0)["logprob_gap"]
    assert gap < 1e-4


def test_of_a_batch_of_the_teacher_s_alone_there_is_no_drift(student):
    p = next(problem_stream(0))
    new = train.teacher_trajectory(Trajectory(p, text=p.solution, stopped=True), student[1])
    new.advantage = 1.0
    still = torch.optim.SGD([p for p in student[0].parameters() if p.requires_grad], lr=0.0)
    row = train.update(student[0], None, still, [new], settings(), 0)
    assert math.isnan(row["kl"]) and math.isnan(row["logprob_gap"]) and row["grad_norm"] > 0
    empty = train.update(student[0], None, still, [], settings(), 0)
    assert set(empty) == set(row) and not any(empty.values())


def test_a_gradient_that_is_not_finite_changes_nothing(fresh_student):
    model, tokenizer = fresh_student
    (t,) = sample_trajectories(model, tokenizer, [next(problem_stream(0))])
    t.advantage = math.inf
    parameters = [p for p in model.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in parameters]
    with pytest.raises(UserError, match="--lr 0.5: the gradient is no longer finite"):
        train.update(model, None, torch.optim.SGD(parameters, lr=0.5), [t], settings(lr=0.5), 0)
    assert all(torch.equal(p, b) for p, b in zip(parameters, before))


# ------------------------------------------------------------------------------- the log
def test_texts_that_are_all_empty_have_no_entropy():
    empty = Trajectory(next(problem_stream(0)))
    assert math.isnan(record.entropy([empty, empty]))


def test_entropy_is_over_what_the_student_chose_by_hand():
    t = Trajectory(Problem("?", "1"), [1], [1, 2, 3, 4], [-1.0, -3.0, 0.0, 0.0],
                   ["student", "student", "environment", "teacher"], [1, 1, 0, 1])
    assert record.entropy([t]) == pytest.approx(2.0)


def test_figures_of_a_test_by_hand():
    """Three right of four when sampled, but one of them was cut off; greedy all but one."""
    problem = Problem("?", "7")
    texts = ["Answer: 7", "So it is. Answer: 7", "Answer: 7", "Answer: 8"]
    sampled = [Trajectory(problem, text=text, stopped=j != 1) for j, text in enumerate(texts)]
    greedy = [Trajectory(problem, text=text, stopped=True) for text in texts]
    figures = record.test_figures(sampled, greedy, "math")
    assert math.isnan(figures.pop("entropy"))  # no token stands there
    assert figures == {"pass_at_1": 0.5, "greedy": 0.75, "n": 4, "cut_off": 0.25}


def test_figures_of_a_step_by_hand():
    """A judge that says 4.65 of right attempts and 4.34 of wrong ones: all are rejected, as logged."""
    own = [attempt("", 4.65, 1.0), attempt("", 4.34, 0.0), attempt("", 4.34, 0.0), attempt("", None, 0.0)]
    own[1].stopped, own[0].advantage, own[2].advantage = False, 0.5, -0.5
    new = [None, replace(own[0], authors=["teacher", "environment"]), None, None]
    args = settings(reward="outcome")
    figures = record.step_figures(own, new, [own[0], own[2]], 3, args)
    assert (figures["accepted"], figures["replaced"], figures["tied_groups"]) == (0, 0.25, 3)
    assert (figures["auc"], figures["scored"], figures["reward"]) == (1, 0.75, 0.25)
    assert figures["score"] == pytest.approx((4.65 + 2 * 4.34) / 3) and figures["cut_off"] == 0.25
    assert (figures["advantage"], figures["spread"], figures["new_tokens"]) == (0.5, 0.5, 1)
    args.theta = best_threshold([4.65], [4.34, 4.34])
    assert record.step_figures(own, new, [], 3, args)["accepted"] == 0.25


def test_a_teacher_that_never_scores_ends_the_run(tmp_path, student, monkeypatch):
    """With one line that says why, and after the step was logged."""
    judge = Teacher(*student)
    monkeypatch.setattr(judge, "read", lambda asked: (torch.full((len(asked), 10), math.nan), 1))
    args = train.parse(["--steps", "2", "--teacher", "self", "--max-new-tokens", "8"])
    vars(args).update(TINY_PAIRS["math"], teacher="self")
    with pytest.raises(UserError, match="--teacher self: more than half .* use --score expected"):
        train.train(*student, judge, problem_stream(0), args, tmp_path)
    assert len(samples_of(tmp_path)) == 32 and len(rows_of(tmp_path)) == 1


def test_the_one_problem_that_the_teacher_cannot_solve_is_said_so(capsys):
    class Wrong:
        def solve(self, problems):
            return [Trajectory(p, text="It is 7.", stopped=p.question == "?",
                               reward=float(p.answer == "1")) for p in problems]

    for answer, one_shot, said in (("2", True, 1), ("1", True, 0), ("2", False, 0)):
        args = Namespace(one_shot=one_shot, reward="outcome")
        record.warn_unsolved(Wrong().solve([Problem("?", answer)] * 2), args)
        assert capsys.readouterr().out.count("it says: It is 7.") == said
    args = Namespace(one_shot=True, reward="outcome")
    record.warn_unsolved(Wrong().solve([Problem("cut off", "2")]), args)
    assert "says (cut off, raise --max-new-tokens): It is 7." in capsys.readouterr().out


def test_without_an_answer_key_the_reward_is_the_teacher_s_word(tmp_path, script, monkeypatch):
    """R = S / 9 of attempts and of its own solutions, and no answer is in any problem."""
    flags = ["--reward", "verbal", "--steps", 1, "--eval-problems", 4, "--out", tmp_path / "r"]
    script("train.py", *flags)
    lines = samples_of(tmp_path / "r")
    assert len(lines) == 32 and all(line["answer"] is None for line in lines)
    assert all(line["reward"] == pytest.approx(line["score"] / 9) for line in lines)
    news = [(line, line["replaced_by"]) for line in lines if line["replaced_by"]]
    assert news and all(line["reward"] < new["reward"] <= 1 for line, new in news)
    assert {row["auc"] for row in rows_of(tmp_path / "r")} == {"nan"}


def test_a_threshold_of_its_own_is_chosen_once(tmp_path, script, capsys):
    script("train.py", "--theta", "auto", *SHORT, "--out", tmp_path / "r")
    (theta,) = re.findall(r"theta = ([\d.]+), chosen by the first 32", capsys.readouterr().out)
    result = json.loads((tmp_path / "r/result.json").read_text())
    assert result["settings"]["theta"] == pytest.approx(float(theta), abs=0.01)
    for row, step in zip(rows_of(tmp_path / "r"), (1, 2)):
        scores = [s["score"] for s in samples_of(tmp_path / "r") if s["step"] == step]
        accepted = sum(score >= result["settings"]["theta"] for score in scores) / 32
        assert float(row["accepted"]) == pytest.approx(accepted, rel=1e-4)


def test_one_shot_is_one_problem_for_ever_and_others_are_new():
    args = train.parse(["--one-shot", "--eval-problems", "7", "--difficulty", "1"])
    stream, test = load_problems(args)
    assert len({next(stream) for _ in range(9)}) == 1 and len(set(test)) == 7
    args.one_shot = False
    others, same_test = load_problems(args)
    assert len({next(others) for _ in range(9)}) == 9 and same_test == test


def test_a_first_look_at_the_teacher_costs_the_run_nothing(student, teacher, capsys):
    judge = Teacher(*teacher)
    torch.manual_seed(0)
    sampled = sample_trajectories(*student, list(islice(problem_stream(1, held_out=True), 8)))
    record.first_look(judge, sampled)
    assert "the teacher on 8 of these attempts: AUC" in capsys.readouterr().out
    assert not judge.written and all(t.score is not None for t in sampled)
    record.first_look(judge, [t for t in sampled if not t.right])
    assert "not right and wrong ones" in capsys.readouterr().out


# ------------------------------------------------------------------------------- the main job
def test_one_shot_learns_and_leaves_its_results(one_shot, script, capsys):
    folder, last_line, result = one_shot
    assert (
        result["method"] == "ovd"
        and result["task"] == "math"
        and result["one_shot"]
        and result["seed"] == 0
    )
    assert result["before"]["n"] == result["after"]["n"] == 500
    assert result["after"]["pass_at_1"] - result["before"]["pass_at_1"] >= 0.20
    assert result["peak_bytes"] > 0 and result["seconds"] > 0 and result["versions"]["torch"]
    rows = rows_of(folder)
    assert [int(float(r["step"])) for r in rows] == list(range(1, 17))
    assert all(float(r["logprob_gap"]) < 1e-3 for r in rows)  # what is trained is what was sampled
    samples = samples_of(folder)
    assert len(samples) == 16 * 32 and len({s["question"] for s in samples}) == 1
    assert all(len(s["probs"]) == 10 and 0 <= s["score"] <= 9 for s in samples)
    assert f"{result['after']['pass_at_1']:.1%}" in last_line
    # the adapter is where it says, and does what it says
    script("sample.py", "--student", folder / "adapter", "--problems", "40", "--samples", "4")
    (share,) = re.findall(r"([\d.]+)% right,", capsys.readouterr().out.splitlines()[-1])
    assert float(share) / 100 > result["before"]["pass_at_1"] + 0.1


def test_what_is_logged_of_a_step_is_what_its_samples_say(one_shot):
    """Every column that can be worked out again from samples.jsonl, for each step."""
    folder, _, result = one_shot
    samples = samples_of(folder)
    for row in rows_of(folder):
        lines = [s for s in samples if s["step"] == float(row["step"])]
        share = {
            "reward": sum(s["reward"] for s in lines),
            "score": sum(s["score"] for s in lines),
            "scored": 32,
            "accepted": sum(s["score"] >= 5 for s in lines),
            "replaced": sum(s["replaced_by"] is not None for s in lines),
            "cut_off": sum(not s["stopped"] for s in lines),
        }
        for column, total in share.items():
            assert float(row[column]) == pytest.approx(total / 32, rel=1e-4), column
        assert float(row["tied_groups"]) in (0, 1)
        for s in (s["replaced_by"] for s in lines if s["replaced_by"]):
            assert s["kept"] == 0 and s["reward"] == 1 and s["advantage"] is not None
        taught = [t["advantage"] for s in lines for t in (s, s["replaced_by"] or s)]
        assert any(taught) or float(row["tied_groups"]) == 1
    assert result["budget"]["updates"] == 16
    assert result["budget"]["put_in_place"] == sum(float(r["new_tokens"]) for r in rows_of(folder))


def test_a_long_run_says_after_its_first_step_how_long_it_will_take(capsys):
    """A step of 90 s, 20 of them: half an hour. One of two minutes or less says nothing."""
    def row(seconds):
        return {"seconds": seconds, "reward": 0.5, "score": math.nan, "replaced": 0.25}

    for rows, said in (([row(90.0)], True), ([row(6.0)], False), ([row(90.0)] * 2, False)):
        bar = tqdm(range(20))
        record.show_step(bar, rows)
        assert ("about 30 minutes" in "".join(capsys.readouterr())) == said
        assert bar.postfix == "reward=0.50, replaced=0.25"  # what is not known is left out
