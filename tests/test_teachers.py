"""Any teacher: with another tokenizer, or the student itself. Behind a server: test_server.py."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path

import pytest
import torch
from conftest import rows_of, samples_of
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

import score
from sample import Trajectory, lora_layers, sample_trajectories
from score import Teacher, digit_ids, score_probs
from tasks import problem_stream

ROOT = Path(__file__).parent.parent
QUICK = ["--steps", "2", "--problems", "2", "--eval-problems", "2"]


# ------------------------------------------------------------------------------- another tokenizer
CORPUS = [p.question + " " + p.solution for p in islice(problem_stream(0), 200)]
CORPUS += [" ".join("0123456789"), "0123456789 "] * 500 + ["Score:7", "Score: 7"] * 100
TEMPLATE = "{% for m in messages %}<|user|>{{ m.content }}{% endfor %}<|assistant|>"


def layout(name):
    """A tokenizer with one of the layouts that real models have, trained here."""
    tok = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=name == "byte fallback"))
    special, alphabet = ["<unk>", "<eos>", "<|user|>", "<|assistant|>"], []
    if name.startswith("byte-level"):  # GPT-2; Qwen, which splits digits off; or a space put first
        tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space="prefix" in name)
        tok.decoder, alphabet = decoders.ByteLevel(), pre_tokenizers.ByteLevel.alphabet()
        if "single" in name:
            split = pre_tokenizers.Split(Regex(r"\p{N}| ?[^\s\p{N}]+|\s+"), "isolated")
            byte = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
            tok.pre_tokenizer = pre_tokenizers.Sequence([split, byte])
    elif name.startswith("SentencePiece"):  # Metaspace; Llama 2 splits digits from the "▁" before
        space = pre_tokenizers.Metaspace(prepend_scheme="always")
        digits = pre_tokenizers.Digits(individual_digits=True)
        single = pre_tokenizers.Sequence([space, digits])
        tok.pre_tokenizer, tok.decoder = single if "single" in name else space, decoders.Metaspace()
    elif name == "byte fallback":  # no digit in the vocabulary, only the bytes it is made of
        tok.decoder, special = (
            decoders.ByteFallback(),
            special + [f"<0x{i:02X}>" for i in range(256)],
        )
        alphabet = list("ab")
    else:
        tok.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tok.train_from_iterator(["ab"] if name == "byte fallback" else CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tok,
        unk_token="<unk>",
        eos_token="<eos>",
        pad_token="<eos>",
        padding_side="left",
        chat_template=TEMPLATE,
    )


LAYOUTS = {  # the ten tokens "7" is among, in each form that adds up, and what is put before them
    "byte-level": (["7", "Ġ7"], []),
    "byte-level, a prefix space": (["Ġ7"], []),
    "byte-level, single digits": (["7"], []),
    "SentencePiece": (["▁7"], []),
    "SentencePiece, single digits": (["7"], ["▁"]),
    "byte fallback": (["<0x37>"], []),
    "words": (["7"], []),
}


def random_model(tokenizer):
    torch.manual_seed(0)
    sizes = dict(hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    config = Qwen2Config(vocab_size=len(tokenizer), num_key_value_heads=2, **sizes)
    config.eos_token_id = config.pad_token_id = tokenizer.eos_token_id
    return Qwen2ForCausalLM(config).eval()


@pytest.mark.parametrize("name", LAYOUTS)
def test_digits_are_found_in_every_layout(name):
    """And p(k) is the probability of the tokens that write k: multiplied out, one after another."""
    tokenizer = layout(name)
    ids, begin = digit_ids(tokenizer)
    forms, before = LAYOUTS[name]
    assert sorted(tokenizer.convert_ids_to_tokens(ids[7].tolist())) == sorted(forms)
    assert tokenizer.convert_ids_to_tokens(begin) == before
    model, prompt = random_model(tokenizer), [5, 6, 7, 8]
    with torch.no_grad():
        model.get_output_embeddings().weight *= 20  # probabilities that differ

    def probability(tokens):
        whole = torch.tensor([prompt + tokens])
        logprobs = model(input_ids=whole).logits[0].log_softmax(-1)
        return sum(logprobs[3 + i, t] for i, t in enumerate(tokens)).exp().item()

    with torch.no_grad():
        ten = [sum(probability(begin + [i]) for i in ids[k].tolist()) for k in range(10)]
    ours = score_probs(model, tokenizer, [prompt, prompt + [9]])[0].tolist()
    assert ours == pytest.approx([p / sum(ten) for p in ten], abs=1e-5)
    assert max(ours) > 2 * min(ours)


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    """A teacher's folder with a vocabulary and a template that the student does not share."""
    folder = tmp_path_factory.mktemp("stranger")
    tokenizer = layout("byte-level")
    random_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("method", ["ovd", "judge"])
def test_a_pair_without_a_token_in_common_trains(tmp_path, script, stranger, method):
    flags = ["--method", method, "--teacher", stranger, "--max-new-tokens", 24]
    script("train.py", *QUICK, *flags, "--out", tmp_path / "r")
    rows, kept = rows_of(tmp_path / "r"), samples_of(tmp_path / "r")
    assert any(float(r["grad_norm"]) > 0 for r in rows)  # a random teacher's, so ovd may tie once
    assert all(float(r["scored"]) == 1 for r in rows)
    assert all(len(s["probs"]) == 10 and 0 <= s["score"] <= 9 for s in kept)


