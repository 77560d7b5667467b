"""Loads the adapter/ folder that a run left, or any LoRA in PEFT's format, on its base model.

    python sample.py --student runs/NAME/adapter    # sample.load_student calls load_adapter below
    python -m more.adapter runs/NAME/adapter        # what is in one, and how far it has moved
"""
import argparse
import json
from pathlib import Path

from safetensors.torch import load_file

from sample import add_lora, lora_layers
from tasks import UserError, fail_in_one_line

MEND = "give the adapter/ folder of a run made with the same student"


def base_name(folder):
    """The name of the model that an adapter was trained on."""
    path = Path(folder) / "adapter_config.json"
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["base_model_name_or_path"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as e:
        raise UserError(f"--student {path}: cannot be read ({type(e).__name__} {e}); {MEND}")


def load_adapter(model, folder):
    """Add LoRA to `model`, filled from a folder in PEFT's format. UserError if they do not fit."""
    try:
        config = json.loads((Path(folder) / "adapter_config.json").read_text(encoding="utf-8"))
        tensors = load_file(Path(folder) / "adapter_model.safetensors")
        if config.get("use_rslora") or config.get("use_dora") or config.get("rank_pattern") or \
                config.get("alpha_pattern"):
            raise ValueError("only plain LoRA of one rank is known here")
        add_lora(model, config["r"], config["lora_alpha"])
        for name, layer in lora_layers(model).items():
            for part in ("lora_A", "lora_B"):
                fill(getattr(layer, part), tensors.pop(f"base_model.model.{name}.{part}.weight"))
        if tensors:
            raise ValueError(f"{next(iter(tensors))} has no place in the model")
    except Exception as e:  # safetensors' own kinds among them
        raise UserError(f"--student {folder}: not an adapter for this model ({type(e).__name__}: "
                        f"{e}); {MEND}")


def fill(parameter, tensor):
    """Copy a tensor of the same shape, all of it finite, into a parameter."""
    if tensor.shape != parameter.shape:  # copy_ alone would broadcast
        raise ValueError(f"its shape is {tuple(tensor.shape)}, not {tuple(parameter.shape)}")
    if not tensor.isfinite().all():
        raise ValueError("it holds numbers that are not finite")
    parameter.data.copy_(tensor)


def main():
    """Print what an adapter holds."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="a run's adapter/")
    folder = Path(parser.parse_args().folder)
    base = base_name(folder)
    try:
        tensors = load_file(folder / "adapter_model.safetensors")
    except Exception as e:
        raise UserError(f"{folder}: cannot be read ({type(e).__name__}); {MEND}")
    for name, tensor in tensors.items():
        print(f"{tensor.norm():9.4f}  {str(tuple(tensor.shape)):12}  {name}")
    moved = sum(bool(t.any()) for name, t in tensors.items() if "lora_B" in name)
    total = sum("lora_B" in name for name in tensors)
    print(f"\nan adapter for {base}: {sum(t.numel() for t in tensors.values()):,} weights; {moved} "
          f"of its {total} B matrices have moved from zero.")


if __name__ == "__main__":
    fail_in_one_line(main)
