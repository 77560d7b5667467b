"""Bad input ends in one line that names it, exit code 2 and no traceback, and nothing is changed.

One table: a command, and a word that its line must hold. The odd files it names are written once,
into a folder that every command runs in. What a server may say is in test_server.py.
"""

import json
import os
import re
import runpy
import shutil
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import sample
import score
from more.adapter import save_adapter
from more.flags import TINY
from more.terminal import quiet
from sample import load_student

ROOT = Path(__file__).parent.parent
LONG, DEEP = "x" * 5000, "[" * 100_000
SERVER = "--teacher http://127.0.0.1:9/v1 --teacher-model m"

# ------------------------------------------------------------------------------- flags
FLAGS = [  # (command, word of its line); {LONG} and such are filled in, '' is an empty word
    # no number, or not within reason
    ("train --seed 1e30", "--seed"), ("train --seed -1", "--seed"), ("train --seed 1.5", "--seed"),
    ("train --seed 1180591620717411303424", "--seed"),  # 2 to the 70
    ("train --temperature 0", "--temperature"), ("train --temperature 1e-40", "--temperature"),
    ("train --temperature nan", "--temperature"), ("train --temperature inf", "--temperature"),
    ("train --lr 0", "--lr"), ("train --lr nan", "--lr"), ("train --lr 1e9", "--lr"), ("train --lr x", "--lr"),
    ("train --kl inf", "--kl"), ("train --kl nan", "--kl"), ("train --kl -1", "--kl"),
    ("train --theta 10", "--theta"), ("train --theta nan", "--theta"), ("train --theta AUTO", "--theta"),
    ("train --samples 0", "--samples"), ("train --samples 1000000", "--samples"),
    ("train --samples 1", "group of one"), ("train --one-shot --problems 1 --samples 1", "group of one"),
    ("train --problems 0", "--problems"), ("train --problems 99999999", "--problems"),
    ("train --steps -1", "--steps"), ("train --steps 1000000000", "--steps"),
    ("train --batch 0", "--batch"), ("train --batch 1000000000000", "--batch"),
    ("train --micro-batch 0", "--micro-batch"), ("train --chunk -1", "--chunk"),
    ("train --max-new-tokens 0", "--max-new-tokens"), ("train --max-new-tokens 1000000000", "--max-new-tokens"),
    ("train --eval-problems 0", "--eval-problems"), ("train --turns -1", "--turns"),
    ("train --bits 8", "--bits"), ("train --difficulty 6", "--difficulty"), ("train --difficulty x", "--difficulty"),
    ("sample --temperature -1", "--temperature"), ("sample --temperature 1e-40", "--temperature"), ("sample --problems 0", "--problems"),
    ("score --samples nan", "--samples"), ("tasks --seed x", "--seed"), ("tasks --seed -1", "--seed"),
    ("more.compare --seeds 0", "--seeds"), ("more.compare --jobs 0", "--jobs"),
    ("more.compare --seeds 1000000000", "--seeds"), ("more.ladder --tokens 0", "--tokens"),
    ("more.ladder --chunk -5", "--chunk"), ("more.ladder --dtype int8", "--dtype"),
    ("more.plan --device tpu", "--device"), ("more.pair runs/p --layers x", "--layers"),
    # unknown words, and none where there should be one
    ("train --frobnicate", "--frobnicate"), ("train --re x", "--re"), ("train math", "math"),
    ("train --method ppo", "--method"), ("train --task code", "--task"), ("train --score mean", "--score"),
    ("train --baseline best", "--baseline"), ("train --replace prefix", "--replace"),
    ("train --reward money", "--reward"), ("train --suffix written", "--suffix"),
    ("train --data ''", "--data is empty"), ("train --student ''", "--student is empty"),
    ("train --teacher ''", "--teacher is empty"), ("train --out ''", "--out is empty"),
    ("train --data=", "--data is empty"), ("sample --student=", "--student is empty"), ("train --lr=", "--lr is empty"),
    ("train --seed=x", "--seed"), ("train --samples=0", "--samples"), ("train --out= --steps 1", "--out is empty"),
    ("train --corpus '' --task search", "--corpus is empty"), ("train --question-field ''", "--question-field is empty"),
    ("sample --student ''", "--student"), ("score --teacher ''", "--teacher"), ("more.reply", "text"), ("more.reply ''", "an argument is empty"),
    ("more.mix", "FOLDER"), ("more.report", "folder"), ("more.judge --rescore ''", "--rescore"),
    # two that do not go together
    ("train --method logits --teacher self", "no other logits"),
    (f"train --method logits {SERVER}", "no other logits"),
    ("train --reward verbal --method grpo", "--reward verbal"), ("train --reward verbal --method sft", "--reward verbal"),
    ("train --reward verbal --teacher-sees-answer", "--teacher-sees-answer"),
    ("train --corpus passages.jsonl", "--task search"), ("train --task search --data math.jsonl", "--corpus"),
    ("train --task search --eval-data math.jsonl", "--corpus"),
    (f"train {SERVER} --replace suffix", "--replace whole"), (f"train {SERVER} --task search", "cannot search"),
    ("train --teacher-model m", "--teacher-model"), ("score --teacher-model m", "--teacher-model"),
    ("more.judge --teacher-model m", "--teacher-model"), ("train --teacher http://127.0.0.1:9/v1", "--teacher-model"),
    ("more.compare --methods ''", "--methods"), ("more.compare --methods ,,", "--methods"),
    ("more.compare --methods ppo", "--methods"), ("more.compare --methods 'ovd --nope'", "--methods"),
    ("more.compare --methods 'ovd --seed'", "--methods"),
    ("more.ladder --runs --theta 12", "--theta"), ("more.plan --method logits --teacher self", "no other logits"),
    # addresses that are none
    ("train --teacher ftp://host/v1 --teacher-model m", "http://HOST:PORT"),
    ("train --teacher http://user:word@host/v1 --teacher-model m", "user, password"),
    ("train --teacher http://host/v1?key=1 --teacher-model m", "query"),
    ("train --teacher http://[::1/v1 --teacher-model m", "http://HOST:PORT"),
    ("train --teacher http://host:99999/v1 --teacher-model m", "http://HOST:PORT"),
    ("train --teacher http:///v1 --teacher-model m", "http://HOST:PORT"),
]

