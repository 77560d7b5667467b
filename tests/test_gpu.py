"""What only a CUDA GPU can tell: random weights at real shapes measure memory and speed faithfully.

python -m pytest -m gpu -s
"""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3Config

from sample import TINY, load_model, load_student
from score import score_probs
from test_train import run

SHAPES = {  # hidden, MLP, layers, heads; the rest is common to the default pair
    "student": (1024, 3072, 28, 16),  # Qwen/Qwen3-0.6B
    "teacher": (2560, 9728, 36, 32),  # Qwen/Qwen3-4B-Instruct-2507
}


@pytest.fixture(scope="module")
def random_pair(tmp_path_factory):
    """Two folders with the default pair's shapes, random weights and the embedded tokenizer."""
    root = tmp_path_factory.mktemp("pair")
    for name, (hidden, mlp, layers, heads) in SHAPES.items():
        config = Qwen3Config(
            vocab_size=151936,
            hidden_size=hidden,
            intermediate_size=mlp,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=8,
            head_dim=128,
            tie_word_embeddings=True,
            max_position_embeddings=4096,
            eos_token_id=1,
            pad_token_id=0,
            bos_token_id=None,
        )
        torch.manual_seed(0)
        with torch.device("cuda"):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        model.save_pretrained(root / name)
        del model
        torch.cuda.empty_cache()
        for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copy(TINY / "student" / file, root / name / file)
    return root


@pytest.mark.gpu
def test_the_default_pair_s_shapes_peak_below_6_gb(random_pair, tmp_path):
    """16 trajectories of 512 tokens, both models in 4-bit: the loop, and scoring at full length.

    What random weights sample decodes to little text, so the teacher's prompts in the loop are
    short; scoring is measured apart, on 16 prompts of 1,200 tokens with both models loaded.
    """
    pair = ["--student", random_pair / "student", "--teacher", random_pair / "teacher"]
    done = run(
        "--one-shot",
        *pair,
        "--difficulty",
        1,
        "--problems",
        2,
        "--samples",
        8,
        "--steps",
        3,
        "--eval-problems",
        16,
        "--batch",
        16,
        "--out",
        tmp_path / "r",
        env={"CUDA_VISIBLE_DEVICES": "0"},
    )
    assert done.returncode == 0, done.stderr
    loop = json.loads((tmp_path / "r/result.json").read_text())["peak_bytes"]
    student = load_student(random_pair / "student", 4, "cuda")
    teacher, tokenizer = load_model(random_pair / "teacher", 4, "cuda", "--teacher")
    torch.cuda.reset_peak_memory_stats()
    score_probs(teacher, tokenizer, torch.randint(200, 150_000, (16, 1200)).tolist())
    scoring = torch.cuda.max_memory_allocated()
    print(torch.cuda.get_device_name(), f"loop {loop / 1e9:.2f} GB, scoring {scoring / 1e9:.2f} GB")
    print((tmp_path / "r/metrics.csv").read_text())
    assert student and max(loop, scoring) < 6e9


@pytest.mark.gpu
def test_a_hub_pair_that_cannot_be_had_gives_way_to_the_embedded_one(tmp_path):
    done = run(
        "--one-shot",
        "--steps",
        1,
        "--eval-problems",
        8,
        "--out",
        tmp_path / "r",
        env={"CUDA_VISIBLE_DEVICES": "0", "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert "cannot be had" in done.stdout and "tiny" in done.stdout
