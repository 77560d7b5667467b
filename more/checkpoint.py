"""So that a run goes on where it was stopped: the same command with the same --out.

train.py calls the functions below. A run marks its folder with run.json, the flags it was asked
for, and every half minute, after a step, all that the next step depends on is written to one file:
adapter, optimiser, random state, and what is counted so far. The file is written under another
name and then renamed, so it is there and whole, or not there. It holds safetensors and JSON alone.

    python -m more.checkpoint runs/NAME    # how far a run is
"""
import json
import os
import shutil
import time
from pathlib import Path
from textwrap import shorten

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from more.terminal import UserError, fail_in_one_line, make_parser
from sample import Trajectory

NAME = "checkpoint.safetensors"
LOGS = ("metrics.csv", "samples.jsonl")
SECONDS = 30  # at least so long between two checkpoints
LAST = {}  # folder: when its training began, or its last checkpoint was written, in seconds


# ------------------------------------------------------------------------------- a run's folder
def find_run(args):
    """(folder of the run, what its result.json holds if it is finished, else None).

    Nothing is written yet: what is wrong with models or problems is found first. UserError where
    the folder holds a run with other flags, anything else with a run's files, or cannot be made.
    """
    out = Path(args.out or time.strftime("runs/%Y%m%d-%H%M%S"))
    try:
        files = [out / name for name in (*LOGS, "result.json", NAME)]
        if (out / "run.json").exists():
            before = read_object(out / "run.json")
            if any(file.exists() and file.stat().st_size for file in files):  # it took a step
                refuse_changes(before, vars(args), out)
        elif any(file.exists() for file in files):
            raise UserError(f"--out {out} holds another run; give a new folder")
        check_place(out)
        if (out / "result.json").exists():
            result = read_object(out / "result.json")
            if not {"before", "after", "settings"} <= {*result}:
                raise UserError(f"--out {out}: its result.json is damaged; give a new folder")
            return out, result
    except (OSError, ValueError) as e:  # a NUL in its name is a ValueError
        raise UserError(f"--out {shorten(str(out), 200)!r}: no folder to write to ({e}); name "
                        "another")
    return out, None


def check_place(out):
    """UserError where a folder cannot be made, or not be written to."""
    above = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise UserError(f"--out {out}: {above} is no folder to write to; name another")


