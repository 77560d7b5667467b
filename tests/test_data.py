"""Problems of one's own: how they are read, what bad ones say, and one answer in many spellings."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from more.data import TextProblem, find_answer, normalise, read_jsonl, read_problems, split_problems
from more.search import Search, SearchProblem
from more.terminal import UserError

ROOT = Path(__file__).parents[1]
ENGINE = Search([("1", "Ada Berg", "a writer")])
LIKE = '{"question": "...", "answer": "..."}'


# ------------------------------------------------------------------------------- spellings
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
        ("Answer: 1/2 km", "1/2"),
        ("Answer: Paris", "Paris"),
        ("It is 3.", None),
        ("", None),
    ],
)
def test_find_answer(text, answer):
    assert find_answer(text) == answer == TextProblem("?", "1").found_answer(text)


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
        ("[1,100]", "[1100]", False),
        ("(1,200)", "(1200)", False),
        ("1,200 (roughly)", "1200", True),
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
        ("11 Baker Street", "11 Downing Street", True),  # as units are: no rule tells names from them
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
    assert TextProblem("?", b).is_right(f"Answer: {a}") is same
    assert TextProblem("?", b).reward(f"Answer: {a}") == same


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
def test_answers_as_they_are_given(text, answer):
    assert TextProblem("?", answer).is_right(text)
    assert TextProblem("?", answer).is_well_formed(f"Some work. {text}")


def test_a_number_in_passing_is_no_answer():
    assert not TextProblem("?", "3").is_right("There are 3 of them.")


# ------------------------------------------------------------------------------- JSONL
def test_rows_come_with_their_line_numbers(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"question": "a", "answer": 1}\r\n \n'
                     b'{"question": "\\ud83d\\ude00\xc2\x85\xe2\x80\xa8", "answer": null, "more": {}}')
    assert list(read_jsonl(path, "--data", LIKE)) == [
        (1, {"question": "a", "answer": 1}),
        (3, {"question": "😀\x85\u2028", "answer": None, "more": {}}),
    ]


@pytest.mark.parametrize(
    "line, why",
    [
        (b'{"question": "a"}', "KeyError 'answer'"),
        (b"nonsense", "JSONDecodeError"),
        (b'"question answer"', "TypeError"),
        (b"[" * 100_000, "RecursionError"),
        (b'{"question": "\\ud83d", "answer": "1"}', "UnicodeEncodeError"),
        (b'{"question": "a", "answer": "1", "x": ["\\uDE00"]}', "UnicodeEncodeError"),
        (b'{"question": "\xed\xa0\xbd", "answer": "1"}', "UnicodeDecodeError"),
        ('{"question": "a", "answer": "1"}'.encode("utf-16"), "UnicodeDecodeError"),
        (b'{"question": "a", "answer": 1' + b"0" * 5000 + b"}", "ValueError"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, why):
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"question": "a", "answer": "1"}\n' + line)
    rows = read_jsonl(path, "--data", LIKE)
    assert next(rows)[0] == 1
    with pytest.raises(UserError, match=f"--data .*data.jsonl, line 2: {why}") as e:
        next(rows)
    assert "\n" not in str(e.value) and LIKE in str(e.value)


def test_what_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # to open it would wait for ever
    for path in (tmp_path / "pipe", "/dev/null", "/dev/stdin", tmp_path):
        with pytest.raises(UserError, match="--data .*: cannot be read, it is no ordinary file"):
            list(read_jsonl(path, "--data", LIKE))
    with pytest.raises(UserError, match="--eval-data is empty"):
        list(read_jsonl("", "--eval-data", LIKE))


@pytest.mark.parametrize("path", ["hf://nonsense", "hf://datasets/a/b", "hf://models/a/b/c.jsonl"])
def test_a_bad_address_on_the_hub_is_one_line(path):
    with pytest.raises(UserError, match=f"--data {path}: cannot be downloaded .*OWNER/NAME/FILE"):
        read_problems(path)


def test_a_file_from_the_hub(tmp_path, monkeypatch):
    path = tmp_path / "train.jsonl"
    path.write_text('{"question": "a", "answer": "1"}\n{"question": "b"}')
    asked = []

    def download(*name, repo_type):
        asked.append((*name, repo_type))
        return str(path)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with pytest.raises(UserError, match="--data hf://datasets/me/sums/a/train.jsonl, line 2"):
        read_problems("hf://datasets/me/sums/a/train.jsonl")
    assert asked == [("me/sums", "a/train.jsonl", "dataset")]


# ------------------------------------------------------------------------------- problems
def test_data_like_gsm8k_s_and_math_s(tmp_path):
    path = tmp_path / "data.jsonl"
    rows = [
        {"question": "Natalia?", "answer": "48/2 = <<48/2=24>>24 clips.\n#### 1,072"},
        {"problem": "Which?", "solution": r"Here $x = 1$. So $\boxed{\frac{14}{3}}$ it is."},
    ]
    path.write_text(json.dumps(rows[0]))
    [p] = read_problems(path)
    assert (p.answer, p.solution) == ("1,072", rows[0]["answer"])
    assert p.is_right("Answer: 1072 clips") and not p.is_right("Answer: 24")
    path.write_text(json.dumps(rows[1]))
    [p] = read_problems(path, "problem", "solution")
    assert (p.question, p.answer) == ("Which?", r"\frac{14}{3}") and p.is_right("Answer: 14/3")
    with pytest.raises(
        UserError, match="--eval-data .*line 1: KeyError 'question'.*question-field"
    ):
        read_problems(path, flag="--eval-data")


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
        ('{"question": "a", "answer": "\\\\boxed{}"}', "line 1: no attempt could"),
        ('{"question": "a", "answer": [1, 2]}', "line 1: no attempt could ever match the answer '[1, 2]'"),
        ('{"question": "a", "answer": []}', "line 1: no attempt could"),
        ('{"question": "a", "answer": ["1", null]}', "line 1: no attempt could"),
        ('{"question": "a", "answer": {"value": 1}}', "line 1: no attempt could"),
        ('{"question": "a", "answer": true}', "line 1: no attempt could"),
        ('{"question": null, "answer": "1"}', "line 1: the question is 'None'; give it as text"),
        ('{"question": 7, "answer": "1"}', "line 1: the question is '7'"),
        ('{"question": {"text": "a"}, "answer": "1"}', "line 1: the question is \"{'text': 'a'}\""),
        ('{"question": " ", "answer": "1"}', "line 1: the question is ' '"),
    ],
)
def test_bad_data_names_the_line(tmp_path, content, says):
    path = tmp_path / "data.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match="data.jsonl") as e:
        read_problems(path)
    assert says in str(e.value) and "\n" not in str(e.value)


def test_one_field_cannot_be_both(tmp_path):
    (tmp_path / "data.jsonl").write_text('{"text": "a"}')
    with pytest.raises(UserError, match="--question-field and --answer-field are both 'text'"):
        read_problems(tmp_path / "data.jsonl", "text", "text")


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
        '{"question": "c", "answer": ["4"]}\n{"question": "c", "answer": 4.5}\n'
    )
    assert read_problems(path) == [TextProblem("1 + 1?", "2"), TextProblem("b", "3"),
                                   TextProblem("c", "4.5")]


def test_questions_of_ones_own(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text('{"question": "Who?", "golden_answers": ["Ada Berg", "", "A. Berg"]}\n')
    (p,) = read_problems(path, answer="golden_answers", search=ENGINE)
    assert p == SearchProblem("Who?", "Ada Berg", None, ENGINE, ("A. Berg",))
    assert p.is_right("<answer> the a berg! </answer>") and not p.is_right("")
    for answer in ("[]", '"the"', '["", "a"]', "null", '"<b>"'):
        path.write_text('{"question": "Who?", "answer": %s}\n' % answer)
        with pytest.raises(UserError, match="line 1: no attempt could ever match"):
            read_problems(path, search=ENGINE)


# ------------------------------------------------------------------------------- train.py's
def flags(**given):
    return SimpleNamespace(**dict(dict(
        task="math", seed=0, difficulty=1, turns=4, corpus=None, data=None, eval_data=None,
        question_field="question", answer_field="answer"), **given))


def write(path, numbers):
    path.write_text("".join(f'{{"question": "{n}?", "answer": "{n}"}}\n' for n in numbers))
    return str(path)


def test_a_fifth_is_held_out_whatever_the_seed(tmp_path):
    data = write(tmp_path / "data.jsonl", range(50))
    tests = []
    for seed in range(3):
        stream, test = split_problems(flags(data=data, seed=seed))
        tests.append(test)
        drawn = {next(stream).question for _ in range(500)}
        assert len(test) == 10 and len(drawn) == 40 and not drawn & {p.question for p in test}
    assert tests[0] == tests[1] == tests[2]


def test_what_is_tested_on_is_not_trained_on(tmp_path):
    data, held = write(tmp_path / "data.jsonl", range(9)), write(tmp_path / "held.jsonl", (3, 8, 99))
    stream, test = split_problems(flags(data=data, eval_data=held))
    assert [p.answer for p in test] == ["3", "8", "99"]
    assert {next(stream).answer for _ in range(300)} == set("0124567")
    stream, test = split_problems(flags(eval_data=held))  # trained on what is written here
    assert len(test) == 3 and "How many" in next(stream).question
    with pytest.raises(UserError, match="all its problems are in --eval-data too"):
        split_problems(flags(data=held, eval_data=held))
    with pytest.raises(UserError, match="one problem is too few"):
        split_problems(flags(data=write(tmp_path / "one.jsonl", [1])))


def test_the_command_shows_problems_and_the_check(tmp_path):
    path = write(tmp_path / "data.jsonl", range(7))
    command = [sys.executable, "-m", "more.data", path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.count("problem ") == 5 and "    R = 1  answers    0.0  Answer: 0.0" in done.stdout
    assert done.stdout.splitlines()[-1] == (
        "7 of 7 reference answers pass the check of their own problem.")
    done = subprocess.run([*command, "--answer-field", "no"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: FILE ") and (
        "line 1: KeyError 'no'" in done.stderr) and done.stderr.count("\n") == 1


def test_where_no_answer_is_known_nothing_is_right():
    """As with --reward verbal, where a server's teacher asks for the reward of its own text."""
    assert not TextProblem("How many?", None).is_right(r"\boxed{7}")
    assert TextProblem("How many?", "7").is_right(r"\boxed{7}")
    assert TextProblem("How many?", None).reward("no answer") == 0


@pytest.mark.parametrize("answer", [
    "10 am", "4 July 1776", "5 million", r"5 \text{ million}", "2 pi", "3 sqrt(2)"])
def test_words_that_are_more_than_a_unit_are_refused(tmp_path, answer):
    """The number alone would be compared: 10 am and 10 pm would be one answer."""
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps({"question": "When?", "answer": answer}) + "\n")
    with pytest.raises(UserError, match="line 1: no attempt could ever match.*bare answer alone"):
        read_problems(path, "question", "answer", "--data", None)
    path.write_text(json.dumps({"question": "How far?", "answer": "42 km, there and back"}) + "\n")
    assert len(read_problems(path, "question", "answer", "--data", None)) == 1
