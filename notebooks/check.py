"""Runs every notebook and every solution from top to bottom, as a reader would, and judges them.

python notebooks/check.py                   # what continuous integration runs
python notebooks/check.py --write           # the same, and keep new outputs and run times
python notebooks/check.py --same 1_by_hand  # one notebook; its outputs must equal the stored ones

It fails on an error, on anything a cell writes to stderr, on a notebook outside 30-40 cells, on a
code cell over 25 lines or a median over 8, and on an exercise whose stub is "correct" already or
whose solution is not.
"""

import argparse
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent
EXERCISE = re.compile(r'course\.check\("([\d.]+)"')


def faults_of_form(notebook):
    """What is wrong with its lengths, as sentences."""
    lines = [len(c.source.splitlines()) for c in notebook.cells if c.cell_type == "code"]
    if not 30 <= len(notebook.cells) <= 40:
        yield f"has {len(notebook.cells)} cells, not 30 to 40"
    if max(lines) > 25:
        yield f"has a code cell of {max(lines)} lines, over 25"
    if median(lines) > 8:
        yield f"has code cells of {median(lines)} lines in the median, over 8"
    if not 3 <= len(exercises(notebook)) <= 5:
        yield f"has {len(exercises(notebook))} exercises, not 3 to 5"


def exercises(notebook):
    """The numbers of its exercises, in order."""
    return EXERCISE.findall("\n".join(c.source for c in notebook.cells))


def printed(cell, stream="stdout"):
    """What a cell wrote to a stream."""
    return "".join(o.text for o in cell.get("outputs", []) if o.get("name") == stream)


def faults_of_run(notebook):
    """What is wrong with what it printed."""
    text = "\n".join(printed(c) for c in notebook.cells)
    for number in exercises(notebook):
        if f"exercise {number}: still missing" not in text:
            yield f"does not say what is still missing in exercise {number}"
    if str(FOLDER.parent) in text or str(Path.home()) in text:
        yield "prints a path of this machine"
    for cell in notebook.cells:
        if litter := printed(cell, "stderr").strip():
            yield f"writes to stderr: {litter.splitlines()[-1][:90]}"


def faults_of_solution(path, notebook):
    """Is every exercise solved "correct"?"""
    if not path.exists():
        yield f"has no solutions in {path.name}"
        return
    run = subprocess.run([sys.executable, path], capture_output=True, text=True)
    said = run.stdout.splitlines()
    if run.returncode:
        yield f"solutions end in an error: {run.stderr.strip().splitlines()[-1]}"
    for number in exercises(notebook):
        if f"exercise {number}: correct" not in said:
            yield f'the solution of exercise {number} does not print "correct"'


def differences(old, new):
    """Cells whose printed text is not the stored one; cells tagged "measured" may differ."""
    for i, (a, b) in enumerate(zip(old.cells, new.cells), 1):
        if printed(a) != printed(b) and "measured" not in b.metadata.get("tags", []):
            yield f"cell {i} printed other text than is stored"


def note_run_time(notebook, seconds):
    """Put the measured run time and the machine into the notebook's first cell."""
    cpu = platform.processor()
    if Path("/proc/cpuinfo").exists():
        said = Path("/proc/cpuinfo").read_text()
        cpu = (re.findall(r"model name\s*: (.*)", said) or [cpu])[0]
    machine = f"{os.cpu_count()} cores ({cpu.strip()}), no GPU"
    line = f"**Run time: {seconds:.0f} s** from top to bottom on {machine}."
    first = notebook.cells[0]
    first.source = re.sub(r"\*\*Run time:.*", line, first.source)


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("names", nargs="*", help="notebooks without .ipynb [all]")
    p.add_argument("--write", action="store_true", help="keep the new outputs")
    p.add_argument("--same", action="store_true", help="outputs must equal the stored ones")
    args = p.parse_args()
    names = args.names or sorted(f.stem for f in FOLDER.glob("*.ipynb"))
    faults = []
    for name in names:
        path, began, took = FOLDER / f"{name}.ipynb", time.time(), ""
        old, notebook = nbformat.read(path, 4), nbformat.read(path, 4)
        here = {"metadata": {"path": str(FOLDER)}}
        client = NotebookClient(notebook, timeout=900, record_timing=False, resources=here)
        client.extra_arguments = ["--log-level=ERROR"]
        try:
            client.execute()
            seconds = time.time() - began
            took = f", {seconds:.0f} s"
            if args.write:
                note_run_time(notebook, seconds)
                notebook.metadata["language_info"] = {"name": "python"}
                nbformat.write(notebook, path)
            mine = [*faults_of_run(notebook), *(differences(old, notebook) if args.same else [])]
        except Exception as e:
            mine = [f"fails: {e}"]
        mine += faults_of_form(notebook)
        mine += faults_of_solution(FOLDER / "solutions" / f"{name}.py", notebook)
        print(f"{name}: {'; '.join(mine) or 'correct'}{took}", flush=True)
        faults += mine
    sys.exit(len(faults) > 0)


if __name__ == "__main__":
    main()
