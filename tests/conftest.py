"""Shared by all tests: the scripts on the path, the embedded pair in 4-bit, the mark for GPU tests,
and the rule that a call which a library has deprecated is an error where this project makes it."""

import csv
import json
import os
import runpy
import signal
import sys
import warnings
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # as many processes as cores: one thread each, theirs too
    os.environ.setdefault("OMP_NUM_THREADS", "1")
import torch  # noqa: E402

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
OURS = r"(ovd|tasks|sample|score|train|__main__|(more\.|test_).*)\Z"  # our modules
# What a call passes through on its way from us to the function that warns.
BETWEEN = ("torch/nn/modules/module.py", "torch/utils/_contextlib.py", "/contextlib.py")


def is_ours(frame):
    """Is the function of this frame called by code of this project, tests included?"""
    caller = frame.f_back
    while caller and caller.f_code.co_filename.replace("\\", "/").endswith(BETWEEN):
        caller = caller.f_back
    path = Path(caller.f_code.co_filename if caller else "")
    return path.is_relative_to(ROOT) and "site-packages" not in path.parts


def strict(warn):
    """warnings.warn, but raising what is said of a deprecated call of ours.

    A filter cannot tell whose call it was: a library warns in its own name, or in torch's.
    """

    def strict_warn(message, category=None, stacklevel=1, *args, **kwargs):
        warning = message if isinstance(message, Warning) else (category or UserWarning)(message)
        deprecated = isinstance(warning, (FutureWarning, DeprecationWarning))
        if deprecated and is_ours(sys._getframe(1)):
            raise warning
        return warn(message, category, stacklevel + 1, *args, **kwargs)

    return strict_warn


def pytest_configure(config):
    config.addinivalue_line("markers", "gpu: needs a CUDA GPU (run them alone with: pytest -m gpu)")
    config.addinivalue_line("markers", "real: needs real models in the folder OVD_REAL_MODELS")
    config.addinivalue_line("markers", "slow: takes minutes (run them alone with: pytest -m slow)")
    warnings.warn = strict(warnings.warn)
    for kind in ("FutureWarning", "DeprecationWarning"):  # and those that Python itself gives
        config.addinivalue_line("filterwarnings", f"error::{kind}:{OURS}")


def pytest_collection_modifyitems(config, items):
    if not config.option.markexpr:  # the long ones only where they are asked for: pytest -m slow
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="takes minutes; run it with: pytest -m slow"))
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA GPU here"))


@pytest.fixture(scope="session")
def student():
    """(model with LoRA, tokenizer), 4-bit, on the CPU. Its adapters are left as found."""
    from more.flags import TINY
    from more.terminal import quiet
    from sample import load_student

    quiet()
    return load_student(TINY / "student", 4, "cpu")[:2]


@pytest.fixture(scope="session")
def teacher():
    """(model, tokenizer), 4-bit, on the CPU."""
    from more.flags import TINY
    from more.terminal import quiet
    from sample import load_model

    quiet()
    return load_model(TINY / "teacher", 4, "cpu", "--teacher")


@pytest.fixture
def fresh_student():
    """A student of the test's own, to train or break."""
    from more.flags import TINY
    from more.terminal import quiet
    from sample import load_student

    quiet()
    torch.manual_seed(0)
    return load_student(TINY / "student", 4, "cpu")[:2]


@pytest.fixture
def script(monkeypatch):
    """A script run in this process, as from the command line, without a GPU."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    def run_script(name, *args):
        monkeypatch.setattr(sys, "argv", [name, *map(str, args)])
        runpy.run_path(str(ROOT / name), run_name="__main__")

    return run_script


def rows_of(folder):
    """What a run's metrics.csv holds: a dict of texts a step."""
    return list(csv.DictReader(open(folder / "metrics.csv")))


def samples_of(folder):
    """What a run's samples.jsonl holds: a dict a trajectory."""
    return [json.loads(line) for line in open(folder / "samples.jsonl")]
