"""Problems written from a seed, the check of an answer, and how bad input is said."""

import random
import runpy
import sys
from argparse import ArgumentParser
from itertools import islice
from pathlib import Path

import pytest


from more.terminal import UserError, fail_in_one_line, number
from tasks import (DIFFICULTY, Problem, extract_answer, is_held_out, make_problem, problem_stream,
                   task_stream)

ROOT = Path(__file__).parent.parent


# ------------------------------------------------------------------------------- stories
@pytest.mark.parametrize("difficulty", DIFFICULTY)
def test_every_worked_solution_is_right(difficulty):
    rng = random.Random(0)
    for _ in range(200):
        p = make_problem(rng, difficulty)
        steps = [s.split() for s in p.solution.split(". ")[:-1]]  # "First 38 + 14 = 52"
        total = int(steps[0][1])
        assert f"has {total} " in p.question
        for _, a, sign, b, _, result in steps:
            assert int(a) == total and f" {b}." in p.question
            total = eval(f"{a} {sign} {b}")
            assert int(result) == total >= 0
        assert p.is_right(p.solution) and p.reward(p.solution) == 1 and p.answer == str(total)
        assert p.is_well_formed(p.solution) and len(p.step_ends(p.solution)) == len(steps)
        fewest, most, *_ = DIFFICULTY[difficulty]
        assert fewest <= len(steps) <= most


def test_the_embedded_pair_s_numbers_stay_below_200():
    for difficulty in (1, 2):
        for p in islice(problem_stream(0, difficulty), 2000):
            assert (
                max(
                    int(w.strip("."))
                    for w in (p.question + " " + p.solution).split()
                    if w.strip(".").isdigit()
                )
                < 200
            )


def test_no_problem_is_both_trained_on_and_tested_on():
    train = {p.question for seed in range(5) for p in islice(problem_stream(seed), 1000)}
    test = {p.question for p in islice(problem_stream(0, held_out=True), 500)}
    assert not train & test and not any(map(is_held_out, train)) and all(map(is_held_out, test))


def test_the_same_seed_gives_the_same_problems():
    assert list(islice(problem_stream(3), 20)) == list(islice(problem_stream(3), 20))


def test_the_stream_of_a_task():
    """Stories by name; the search task, which is imported only when it is asked for."""
    stories = islice(problem_stream(4, 2, True), 5)
    assert list(islice(task_stream("math", 4, 2, True), 5)) == list(stories)
    (p,) = islice(task_stream("search", 4, turns=3), 1)
    assert p.until == "</search>" and p.search.turns == 3 and p.is_right(p.solution)


def test_what_the_student_reads_and_that_nobody_replies():
    p = Problem("1 + 1?", "2")
    assert p.messages() == [{"role": "user", "content": f"1 + 1? {p.instruction}"}]
    assert p.until is None and p.reply("Is anybody there?") is None
    assert p.grading_prompt is None and p.condense(" all\nof it ") == " all\nof it "
    assert {p: 1}[Problem("1 + 1?", "2")] == 1  # equal problems are one key


# ------------------------------------------------------------------------------- the check
@pytest.mark.parametrize(
    "text, answer",
    [
        ("First 1 + 2 = 3. Answer: 3", "3"),
        ("Answer: 3. No: Answer: 4.", "4"),
        ("answer: **1,200**", "1,200"),
        ("Answer: $-5", "-5"),
        ("**Answer**: 42", "42"),
        ("**Final Answer:** \\\\(42\\\\)", "42"),
        ("ANSWER:\n42 books", "42"),
        ("**Answer:** \\\\boxed{1,200}.", "1,200"),
        ("Answer: New York", "New York"),
        ("Answer:", None),
        ("Answer: 12.5%", "12.5"),
        (r"so \boxed{1/2}", "1/2"),
        ("Answer: Paris", "Paris"),
        ("It is 3.", None),
        ("So the answer is 20.", "20"),
        ("The answer is: **18**", "18"),
        (r"The final answer is \(\boxed{26}\).", "26"),
        ("", None),
    ],
)
def test_extract_answer(text, answer):
    assert extract_answer(text) == answer == Problem("?", "1").found_answer(text)


@pytest.mark.parametrize(
    "a, b, same",
    [
        ("1,200", "1200.0", True),
        ("1,234,567", "1234567", True),
        ("$7", "7", True),
        ("7.", "7", True),
        (".5", "0.50", True),
        ("-3", "3", False),
        ("12", "1200", False),
        ("1,2", "12", False),
        ("1_2", "12", False),
        ("1, -2", "1", False),
        ("7", "seven", False),
        ("1/0", "0", False),
        ("1e999999999", "1", False),
        ("Paris", "Lima", False),
        (r"12.5\%", "12.5", True),
        ("50%", "50", True),
        ("42 km/h", "42", True),
        ("3x", "3", False),
        ("3 or 4", "3", False),
        ("20 or maybe 21", "20", False),
        ("12 to 15", "12", False),
        ("18 apples and no more", "18", True),
        ("42, because 40 + 2 = 42.", "42", True),
        ("42 (in all)", "42", True),
        ("= 7", "7", True),
    ],
)
def test_ways_to_write_a_number(a, b, same):
    assert Problem("?", b).is_right(f"Answer: {a}") is same
    assert Problem("?", b).reward(f"Answer: {a}") == same


