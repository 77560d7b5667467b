"""Runs every notebook and every solution from top to bottom, as a reader would, and judges them.

    python notebooks/check.py                    # what continuous integration runs
    python notebooks/check.py --write            # the same, and keep new outputs and run times
    python notebooks/check.py --same 1_by_hand   # one notebook; it must print what is stored

It fails on an error, on anything a cell writes to stderr, on a path of this machine in an output,
on outputs over 1 MB, on a notebook outside 30-40 cells, on a code cell over 25 lines or a median
over 8, and on an exercise whose stub is "correct" already or whose solution is not.
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

HERE = Path(__file__).resolve().parent
EXERCISE = re.compile(r'course\.check\("([\d.]+)"')


def exercises(notebook):
    """The numbers of its exercises, in order."""
    return EXERCISE.findall("\n".join(c.source for c in notebook.cells))


def printed(cell, stream="stdout"):
    """What a cell wrote to a stream."""
    return "".join(o.text for o in cell.get("outputs", []) if o.get("name") == stream)


# ------------------------------------------------------------------------------- faults
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


def faults_of_run(notebook):
    """What is wrong with what it printed and showed, as sentences."""
    text = "\n".join(map(printed, notebook.cells))
    for number in exercises(notebook):
        if f"exercise {number}: still missing" not in text:
            yield f"does not say what is still missing in exercise {number}"
    outputs = str([c.get("outputs", []) for c in notebook.cells])
    if str(HERE.parent) in outputs or str(Path.home()) in outputs or "/tmp/" in outputs:
        yield "shows a path of this machine"
    if len(outputs) > 1e6:
        yield f"holds {len(outputs) / 1e6:.1f} MB of outputs, over 1"
    for cell in notebook.cells:
        if litter := printed(cell, "stderr").strip():
            yield f"writes to stderr: {litter.splitlines()[-1][:90]}"


def faults_of_solution(path, notebook):
    """Is every exercise solved "correct"? What is wrong, as sentences."""
    if not path.exists():
        yield f"has no solutions in {path.name}"
        return
    run = subprocess.run([sys.executable, path], capture_output=True, text=True)
    lines = run.stdout.splitlines()
    if run.returncode:
        yield f"solutions end in an error: {run.stderr.strip().splitlines()[-1]}"
    for number in exercises(notebook):
        if f"exercise {number}: correct" not in lines:
            yield f'the solution of exercise {number} does not print "correct"'


def differences(old, new):
    """Cells whose printed text is not the stored one; cells tagged "measured" may differ."""
    for i, (a, b) in enumerate(zip(old.cells, new.cells), 1):
        if printed(a) != printed(b) and "measured" not in b.metadata.get("tags", []):
            yield f"cell {i} printed other text than is stored"


# ------------------------------------------------------------------------------- running
def note_run_time(notebook, seconds):
    """Put the measured run time and the machine into the notebook's first cell."""
    cpu = platform.processor()
    if Path("/proc/cpuinfo").exists():
        models = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
        cpu = models[0] if models else cpu
    machine = f"{os.cpu_count()} cores ({cpu.strip()}), no GPU"
    line = f"**Run time: {seconds:.0f} s** from top to bottom on {machine}."
    first = notebook.cells[0]
    first.source = re.sub(r"\*\*Run time:.*", line, first.source)


def run_notebook(path, write, same):
    """Run one notebook and its solutions -> (its faults as sentences, seconds)."""
    old, notebook, began = nbformat.read(path, 4), nbformat.read(path, 4), time.time()
    client = NotebookClient(notebook, timeout=900, record_timing=False,
                            resources={"metadata": {"path": str(HERE)}})
    client.extra_arguments = ["--log-level=ERROR"]
    try:
        client.execute()
        seconds = time.time() - began
        if write:
            note_run_time(notebook, seconds)
            notebook.metadata["language_info"] = {"name": "python"}
            nbformat.write(notebook, path)
        faults = [*faults_of_run(notebook), *(differences(old, notebook) if same else [])]
    except Exception as e:  # whatever a cell raised
        faults, seconds = [f"fails: {e}"], time.time() - began
    faults += faults_of_form(notebook)
    faults += faults_of_solution(HERE / "solutions" / f"{path.stem}.py", notebook)
    return faults, seconds


def main():
    """Run the notebooks, and say what is wrong with each."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    every = sorted(path.stem for path in HERE.glob("*.ipynb"))
    parser.add_argument("names", nargs="*", help="notebooks without .ipynb [all]")
    parser.add_argument("--write", action="store_true", help="keep the new outputs")
    parser.add_argument("--same", action="store_true", help="outputs must equal the stored ones")
    args = parser.parse_args()
    if unknown := set(args.names) - set(every):
        parser.error(f"no notebook {unknown.pop()}; there are {', '.join(every)}")
    names, began, bad = args.names or every, time.time(), 0
    for name in names:
        faults, seconds = run_notebook(HERE / f"{name}.ipynb", args.write, args.same)
        print(f"{name}: {'; '.join(faults) or 'correct'}, {seconds:.0f} s", flush=True)
        bad += len(faults) > 0
    print(f"\n{len(names) - bad} of {len(names)} notebooks are correct, with their solutions, in "
          f"{time.time() - began:.0f} s.")
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
