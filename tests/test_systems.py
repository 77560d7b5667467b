"""What macOS and Windows do otherwise, pretended here: nobody has run it there."""

import ast
import os
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import psutil
import pytest
import torch

import train
from more import compare, ladder, machine
from more.machine import pick_device

ROOT = Path(__file__).parent.parent
SCRIPTS = [*ROOT.glob("*.py"), *ROOT.glob("more/*.py"), *ROOT.glob("notebooks/*.py")]


@pytest.fixture(params=["darwin", "win32"])
def elsewhere(request, monkeypatch):
    """sys.platform is another, there is no /proc, and no C library is asked for anything."""
    def open_file(name, *_):
        raise FileNotFoundError(name)  # more/machine.py opens nothing but /proc

    monkeypatch.setattr(machine, "open", open_file, raising=False)
    monkeypatch.setattr(sys, "platform", request.param)
    monkeypatch.setattr(machine.ctypes, "CDLL", None)
    monkeypatch.setitem(sys.modules, "resource", None)  # Windows has none
    return request.param


def test_memory_is_what_psutil_says(elsewhere, monkeypatch):
    """Windows knows the peak of a process; macOS only what it holds now."""
    usage = {"win32": namedtuple("usage", "rss peak_wset")(100, 300),
             "darwin": namedtuple("usage", "rss")(100)}[elsewhere]
    monkeypatch.setattr(psutil.Process, "memory_info", lambda self: usage)
    expected = 300 if elsewhere == "win32" else 100
    assert machine.peak_bytes("cpu") == expected and machine.reset_peak("cpu") == 100  # held now
    machine.return_freed_memory()
    machine.keep_freed_memory()  # both do nothing
    assert ladder.free_bytes("cpu") > 0
    ladder.limit_memory(2**30)  # does nothing


@pytest.mark.skipif(not machine.glibc(), reason="glibc alone is told to keep freed memory")
def test_what_a_step_frees_is_there_for_the_next():
    """Ten tensors of 20 MiB, made and freed again and again, are soon not asked of the system."""
    code = ("import resource\n"
            "import more.libraries\n"
            "import torch\n"
            "for _ in range(8):  # where they lie settles after some\n"
            "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
            "    tensors = [torch.ones(5 * 2**20) for _ in range(10)]\n"
            "    del tensors\n"
            "    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)\n")
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                         env={**os.environ, "OMP_NUM_THREADS": "1"})
    pages = list(map(int, out.stdout.split()))  # of 4 KiB
    assert pages[0] > 40_000 and max(pages[-2:]) < 1_000


def test_a_run_goes_from_end_to_end(elsewhere, tmp_path, capsys):
    flags = ["--steps", "1", "--problems", "1", "--samples", "2", "--eval-problems", "2"]
    result = train.run(train.parse([*flags, "--out", str(tmp_path / "r")]))
    assert result["peak_bytes"] > 2**20 and "peak" in capsys.readouterr().out.splitlines()[-1]


def test_a_mac_computes_on_its_cpu(monkeypatch):
    """bitsandbytes has no 4-bit layer for MPS, so it is not used."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device() == "cpu"


def test_workers_are_spawned_as_they_are_on_every_system(monkeypatch):
    asked = []
    monkeypatch.setattr(compare.multiprocessing, "get_context", asked.append)
    with pytest.raises(AttributeError):
        compare.start_workers(1)
    assert asked == ["spawn"]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_text_is_written_and_read_in_utf8_everywhere(path):
    """Windows' default is another. A file of bytes has a mode with b."""
    for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        name = ast.unparse(call.func) if isinstance(call, ast.Call) else ""
        if name != "open" and not name.endswith((".read_text", ".write_text")):
            continue
        plain = [a.value for a in call.args if isinstance(a, ast.Constant)]
        bytes_or_kernel = any("b" in str(mode) for mode in plain[-1:] if name == "open") or any(
            str(value).startswith("/proc") for value in plain)
        assert bytes_or_kernel or "encoding" in {k.arg for k in call.keywords}, ast.unparse(call)


def test_no_name_of_a_file_holds_what_windows_forbids(tmp_path):
    args = compare.flags().parse_args(["--methods", "ovd --theta 3, ovd --teacher a:b?*", "--seeds", "1"])
    folders = [Path(run.out).name for run in compare.make_runs(args, tmp_path).values()]
    assert len(folders) == 2 and not any(set(name) & set('<>:"/\\|?*') for name in folders)
