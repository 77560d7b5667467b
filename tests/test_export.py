"""more.export: the merged folder is the base model with the adapter, and the refusals."""
import builtins
import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import more.export
from more.adapter import save_adapter
from more.export import export, merge, suit_older_readers
from more.flags import TINY
from more.terminal import UserError
from sample import add_lora, load_model, load_student, lora_layers

BASE = str(TINY / "student")
IDS = torch.randint(5, 300, (4, 40), generator=torch.Generator().manual_seed(0))


def make_run(folder, base=BASE):
    """A run's folder with a randomly filled adapter of the embedded student."""
    torch.manual_seed(0)
    model, _ = load_model(BASE, 16, "cpu")
    add_lora(model)
    for layer in lora_layers(model).values():
        layer.lora_B.data.normal_(0, 0.02)  # four times what 16 updates make of it
    save_adapter(model, folder / "adapter", base)
    return folder


def logits_of(model):
    """(4, 40, V) in float32."""
    with torch.no_grad():
        return model(input_ids=IDS).logits.float()


def base_and_adapter(run, dtype):
    """Logits of the base model with PEFT's adapter beside its weights, not merged."""
    peft = pytest.importorskip("peft")
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=dtype)
    plain = logits_of(model)
    logits = logits_of(peft.PeftModel.from_pretrained(model, run / "adapter").eval())
    assert (logits - plain).abs().max() > 1  # the adapter does something
    return logits


def test_merged_logits_are_those_of_base_and_adapter(tmp_path):
    run = make_run(tmp_path / "run")
    want = base_and_adapter(run, torch.float32)
    assert (logits_of(merge(run / "adapter", torch.float32)) - want).abs().max() < 1e-3


def test_folder_in_bfloat16_is_as_near_as_bfloat16_can_be(tmp_path):
    run, folder = make_run(tmp_path / "run"), tmp_path / "merged"
    exact, beside = (base_and_adapter(run, t) for t in (torch.float32, torch.bfloat16))
    export(run, folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    merged = logits_of(model)
    # on average a probability is off by less than 1e-3, and the logits by less than 1e-3 of their
    # size once the arithmetic is exact; base and adapter side by side are no nearer in bfloat16
    assert (merged.softmax(-1) - beside.softmax(-1)).abs().mean() < 1e-3
    rounded = logits_of(model.float())
    assert (rounded - exact).abs().mean() < 1e-3 * exact.abs().max()
    assert (rounded - exact).abs().mean() < (beside - exact).abs().mean()


def test_every_merged_weight_is_the_sum_to_bfloat16s_last_digit(tmp_path):
    run = make_run(tmp_path / "run")
    export(run, tmp_path / "merged")
    beside, _, base = load_student(run / "adapter", 16, "cpu")
    assert base == BASE
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").state_dict()
    layers = lora_layers(beside)
    assert len(layers) >= 7
    for name, layer in layers.items():
        change = layer.scale * layer.lora_B.double() @ layer.lora_A.double()
        exact = layer.base.weight.double() + change
        # the change is rounded to 8 bits, then the sum is
        allowed = 2**-8 * (exact.abs() + change.abs()) + 1e-30
        assert ((merged[f"{name}.weight"].double() - exact).abs() <= allowed).all()
    left = set(merged) - {f"{name}.weight" for name in layers}
    plain = AutoModelForCausalLM.from_pretrained(BASE).state_dict()
    assert left and all(torch.equal(merged[name].float(), plain[name].float()) for name in left)


def test_folder_is_whole(tmp_path):
    export(make_run(tmp_path / "run"), tmp_path / "merged")
    names = {path.name for path in (tmp_path / "merged").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json",
            "chat_template.jinja", "generation_config.json"} <= names
    assert "quantization_config" not in json.loads((tmp_path / "merged/config.json").read_text())
    chat = [{"role": "user", "content": "Mia has 3 apples."}]
    ours, theirs = (AutoTokenizer.from_pretrained(name).apply_chat_template(chat, tokenize=False)
                    for name in (tmp_path / "merged", BASE))
    assert ours == theirs
    student, _, base = load_student(tmp_path / "merged", 4, "cpu")  # to be trained further
    assert base == tmp_path / "merged" and lora_layers(student)


def test_refusals_are_one_line_and_write_nothing(tmp_path, monkeypatch):
    run, full = make_run(tmp_path / "run"), tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="full: is not empty; give a new folder"):
        export(run, full)
    with pytest.raises(UserError, match="mine.txt: is not empty"):
        export(run, full / "mine.txt")
    assert [path.name for path in full.iterdir()] == ["mine.txt"]
    with pytest.raises(UserError, match="no adapter to merge"):
        export(full, tmp_path / "new")
    with pytest.raises(UserError, match="base model of .*gone: no such folder"):
        export(make_run(tmp_path / "moved", "/gone/gone"), tmp_path / "new")
    broken = make_run(tmp_path / "broken")
    (broken / "adapter/adapter_model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(UserError, match="does not fit its base model"):
        export(broken, tmp_path / "new")
    found = builtins.__import__

    def without_peft(name, *args, **kwargs):
        if name == "peft":
            raise ImportError(name)
        return found(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_peft)
    with pytest.raises(UserError, match="pip install -r more/requirements.txt"):
        export(run, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_an_empty_folder_will_do_and_the_last_line_says_what_was_written(tmp_path, capsys,
                                                                          monkeypatch):
    run = make_run(tmp_path / "run")
    (tmp_path / "merged").mkdir()
    monkeypatch.setattr("sys.argv", ["export", str(run), str(tmp_path / "merged")])
    more.export.main()
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last.startswith(f"{tmp_path / 'merged'}: {BASE} with the adapter of {run} merged in, ")
    assert "0.7 M weights in bfloat16" in last


def test_the_folder_says_what_older_readers_look_for(tmp_path):
    """llama.cpp's script takes a rope_theta of 10,000 where config.json names none by itself."""
    run, folder = make_run(tmp_path / "run"), tmp_path / "merged"
    export(run, folder)
    config = json.loads((folder / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
    assert json.loads((folder / "tokenizer_config.json").read_text())["tokenizer_class"] != "TokenizersBackend"
    model = AutoModelForCausalLM.from_pretrained(folder)  # and the new reader is not led astray
    assert model.config.rope_parameters == AutoModelForCausalLM.from_pretrained(BASE).config.rope_parameters
    theirs, ours = (AutoTokenizer.from_pretrained(name) for name in (BASE, folder))
    text = "Mia has 12 books. Mia buys 7."
    assert theirs(text).input_ids == ours(text).input_ids and theirs.chat_template == ours.chat_template


def test_a_scaling_of_positions_is_named_as_older_readers_look_for_it(tmp_path):
    """As Llama 3.2 has one. Where it is the default there is none to name."""
    scaled = {"rope_theta": 5e5, "rope_type": "llama3", "factor": 32.0}
    for rope, wanted in ((scaled, {"rope_type": "llama3", "factor": 32.0}),
                         ({"rope_theta": 5e5, "rope_type": "default"}, None)):
        (tmp_path / "config.json").write_text(json.dumps({"rope_parameters": rope}))
        (tmp_path / "tokenizer_config.json").write_text("{}")
        suit_older_readers(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        assert config.get("rope_scaling") == wanted and config["rope_theta"] == 5e5
        assert config["rope_parameters"] == rope
