"""Takes a trained student home: merges a run's adapter into its base model, one folder for all.

    pip install -r more/requirements.txt                 # PEFT, which does the merging
    python -m more.export runs/NAME FOLDER

FOLDER then loads like any model, with from_pretrained or with `--student FOLDER`, and needs neither
this project nor PEFT. more/README.md says how it becomes a GGUF file for llama.cpp and Ollama.

The adapter is merged into the 16-bit base, W + (alpha / r) B A, and never into 4-bit weights, not
even those it was trained over. They are rounded, and the sum would be rounded to the same few steps
again: nearly every change that training makes is smaller than half such a step. bfloat16 rounds the
sum too, but no more coarsely than a model in bfloat16 rounds all it computes.
"""
import json
from pathlib import Path
from warnings import catch_warnings, filterwarnings

import torch
from transformers import AutoTokenizer

from more.terminal import UserError, fail_in_one_line, make_parser, quiet
from sample import load_model


def find_base(adapter):
    """The name of the model an adapter was trained on, a folder or of the hub."""
    path = Path(adapter) / "adapter_config.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UserError(f"{path}: no adapter to merge ({type(e).__name__}); give the --out of a "
                        "run of train.py")


def merge(adapter, dtype=torch.bfloat16):
    """The base model of an adapter/ folder with the adapter merged into its weights."""
    try:
        from peft import PeftModel
    except ImportError:
        raise UserError("merging needs PEFT: pip install -r more/requirements.txt")
    model, _ = load_model(find_base(adapter), 16, "cpu", f"the base model of {adapter}")
    try:
        with catch_warnings():
            filterwarnings("ignore", category=FutureWarning)  # PEFT's own calls
            filterwarnings("error", "Found missing adapter keys")  # else they are random numbers
            merged = PeftModel.from_pretrained(model.to(dtype), adapter).merge_and_unload()
        if not all(p.isfinite().all() for p in merged.parameters()):
            raise ValueError("it holds numbers that are not finite")
        return merged
    except Exception as e:  # whatever is wrong with its files
        raise UserError(f"{adapter}: does not fit its base model ({type(e).__name__}); give the "
                        "--out of another run")


def export(run, folder):
    """Write the merged model, its tokenizer and chat template to a new folder; returns the model.

    Raises UserError where there is no adapter, or where the folder has something in it.
    """
    adapter, folder = Path(run) / "adapter", Path(folder)
    base = find_base(adapter)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: is not empty; give a new folder")
    model = merge(adapter)
    try:
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(base).save_pretrained(folder)
        suit_older_readers(folder)
    except OSError as e:
        raise UserError(f"{folder}: cannot be written to ({type(e).__name__}); give another folder")
    return model


def suit_older_readers(folder):
    """Write names as they were before transformers 5, which llama.cpp's script looks for.

    Where it finds no rope_theta it takes 10,000, and the converted model says nonsense; where no
    rope_scaling, as of Llama 3.2, it scales nothing. The class of a tokenizer it cannot load at all
    under its new name.
    """
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    rope = dict(config.get("rope_parameters") or {})
    theta = rope.pop("rope_theta", None)
    if theta is not None:
        config["rope_theta"] = theta
        if rope.get("rope_type", "default") != "default":
            config["rope_scaling"] = rope
        path.write_text(json.dumps(config, indent=2), encoding="utf-8")
    path = folder / "tokenizer_config.json"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"TokenizersBackend"', '"PreTrainedTokenizerFast"'),
                    encoding="utf-8")


def main():
    """Export a run, and say what was written."""
    parser = make_parser(__doc__)
    parser.add_argument("run", help="the --out of a run of train.py")
    parser.add_argument("folder", help="a new folder for the merged model")
    args = parser.parse_args()
    quiet()
    model = export(args.run, args.folder)
    size = sum(path.stat().st_size for path in Path(args.folder).iterdir())
    print(f"{args.folder}: {find_base(Path(args.run) / 'adapter')} with the adapter of {args.run} "
          f"merged in, {model.num_parameters() / 1e6:.1f} M weights in bfloat16, "
          f"{size / 1e6:.1f} MB.")


if __name__ == "__main__":
    fail_in_one_line(main)