def read_object(path):
    """The JSON object in a file. UserError: it is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it is no JSON object")
        return content
    except (ValueError, RecursionError) as e:
        raise UserError(f"--out {path.parent}: its {path.name} is damaged ({e}); give a new folder")


def begin(out, flags, student=None):
    """Make a run's folder and mark it with its flags. Where no step was kept, logs are emptied.

    UserError: there is no room for what the run will save of the student, or no such place.
    """
    # A checkpoint holds the weights that learn three times, and the one before it stays until it
    # is written. So does the adapter.
    need = sum(32 * p.numel() for p in trained(student)) if student else 0
    try:
        out.mkdir(parents=True, exist_ok=True)
        room = shutil.disk_usage(out).free
        if room < need:
            raise OSError(f"{room / 2**20:,.0f} MiB are free of {need / 2**20:,.0f} that it needs")
        flags = {name: value for name, value in flags.items() if name != "out"}
        write_whole(out / "run.json", json.dumps(flags) + "\n")
        if not (out / NAME).exists():
            for name in LOGS:
                open(out / name, "wb").close()
    except (OSError, ValueError) as e:
        raise UserError(f"--out {out}: cannot be written to ({e}); free some disk, or name another")


def refuse_changes(before, now, out):
    """UserError that names the first flag that is not as it was.

    Where a run is kept, and whether its page is written, may differ.
    """
    for name, value in now.items():
        if name not in ("out", "report") and before.get(name) != value:
            flag = f"--{name.replace('_', '-')}"
            raise UserError(f"--out {out} holds a run with another {flag} ({flag} "
                            f"{before.get(name)}, not {value}); give the same flags, or a new "
                            "folder")


def finish(out, result):
    """Write result.json; what was kept to go on from is no longer needed."""
    write_whole(out / "result.json", json.dumps(result, indent=2) + "\n")
    (out / NAME).unlink(missing_ok=True)


def write_whole(path, text):
    """Write a file that is either there and complete, or not there."""
    part = Path(f"{path}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


# ------------------------------------------------------------------------------- saving
def save(out, student, optimiser, teacher, rows, problems, args):
    """Write the checkpoint of the step that rows end with, if the last one is old enough.

    problems: those of the run, in their order.
    """
    now = time.time()
    if now - LAST[out] < SECONDS:
        return
    tensors = {"random": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    for i, p in enumerate(trained(student)):
        tensors[f"{i}"] = p.detach().cpu().contiguous()
        for name, value in optimiser.state[p].items():  # step, and two running means
            tensors[f"{i}.{name}"] = value.detach().cpu().contiguous()
    state = {"rows": rows, "theta": args.theta, "written": pack(teacher, problems),
             "sizes": {name: (out / name).stat().st_size for name in LOGS}}
    part = out / f"{NAME}.part"
    try:
        save_file(tensors, part, {"state": json.dumps(state)})
        os.replace(part, out / NAME)
    except Exception as e:  # safetensors' own kind for a full disk among them
        part.unlink(missing_ok=True)
        raise UserError(f"--out {out}: its checkpoint cannot be written ({e}); free some disk, and "
                        "start the same command again")
    LAST[out] = now


def trained(student):
    """The weights that learn, in their order."""
    return [p for p in student.parameters() if p.requires_grad]


def pack(teacher, problems):
    """What the teacher has written so far, as rows of JSON.

    Which problem a text belongs to is told by its place among those of the run: in search two
    worlds may have one question, with another answer each.
    """
    place = {problem: i for i, problem in enumerate(dict.fromkeys(problems))}
    return [] if teacher is None else [
        [place[problem], problem.question, beginning, t.text, t.stopped, t.reward,
         len(t.prompt_ids), sum(t.mask)] for (problem, beginning), t in teacher.written.items()]


# ------------------------------------------------------------------------------- going on
def load(out, student, optimiser, teacher, problems, args):
    """Put everything back as it was after the last step that was kept -> the rows so far, or [].

    problems: those of the run, to which the texts of the teacher belong.
    """
    LAST[out] = time.time()  # a first step that takes minutes is kept at once
    if not (out / NAME).exists():
        return []
    try:
        with safe_open(out / NAME, "pt") as file:
            state = json.loads(file.metadata()["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        for i, p in enumerate(trained(student)):
            p.data.copy_(tensors[f"{i}"])
            optimiser.state[p] = {name.partition(".")[2]: value.to(
                p.device if value.dim() else "cpu") for name, value in tensors.items()
                if name.startswith(f"{i}.")}
        torch.set_rng_state(tensors["random"])
        if "random.cuda" in tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(tensors["random.cuda"])
        for name, size in state["sizes"].items():  # lines of a step that was not kept
            os.truncate(out / name, size)
        args.theta = state["theta"]
        unpack(state["written"], teacher, problems)
        return state["rows"]
    except UserError:
        raise
    except Exception as e:
        raise UserError(f"--out {out}: its {NAME} is damaged ({type(e).__name__} {e}); delete that "
                        "file to begin the run anew, or give a new folder")


def unpack(written, teacher, problems):
    """Give a teacher back what it had written: texts, and how long they were."""
    problems = list(dict.fromkeys(problems))  # the places that pack() tells
    for i, question, beginning, text, stopped, reward, read, tokens in written:
        if i >= len(problems) or problems[i].question != question:
            raise UserError("--out holds a run on other problems, so --data has changed; restore "
                            "that file, or give a new folder")
        teacher.written[problems[i], beginning] = Trajectory(
            problems[i], prompt_ids=[0] * read, mask=[1] * tokens, stopped=stopped, text=text,
            reward=reward)


def main():
    """Say how far a run is."""
    parser = make_parser(__doc__)
    parser.add_argument("folder", help="the --out of a run")
    folder = Path(parser.parse_args().folder)
    try:
        with safe_open(folder / NAME, "pt") as file:
            rows = json.loads(file.metadata()["state"])["rows"]
        steps = json.loads((folder / "run.json").read_text(encoding="utf-8"))["steps"]
    except Exception as e:
        raise UserError(f"{folder}: no checkpoint of an unfinished run ({type(e).__name__}); give "
                        "the --out of a run that was stopped")
    print(f"{folder}: {len(rows)} of {steps} steps are kept; the command that began it goes on.")


if __name__ == "__main__":
    fail_in_one_line(main)