def test_and_cannot_be_matched_token_by_token(tmp_path, script, stranger, capsys):
    with pytest.raises(SystemExit):
        script("train.py", "--method", "logits", "--teacher", stranger, "--out", tmp_path / "r")
    error = capsys.readouterr().err
    assert "different vocabularies" in error and "use --method ovd" in error


def test_replies_without_a_digit_end_the_run_in_one_line(tmp_path, script, stranger, capsys):
    flags = ["--teacher", stranger, "--score", "reply", "--max-new-tokens", 24]
    with pytest.raises(SystemExit):
        script("train.py", *QUICK, *flags, "--out", tmp_path / "r")
    assert "no digit; use --score expected" in capsys.readouterr().err
    assert len(samples_of(tmp_path / "r")) == 16


@pytest.mark.parametrize("teacher", [["self"], ["http://h/v1", "--teacher-model", "m"]])
def test_a_teacher_without_weights_of_its_own_is_planned_for(script, capsys, teacher):
    script("more/plan.py", "--device", "cpu", "--teacher", *teacher)
    out = capsys.readouterr().out
    assert "ovd: predicted peak" in out and out.count("cannot be matched") == 4


# ------------------------------------------------------------------------------- self
def test_the_student_teaches_itself_as_it_was(fresh_student):
    """Adapters of any size change neither what it writes as a teacher nor how it scores."""
    problems = list(islice(problem_stream(11, held_out=True), 8))
    before = sample_trajectories(*fresh_student, problems)
    after = [Trajectory(t.problem, stopped=True, text=t.text, reward=t.reward) for t in before]
    solutions = Teacher(*fresh_student).solve(problems)
    Teacher(*fresh_student).score(before, solutions)
    for layer in lora_layers(fresh_student[0]).values():
        torch.nn.init.normal_(layer.lora_B)
    again = Teacher(*fresh_student).solve(problems)
    Teacher(*fresh_student).score(after, solutions)
    assert [s.text for s in again] == [s.text for s in solutions]
    assert [t.score for t in after] == [t.score for t in before]
    sampled = sample_trajectories(*fresh_student, problems, 0.0)  # as a student they do
    assert [t.text for t in sampled] != [s.text for s in solutions]
    assert all(layer.enabled for layer in lora_layers(fresh_student[0]).values())


def test_self_trains_and_may_see_the_answer(tmp_path, script, monkeypatch):
    read, real = [], score.grading_messages

    def listen(problem, solution, *others):
        read.append((problem.question, solution))
        return real(problem, solution, *others)

    monkeypatch.setattr(score, "grading_messages", listen)
    for flags in ([], ["--teacher-sees-answer"]):
        read.clear()
        out = tmp_path / f"r{len(flags)}"
        script("train.py", *QUICK, "--teacher", "self", "--method", "judge", "--out", out, *flags)
        answers = {s["question"]: s["answer"] for s in samples_of(out)}
        shown = [s for q, s in read if q in answers and f"Right answer: {answers[q]}" in s]
        assert bool(shown) == bool(flags)
        assert all(float(r["scored"]) == 1 for r in rows_of(out))


# ------------------------------------------------------------------------------- data from a hub
def test_data_from_a_hub(tmp_path):
    """hf://datasets/... through huggingface_hub, from a hub on loopback."""
    rows = [{"problem": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(10)]
    data = "\n".join(map(json.dumps, rows)).encode()

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self):
            found = self.path == "/datasets/me/sums/resolve/main/sub/test.jsonl"
            self.send_response(200 if found else 404)
            self.send_header("content-length", len(data) if found else 0)
            self.send_header("etag", '"0123456789abcdef0123456789abcdef01234567"')
            self.send_header("x-repo-commit", "0123456789abcdef0123456789abcdef01234567")
            self.end_headers()
            if found and self.command == "GET":
                self.wfile.write(data)

        do_HEAD = do_GET

        def log_message(self, *args):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    env = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    env["HF_ENDPOINT"] = f"http://127.0.0.1:{http.server_port}"
    code = (
        "import sys; from more.data import read_problems\n"
        "ps = read_problems(sys.argv[1], 'problem')\n"
        "print(len(ps), ps[3].question, ps[3].answer)"
    )

    def run(name):
        command = [sys.executable, "-c", code, name]
        return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)

    done = run("hf://datasets/me/sums/sub/test.jsonl")
    assert done.stdout == "10 What is 3 + 1? 4\n", done.stderr
    assert (
        "UserError: --data hf://datasets/me/none/x.jsonl: cannot"
        in run("hf://datasets/me/none/x.jsonl").stderr
    )
    http.shutdown()


def test_problems_to_test_on_of_their_own(tmp_path, script, capsys):
    def write(name, numbers):
        lines = [json.dumps({"q": f"Mia has {i} pens.", "a": f"#### {i}"}) for i in numbers]
        (tmp_path / name).write_text("\n".join(lines))
        return tmp_path / name

    fields = ["--question-field", "q", "--answer-field", "a", *QUICK, "--eval-problems", 3]
    data, test = write("data.jsonl", range(8)), write("test.jsonl", range(6, 9))
    script("train.py", "--data", data, "--eval-data", test, *fields, "--out", tmp_path / "r")
    assert "tested on 3 unseen problems" in capsys.readouterr().out
    trained_on = {s["question"] for s in samples_of(tmp_path / "r")}
    assert trained_on <= {f"Mia has {i} pens." for i in range(6)}  # 6 and 7 are tested on
    with pytest.raises(SystemExit):
        script("train.py", "--data", data, "--eval-data", data, *fields, "--out", tmp_path / "s")
    assert "are in --eval-data too" in capsys.readouterr().err