# ------------------------------------------------------------------------------- models and adapters
MODELS = [
    ("sample --student nowhere/at/all", "nowhere/at/all"), ("sample --student ../nowhere", "../nowhere"),
    ("sample --student {LONG}", "--student"), ("sample --student 'two words'", "two words"),
    ("sample --student a\nb", "--student"), ("sample --student 🙂", "🙂"),
    ("sample --student math.jsonl", "math.jsonl"), ("sample --student empty", "empty"),
    ("train --teacher nowhere/at/all", "--teacher nowhere/at/all"), ("score --teacher empty", "--teacher empty"),
    ("sample --student models/config", "models/config"), ("sample --student models/json", "models/json"),
    ("sample --student models/cut", "models/cut"), ("sample --student models/missing", "weights are missing"),
    ("sample --student models/pickle", "safetensors"), ("sample --student models/template", "no chat template"),
    ("sample --student models/failing", "models/failing"), ("sample --student models/deaf", "leaves out what is said"),
    ("score --teacher models/deaf", "leaves out what is said"), ("sample --student models/stop_text", "eos_token_id"),
    ("sample --student models/stop_list", "eos_token_id"), ("sample --student models/nan", "NaN"),
    ("score --teacher models/nan", "models/nan"), ("sample --student models/words", "models/words"),
    ("sample --student adapters/json", "adapters/json"), ("sample --student adapters/deep", "adapters/deep"),
    ("sample --student adapters/base", "nowhere"), ("sample --student adapters/list", "adapters/list"),
    ("sample --student adapters/no_tensors", "adapters/no_tensors"), ("sample --student adapters/cut", "adapters/cut"),
    ("sample --student adapters/nan", "not finite"), ("sample --student adapters/broadcast", "shape"),
    ("sample --student adapters/fewer", "adapters/fewer"), ("sample --student adapters/more", "no place"),
    ("sample --student adapters/rslora", "plain LoRA"), ("sample --student adapters/ranks", "plain LoRA"),
    ("sample --student adapters/rank_0", "adapters/rank_0"), ("sample --student adapters/rank_text", "adapters/rank_text"),
    ("more.adapter empty", "empty"), ("more.adapter adapters/json", "adapters/json"),
    ("more.mix nowhere/at/all {TINY}/teacher 0.5 mixture", "nowhere/at/all"),
    ("more.mix {TINY}/weak-teacher {TINY}/teacher 2 mixture", "SHARE"),
    ("more.mix {TINY}/weak-teacher {TINY}/teacher nan mixture", "SHARE"),
    ("more.mix {TINY}/weak-teacher {TINY}/teacher x mixture", "SHARE"),
    ("more.mix {TINY}/student {TINY}/teacher 0.5 mixture", "one model"),
    ("more.mix {TINY}/weak-teacher {TINY}/teacher 0.5 run", "run"), ("more.mix {TINY}/weak-teacher {TINY}/teacher 0.5 math.jsonl", "math.jsonl"),
]

