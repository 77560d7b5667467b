"""A teacher that may be wrong: the rule, no answer key, and a threshold that fits its judge."""

from dataclasses import dataclass, replace
from itertools import islice

import pytest

import train
from more import data, record
from more.flags import TINY
from more.judge import best_threshold
from sample import Trajectory, sample_trajectories
from score import Teacher
from tasks import Problem, problem_stream

ROOT_FLAGS = ["--method", "ovd", "--theta", "5"]
PROBLEM = Problem("How many?", "7")


def attempt(score, reward, text="Answer: 1", stopped=True):
    return Trajectory(PROBLEM, [1], [5, 6], [-0.5, -0.5], ["student"] * 2, [1, 1], stopped, text,
                      reward, [0.1] * 10, score)


def replaced(student, group, solution, *flags):
    """What takes the place of each attempt, and the advantages (own, new)."""
    args = train.parse([*ROOT_FLAGS, *flags])
    _, tokenizer = student
    new, _ = train.replace_rejected(group, [solution] * len(group), None, tokenizer, args)
    train.give_advantages(group, new, 1, args)
    return new, [t.advantage for t in group], [t and t.advantage for t in new]


def group_of_four():
    """Right and accepted; wrong and rejected; right but rejected; wrong but accepted."""
    return [attempt(9, 1.0), attempt(0, 0.0), attempt(1, 1.0), attempt(8, 0.0)]


def test_the_rule_by_hand_on_a_group_of_four(student):
    """The mean of the student's own group is 1/2. A right text replaces the wrong rejected one."""
    new, own, put = replaced(student, group_of_four(), attempt(None, 1.0, "First 7. Answer: 7"))
    assert [t is not None for t in new] == [False, True, False, False]
    assert own == [0.5, None, 0.5, -0.5] and put == [None, 0.5, None, None]


def test_the_literal_reading_replaces_the_right_attempt_too(student):
    right = attempt(None, 1.0, "First 7. Answer: 7")
    new, own, put = replaced(student, group_of_four(), right, "--literal")
    assert [t is not None for t in new] == [False, True, True, False]
    assert own == [0.5, None, None, -0.5] and put == [None, 0.5, 0.5, None]


def test_a_wrong_text_replaces_nothing_unless_read_literally(student):
    wrong = attempt(None, 0.0, "Answer: 8")
    new, own, _ = replaced(student, group_of_four(), wrong)
    assert new == [None] * 4 and own == [0.5, -0.5, 0.5, -0.5]
    _, own, put = replaced(student, group_of_four(), wrong, "--literal")
    assert own == [0.5, None, None, -0.5] and put == [None, -0.5, -0.5, None]  # pushed away from


@pytest.mark.parametrize("flags", [[], ["--literal"]])
def test_a_text_that_was_cut_off_never_replaces_anything(student, flags):
    cut = attempt(None, 1.0, "First 7", stopped=False)
    assert replaced(student, group_of_four(), cut, *flags)[0] == [None] * 4


def test_where_all_are_right_already_nothing_is_replaced(student):
    group = [attempt(1, 1.0) for _ in range(4)]  # a judge that rejects them all
    new, own, _ = replaced(student, group, attempt(None, 1.0, "First 7. Answer: 7"))
    assert new == [None] * 4 and own == [0.0] * 4


@dataclass(frozen=True)
class Sealed(Problem):
    """A problem whose answer nobody may read."""

    def __getattribute__(self, name):
        value = super().__getattribute__(name)
        assert name not in ("answer", "solution") or value is None, f"{name} was read"
        return value


def test_the_verbal_reward_never_reads_an_answer(tmp_path, monkeypatch):
    problems = [Sealed(p.question, p.answer) for p in islice(problem_stream(0), 8)]
    stream = data.task_stream
    monkeypatch.setattr(data, "task_stream", lambda task, seed, difficulty, held_out, turns:
                        stream(task, seed, difficulty, True, turns) if held_out else iter(problems))
    result = train.run(train.parse(["--reward", "verbal", "--steps", "2", "--eval-problems", "4",
                                    "--problems", "2", "--samples", "4",
                                    "--out", str(tmp_path / "r")]))
    rows = (tmp_path / "r/metrics.csv").read_text().splitlines()
    assert len(rows) == 3 and result["budget"]["updates"] == 2


