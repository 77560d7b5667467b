"""The adapter/ folder of a run, in PEFT's format: written, and loaded on its base model.

    python sample.py --student runs/NAME/adapter    # sample.load_student calls load_adapter below
    python -m more.adapter runs/NAME/adapter        # what is in one, and how far it has moved
"""
import json
import math
import os
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from more.terminal import UserError, fail_in_one_line, make_parser
from sample import add_lora, lora_layers

MEND = "give the adapter/ folder of a run made with the same student"


def save_adapter(model, folder, base_name):
    """Write the adapters in PEFT's format, for PeftModel.from_pretrained(base, folder).

    Both files are written under another name first, so what was there stays if they cannot be.
    """
    layers = lora_layers(model)
    first = next(iter(layers.values()))
    r = first.lora_A.shape[0]
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": r, "lora_alpha": first.scale * r,
              "base_model_name_or_path": str(base_name), "lora_dropout": 0.0, "bias": "none",
              "fan_in_fan_out": False, "inference_mode": True,
              "target_modules": sorted({name.rpartition(".")[2] for name in layers})}
    tensors = {f"base_model.model.{name}.{part}.weight": getattr(layer, part).detach().cpu()
               for name, layer in layers.items() for part in ("lora_A", "lora_B")}
    part = Path(f"{folder}.part")
    try:
        part.mkdir(parents=True, exist_ok=True)
        save_file(tensors, part / "adapter_model.safetensors")
        (part / "adapter_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
        Path(folder).mkdir(exist_ok=True)
        for file in part.iterdir():
            os.replace(file, Path(folder) / file.name)
        part.rmdir()
    except Exception as e:  # safetensors' own kind for a full disk among them
        shutil.rmtree(part, ignore_errors=True)
        raise UserError(f"{folder}: the adapter cannot be written ({e}); free some disk")


def base_name(folder):
    """The name of the model that an adapter was trained on."""
    path = Path(folder) / "adapter_config.json"
    try:
        name = json.loads(path.read_text(encoding="utf-8"))["base_model_name_or_path"]
        if not isinstance(name, str) or not name:
            raise TypeError(f"its base model is {name!r}")
        return name
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
        if not math.isfinite(config["lora_alpha"]):
            raise ValueError("its lora_alpha is not finite")
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
    parser = make_parser(__doc__)
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
