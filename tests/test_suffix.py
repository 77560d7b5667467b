"""Version 2 of the replacement: which prefix is kept, and what is put behind it, token by token."""

import runpy
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest

import train
from more.suffix import good_prefixes, replace_suffixes, splice
from sample import Trajectory, chat_ids
from score import Teacher
from tasks import Problem, problem_stream

ROOT = Path(__file__).parent.parent


def attempt(problem, tokenizer, text, **more):
    """What a student may have sampled, each token at log pi = -0.1."""
    ids = tokenizer.encode(text) + [tokenizer.eos_token_id]
    n = len(ids)
    usual = dict(prompt_ids=[1], ids=ids, logprobs=[-0.1] * n, authors=["student"] * n, mask=[1] * n)
    text = tokenizer.decode(ids, skip_special_tokens=True)
    return Trajectory(problem, **usual, stopped=True, text=text, score=0.2, **more)


@pytest.fixture(scope="module")
def slip(student):
    """(a rejected attempt whose first step is right and whose second is not, its first step)."""
    p = next(p for p in problem_stream(3, held_out=True) if p.solution.count("=") == 3)
    first, second, third, _ = p.solution.split(". ")
    wrong = f"{second.rsplit(' ', 1)[0]} {(int(second.rsplit(' ', 1)[1]) + 3) % 200}"
    return attempt(p, student[1], f"{first}. {wrong}. Answer: 7"), f"{first}."


def settings(**changed):
    return Namespace(**dict(dict(theta=5, replace="suffix", suffix="trained", literal=False), **changed))


def test_a_suffix_keeps_the_good_steps_token_by_token(student, teacher, slip):
    """v2: up to the last good step the student's own tokens, from there the teacher's."""
    (own, first), judge, tokenizer = slip, Teacher(*teacher), student[1]
    p, ids = own.problem, own.ids
    solutions = judge.solve([p])
    for suffix, mask in (("trained", 1), ("read", 0)):
        args = settings(suffix=suffix)
        (new,), read = train.replace_rejected([own], solutions, judge, tokenizer, args)
        kept = len(tokenizer.encode(first))
        assert new.text == p.solution and new.reward == 1 and read > 0
        assert new.ids[:kept] == ids[:kept] and new.logprobs[:kept] == [-0.1] * kept
        assert tokenizer.decode(new.ids, skip_special_tokens=True) == p.solution
        assert new.mask == [1] * kept + [mask] * (len(new.ids) - kept)
        assert new.authors == ["student"] * kept + ["teacher"] * (len(new.ids) - kept)
        assert set(new.logprobs[kept:]) == {0.0} and new.ids[-1] == tokenizer.eos_token_id
        assert own.ids == ids and own.text != new.text  # the attempt itself stays as it was
    args = settings(replace="none")
    assert train.replace_rejected([own], solutions, judge, tokenizer, args) == ([None], 0)


def test_with_the_verbal_reward_a_mended_text_earns_its_own_score(student, teacher, slip):
    """Nobody knows the answer, so R is the teacher's word: it replaces what it scores above."""
    (own, first), judge, tokenizer = slip, Teacher(*teacher), student[1]
    own = replace(own, problem=replace(own.problem, answer=None, solution=None), reward=0.2 / 9)
    solutions = judge.solve([own.problem])
    (new,), read = train.replace_rejected([own], solutions, judge, tokenizer, settings())
    assert new.text.startswith(first) and "student" in new.authors
    _, prefixes_alone = good_prefixes(judge, [own], solutions, 5)
    again = replace(new, score=None)
    assert read == prefixes_alone + judge.score([again], solutions)
    assert new.reward == again.score / 9 > 0.5


def test_the_longest_prefix_that_is_accepted_is_kept(slip, student):
    """By hand: a teacher that scores 9 what ends in an even number, and nothing else."""

    class Even:
        def score(self, trajectories, solutions):
            for t, solution in zip(trajectories, solutions):
                assert t.problem is solution.problem
                last = t.text.rstrip(".").split()[-1]
                t.score = 9.0 if last in ("2", "4") else None if last == "7" else 0.0
            return 10 * len(trajectories)

    p, q = Problem("p?", "1"), Problem("q?", "1")
    texts = [(p, "It is 2. It is 3. It is 4. It is 5. Answer: 1"), (p, "It is 3. Answer: 2"),
             (q, "It is 2. It is 7. Answer: 4"), (q, "Answer: 4"), (q, "")]
    rejected = [Trajectory(problem, text=text, score=1.0) for problem, text in texts]
    solutions = [Trajectory(problem) for problem, _ in texts]
    assert good_prefixes(Even(), rejected, solutions, 5) == (
        ["It is 2. It is 3. It is 4.", "", "It is 2.", "", ""], 70)
    assert [t.score for t in rejected] == [1.0] * 5  # copies were scored
    assert good_prefixes(Even(), rejected[3:], solutions[3:], 5) == (["", ""], 0)


