"""Is a teacher any good: figures by hand, a second opinion, odd files, a reward for TRL."""

import json
import math
import runpy
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from more.flags import TINY
from more.judge import (as_reward, auc_within, calibrated, check_teacher, compare_teachers, ranks,
                        read_samples, share_of_ties, threshold_figures)
from more.terminal import UserError
from sample import Trajectory, sample_trajectories
from score import Teacher, auc, scores_of
from tasks import Problem, problem_stream

ROOT = Path(__file__).parent.parent


def attempts_at(name, right=(), wrong=()):
    """Scored attempts at one problem, each with a text of its own."""
    pairs = [(s, 1.0) for s in right] + [(s, 0.0) for s in wrong]
    return [
        Trajectory(Problem(name, "1"), text=str(i), reward=r, score=s)
        for i, (s, r) in enumerate(pairs)
    ]


# ------------------------------------------------------------------------------- figures by hand
def test_calibrated_by_hand():
    """A teacher that says 9 to nothing at all: 0.8 / 0.8 and 0.2 / 0.2 count alike."""
    probs, empty = torch.zeros(2, 10), torch.zeros(2, 10)
    probs[0, 1], probs[0, 9] = 0.2, 0.8
    probs[1, 1], probs[1, 9] = 0.1, 0.9
    empty[:, 1], empty[:, 9] = 0.2, 0.8
    found = calibrated(probs, empty)
    assert found[0, [1, 9]].tolist() == pytest.approx([0.5, 0.5])
    assert found[1, [1, 9]].tolist() == pytest.approx([0.5 / 1.625, 1.125 / 1.625])
    assert found.sum(-1).tolist() == pytest.approx([1, 1])


def test_auc_within_a_problem_by_hand():
    """a: 8 against 2 and 9, 1/2. b: 3 and 5 against 3, 3/4. c and d have no pair. Mean 5/8."""
    ts = attempts_at("a", [8], [2, 9]) + attempts_at("b", [3, 5], [3])
    ts += attempts_at("c", [9, 9]) + attempts_at("d", [None], [1])
    assert auc_within(ts) == (pytest.approx(5 / 8), 2)
    assert auc_within(ts[::-1]) == (pytest.approx(5 / 8), 2)  # in any order
    assert auc(*scores_of(ts)) == pytest.approx(15.5 / 20)


def test_a_teacher_that_only_tells_easy_problems_from_hard_ones_is_found_out():
    ts = attempts_at("easy", [8] * 9, [9]) + attempts_at("hard", [0], [1] * 9)
    assert auc(*scores_of(ts)) == pytest.approx(0.81) and auc_within(ts) == (0, 2)


def test_without_a_problem_that_has_both_it_cannot_be_told():
    area, problems = auc_within(attempts_at("a", [8, 9]) + attempts_at("b", [], [1]))
    assert math.isnan(area) and problems == 0


@pytest.mark.parametrize(
    "theta, share, precision", [(0, 1, 3 / 5), (3, 4 / 5, 3 / 4), (5, 2 / 5, 1)]
)
def test_precision_and_share_accepted_by_hand(theta, share, precision):
    """Right ones score 3, 5, 9 and wrong ones 1, 4; a score equal to theta is accepted."""
    ts = attempts_at("a", [3, 5, 9], [1, 4])
    assert threshold_figures(ts, theta) == (pytest.approx(share), pytest.approx(precision))


def test_where_nothing_is_accepted_there_is_no_precision():
    share, precision = threshold_figures(attempts_at("a", [3], [1]), 8)
    assert share == 0 and math.isnan(precision)


def test_ties_by_hand():
    """a: texts 0, 0, 1 score 2 each: two pairs of different texts, both tied. b: one, not tied."""
    ts = attempts_at("a", [2, 2, 2]) + attempts_at("b", [3], [4])
    ts[1].text = "0"
    assert share_of_ties(ts) == pytest.approx(2 / 3)