# ------------------------------------------------------------------------------- problems and passages
GOOD = '{"question": "1 + 1?", "answer": "2"}\n'
DATA = {  # what stands in data/NAME.jsonl after a good line: the word of the line it makes
    "not_json": ("{question: 1}", "line 2"), "half": ('{"question": "q", "ans', "line 2"), "list": ("[1, 2]", "line 2"),
    "number": ("7", "line 2"), "deep": (DEEP, "line 2"), "no_answer": ('{"question": "q"}', "answer"),
    "no_question": ('{"answer": "2"}', "question"), "null_question": ('{"question": null, "answer": "2"}', "line 2"),
    "number_question": ('{"question": 7, "answer": "2"}', "line 2"), "dict_question": ('{"question": {}, "answer": "2"}', "line 2"),
    "blank_question": ('{"question": "  ", "answer": "2"}', "line 2"), "null_answer": ('{"question": "q", "answer": null}', "line 2"),
    "list_answer": ('{"question": "q", "answer": [1, 2]}', "line 2"), "dict_answer": ('{"question": "q", "answer": {"a": 1}}', "line 2"),
    "blank_answer": ('{"question": "q", "answer": " "}', "line 2"), "true_answer": ('{"question": "q", "answer": true}', "line 2"),
    "half_emoji": (r'{"question": "\ud83d", "answer": "2"}', "line 2"), "nan_answer": ('{"question": "q", "answer": NaN}', "line 2"),
}
FILES = [(f"train --data data/{name}.jsonl", word) for name, (_, word) in DATA.items()] + [
    ("train --data nowhere.jsonl", "nowhere.jsonl"), ("train --data empty", "empty"), ("train --data {LONG}", "--data"),
    ("train --data blank.jsonl", "blank.jsonl"), ("train --data one.jsonl", "too few"), ("train --data bytes.jsonl", "bytes.jsonl"),
    ("train --data fifo", "fifo"), ("train --data /dev/null", "/dev/null"), ("train --data hf://datasets/x", "hf://"),
    ("train --data math.jsonl --question-field q", "q"), ("train --data math.jsonl --answer-field question", "--answer-field"),
    ("train --data math.jsonl --eval-data math.jsonl", "--eval-data"), ("train --eval-data nowhere.jsonl", "--eval-data"),
    ("train --data capitals.jsonl", "has no words"), ("more.data nowhere.jsonl", "nowhere.jsonl"),
    ("more.data fifo", "fifo"), ("more.corpus nowhere.jsonl x", "nowhere.jsonl"), ("more.corpus empty x", "empty"),
    ("more.corpus blank.jsonl x", "blank.jsonl"), ("more.corpus fifo x", "fifo"), ("more.corpus /dev/null x", "/dev/null"),
    ("more.corpus data/not_json.jsonl x", "data/not_json.jsonl"), ("more.corpus data/deep.jsonl x", "data/deep.jsonl"),
]

