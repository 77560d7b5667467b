"""Two folders with the sizes of a real pair and random weights: what memory cares for, no download.

python notebooks/random_pair.py FOLDER [--student NAME] [--teacher NAME] [--layers 2]
python train.py --compare-memory --student FOLDER/student --teacher FOLDER/teacher

Names are those of train.SHAPES. The tokenizer is the embedded one, so most of what is sampled
decodes to nothing; --layers cuts both models down for a machine without a GPU.
"""

import argparse
import shutil
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen3Config

sys.path.insert(0, str(Path(__file__).parent.parent))
from sample import TINY  # noqa: E402
from train import HUB_PAIR, SHAPES  # noqa: E402


def write_random_model(name, folder, layers=None, device="cpu"):
    """A model of SHAPES[name]'s sizes with random weights, in bfloat16, and a tokenizer."""
    depth, hidden, mlp, queries, keys, vocab, tied, _ = SHAPES[name]
    width = 64 if "Llama-3.2-1B" in name or "0.5B" in name else 128
    config = (Qwen3Config if "Qwen3" in name else Qwen2Config)(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers or depth,
        num_attention_heads=queries // width,
        num_key_value_heads=keys // width,
        head_dim=width,
        tie_word_embeddings=tied,
        max_position_embeddings=4096,
        eos_token_id=1,
        pad_token_id=0,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(TINY / "student" / file, Path(folder) / file)


if __name__ == "__main__":
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("folder")
    p.add_argument("--student", choices=SHAPES, default=HUB_PAIR["student"])
    p.add_argument("--teacher", choices=SHAPES, default=HUB_PAIR["teacher"])
    p.add_argument("--layers", type=int, help="in place of each model's own")
    args = p.parse_args()
    for role in ("student", "teacher"):
        write_random_model(getattr(args, role), f"{args.folder}/{role}", args.layers)
        print(f"{args.folder}/{role}: {getattr(args, role)}, random weights")
