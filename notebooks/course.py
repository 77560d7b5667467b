"""What the notebooks share: the scripts on the path, one plot style, the checks of the exercises.

    import course
    course.check("1.1", my_function)    # prints what is still missing, or "correct"

The embedded models run on the CPU here even where there is a GPU, so that everybody in a room gets
the same picture; the last section of each notebook brings the GPU back.
"""
import os
import shutil
import sqlite3
import subprocess
import sys
import warnings
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))
ASKED = os.environ.get("CUDA_VISIBLE_DEVICES")  # before it is hidden
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["TQDM_DISABLE"] = "1"  # progress bars are for terminals
warnings.filterwarnings("ignore", message="IProgress not found")  # of a bar that is off anyway

import matplotlib.pyplot as plt
import torch
from cycler import cycler
from huggingface_hub import try_to_load_from_cache
from IPython.display import HTML, display

FOLDERS = {"HuggingFaceTB/SmolLM2-135M-Instruct": "smollm2-135m"}  # in OVD_REAL_MODELS

GREYS = ["0.0", "0.45", "0.75"]  # filled areas, told apart in print
plt.rcParams.update({
    "figure.figsize": (10, 4.6),
    "figure.dpi": 90,
    "figure.constrained_layout.use": True,
    "font.size": 14,
    "axes.titlesize": 16,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "lines.linewidth": 3,
    # a colour, a dash and a grey of its own for each line
    "axes.prop_cycle": cycler(color=["black", "tab:blue", "tab:orange", "0.6"])
    + cycler(linestyle=["-", "--", ":", "-."]),
})
torch.set_printoptions(precision=4, sci_mode=False)


# ------------------------------------------------------------------------------- the real models
def has_gpu():
    """Is there a CUDA GPU? Its driver's own tool is asked, for from torch it is hidden."""
    tool = shutil.which("nvidia-smi")
    return tool is not None and subprocess.run([tool], capture_output=True).returncode == 0


def on_gpu(command):
    """Run one of the scripts on the GPU of this machine; without one, say so and do nothing.

    command: what stands behind "python", like "score.py --problems 3" or "-m more.ladder".
    """
    if not has_gpu():
        print(f"skipped, there is no GPU here:\npython {command}")
        return
    env = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
    run(command, env | ({"CUDA_VISIBLE_DEVICES": ASKED} if ASKED is not None else {}))


def with_weights(model, command):
    """Run one of the scripts with a hub model, where its weights are on this machine.

    They are if they were downloaded before, or in the folder that OVD_REAL_MODELS names, as
    tests/test_real.py has them. model: "OWNER/NAME"; command: as on_gpu's, with {} for the model.
    """
    folder = Path(os.environ.get("OVD_REAL_MODELS", "/nowhere"), FOLDERS[model])
    if not (folder.is_dir() or try_to_load_from_cache(model, "model.safetensors")):
        print(f"skipped, the weights are not here:\npython {command.format(model)}")
        return
    run(command.format(folder if folder.is_dir() else model), os.environ)