# ------------------------------------------------------------------------------- folders of runs
ROW = {"question": "q", "answer": "2", "text": "Answer: 2", "reward": 1.0, "probs": [0.1] * 10, "score": 4.5}
RESCORED = {  # a change to a good row of samples.jsonl, or a line of its own: the word
    "text": ({"text": 7}, "line 2"), "reward": ({"reward": "high"}, "line 2"), "large": ({"reward": 12}, "line 2"),
    "probs": ({"probs": ["a"] * 10}, "line 2"), "probs_none": ({"probs": None}, "line 2"), "score": ({"score": 99}, "line 2"),
    "score_nan": ({"score": float("nan")}, "line 2"), "search": ({"text": "<answer> Lima </answer>"}, "search run"),
    "less": ('{"question": "q"}', "line 2"), "list": ("[]", "line 2"), "deep": (DEEP, "line 2"),
    "half_emoji": (r'{"question": "\ud83d"}', "line 2"), "cut": ('{"question": "q", "ans', "line 2"),
}
RUNS = [(f"more.judge --rescore rescore/{name}.jsonl", word) for name, (_, word) in RESCORED.items()] + [
    ("more.judge --rescore other-words.jsonl", "--teacher"), ("more.judge --rescore nowhere.jsonl", "nowhere.jsonl"), ("more.judge --rescore empty", "empty"),
    ("more.judge --rescore blank.jsonl", "blank.jsonl"), ("more.judge --rescore fifo", "fifo"),
    ("train --out math.jsonl", "math.jsonl"), ("train --out math.jsonl/r", "math.jsonl"), ("train --out run", "another run"),
    ("train --out {LONG}", "--out"), ("train --out marked", "marked"), ("train --out mark_cut", "damaged"),
    ("train --out mark_list", "damaged"), ("train --out mark_deep", "damaged"),
    ("more.compare --out math.jsonl", "math.jsonl"), ("more.compare --methods grpo --seeds 1 --out strange", "not empty"),
    ("more.compare --methods grpo --seeds 1 --out strange_file", "no folder"),
] + [("more." + command.replace("RUN", folder), folder) for command in (
    "report RUN", "explain RUN", "export RUN new", "picture RUN new.png", "record RUN", "checkpoint RUN")
     for folder in ("nowhere", "math.jsonl", "empty", "result_cut", "result_list", "result_deep", "result_other")] + [
    ("more.export run {TINY}/student", "run/adapter"), ("more.ladder --json nowhere/l.json", "nowhere/l.json"),
    ("more.plan --json nowhere/p.json", "nowhere/p.json"), ("more.plan --student nowhere/at/all", "nowhere/at/all"),
    ("more.suffix --student nowhere/at/all", "nowhere/at/all"), ("more.pair math.jsonl", "math.jsonl"),
    ("sample --ask 1+1? --student nowhere/at/all", "nowhere/at/all"), ("sample --ask 1+1? --student models/nan", "NaN"),
]
TABLE = FLAGS + MODELS + FILES + RUNS


# ------------------------------------------------------------------------------- the odd files
def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)


def write_files(folder):
    """Files of problems, of scored trajectories, and a pipe that nobody writes to."""
    (folder / "empty").mkdir()
    os.mkfifo(folder / "fifo")
    write(folder / "blank.jsonl", "\n \n")
    write(folder / "one.jsonl", GOOD)
    write(folder / "bytes.jsonl", b"\xff\xfe\x00\x01" * 9)
    write(folder / "math.jsonl", "".join(GOOD.replace("1", str(i)) for i in range(1, 9)))
    write(folder / "capitals.jsonl", "".join(
        json.dumps({"question": f"Capital of {c}?", "answer": c}) + "\n" for c in ("France", "Peru")))
    for name, (line, _) in DATA.items():
        write(folder / f"data/{name}.jsonl", f"{GOOD}{line}\n")
    for name, (line, _) in RESCORED.items():
        line = line if isinstance(line, str) else json.dumps(ROW | line)
        write(folder / f"rescore/{name}.jsonl", f"{json.dumps(ROW)}\n{line}\n")
    write(folder / "other-words.jsonl", json.dumps(ROW | {"question": "Which town is France's capital?"}))


def write_runs(folder):
    """Folders of runs that are another's, unfinished, or damaged."""
    write(folder / "run/metrics.csv", "step\n1\n")
    write(folder / "marked/metrics.csv", "step\n1\n")
    for name, text in {"marked": '{"steps": 3}', "mark_cut": '{"st', "mark_list": "[1]", "mark_deep": DEEP}.items():
        write(folder / name / "run.json", text)
    for name, text in {"result_other": '{"a": 1}', "result_cut": '{"method": "ov', "result_list": "[1]", "result_deep": DEEP}.items():
        write(folder / name / "result.json", text)
    write(folder / "strange/grpo-0/thesis.txt", "mine")
    write(folder / "strange_file/grpo-0", "mine")


def write_models(folder):
    """Copies of the embedded student, a fault in each."""
    def copy(name):
        return shutil.copytree(TINY / "student", folder / "models" / name, copy_function=os.link)

    def replace(path, content):
        path.unlink()
        write(path, content)

    weights = (TINY / "student/model.safetensors").read_bytes()
    write(folder / "models/config/config.json", (TINY / "student/config.json").read_text())
    replace(copy("json") / "config.json", "{")
    replace(copy("cut") / "model.safetensors", weights[:1000])
    (copy("template") / "chat_template.jinja").unlink()
    replace(copy("failing") / "chat_template.jinja", "{{ raise_exception('no') }}")
    replace(copy("deaf") / "chat_template.jinja", "Hello{% for m in messages %}{{ m.role }}{% endfor %}")
    for name, text in {"stop_text": '{"eos_token_id": "2"}', "stop_list": '{"eos_token_id": [2, "x"]}'}.items():
        replace(copy(name) / "generation_config.json", text)
    pickled = copy("pickle") / "model.safetensors"
    pickled.unlink()
    torch.save({"x": torch.ones(1)}, pickled.with_name("pytorch_model.bin"))
    tensors = load_file(TINY / "student/model.safetensors")
    last = sorted(tensors)[-1]
    for name, changed in {"missing": {k: v for k, v in tensors.items() if k != last},
                          "nan": tensors | {last: tensors[last] * float("nan")}}.items():
        path = copy(name) / "model.safetensors"
        path.unlink()
        save_file(changed, path, {"format": "pt"})
    tokenizer = copy("words") / "tokenizer.json"  # more words than the model has embeddings
    words = json.loads(tokenizer.read_text())
    words["model"]["vocab"]["zebra"] = max(words["model"]["vocab"].values()) + 1000
    replace(tokenizer, json.dumps(words))