def test_the_teacher_goes_on_from_each_prefix_once(student, teacher, slip):
    """Without a good step its whole solution takes the place; both have the student's prompt."""
    (own, _), judge, tokenizer = slip, Teacher(*teacher), student[1]
    blurted = attempt(own.problem, tokenizer, "Answer: 7")
    solutions = judge.solve([own.problem] * 3)
    (new, again, whole), _ = replace_suffixes([own, own, blurted], solutions, judge, tokenizer, 5)
    assert new == again and len(judge.written) == 2  # from the start, and from the first step
    assert whole.text == solutions[2].text and set(whole.authors) == {"teacher"}
    v1 = train.teacher_trajectory(solutions[2], tokenizer)
    assert (whole.ids, whole.mask, whole.logprobs) == (v1.ids, v1.mask, v1.logprobs)
    assert whole.prompt_ids == [1] and v1.prompt_ids == chat_ids(tokenizer, own.problem.messages())


class Characters:
    """A tokenizer of one character a token, but "@" says ".\\n\\n", as one token of Qwen's does."""

    eos_token_id, all_special_tokens, get_added_vocab = 0, (), dict

    def decode(self, ids, skip_special_tokens=False):
        return "".join(map(chr, ids)).replace("@", ".\n\n")

    def encode(self, text, add_special_tokens=True):
        return [ord(c) for c in text]


def test_a_token_that_reaches_over_the_cut_is_written_anew():
    """What is kept ends within it."""
    tok, problem = Characters(), next(problem_stream(0))
    ids = [ord(c) for c in "1+1=2@2+1=4"]
    t = Trajectory(problem, [1], ids, [-0.1] * 11, ["student"] * 11, [1] * 11, True,
                   "1+1=2.\n\n2+1=4", 0.0)
    end = replace(t, text="1+1=2.\n\n2+1=3", stopped=False, reward=1.0)
    for kept, own in (("1+1=2.", 5), ("1+1=2.\n\n", 6), ("1+1=2.\n\n2+1=", 10), ("", 0)):
        new = splice(t, kept, end, tok)
        assert tok.decode(new.ids) == end.text and new.logprobs[:own] == [-0.1] * own
        assert new.authors == ["student"] * own + ["teacher"] * (len(new.ids) - own)
        assert set(new.logprobs[own:]) == {0.0} and len(new.logprobs) == len(new.ids)
        assert not new.stopped and new.ids[-1] != tok.eos_token_id  # cut off: no end to be learned


def test_the_command_shows_attempts_that_are_cut_and_mended(monkeypatch, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(sys, "argv", ["suffix", "--problems", "4", "--samples", "4"])
    runpy.run_path(str(ROOT / "more/suffix.py"), run_name="__main__")
    shown = capsys.readouterr().out
    assert shown.count("\n  becomes  ") == shown.count("\n  kept     ") >= 1
    last = shown.splitlines()[-1]
    assert last.startswith("Of ") and "keep a good prefix" in last


class Marked(Characters):
    """The same with a control token that is no stop, "|", which no text shows."""

    def decode(self, ids, skip_special_tokens=False):
        text = super().decode(ids)
        return text.replace("|", "") if skip_special_tokens else text


def test_a_control_token_in_an_attempt_moves_no_cut():
    """The text that is rewarded is the text that is trained on, but for that token."""
    ids = [ord(c) for c in "|1+1=2@2+1=4"]
    t = Trajectory(next(problem_stream(0)), [1], ids, [-0.1] * 12, ["student"] * 12, [1] * 12, True,
                   "1+1=2.\n\n2+1=4", 0.0)
    end = replace(t, text="1+1=2.\n\n2+1=3", stopped=False)
    new = splice(t, "1+1=2.\n\n", end, Marked())
    assert Marked().decode(new.ids, skip_special_tokens=True) == end.text
    assert new.authors == ["student"] * 7 + ["teacher"] * 5
