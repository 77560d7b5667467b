"""Writes a pair of real sizes with random weights, which is all that memory and speed depend on.

    python -m more.pair FOLDER [--student NAME] [--teacher NAME] [--layers 2]
    python -m more.ladder --runs --student FOLDER/student --teacher FOLDER/teacher

Nothing is downloaded: the sizes are those in more/plan.py, the tokenizer is the embedded one, so
most of what is sampled decodes to nothing. --layers cuts both models down for a machine without a
GPU.
"""
import shutil
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen3Config

from more.flags import HUB_PAIR, TINY
from more.plan import SHAPES
from more.terminal import UserError, fail_in_one_line, make_parser


def write_random_model(name, folder, layers=None, device="cpu"):
    """A model of SHAPES[name]'s sizes with random weights, in bfloat16, and a tokenizer.

    layers: in place of its own number. Returns how many weights it has.
    """
    sizes = SHAPES[name]
    width = 64 if "Llama-3.2-1B" in name or "0.5B" in name else 128  # of an attention head
    config = (Qwen3Config if "Qwen3" in name else Qwen2Config)(
        vocab_size=sizes.vocab, hidden_size=sizes.hidden, intermediate_size=sizes.mlp,
        num_hidden_layers=layers or sizes.layers, num_attention_heads=sizes.queries // width,
        num_key_value_heads=sizes.keys // width, head_dim=width,
        tie_word_embeddings=sizes.matrices == 1, max_position_embeddings=4096, eos_token_id=1,
        pad_token_id=0, bos_token_id=None)
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(TINY / "student" / file, Path(folder) / file)
    return model.num_parameters()


def main():
    """Write both models."""
    parser = make_parser(__doc__)
    parser.add_argument("folder", help="for the folders student and teacher")
    for role in ("student", "teacher"):
        parser.add_argument(f"--{role}", choices=SHAPES, default=HUB_PAIR[role], metavar="NAME",
                            help="whose sizes: " + ", ".join(SHAPES) + " [%(default)s]")
    parser.add_argument("--layers", type=int, help="in place of each model's own number")
    args = parser.parse_args()
    if args.layers is not None and args.layers < 1:
        raise UserError(f"--layers {args.layers} must be at least 1")
    Path(args.folder).mkdir(parents=True, exist_ok=True)  # where it cannot be, now and not later
    counts = [write_random_model(getattr(args, role), Path(args.folder) / role, args.layers)
              for role in ("student", "teacher")]
    print(f"{args.folder}: student with {counts[0] / 1e6:,.0f} and teacher with "
          f"{counts[1] / 1e6:,.0f} million random weights.")


if __name__ == "__main__":
    fail_in_one_line(main)
