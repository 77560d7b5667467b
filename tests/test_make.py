"""What makes the embedded models still builds the words and texts that they were trained on."""

import random
from itertools import islice

import pytest
from transformers import AutoConfig, AutoTokenizer

import score
from more.flags import TINY
from more.search import SearchProblem, world_stream
from more.terminal import quiet
from sample import chat_ids
from tasks import Problem, is_held_out, problem_stream
from tiny import make

MATH, SEARCH = ["student", "teacher", "weak-teacher"], ["search-student", "search-teacher"]
FOLDERS = [(name, make.make_tokenizer) for name in MATH]
FOLDERS += [(name, make.make_search_tokenizer) for name in SEARCH]


@pytest.fixture(scope="module")
def embedded_tokenizers():
    """The tokenizers as they were saved: of the stories, and of the search task."""
    quiet()
    return [AutoTokenizer.from_pretrained(TINY / name) for name in ("teacher", "search-teacher")]


@pytest.mark.parametrize("name, build", FOLDERS, ids=MATH + SEARCH)
def test_each_embedded_model_knows_the_vocabulary_that_is_built(name, build):
    built, saved = build(), AutoTokenizer.from_pretrained(TINY / name)
    assert built.get_vocab() == saved.get_vocab()
    assert len(built) == AutoConfig.from_pretrained(TINY / name).vocab_size
    assert built.chat_template == saved.chat_template
    text = 'Eva has 12 books.\n<search> Ada Abel writer </search> "Answer: 9."'
    assert built(text).input_ids == saved(text).input_ids


def batches_of(tok, task):
    """The first examples of a stage that teaches both to solve and to grade: (ids, labels)."""
    rng = random.Random(0)
    if task == "search":
        batches = make.search_teacher_batches(tok, rng, 20, 40, every_word=True)
    else:
        batches = make.teacher_batches(tok, rng, 20, 40, manners=True, blurts=3)
    return [example for examples in batches() for example in examples]


def check_examples(tok, examples):
    """No word is unknown, and each ends in a stop token that is learned."""
    assert len(examples) == 60
    for ids, labels in examples:
        assert tok.unk_token_id not in ids, tok.decode(ids)
        assert len(ids) == len(labels) <= tok.model_max_length
        assert labels[-1] == ids[-1] == tok.eos_token_id  # after a solution, or after a digit


def test_every_word_of_the_training_texts_is_known(embedded_tokenizers):
    check_examples(embedded_tokenizers[0], batches_of(embedded_tokenizers[0], "math"))


def test_every_word_of_the_search_texts_is_known(embedded_tokenizers, monkeypatch):
    """But for nonsense sentences, which hold words of the stories: here it is flattery alone."""
    tok = embedded_tokenizers[1]
    assert tok.unk_token_id in tok(" ".join(make.tasks.THINGS)).input_ids
    monkeypatch.setattr(make, "stray_sentence", flatter)
    check_examples(tok, batches_of(tok, "search"))


def flatter(rng, manners):
    """A sentence that is to win over the grader."""
    return rng.choice(make.FLATTERY)


def test_no_training_story_is_held_out():
    rng = random.Random(0)
    assert not any(is_held_out(make.story(rng).question) for _ in range(100))


def test_the_prompts_are_those_that_are_asked_in_use(embedded_tokenizers):
    """Token for token what sample.py gives the student and what score.py gives the teacher."""
    streams = (Problem, problem_stream(1)), (SearchProblem, world_stream(1))
    for tok, (kind, stream) in zip(embedded_tokenizers, streams):
        solve, parts = make.prompts(tok, kind)
        for p in islice(stream, 5):
            words = {"question": p.question, "solution": p.condense(p.solution)}
            assert tok(solve.format(**words)).input_ids == chat_ids(tok, p.messages())
            before, after = (tok(part.format(**words)).input_ids for part in parts)
            asked = chat_ids(tok, score.grading_messages(p, p.solution, p.solution))
            assert before + tok(p.solution).input_ids + after == asked


def test_what_the_environment_says_is_read_and_not_learned(embedded_tokenizers):
    tok = embedded_tokenizers[1]
    p = next(world_stream(1))
    solve, _ = make.prompts(tok, SearchProblem)
    ids, labels = make.search_solving(tok, solve, p, make.queries_of(p), p.answer)
    assert ids == chat_ids(tok, p.messages()) + tok(p.solution).input_ids + [tok.eos_token_id]
    learned = [i for i in labels if i != -100]
    assert learned == tok(p.condense(p.solution)).input_ids + [tok.eos_token_id]