def test_ranks_by_hand():
    assert ranks(torch.tensor([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1, 3.5, 2]


def test_two_teachers_compared_by_hand(capsys):
    """Ranks 1 2 3 4 and 2 1 3 4: Spearman 1 - 6 * 2 / (4 * 15) = 0.8."""

    def scored(scores):
        return [
            Trajectory(Problem("?", "1"), stopped=True, reward=float(i > 1), score=s)
            for i, s in enumerate(scores)
        ]

    compare_teachers(scored([1, 2, 3, 9, 5.0]), scored([2, 1, 6, 8, None]))
    out = capsys.readouterr().out
    assert "4 have both scores: 75.0% on one side" in out  # 3 and 6 lie on two sides of 5
    assert "rank correlation 0.800" in out and "mean difference +0.50" in out
    assert "scored     5 of 5, AUC 1.000" in out and "scored     4 of 5" in out


# ------------------------------------------------------------------------------- the check
@pytest.fixture(scope="module")
def scored(student, teacher):
    """(Teacher, 32 attempts at 8 problems, scored, their solutions)."""
    torch.manual_seed(0)
    problems = [p for p in islice(problem_stream(11, held_out=True), 8) for _ in range(4)]
    trajectories, here = sample_trajectories(*student, problems), Teacher(*teacher)
    solutions = here.solve(problems)
    here.score(trajectories, solutions)
    return here, trajectories, solutions


def test_the_check_has_words_for_attempts_that_are_all_wrong(scored, capsys):
    teacher, trajectories, solutions = scored
    wrong = [(t, s) for t, s in zip(trajectories, solutions) if not t.right][:4]
    attempts, solutions = map(list, zip(*wrong))
    check_teacher(teacher, attempts, solutions)
    said = capsys.readouterr().out
    assert "AUC nan" in said and "0 of 4 attempts got no score" in said and "S(y) moves by" in said
    unscored = [replace(t, score=None) for t in attempts]
    with pytest.raises(UserError, match="no score at all"):
        check_teacher(teacher, unscored, solutions)


@pytest.fixture
def judge(monkeypatch):
    """more/judge.py run in this process, as from the command line."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    def run_judge(*args):
        monkeypatch.setattr(sys, "argv", ["judge", *map(str, args)])
        runpy.run_path(str(ROOT / "more/judge.py"), run_name="__main__")

    return run_judge


def test_a_few_attempts_are_checked_and_summed_up_in_one_sentence(judge, capsys):
    judge("--problems", 4, "--samples", 4, "--seed", 1)
    lines = capsys.readouterr().out.splitlines()
    [table] = [i for i, line in enumerate(lines) if "precision" in line]
    assert [line.split()[0] for line in lines[table + 1 : table + 6]] == ["1", "3", "5", "7", "8"]
    assert sum("within a problem" in line for line in lines) == 3  # as it is, likeliest, calibrated
    assert lines[-1].startswith("of 16 attempts at 4 problems a right one scores above")


# ------------------------------------------------------------------------------- a second opinion
@pytest.fixture(scope="module")
def samples(scored, tmp_path_factory):
    """The attempts as a run leaves them, in samples.jsonl."""
    path = tmp_path_factory.mktemp("run") / "samples.jsonl"
    rows = [
        {"question": t.problem.question, "answer": t.problem.answer, "text": t.text}
        | {"stopped": t.stopped, "reward": t.reward, "probs": t.probs, "score": t.score}
        for t in scored[1]
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_run_can_be_scored_again(tmp_path, monkeypatch, judge, capsys):
    flags = ["--steps", "2", "--eval-problems", "2", "--out", str(tmp_path / "r")]
    monkeypatch.setattr(sys, "argv", ["train", *flags])
    runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    path = tmp_path / "r/samples.jsonl"
    kept = [json.loads(line) for line in open(path)]
    assert [t.score for t in read_samples(path)] == [s["score"] for s in kept]
    for teacher, says in (("teacher", "100.0% on one side"), ("weak-teacher", "64 have both")):
        capsys.readouterr()
        judge("--rescore", path, "--teacher", TINY / teacher)
        assert says in capsys.readouterr().out
    (tmp_path / "bad.jsonl").write_text(json.dumps(kept[0]) + "\n{}\n")
    for name, says in (("bad.jsonl", "line 2"), ("none.jsonl", "FileNotFoundError")):
        with pytest.raises(UserError, match=says):
            read_samples(tmp_path / name)


def test_an_empty_file_has_nothing_to_rescore(tmp_path):
    (tmp_path / "samples.jsonl").write_text("")
    with pytest.raises(UserError, match="no trajectory in it"):
        read_samples(tmp_path / "samples.jsonl")


ODD = {
    "no object": "7",
    "a list": "[1, 2]",
    "null": "null",
    "no JSON": "{",
    "nested too deep": "[" * 100_000,
    "an object nested too deep": '{"question":' * 100_000,
    "a number for a text": {"text": 7},
    "null for a question": {"question": None},
    "a list for an answer": {"answer": ["7"]},
    "a text for a reward": {"reward": "1"},
    "true for a reward": {"reward": True},
    "null for a reward": {"reward": None},
    "a text for a score": {"score": "8"},
    "a score above 9": {"score": 8_999_892},
    "a score below 0": {"score": -1},
    "NaN for a score": {"score": math.nan},
    "a list for a score": {"score": [8]},
    "no probabilities": {"probs": None},
    "odd probabilities": {"probs": [{}]},
    "a text of probabilities": {"probs": "0123456789"},
    "half an emoji": {"text": "Answer: \ud83d"},
    "half an emoji in the question": {"question": "\udc00"},
    "a search": {"text": "<search> a </search>"},
    "an answer to a search": {"text": "<answer> a </answer>"},
}


@pytest.mark.parametrize("odd", ODD)
def test_an_odd_line_to_rescore_is_named_in_one_line(samples, tmp_path, judge, capsys, odd):
    good = samples.read_text().splitlines()[0]
    change = ODD[odd]
    line = change if isinstance(change, str) else json.dumps(json.loads(good) | change)
    (tmp_path / "samples.jsonl").write_text(f"{good}\n{line}\n")
    with pytest.raises(SystemExit) as e:
        judge("--rescore", tmp_path / "samples.jsonl")
    error = capsys.readouterr().err
    assert e.value.code == 2 and error.count("\n") == 1 and len(error) < 600
    assert error.startswith("error: --rescore ") and "line 2: " in error


def test_bytes_that_are_no_text_are_one_line(samples, tmp_path, judge, capsys):
    (tmp_path / "samples.jsonl").write_bytes(b'{"question": "\xff\xfe"}\n')
    with pytest.raises(SystemExit) as e:
        judge("--rescore", tmp_path / "samples.jsonl")
    error = capsys.readouterr().err
    assert e.value.code == 2 and error.count("\n") == 1 and error.startswith("error: --rescore ")


@pytest.mark.parametrize(
    "flags, says",
    [
        (["--teacher-model", "m"], "--teacher-model"),
        (["--teacher", "teacher", "--teacher-model", "m"], "--teacher-model"),
        (["--teacher", "http://me:SECRET@h/v1?key=SECRET", "--teacher-model", "m"], "http://h/v1:"),
        (["--teacher", "http://h/v1"], "--teacher-model NAME"),
        (["--max-new-tokens", "0"], "--max-new-tokens"),
        (["--problems", "0"], "--problems"),
        (["--samples", "-1"], "--samples"),
    ],
)
@pytest.mark.parametrize("rescored", [True, False])
def test_flags_that_make_no_sense_are_one_line(samples, judge, capsys, flags, says, rescored):
    if rescored and flags[0] in ("--problems", "--samples"):
        return  # of no meaning there
    with pytest.raises(SystemExit) as e:
        judge(*(["--rescore", samples] if rescored else []), *flags)
    error = capsys.readouterr().err
    assert e.value.code == 2 and error.count("\n") == 1 and says in error and "SECRET" not in error


# ------------------------------------------------------------------------------- TRL
def test_the_teacher_as_a_reward_function(scored):
    teacher, own, _ = scored
    reward = as_reward(Teacher(teacher.model, teacher.tokenizer))
    asked = dict(question=[t.problem.question for t in own[:8]], answer=["?"] * 8, prompts=[""] * 8)
    for said in (
        [t.text for t in own[:8]],
        [[dict(role="assistant", content=t.text)] for t in own[:8]],
    ):
        assert reward(completions=said, **asked) == pytest.approx(
            [t.score / 9 for t in own[:8]], abs=1e-4
        )


def test_a_score_that_is_missing_is_no_reward(scored):
    """None, which TRL leaves out of its mean."""
    teacher = Teacher(scored[0].model, scored[0].tokenizer)
    rows = torch.tensor([[math.nan] * 10, [0.0] * 9 + [1.0]])
    teacher.read = lambda conversations: (rows, 0)
    assert as_reward(teacher)(["Answer: 1", "Answer: 2"], ["1 + 0?", "1 + 1?"]) == [None, 1.0]


def test_trl_trains_with_the_teacher_as_its_reward(teacher, tmp_path):
    pytest.importorskip("trl", reason="trl is missing: pip install -r tests/requirements.txt")
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    problems = list(islice(problem_stream(0), 16))
    rows = [{"prompt": p.messages(), "question": p.question} for p in problems]
    config = GRPOConfig(
        str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=16,
        num_generations=8,
        max_completion_length=48,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        bf16=False,
    )
    trainer = GRPOTrainer(
        str(TINY / "student"),
        as_reward(Teacher(*teacher)),
        args=config,
        train_dataset=Dataset.from_list(rows),
    )
    trainer.train()
    logs = [log for log in trainer.state.log_history if "reward" in log]
    assert len(logs) == 2 and all(0 < log["reward"] < 1 and log["grad_norm"] > 0 for log in logs)