def run(command, env):
    """Run a script in a process of its own, and print what it prints."""
    with subprocess.Popen([sys.executable, *command.split()], cwd=ROOT, env=env, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
    if process.returncode:
        raise RuntimeError(f"it ended with exit code {process.returncode}: {command}")


# ------------------------------------------------------------------------------- a page
def show_page(path):
    """Show a page of more.report in a frame, and a link to it.

    A browser is given only what lies beside the notebook, so a copy goes to runs/report.html here.
    The notebook itself keeps no more than the address of that copy.
    """
    copy = HERE / "runs" / "report.html"
    copy.parent.mkdir(exist_ok=True)
    shutil.copy(path, copy)
    address = copy.relative_to(HERE).as_posix()
    display(HTML(f'<p><a href="{address}" target="_blank">the page by itself</a></p>'
                 f'<iframe src="{address}" width="100%" height="640"></iframe>'))


# ------------------------------------------------------------------------------- exercises
def check(exercise, answer):
    """Try the function `answer` on the cases of an exercise; print what is missing or "correct"."""
    try:
        for case, found, wanted in CASES[exercise](answer):
            if found is None and wanted is not None:
                raise AssertionError(f"{case}: None so far; write the body of the function")
            if not same(found, wanted):
                raise AssertionError(f"{case}: must be {show(wanted)}, is {show(found)}")
    except AssertionError as e:
        print(f"exercise {exercise}: still missing: {e}")
    except Exception as e:
        print(f"exercise {exercise}: it raises {type(e).__name__}: {e}")
    else:
        print(f"exercise {exercise}: correct")


def same(found, wanted):
    """Equal, and for numbers, lists and tensors of numbers equal but for rounding."""
    if wanted is None or isinstance(wanted, (bool, str)) or hasattr(wanted, "keys"):
        return found == wanted
    if isinstance(wanted, list) and any(isinstance(w, str) for w in wanted):
        return list(found) == wanted
    found, wanted = (torch.as_tensor(x, dtype=torch.float64) for x in (found, wanted))
    return found.shape == wanted.shape and torch.allclose(found, wanted, atol=1e-5)


def show(value):
    """A value as it stands in a sentence."""
    value = value.tolist() if isinstance(value, torch.Tensor) else value
    if isinstance(value, list) and value and isinstance(value[0], float):
        return str([round(v, 4) for v in value])
    return f"{value:.6g}" if isinstance(value, float) else repr(value)


def score_of(f):
    yield "all on digit 9", f([0.0] * 9 + [1.0]), 9.0
    yield "half on 4, half on 6", f([0, 0, 0, 0, 0.5, 0, 0.5, 0, 0, 0]), 5.0
    yield "ten equal probabilities", f([0.1] * 10), 4.5


def mixed_rewards(f):
    yield "nothing rejected", f([9.0, 8.0], [1.0, 0.0], 1.0, 5.0), [1.0, 0.0]
    yield "a score equal to theta", f([5.0, 4.9], [0.0, 0.0], 1.0, 5.0), [0.0, 1.0]
    yield "a right attempt, rejected by a wrong teacher", f([1.0], [1.0], 0.0, 5.0), [1.0]
    yield "a wrong attempt and a wrong teacher", f([1.0, 8.0], [0.0, 1.0], 0.0, 5.0), [0.0, 1.0]


def push(f):
    yield "one word, said once", f([2], [1.0], 4), [-0.25, -0.25, 0.75, -0.25]
    yield "praised and blamed alike", f([1, 1], [0.5, -0.5], 3), [0.0, 0.0, 0.0]
    yield "two words", f([0, 1, 0], [0.75, -0.25, 0.75], 2), [0.875, -0.875]


def dead_theta(f):
    yield "the group above", f([8.6, 2.9, 1.5, 5.2], [1, 0, 0, 0]), 6
    yield "nothing right at all", f([1.0, 2.0], [0, 0]), 0
    yield "a wrong one at 9.0", f([9.0, 1.0], [0, 1]), None


def auc(f):
    yield "right 3 and 2, wrong 1", f([3.0, 2.0], [1.0]), 1.0
    yield "right 1, wrong 3 and 0", f([1.0], [3.0, 0.0]), 0.5
    yield "a tie", f([2.0, 2.0], [2.0, 1.0]), 0.75


def taken_in(f):
    rows = [("a", 7.0, 1.0), ("b", 5.0, 0.0), ("c", 4.9, 0.0), ("d", 9.0, 0.0)]
    samples = [dict(zip(("text", "score", "reward"), row)) for row in rows]
    yield "theta 5", f(samples, 5), ["b", "d"]
    yield "theta 6", f(samples, 6), ["d"]


def learns_to_please(f):
    up, down = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [0.3, 0.2, 0.3, 0.1, 0.0, 0.1]
    yield "score up, reward down", f(up, down), True
    yield "both up", f(up, down[::-1]), False
    yield "both down", f(up[::-1], down), False
    yield "score up, reward as it was", f(up, [0.0] * 6), True


def interval(f):
    # mean 50; squared distances 4 + 1 + 0 + 1 + 4 = 10, so the standard error is root(10 / 4 / 5)
    yield "gains of 48, 49, 50, 51, 52", f([48.0, 49.0, 50.0, 51.0, 52.0]), [50.0, 2.78 * 0.5**0.5]
    yield "five equal gains", f([3.0] * 5), [3.0, 0.0]


def logits_bytes(f):
    yield "1 trajectory of 2 tokens, 3 words", f(1, 2, 3), 24
    yield "16 of 512, 151,936 words, 2 bytes", f(16, 512, 151936, 2), 2489319424


def longest_dense(f):
    yield "2,000 bytes, 10 words", f(2000, 10), 10
    yield "2,199 bytes, 10 words", f(2199, 10), 10


def in_chunks(f):
    rows, seen = torch.arange(10.0).view(5, 2), []

    def row_sums(part):
        seen.append(len(part))
        return part.sum(1)

    yield "row sums of five rows in chunks of 2", f(row_sums, 2, rows), [1.0, 5.0, 9.0, 13.0, 17.0]
    yield "the numbers of rows it was given", seen, [2, 2, 1]


def can_match(f):
    yield "two equal vocabularies", f({"a": 0, "b": 1}, {"b": 1, "a": 0}), True
    yield "another word", f({"a": 0, "b": 1}, {"a": 0, "c": 1}), False
    yield "one word more", f({"a": 0}, {"a": 0, "b": 1}), False
    yield "the same words in other rows", f({"a": 0, "b": 1}, {"a": 1, "b": 0}), False


def f1(f):
    yield "one word of two", f(["north", "hill"], ["north", "haven"]), 0.5
    yield "a word twice in both", f(["a", "b", "b", "c"], ["b", "b", "d"]), 4 / 7
    yield "a word twice in one", f(["b", "b"], ["b"]), 2 / 3
    yield "nothing said", f([], ["haven"]), 0.0


def mask(f):
    ask, told = ("student", ["<search>", "x", "</search>"]), ("environment", ["a", "b"])
    yield "a search and what came of it", f([ask, told]), [1, 1, 1, 0, 0]
    yield "an end by the teacher", f([ask, told, ("teacher", ["y", "stop"])]), [1, 1, 1, 0, 0, 1, 1]
    fake = ("student", ["<information>", "z"])
    yield "a student playing environment", f([fake, told]), [1, 1, 0, 0]


def supported(f):
    told = ["Olga Keller: a writer born in Port Selby.", "Port Selby: a city in Norland."]
    yield "one found, one not", f([("Norland", told), ("Mersia", told)]), 0.5
    yield "two words, another case", f([("port selby", told)]), 1.0
    yield "a part of a word", f([("Nor", told)]), 0.0
    yield "words that do not stand together", f([("Olga Selby", told)]), 0.0
    yield "no answer, and no passage", f([("", told), ("Norland", []), ("Norland", told)]), 1 / 3


def safe_query(f):
    db = sqlite3.connect(":memory:")
    db.execute("CREATE VIRTUAL TABLE passages USING fts5(text)")
    db.executemany("INSERT INTO passages VALUES (?)", [["one fox"], ["two foxes"], ["red and not"]])

    def found(text):
        if (query := f(text)) is None:
            return None
        try:
            rows = db.execute("SELECT text FROM passages WHERE passages MATCH ?", [query])
            return " + ".join(sorted(text for (text,) in rows))
        except sqlite3.Error as e:
            return f"an error, {e}"

    yield "one of two words", found("red wolf"), "red and not"
    yield "a question mark", found("fox?"), "one fox"
    yield "a quote that is never closed", found('two "fox'), "one fox + two foxes"
    yield "a command of FTS5", found("fox NOT fox"), "one fox + red and not"
    yield "a star", found("fox*"), "one fox"
    yield "brackets and columns", found("(text : fox) ^ {one} -"), "one fox"
    yield "no word at all", found(' "" ?! '), ""


CASES = {"1.1": score_of, "1.2": mixed_rewards, "1.3": push, "1.4": dead_theta}
CASES |= {"2.1": auc, "2.2": taken_in, "2.3": learns_to_please, "2.4": interval}
CASES |= {"3.1": logits_bytes, "3.2": longest_dense, "3.3": in_chunks, "3.4": can_match}
CASES |= {"4.1": f1, "4.2": mask, "4.3": supported, "4.4": safe_query}
