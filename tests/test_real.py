"""Two real models, where they are at hand: SmolLM2-135M, taught by Qwen2.5-Coder-0.5B.

OVD_REAL_MODELS=FOLDER python -m pytest -m real     # with FOLDER/smollm2-135m, FOLDER/qwen2.5-coder-0.5b
"""

import os
from pathlib import Path

import pytest
import torch
from conftest import rows_of, samples_of

import train
from more import machine
from more.terminal import UserError, quiet
from sample import is_real, load_model, load_student, prompt_ids
from tasks import Problem

pytestmark = pytest.mark.real
FOLDER = Path(os.environ.get("OVD_REAL_MODELS", "/nowhere"))
STUDENT, TEACHER = FOLDER / "smollm2-135m", FOLDER / "qwen2.5-coder-0.5b"
SMALL = ["--steps", "2", "--problems", "1", "--samples", "4", "--max-new-tokens", "48", "--difficulty", "1",
         "--eval-problems", "4", "--micro-batch", "2", "--lr", "1e-4", "--student", str(STUDENT),
         "--teacher", str(TEACHER)]
needs_models = pytest.mark.skipif(not (STUDENT.is_dir() and TEACHER.is_dir()),
                                  reason="OVD_REAL_MODELS names no folder with both models")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run of two steps."""
    quiet()
    out = tmp_path_factory.mktemp("real") / "r"
    # in float32, where equal means equal; and by the outcome all four may tie at 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "has_bfloat16", lambda: False)
        train.run(train.parse([*SMALL, "--reward", "verbal", "--out", str(out)]))
    return out


@needs_models
def test_what_is_trained_is_what_was_sampled(run):
    rows = rows_of(run)
    assert len(rows) == 2 and all(abs(float(row["logprob_gap"])) < 1e-3 for row in rows)
    assert all(float(row["scored"]) == 1 and float(row["grad_norm"]) > 0 for row in rows)
    assert len(samples_of(run)) == 8


@needs_models
def test_its_adapter_opens_in_peft_with_the_same_logits(run, monkeypatch):
    monkeypatch.setattr(machine, "has_bfloat16", lambda: False)
    peft = pytest.importorskip("peft", reason="pip install -r tests/requirements.txt")
    model, tokenizer, base = load_student(run / "adapter", 4, "cpu")
    ids = torch.tensor([prompt_ids(tokenizer, Problem("Mia has 3 pens. Mia buys 4.", "7"))])
    assert base == str(STUDENT) and is_real(tokenizer)
    plain, _ = load_model(STUDENT, 4, "cpu")
    theirs = peft.PeftModel.from_pretrained(plain, run / "adapter")
    with torch.no_grad():
        logits = model(input_ids=ids).logits  # (1, T, V)
        assert torch.allclose(theirs(input_ids=ids).logits, logits, atol=1e-3)


@needs_models
def test_logits_of_another_vocabulary_are_refused_in_one_line(tmp_path):
    with pytest.raises(UserError, match="different vocabularies") as e:
        train.run(train.parse([*SMALL, "--method", "logits", "--out", str(tmp_path / "r")]))
    assert "\n" not in str(e.value)


# Ends of attempts as real models write them; what a person would say the answer is.
ATTEMPTS = [
    (r"Therefore, Eva has \boxed{26} stamps.", "26"),
    (r"\[ \boxed{26} \]", "26"),
    (r"\(12 + 17 = 29\)\n\(29 - 16 = 13\)\n\nThe final answer is \(\boxed{13}\).", "13"),
    (r"So, \boxed{26 \text{ stamps}}", "26"),
    (r"$$\boxed{1,026}$$", "1026"),
    (r"The answer is $\boxed{26}$", "26"),
    (r"First I said \boxed{25}. I was wrong: \boxed{26}", "26"),
    ("Answer: 26", "26"),
    ("**Answer: 26**", "26"),
    ("**Answer:** 26 stamps", "26"),
    ("### Answer:\n26", "26"),
    ("Answer: $26", "26"),
    ("Answer: 26.00", "26"),
    ("answer : 26", "26"),
    ("The answer is 26.", "26"),
    ("So the final answer is: **26**.", "26"),
    ("The correct answer is 26 stamps.", "26"),
    ("Answer: and the number.", None),
    ("Eva finds 17, so 9 + 17 =", None),
    ("I am sorry, I cannot help with that.", None),
]


@pytest.mark.parametrize("text, answer", ATTEMPTS)
def test_an_answer_is_found_as_a_person_would_find_it(text, answer):
    text = text.replace("\\n", "\n")
    assert Problem("?", answer or "26").is_right(text) == (answer is not None)
    assert not Problem("?", "27").is_right(text)