def test_a_number_in_passing_is_no_answer():
    assert not Problem("?", "3").is_right("There are 3 of them.")


@pytest.mark.parametrize(
    "text, steps",
    [
        ("First 1 + 2 = 3. Then 3 - 1 = 2. Answer: 2", ["First 1 + 2 = 3.", " Then 3 - 1 = 2."]),
        ("a line\n\nanother line\nAnswer: 2", ["a line", "\n\nanother line"]),
        ("It is 3.5 of 7. Done!", ["It is 3.5 of 7."]),
        ("Why? So.\nAnswer: 1", ["Why?", " So."]),
        ("Answer: 2", []),
        ("One sentence.", []),
        ("", []),
    ],
)
def test_step_ends_by_hand(text, steps):
    ends = Problem("?", "1").step_ends(text)
    assert [text[a:b] for a, b in zip([0, *ends], ends)] == steps


@pytest.mark.parametrize(
    "text, form",
    [
        ("First 1 + 2 = 3. Answer: 3", True),
        ("Nonsense. Answer: 7", True),  # form alone: right or wrong
        ("Answer: 3", False),
        ("First 1 + 2 = 3.", False),
        ("First 1 + 2 = 3. Answer:", False),
        ("", False),
    ],
)
def test_is_well_formed(text, form):
    assert Problem("?", "1").is_well_formed(text) is form


# ------------------------------------------------------------------------------- the command line
def test_bad_input_is_one_line_and_exit_code_2(capsys):
    def bad():
        raise UserError("--flag 7 must be even; give 8")

    with pytest.raises(SystemExit) as e:
        fail_in_one_line(bad)
    assert e.value.code == 2 and capsys.readouterr() == ("", "error: --flag 7 must be even; give 8\n")


def test_ctrl_c_is_one_word_and_exit_code_130(capsys):
    def stopped():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as e:
        fail_in_one_line(stopped)
    assert e.value.code == 130 and capsys.readouterr().err == "\nstopped\n"


@pytest.mark.parametrize("value, says", [("0", "0 must lie between 1 and 9"), ("10", "must lie"),
                                         ("x", "invalid int value: 'x'"), ("1.5", "invalid int")])
def test_a_number_outside_its_bounds_is_named_with_its_flag(monkeypatch, capsys, value, says):
    def main():
        parser = ArgumentParser()
        parser.add_argument("--k", type=number(int, 1, 9))
        assert parser.parse_args(["--k", "9"]).k == 9
        parser.parse_args(["--k", value])

    with pytest.raises(SystemExit) as e:
        fail_in_one_line(main)
    out, err = capsys.readouterr()
    assert e.value.code == 2 and out == ""
    assert err.count("\n") == 1 and err.startswith("error: ") and "--k" in err and says in err


def test_the_command_shows_a_problem_of_each_difficulty(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tasks.py", "--seed", "3"])
    runpy.run_path(str(ROOT / "tasks.py"), run_name="__main__")
    shown = capsys.readouterr().out
    assert all(f"difficulty {d}\n" in shown for d in DIFFICULTY)
    assert [line.split()[2] for line in shown.splitlines() if line.startswith("    R = ")] == [
        "1", "1", "1", "0", "0"]
    assert shown.splitlines()[-1].startswith("5 of 5 worked solutions pass")


def test_a_real_model_is_asked_for_a_box():
    """"Answer: and the number." it repeats word by word. And it is shown a problem worked out."""
    p = Problem("1 + 1?", "2")
    *shown, asked = p.messages(True)
    assert asked == {"role": "user", "content": f"1 + 1? {p.real_instruction}"}
    assert [m["role"] for m in shown] == ["user", "assistant"]
    question, solution = shown[0]["content"], shown[1]["content"]
    assert question.endswith(p.real_instruction) and Problem(question, "16").is_right(solution)
    assert solution.splitlines()[:2] == ["5 + 13 = 18", "18 - 2 = 16"]
    assert Problem("1 + 1?", "2").messages() == [{"role": "user", "content": f"1 + 1? {p.instruction}"}]
    assert r"\boxed{}" in p.real_instruction and p.is_right(r"1 + 1 = 2, so \boxed{2}.")
