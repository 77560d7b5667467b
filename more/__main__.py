"""Lists what is in this folder: a script a line, and the first line of what it says of itself.

    python -m more
"""
import ast
from pathlib import Path


def first_lines(folder):
    """{name of a script: the first line of its docstring}, read without running any of them."""
    lines = {}
    for path in sorted(Path(folder).glob("*.py")):
        if not path.stem.startswith("__"):
            said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            lines[path.stem] = said.partition("\n")[0]
    return lines


def main():
    """Print the list."""
    lines = first_lines(Path(__file__).parent)
    width = max(map(len, lines))
    for name, line in lines.items():
        print(f"python -m more.{name:{width}}  {line}")
    print(f"\n{len(lines)} scripts, run from the folder above; --help explains each.")


if __name__ == "__main__":
    main()