def write_adapters(folder):
    """Adapters of the embedded student, a fault in each."""
    model, _, base = load_student(str(TINY / "student"), 4, "cpu")
    save_adapter(model, folder / "adapters/good", base)
    config = json.loads((folder / "adapters/good/adapter_config.json").read_text())
    tensors = load_file(folder / "adapters/good/adapter_model.safetensors")
    name = next(n for n in tensors if "lora_A" in n)
    for fault, changed in {"base": {"base_model_name_or_path": "nowhere/at/all"}, "rslora": {"use_rslora": True},
                           "ranks": {"rank_pattern": {"q": 4}}, "rank_0": {"r": 0}, "rank_text": {"r": "8"}}.items():
        shutil.copytree(folder / "adapters/good", folder / "adapters" / fault)
        write(folder / "adapters" / fault / "adapter_config.json", json.dumps(config | changed))
    for fault, text in {"json": "{", "deep": DEEP, "list": "[]"}.items():
        shutil.copytree(folder / "adapters/good", folder / "adapters" / fault)
        write(folder / "adapters" / fault / "adapter_config.json", text)
    for fault, changed in {"nan": tensors | {name: tensors[name] * float("nan")},
                           "broadcast": tensors | {name: tensors[name][:1]},
                           "fewer": {k: v for k, v in tensors.items() if k != name},
                           "more": tensors | {"base_model.model.x.lora_A.weight": torch.ones(1)}}.items():
        shutil.copytree(folder / "adapters/good", folder / "adapters" / fault)
        save_file(changed, folder / "adapters" / fault / "adapter_model.safetensors")
    for fault, content in {"no_tensors": None, "cut": b"1234"}.items():
        path = shutil.copytree(folder / "adapters/good", folder / "adapters" / fault) / "adapter_model.safetensors"
        path.unlink()
        if content:
            path.write_bytes(content)


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """A folder with all of them."""
    folder = tmp_path_factory.mktemp("odd")
    quiet()
    for fill in (write_files, write_runs, write_models, write_adapters):
        fill(folder)
    return folder


# ------------------------------------------------------------------------------- the table
def listing(folder):
    """{name: (size, when it was written)} of all that a folder holds."""
    return {str(p.relative_to(folder)): (p.lstat().st_size, p.lstat().st_mtime_ns)
            for p in folder.rglob("*") if not p.is_dir()} | {
            str(p.relative_to(folder)): None for p in folder.rglob("*") if p.is_dir()}


def words_of(command):
    """As a shell would split it, but for a new line or a NUL within a word."""
    words = re.findall(r"'[^']*'|[^ ]+", command)
    return [w.strip("'").format(LONG=LONG, TINY=TINY) if "{" in w else w.strip("'") for w in words]


load_once = cache(sample.load_model)


@pytest.mark.parametrize("command, word", TABLE, ids=[c[:60] for c, _ in TABLE])
def test_bad_input_is_one_line(odd, monkeypatch, capfd, command, word):
    name, *flags = words_of(command)
    monkeypatch.chdir(odd)
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(sys, "argv", [name, *flags])
    monkeypatch.setattr(score, "load_model", load_once)
    before = listing(odd)
    with pytest.raises(SystemExit) as e:
        runpy.run_module(name, run_name="__main__")
    out, err = capfd.readouterr()
    assert e.value.code == 2, out + err
    line = err.rstrip("\n").rsplit("\r", 1)[-1]  # behind a bar, if one was begun
    assert "\n" not in line and line.startswith("error: ") and word in line, err
    assert "Traceback" not in out + err
    assert listing(odd) == before


def test_the_table_is_long_enough_and_no_line_stands_twice():
    assert len(TABLE) >= 150 and len({command for command, _ in TABLE}) == len(TABLE)
