"""What only a CUDA GPU can tell: random weights at real shapes measure memory and speed faithfully.

python -m pytest -m gpu -s
"""

import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from more.pair import write_random_model
from sample import load_model, load_student
from score import score_probs

PAIRS = [
    ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-4B-Instruct-2507"),
    ("Qwen/Qwen2.5-1.5B-Instruct", "Qwen/Qwen2.5-7B-Instruct"),
]


def run(*args, env):
    """Python in a process of its own."""
    return subprocess.run([sys.executable, *map(str, args)], cwd=ROOT, capture_output=True,
                          text=True, env={**os.environ, **env})


@pytest.fixture(scope="module", params=PAIRS, ids=["default", "qwen2.5"])
def random_pair(request, tmp_path_factory):
    """(folder of two models with random weights and the embedded tokenizer, whose shapes)."""
    root = tmp_path_factory.mktemp("pair")
    for role, name in zip(("student", "teacher"), request.param):
        write_random_model(name, root / role, device="cuda")
        torch.cuda.empty_cache()
    return root, request.param


def flags(student, teacher):
    """16 trajectories of 512 tokens, sampled side by side."""
    words = "--one-shot --difficulty 1 --problems 2 --samples 8 --batch 16".split()
    return ["--student", student, "--teacher", teacher, *words]


@pytest.mark.gpu
def test_peak_memory_at_real_shapes_is_small_and_as_planned(random_pair, tmp_path):
    """Both models in 4-bit: the loop, scoring at full length, and what more.plan said before.

    What random weights sample decodes to little text, so the teacher's prompts in the loop are
    short; scoring is measured apart, on 16 prompts of 1,200 tokens with both models loaded.
    """
    folder, names = random_pair
    pair = folder / "student", folder / "teacher"
    gpu = {"CUDA_VISIBLE_DEVICES": "0"}
    short = ["--steps", 3, "--eval-problems", 16, "--out", tmp_path / "r"]
    done = run("train.py", *flags(*pair), *short, env=gpu)
    assert done.returncode == 0, done.stderr
    loop = json.loads((tmp_path / "r/result.json").read_text())["peak_bytes"]
    plan = tmp_path / "plan.json"
    planning = ["-m", "more.plan", "--device", "cuda", "--json", plan]
    assert run(*planning, *flags(*names), env=gpu).returncode == 0
    planned = json.loads(plan.read_text())[0]
    context = planned["held"]["CUDA's context, assumed"]  # which the allocator does not see

    student = load_student(pair[0], 4, "cuda")
    teacher, tokenizer = load_model(pair[1], 4, "cuda", "--teacher")
    torch.cuda.reset_peak_memory_stats()
    score_probs(teacher, tokenizer, torch.randint(200, 150_000, (16, 1200)).tolist())
    scoring = torch.cuda.max_memory_allocated()
    print(
        f"\n{torch.cuda.get_device_name()}, {' + '.join(names)}: loop {loop / 1e9:.2f} GB, scoring "
        f"{scoring / 1e9:.2f} GB, planned {(planned['peak_bytes'] - context) / 1e9:.2f} GB"
    )
    print((tmp_path / "r/metrics.csv").read_text())
    assert student and max(loop, scoring) < (6e9 if names == PAIRS[0] else 16e9)
    assert planned["peak_bytes"] - context == pytest.approx(max(loop, scoring), rel=0.10)


@pytest.mark.gpu
def test_a_hub_pair_that_cannot_be_had_gives_way_to_the_embedded_one(tmp_path):
    env = {"CUDA_VISIBLE_DEVICES": "0", "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    short = ["--one-shot", "--steps", 1, "--eval-problems", 8, "--out", tmp_path / "r"]
    done = run("train.py", *short, env=env)
    assert done.returncode == 0, done.stderr
    assert "cannot be had" in done.stdout and "tiny" in done.stdout
