"""One question of one's own, before training and after it."""

import io
import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

from more.adapter import save_adapter
from more.ask import kind_of_problem
from more.data import TextProblem
from more.flags import TINY
from sample import add_lora, load_model, load_student, lora_layers
from tasks import Problem

ROOT = Path(__file__).parent.parent
QUESTION = "Mia has 12 apples. Mia wins 5. How many apples does Mia have now?"


def ask(monkeypatch, *args):
    monkeypatch.setattr(sys, "argv", ["sample.py", *map(str, args)])
    runpy.run_path(str(ROOT / "sample.py"), run_name="__main__")


def test_a_question_is_answered_and_every_sample_has_its_probability(monkeypatch, capsys):
    ask(monkeypatch, "--ask", QUESTION, "--max-new-tokens", 24)
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("  p = ") for line in lines) == 4
    assert "Answer:" in lines[2]  # the streamed one
    assert lines[-1] == "1 question, 5 answers each."


def test_before_and_after_are_the_adapter_off_and_on(tmp_path, monkeypatch, capsys):
    model, _ = load_model(TINY / "student", 4, "cpu")
    add_lora(model)
    torch.manual_seed(1)
    for layer in lora_layers(model).values():
        layer.lora_B.data.normal_()  # an adapter that makes it say something else
    save_adapter(model, tmp_path / "adapter", str(TINY / "student"))
    ask(monkeypatch, "--ask", QUESTION, "--temperature", 0, "--max-new-tokens", 8,
        "--student", tmp_path / "adapter")
    before, after = capsys.readouterr().out.split("now: ")
    assert "Answer:" in before and "before training" in before
    assert before.splitlines()[2] != after.splitlines()[1]
    assert "before training and after it" in after


def test_lines_of_the_input_are_questions_and_unknown_words_are_named(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{QUESTION}\n\nMia has 3 unicorns.\n"))
    ask(monkeypatch, "--ask", "--max-new-tokens", 8)
    out = capsys.readouterr().out
    assert "does not know: unicorns." in out and out.splitlines()[-1].startswith("2 questions")


def test_a_search_question_is_refused_in_one_line(monkeypatch, capsys):
    with pytest.raises(SystemExit) as e:
        ask(monkeypatch, "--ask", "Where?", "--task", "search")
    assert e.value.code == 2 and "--ask is for --task math" in capsys.readouterr().err


def test_the_streamed_answer_is_from_the_same_softmax_as_the_others(monkeypatch, capsys):
    """A model may bring a penalty for repeating itself, as Qwen2.5's does."""
    model, tokenizer, base = load_student(TINY / "student", 4, "cpu")
    model.generation_config.repetition_penalty = 8.0
    monkeypatch.setattr("more.ask.load_student", lambda *_: (model, tokenizer, base))
    ask(monkeypatch, "--ask", QUESTION, "--temperature", 0, "--max-new-tokens", 24)
    _, _, streamed, *others, _, _ = capsys.readouterr().out.splitlines()
    assert {line.partition("  ")[2].partition("  ")[2] for line in others} == {streamed}


def test_a_temperature_that_nothing_can_be_divided_by_is_refused(monkeypatch, capsys):
    with pytest.raises(SystemExit) as e:
        ask(monkeypatch, "--ask", QUESTION, "--temperature", "1e-40")
    assert e.value.code == 2 and "--temperature" in capsys.readouterr().err


def test_a_student_of_data_is_asked_as_it_was_trained(tmp_path):
    """With --data there is no example of a story before the question."""
    assert kind_of_problem(str(TINY / "student")) is Problem
    for data, kind in (("my.jsonl", TextProblem), (None, Problem)):
        (tmp_path / "run.json").write_text(json.dumps({"data": data}))
        assert kind_of_problem(str(tmp_path / "adapter")) is kind
