"""Lists what is in this folder: a file a line, and the first line of what it says of itself.

    python -m more
"""
import ast
from pathlib import Path


def first_lines(folder):
    """{name: (the first line of its docstring, whether it is a script)}, without running any."""
    lines = {}
    for path in sorted(Path(folder).glob("*.py")):
        if not path.stem.startswith("__"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            said = ast.get_docstring(tree) or ""
            lines[path.stem] = said.partition("\n")[0], isinstance(tree.body[-1], ast.If)
    return lines


def main():
    """Print the list."""
    lines = first_lines(Path(__file__).parent)
    width = max(map(len, lines))
    for title, wanted in (("scripts, run from the folder above; --help explains each", True),
                          ("parts that the scripts import", False)):
        print(f"{title}\n")
        for name, (line, script) in lines.items():
            if script == wanted:
                print(f"{'python -m' if script else '         '} more.{name:{width}}  {line}")
        print()
    scripts = sum(script for _, script in lines.values())
    print(f"{scripts} scripts, and {len(lines) - scripts} parts that they import.")


if __name__ == "__main__":
    main()
