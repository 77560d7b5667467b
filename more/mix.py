"""Mixes the weights of two models of one architecture: (1 - SHARE) A + SHARE B, matrix by matrix.

    python -m more.mix tiny/weak-teacher tiny/teacher 0.5 runs/half-way

FOLDER becomes a model like A and B, to be named wherever they can be: tokenizer and config are
A's. A share of 0 gives A and a share of 1 gives B, bit for bit.
"""
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from more.terminal import UserError, fail_in_one_line, make_parser


def read_weights(folder):
    """{name: tensor} of all safetensors files in a folder. UserError where there are none."""
    weights = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        try:
            weights |= load_file(path)
        except Exception as e:  # safetensors has an error of its own
            raise UserError(f"{path}: cannot be read ({e}); fetch the folder again")
    if not weights:
        raise UserError(f"{folder}: no model in safetensors there; give a model's folder")
    return weights


def mix_tensors(a, b, share, name):
    """(1 - share) a + share b of two tensors of one shape, in float32, rounded to a's type."""
    if a.shape != b.shape or a.dtype != b.dtype:
        raise UserError(f"{name} is {tuple(a.shape)} {a.dtype} in A and {tuple(b.shape)} {b.dtype} "
                        "in B; give two checkpoints of one model")
    if not a.is_floating_point():
        raise UserError(f"{name} holds {a.dtype}, no weights to mix; give models as first stored")
    if share in (0, 1):  # the ends are copied: not even the sign of a zero changes
        return b if share else a
    return ((1 - share) * a.float() + share * b.float()).to(a.dtype)


def mix(first, second, share, folder):
    """Write the mixture of two models' folders as a third -> how many numbers were mixed."""
    if not 0 <= share <= 1:
        raise UserError(f"SHARE {share} must lie between 0, all of A, and 1, all of B")
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"FOLDER {folder} exists and is not empty; give a new one")
    a, b = read_weights(first), read_weights(second)
    if apart := sorted(a.keys() ^ b.keys()):
        raise UserError(f"{apart[0]} is in {first if apart[0] in a else second} alone; give two "
                        "checkpoints of one model")
    mixed = {name: mix_tensors(a[name], b[name], share, name) for name in a}
    part = folder.with_name(f"{folder.name}.part")  # renamed at the end: whole, or not there
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for path in Path(first).iterdir():  # tokenizer, config, chat template
        if path.suffix in (".json", ".jinja", ".txt", ".model") and "index" not in path.name:
            shutil.copy(path, part / path.name)
    save_file(mixed, part / "model.safetensors", {"format": "pt"})
    if folder.exists():
        folder.rmdir()  # it is empty
    part.rename(folder)
    return sum(tensor.numel() for tensor in mixed.values())


def main():
    """Mix, and say what was mixed."""
    parser = make_parser(__doc__)
    parser.add_argument("A", help="folder of a model")
    parser.add_argument("B", help="folder of another checkpoint of it")
    parser.add_argument("SHARE", type=float, help="of B, from 0 to 1")
    parser.add_argument("FOLDER", help="where to write the mixture, new or empty")
    args = parser.parse_args()
    count = mix(args.A, args.B, args.SHARE, args.FOLDER)
    print(f"{args.FOLDER}: {count / 1e6:.1f} million weights, {1 - args.SHARE:.0%} {args.A} and "
          f"{args.SHARE:.0%} {args.B}.")


if __name__ == "__main__":
    fail_in_one_line(main)
