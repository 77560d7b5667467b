"""Problems, the answer check, and what bad data says."""

import json
import random
from itertools import combinations, islice

import pytest

from tasks import (
    DIFFICULTY,
    Problem,
    UserError,
    extract_answer,
    is_correct,
    is_held_out,
    is_well_formed,
    make_problem,
    normalise,
    pass_at_k,
    problem_stream,
    read_problems,
    step_ends,
)


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
        assert is_correct(p.solution, p) and p.answer == str(total)
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
        ("", None),
    ],
)
def test_extract_answer(text, answer):
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    "a, b, same",
    [
        ("1,200", "1200.0", True),
        ("0.5", "1/2", True),
        ("$7", "7", True),
        ("7.", "7", True),
        ("Paris", "paris", True),
        ("-3", "3", False),
        ("12", "1200", False),
        ("1/0", "0", False),
        ("7", "seven", False),
        ("1e999999999", "1", False),
    ],
)  # which as a number would take all the memory there is
def test_normalise(a, b, same):
    assert (normalise(a) == normalise(b)) is same


@pytest.mark.parametrize(
    "a, b, same",
    [
        # fractions and decimals
        (r"\frac{1}{2}", "0.5", True),
        (r"\dfrac12", "1/2", True),
        (r"-\tfrac{3}{4}", "-0.75", True),
        (r"1\frac{1}{2}", "1.5", True),
        (r"1\frac{1}{2}", "11/2", False),
        ("-1 1/2", "-3/2", True),
        (".5", "0.50", True),
        (r"\frac{x+1}{2}", r"\dfrac{x + 1}{2}", True),
        (r"\frac{x+1}{2}", "x+1/2", False),
        ("1/0", "1/0", True),
        # commas
        ("1,234,567", "1234567", True),
        ("1,2", "12", False),
        ("1, 2", "1,2", True),
        ("1, -2", "1", False),
        # percent and money: the sign is dropped, as in MATH's own check
        (r"12.5\%", "12.5", True),
        ("50%", "50", True),
        (r"\$18.90", "18.9", True),
        # units
        ("42 km/h", "42", True),
        (r"5.4 \text{ cents}", "5.4", True),
        (r"90^\circ", "90", True),
        ("90°", r"90^{\circ}", True),
        ("3x", "3", False),
        ("3 or 4", "3", False),
        ("20 or maybe 21", "20", False),
        ("12 to 15", "12", False),
        ("18 apples and no more", "18", True),
        # what is no number
        (r"\left(3, \frac{\pi}{2}\right)", r"(3,\frac{\pi}{2})", True),
        ("(1, 2)", "[1, 2]", False),
        (r"11\sqrt2", r"11\sqrt{2}", True),
        (r"\text{Evelyn}", "evelyn", True),
        ("x = 7", "7", True),
        ("p - q", "p-q", True),
        ("\u22125", "-5", True),
    ],
)
def test_ways_to_write_one_answer(a, b, same):
    assert (normalise(a) == normalise(b)) is same
    assert is_correct(f"Answer: {a}", Problem("?", b)) is same


@pytest.mark.parametrize(
    "text, answer",
    [
        (r"so it is $\boxed{\frac{1}{2}}$.", "0.5"),
        (r"\boxed{\text{(A)}}", "(A)"),
        (r"\boxed{\left(3, \frac{\pi}{2}\right)}, done", r"(3,\frac{\pi}{2})"),
        ("Answer: 42, because 40 + 2 = 42.", "42"),
        ("Answer: 42 (in all)", "42"),
        ("Answer: 2x + 1", "2x+1"),
        ("Answer: = 7", "7"),
    ],
)
def test_answers_as_they_are_said(text, answer):
    assert is_correct(text, Problem("?", answer))


def test_data_like_gsm8k_s_and_math_s(tmp_path):
    path = tmp_path / "data.jsonl"
    rows = [
        {"question": "Natalia?", "answer": "48/2 = <<48/2=24>>24 clips.\n#### 1,072"},
        {"problem": "Which?", "solution": r"Here $x = 1$. So $\boxed{\frac{14}{3}}$ it is."},
    ]
    path.write_text(json.dumps(rows[0]))
    [p] = read_problems(path)
    assert (p.answer, p.solution) == ("1,072", rows[0]["answer"])
    assert is_correct("Answer: 1072 clips", p) and not is_correct("Answer: 24", p)
    path.write_text(json.dumps(rows[1]))
    [p] = read_problems(path, "problem", "solution")
    assert (p.question, p.answer) == ("Which?", r"\frac{14}{3}") and is_correct("Answer: 14/3", p)
    with pytest.raises(
        UserError, match="--eval-data .*line 1: KeyError 'question'.*question-field"
    ):
        read_problems(path, flag="--eval-data")


def test_a_number_in_passing_is_no_answer():
    assert not is_correct("There are 3 of them.", Problem("?", "3"))


@pytest.mark.parametrize(
    "content, says",
    [
        ("", "no problem in it"),
        ("\n\n", "no problem in it"),
        ('{"question": "a", "answer": "1"}\n{"question": ', "line 2"),
        ('{"question": "a"}', "line 1: KeyError 'answer'"),
        ("[1, 2]", "line 1"),
        ("7", "line 1"),
        ('{"question": "a", "answer": null}', "line 1: no attempt could"),
        ('{"question": "a", "answer": ""}', "line 1: no"),
        ('{"question": "a", "answer": "7\\n8"}', "line 1: no attempt could"),
    ],
)
def test_bad_data_names_the_line(tmp_path, content, says):
    path = tmp_path / "data.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match="data.jsonl") as e:
        read_problems(path)
    assert says in str(e.value) and "\n" not in str(e.value)


def test_missing_or_binary_data_is_one_line(tmp_path):
    with pytest.raises(UserError, match="FileNotFoundError"):
        read_problems(tmp_path / "none.jsonl")
    (tmp_path / "b.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="UnicodeDecodeError"):
        read_problems(tmp_path / "b.jsonl")


def test_blank_lines_and_numbers_are_fine(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text(
        '{"question": " 1 + 1? ", "answer": 2}\n\n{"question": "b", "answer": "3", "more": 1}\n'
    )
    assert read_problems(path) == [Problem("1 + 1?", "2"), Problem("b", "3")]


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
    ends = step_ends(text)
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
    assert is_well_formed(text, Problem("?", "1")) is form


def test_pass_at_k_by_hand_and_by_enumeration():
    assert pass_at_k(4, 1, 2) == pytest.approx(1 / 2)  # 3 of the 6 pairs hold the right one
    assert pass_at_k(16, 0, 8) == 0 and pass_at_k(8, 1, 8) == 1
    for right in range(7):
        groups = list(combinations([1] * right + [0] * (6 - right), 3))
        assert pass_at_k(6, right, 3) == pytest.approx(sum(map(max, groups)) / len(groups))