def test_with_the_verbal_reward_a_text_that_scores_higher_replaces_an_attempt(student, teacher):
    model, tokenizer = student
    judge = Teacher(*teacher)
    problems = [replace(next(problem_stream(3)), answer=None, solution=None)] * 8
    y = sample_trajectories(model, tokenizer, problems, 1.0)
    args = train.parse([*ROOT_FLAGS, "--reward", "verbal"])
    new, _ = train.score_and_replace(y, judge, tokenizer, args)
    assert all(t.reward == t.score / 9 for t in y)
    (solution,) = judge.written.values()
    assert solution.reward == solution.score / 9
    for t, put in zip(y, new):
        assert (put is not None) == (t.score < 5 and solution.reward > t.reward)


def test_the_best_threshold_by_hand():
    assert best_threshold([8.0, 7.0], [2.0, 1.0]) == 4.5  # between the two kinds
    assert best_threshold([4.65], [4.34]) == pytest.approx(4.495)  # a narrow band
    assert best_threshold([3.0, 9.0], [1.0, 5.0]) == 2.0  # two cuts are equal: it rejects least
    assert best_threshold([], [1.0, 2.0, 6.0]) == 2.0  # no right one, or no outcome: the median
    assert best_threshold([9.0, 8.0], []) == 8.5
    assert best_threshold([4.0, 4.0], [4.0]) == 4.0  # a judge that says one number accepts all
    assert best_threshold([], []) == 5.0


def test_auto_with_the_verbal_reward_is_the_median():
    """A 9 makes R = 1, and no attempt is right for that: nobody knows which are."""
    class Fixed:
        def solve(self, problems):
            return [attempt(9.0, 0.0)] * len(problems)

        def score(self, trajectories, solutions):
            return 0  # all have their scores

    scores = [2.0, 3.0, 5.0, 6.0, 7.0, 8.0, 8.0, 9.0]
    args = train.parse([*ROOT_FLAGS, "--reward", "verbal", "--theta", "auto", "--replace", "none"])
    train.score_and_replace([attempt(s, 0.0) for s in scores], Fixed(), None, args)
    assert args.theta == 6.5


def test_auto_sets_the_threshold_once_and_keeps_it(tmp_path):
    result = train.run(train.parse(["--theta", "auto", "--steps", "2", "--eval-problems", "4",
                                    "--out", str(tmp_path / "r")]))
    assert isinstance(result["settings"]["theta"], float) and result["asked"]["theta"] == "auto"


def test_a_one_shot_run_whose_teacher_is_wrong_says_so_and_goes_on(tmp_path, capsys):
    """The weak teacher does not solve the problem of one of these seeds."""
    said = []
    for seed in range(4):
        train.run(train.parse(["--one-shot", "--teacher", str(TINY / "weak-teacher"), "--steps",
                               "1", "--eval-problems", "2", "--samples", "2", "--seed", str(seed),
                               "--out", str(tmp_path / str(seed))]))
        said.append("does not solve the one problem" in capsys.readouterr().out)
    assert any(said) and not all(said)


def test_without_a_score_there_is_no_verbal_reward_to_compare_with():
    """Two sevens and two of which nothing was said: the sevens tie."""
    group = [attempt(7.0, 7 / 9), attempt(7.0, 7 / 9), attempt(None, 0.0), attempt(None, 0.0)]
    args = train.parse([*ROOT_FLAGS, "--reward", "verbal"])
    assert train.give_advantages(group, [None] * 4, 1, args) == 1
    assert [t.advantage for t in group] == [pytest.approx(0, abs=1e-6)] * 2 + [None] * 2
    assert record.step_figures(group, [None] * 4, group[:2], 1, args)["reward"] == 7 / 9
