"""Adapters in PEFT's format: written, read again by PEFT and by us, and refused where they are odd."""

import json
import runpy
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from more import adapter
from more.adapter import base_name, load_adapter, save_adapter
from more.flags import TINY
from more.terminal import UserError, quiet
from sample import add_lora, chat_ids, load_model, load_student, lora_layers
from tasks import Problem

ROOT = Path(__file__).parent.parent
WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"


def randomise(model, seed=0):
    """Adapters that do something, as after training."""
    torch.manual_seed(seed)
    for layer in lora_layers(model).values():
        torch.nn.init.normal_(layer.lora_B, std=0.05)


def logits_of(model, tokenizer):
    ids = torch.tensor([chat_ids(tokenizer, Problem("Mia has 3 pens.", "3").messages())])
    with torch.no_grad():
        return model(input_ids=ids).logits


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(folder of an adapter that does something, logits of the model that it was saved from)."""
    folder = tmp_path_factory.mktemp("trained")
    quiet()
    model, tokenizer = load_student(TINY / "student", 4, "cpu")[:2]
    randomise(model)
    save_adapter(model, folder, TINY / "student")
    return folder, logits_of(model, tokenizer)


@pytest.fixture
def copied(trained, tmp_path):
    """A copy of that folder, to be spoilt."""
    return shutil.copytree(trained[0], tmp_path / "adapter")


def test_adapter_round_trips_through_peft(trained):
    peft = pytest.importorskip("peft", reason="pip install -r tests/requirements.txt")
    folder, expected = trained
    again, tokenizer, base = load_student(folder, 4, "cpu")  # through our own loader
    assert base == str(TINY / "student")
    assert torch.equal(logits_of(again, tokenizer), expected)
    assert all(p.requires_grad == ("lora_" in name) for name, p in again.named_parameters())
    plain, _ = load_model(TINY / "student", 4, "cpu")
    theirs = peft.PeftModel.from_pretrained(plain, folder)
    assert torch.allclose(logits_of(theirs, tokenizer), expected, atol=1e-4)


def test_another_rank_and_scale_round_trip(fresh_student, tmp_path):
    """Whatever an adapter was trained with is read from its own settings."""
    model, tokenizer = load_model(TINY / "student", 4, "cpu")
    add_lora(model, r=3, alpha=12)
    randomise(model)
    save_adapter(model, tmp_path, TINY / "student")
    again = load_student(tmp_path, 4, "cpu")[0]
    assert {(layer.scale, len(layer.lora_A)) for layer in lora_layers(again).values()} == {(4.0, 3)}
    assert torch.equal(logits_of(again, tokenizer), logits_of(model, tokenizer))


def test_adapter_of_another_model_is_refused(trained):
    other, _ = load_model(TINY / "teacher", 4, "cpu")
    with pytest.raises(UserError, match="not an adapter for this model"):
        load_adapter(other, trained[0])


def change_settings(folder, **changed):
    settings = json.loads((folder / SETTINGS).read_text())
    (folder / SETTINGS).write_text(json.dumps(settings | changed))


def change_tensors(change):
    def change_file(folder):
        tensors = load_file(folder / WEIGHTS)
        change(tensors, min(name for name in tensors if "lora_B" in name))
        save_file(tensors, folder / WEIGHTS)

    return change_file


def one_bad_number(value):
    def spoil(tensors, name):
        tensors[name][0, 0] = value

    return change_tensors(spoil)


def narrow(tensors, name):
    """One column in place of eight, which copy_ would repeat eight times without a word."""
    tensors[name] = tensors[name][:, :1].clone()


def last_layer_is_gone(tensors, _):
    for name in [name for name in tensors if ".layers.2." in name]:
        tensors.pop(name)


ODD = {
    "NaN": (one_bad_number(torch.nan), "not finite"),
    "infinity": (one_bad_number(-torch.inf), "not finite"),
    "a shape that would broadcast": (change_tensors(narrow), "its shape is .*, not "),
    "a scalar": (change_tensors(lambda t, name: t.update({name: torch.tensor(1.0)})), "its shape"),
    "another rank than it says": (lambda f: change_settings(f, r=4), "its shape is .*8"),
    "fewer layers": (change_tensors(last_layer_is_gone), r"KeyError.*layers\.2\."),
    "more layers": (change_tensors(lambda t, name: t.update({"x.lora_A": t[name].clone()})),
                    "x.lora_A has no place"),
    "rsLoRA": (lambda f: change_settings(f, use_rslora=True), "only plain LoRA"),
    "DoRA": (lambda f: change_settings(f, use_dora=True), "only plain LoRA"),
    "ranks of their own": (lambda f: change_settings(f, rank_pattern={"q_proj": 4}), "only plain"),
    "scales of their own": (lambda f: change_settings(f, alpha_pattern={"q_proj": 4}), "only plain"),
    "no rank": (lambda f: change_settings(f, r=None), "TypeError"),
    "rank 0": (lambda f: change_settings(f, r=0), "ZeroDivisionError|its shape"),
    "a list": (lambda f: (f / SETTINGS).write_text("[]"), "cannot be read"),
    "no settings": (lambda f: (f / SETTINGS).write_text("{"), "adapter_config.json: cannot be read"),
    "deep settings": (lambda f: (f / SETTINGS).write_text("[" * 100_000), "RecursionError"),
    "no base": (lambda f: (f / SETTINGS).write_text("{}"), "cannot be read"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "not an adapter"),
    "half of the weights": (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:9999]),
                            "not an adapter"),
}


@pytest.mark.parametrize("odd", ODD)
def test_what_is_no_adapter_for_the_model_is_one_line(copied, odd):
    change, says = ODD[odd]
    change(copied)
    with pytest.raises(UserError, match=f"(?s)--student .*({says})") as e:
        load_student(copied, 4, "cpu")
    assert "\n" not in str(e.value) and "give the adapter/ folder of a run" in str(e.value)


def test_the_base_may_be_missing(copied):
    change_settings(copied, base_model_name_or_path="./nowhere")
    assert base_name(copied) == "./nowhere"
    with pytest.raises(UserError, match="--student ./nowhere: no such folder"):
        load_student(copied, 4, "cpu")


def test_the_command_says_what_is_in_an_adapter(trained, copied, monkeypatch, capsys):
    def adapter(folder):
        monkeypatch.setattr(sys, "argv", ["adapter", str(folder)])
        runpy.run_path(str(ROOT / "more/adapter.py"), run_name="__main__")

    adapter(trained[0])
    *lines, last = capsys.readouterr().out.splitlines()
    tensors = load_file(trained[0] / WEIGHTS)
    assert len(lines) == len(tensors) + 1 and f"an adapter for {TINY / 'student'}: " in last
    assert f"{sum(t.numel() for t in tensors.values()):,} weights; 21 of its 21 B" in last
    (copied / WEIGHTS).unlink()
    with pytest.raises(SystemExit) as e:
        adapter(copied)
    assert e.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_what_was_there_stays_where_an_adapter_cannot_be_written(copied, fresh_student, monkeypatch):
    """As on a full disk."""
    before = {path.name: path.read_bytes() for path in copied.iterdir()}

    def full(*_):
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(adapter, "save_file", full)
    with pytest.raises(UserError, match="free some disk"):
        save_adapter(fresh_student[0], copied, TINY / "student")
    assert {path.name: path.read_bytes() for path in copied.iterdir()} == before
    assert not copied.with_name("adapter.part").exists()
