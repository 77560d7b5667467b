"""Puts a Colab badge on top of each notebook, and the lines that fetch the repository there.

    python notebooks/colab.py OWNER/REPO    # its place on GitHub: your fork, if you teach from one

Run once more with another address, it replaces both. Anywhere but on Colab the lines do nothing.
"""
import json
import re
import sys
from pathlib import Path

SITE = "https://colab.research.google.com"
FETCH = """\
import os, sys
if "google.colab" in sys.modules:  # fetch the scripts and the models, and go to this folder
    !git clone -q https://github.com/{repo} ovd && pip install -q -r ovd/requirements.txt
    os.chdir("ovd/notebooks")
"""


def put_first(cell, lines, old):
    """Write lines at the beginning of a cell, in place of those there that match old."""
    source = re.sub(f"^{old}", "", "".join(cell["source"]))
    cell["source"] = (lines + source).splitlines(keepends=True)


def lead_to(repo, path):
    """Write badge and lines for "OWNER/REPO" into the notebook at path."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    title, code = (next(c for c in notebook["cells"] if c["cell_type"] == kind)
                   for kind in ("markdown", "code"))
    address = f"{SITE}/github/{repo}/blob/main/notebooks/{path.name}"
    badge = f"[![Open in Colab]({SITE}/assets/colab-badge.svg)]({address})\n\n"
    put_first(title, badge, r"\[!\[Open in Colab.*\n\n")
    put_first(code, FETCH.format(repo=repo), r"import os, sys\n(.*\n)*?    os.chdir.*\n")
    text = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8")


def main():
    """Lead every notebook to one repository."""
    if len(sys.argv) != 2 or not re.fullmatch(r"[\w.-]+/[\w.-]+", sys.argv[1]):
        print("error: give the repository's place on GitHub, like OWNER/REPO", file=sys.stderr)
        sys.exit(2)
    paths = sorted(Path(__file__).resolve().parent.glob("*.ipynb"))
    for path in paths:
        lead_to(sys.argv[1], path)
    print(f"{len(paths)} notebooks open on Colab from {sys.argv[1]}, branch main.")


if __name__ == "__main__":
    main()
