"""A comparison: which runs it makes, what it may remove, how it goes on, and its table."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from itertools import combinations
from pathlib import Path
from threading import Thread

import psutil
import pytest

import train
from more import compare as comparing
from more.checkpoint import begin
from more.flags import run_flags
from more.terminal import UserError, fail_in_one_line

ROOT = Path(__file__).parent.parent
SHORT = "--one-shot --steps 2 --eval-problems 4 --max-new-tokens 24 --problems 2".split()


def compare(monkeypatch, *flags):
    """python -m more.compare, in this process."""
    monkeypatch.setattr(sys, "argv", ["compare.py", *map(str, flags)])
    comparing.STARTS.clear()
    comparing.main()


@pytest.mark.parametrize(
    "flags, says",
    [
        (["--seeds", "0"], "--seeds"),
        (["--method", "grpo"], "--method grpo: name what is compared in --methods"),
        (["--seed", "7"], "--seed 7: a comparison takes the seeds 0, 1, ..."),
        (["--jobs", "0"], "--jobs"),
        (["--methods", "ovd, ovd --theta 12"], "--theta 12"),
        (["--methods", "ovd, ovd --no-such-flag"], "--no-such-flag"),
        (["--methods", ","], "--methods"),
        (["--methods", "ovd --theta '5"], "--methods"),
        (["--methods", "ovd, grpo --samples 1 --problems 1"], "group of one"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, flags, says):
    flags = ["--eval-problems", "5", "--out", str(tmp_path / "new"), *flags]
    monkeypatch.setattr(sys, "argv", ["compare.py", *flags])
    with pytest.raises(SystemExit) as e:
        fail_in_one_line(comparing.main)
    assert e.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert says in line and line.startswith("error: ")
    assert not (tmp_path / "new").exists()


def test_two_methods_that_would_share_a_folder(tmp_path):
    methods = ["--methods", "ovd --out a/b, ovd --out a_b", "--out", str(tmp_path)]
    with pytest.raises(UserError, match="one folder"):
        comparing.compare(comparing.flags().parse_args(methods))


def test_a_run_has_the_common_flags_those_of_its_method_and_its_seed(tmp_path):
    flags = ["--methods", "ovd --theta 3, grpo", "--seeds", "2", "--theta", "4", "--lr", "0.1"]
    runs = comparing.make_runs(comparing.flags().parse_args(flags), tmp_path)
    assert list(runs) == [("ovd --theta 3", 0), ("grpo", 0), ("ovd --theta 3", 1), ("grpo", 1)]
    wanted = run_flags(None).parse_args(["--method", "ovd", "--theta", "3", "--lr", "0.1", "--seed",
                                       "1", "--out", str(tmp_path / "ovd_--theta_3-1")])
    assert runs["ovd --theta 3", 1] == wanted and runs["grpo", 0].theta == 4


def test_interval_by_hand():
    """Mean 2, standard deviation 1, so 4.30 / sqrt(3) either way."""
    assert comparing.interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, 2.483), abs=1e-3)
    alone = comparing.interval([5.0])
    assert alone[0] == 5.0 and math.isnan(alone[1])


def test_pass_at_k_by_hand_and_by_enumeration():
    pass_at_k = comparing.pass_at_k
    assert pass_at_k(4, 1, 2) == pytest.approx(1 / 2)  # 3 of the 6 pairs hold the right one
    assert pass_at_k(16, 0, 8) == 0 and pass_at_k(8, 1, 8) == 1
    for right in range(7):
        groups = list(combinations([1] * right + [0] * (6 - right), 3))
        assert pass_at_k(6, right, 3) == pytest.approx(sum(map(max, groups)) / len(groups))


def table_without_seconds(folder):
    rows = list(csv.DictReader(open(folder / "compare.csv")))
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def test_a_comparison_interrupted_goes_on_to_the_same_table(tmp_path, monkeypatch):
    """Stopped in the middle of its third run of four, and started again."""
    flags = ["--methods", "ovd, grpo --samples 4", "--seeds", "2", "--jobs", "1", *SHORT]
    evaluate, tested = train.evaluate, []
    monkeypatch.setattr(train, "evaluate", lambda *args: tested.append(1) or evaluate(*args))
    compare(monkeypatch, *flags, "--out", tmp_path / "alone")
    assert len(tested) == 2 * (1 + 2)  # the methods of a seed share the test before training
    before = [json.loads((tmp_path / f"alone/{name}/result.json").read_text())["before"]
              for name in ("ovd-0", "grpo_--samples_4-0", "ovd-1")]
    assert before[0] == before[1] != before[2]
    update, calls = train.update, []

    def break_off(*args):
        calls.append(1)
        if len(calls) > 5:  # whatever begins after the power cut gets no further either
            raise RuntimeError("power cut")
        return update(*args)

    monkeypatch.setattr(train, "update", break_off)
    broken = tmp_path / "broken"
    with pytest.raises(RuntimeError):
        compare(monkeypatch, *flags, "--out", broken)
    assert len(list(broken.glob("*/result.json"))) == 2
    assert not (broken / "compare.csv").exists()
    (cut,) = (p.parent for p in broken.glob("*/log.txt") if not (p.parent / "result.json").exists())
    (cut / "notes.txt").write_text("mine")
    again = []
    monkeypatch.setattr(train, "update", lambda *args: again.append(1) or update(*args))
    compare(monkeypatch, *flags, "--out", broken)
    assert len(again) == 4  # the two that were finished are not run again
    assert table_without_seconds(broken) == table_without_seconds(tmp_path / "alone")
    assert len(table_without_seconds(tmp_path / "alone")) == 4
    assert "| `grpo --samples 4` |" in (tmp_path / "alone/compare.md").read_text()
    assert (cut / "notes.txt").read_text() == "mine"
    with pytest.raises(UserError, match="another --lr"):
        compare(monkeypatch, *flags, "--lr", "0.001", "--out", tmp_path / "alone")
    one_row = (cut / "metrics.csv").read_text().splitlines()
    assert len(one_row) == 3  # nothing of the run that was cut short is left in front


def one_run(folder, *flags):
    """The only run of a comparison in `folder`."""
    args = comparing.flags().parse_args(["--methods", "ovd", "--seeds", "1", *flags])
    (run,) = comparing.make_runs(args, folder).values()
    return run


def files_in(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes()
            for p in folder.rglob("*") if p.is_file()}


def test_a_folder_that_no_comparison_began_is_refused_and_left_as_it_is(tmp_path):
    folder = tmp_path / "ovd-0"
    (folder / "adapter").mkdir(parents=True)
    for name in ("metrics.csv", "samples.jsonl", "adapter/adapter_config.json", "thesis.tex"):
        (folder / name).write_text("mine")
    before = files_in(folder)
    with pytest.raises(UserError, match="no run began it"):
        comparing.compare(comparing.flags().parse_args(
            ["--methods", "ovd", "--seeds", "1", "--out", str(tmp_path)]))
    assert files_in(folder) == before
    other = one_run(tmp_path / "b")
    (tmp_path / "b").mkdir()
    (tmp_path / "b/ovd-0").write_text("a file")
    with pytest.raises(UserError, match="is no folder"):
        comparing.finished(other)


def test_of_a_run_cut_short_nothing_is_removed(tmp_path):
    """It goes on from its checkpoint, and a file that no run writes stays where it is."""
    small = ["--steps", "1", "--problems", "1", "--eval-problems", "4"]
    run = one_run(tmp_path, *small)
    folder = tmp_path / "ovd-0"
    begin(Path(run.out), vars(run))
    for name in ("log.txt", "result.json.part", "notes.txt"):
        (folder / name).write_text("x")
    before = files_in(folder)
    assert comparing.finished(run) is None and files_in(folder) == before
    comparing.run_one(run)
    after = files_in(folder)
    assert after["notes.txt"] == b"x" and after["log.txt"].startswith(b"x")
    assert comparing.finished(one_run(tmp_path, *small))["after"]["pass_at_8"] >= 0
    with pytest.raises(UserError, match="another --lr"):
        comparing.finished(one_run(tmp_path, *small, "--lr", "0.1"))


def result_of(run, after=0.5, **figures):
    """What result.json of a run may hold."""
    test = {"pass_at_1": 0.2, "greedy": 0.1, "entropy": 0.4, "n": 4}
    return {"before": test, "after": {**test, "pass_at_1": after, "pass_at_8": 1.0, **figures},
            "tied_groups": 1, "seconds": 2.0, "asked": vars(run),
            "budget": {"student_sampled": 1500, "teacher_read": 10, "teacher_written": 0}}


def test_a_result_that_no_run_began_is_refused(tmp_path):
    run = one_run(tmp_path)
    (tmp_path / "ovd-0").mkdir()
    (tmp_path / "ovd-0/result.json").write_text(json.dumps(result_of(run)))
    with pytest.raises(UserError, match="no run began it"):
        comparing.finished(run)


@pytest.mark.parametrize("how", ["cut short", "a list", "another kind", "text for a number"])
def test_a_result_that_cannot_be_read_is_one_line_that_names_the_file(tmp_path, how):
    run = one_run(tmp_path)
    whole = result_of(run)
    without = {k: v for k, v in whole.items() if k != "budget"}
    text = {"cut short": json.dumps(whole)[:50], "a list": "[1]",
            "another kind": json.dumps(without),
            "text for a number": json.dumps(whole | {"seconds": "x"})}[how]
    begin(Path(run.out), vars(run))
    (tmp_path / "ovd-0/result.json").write_text(text)
    with pytest.raises(UserError) as e:
        comparing.finished(run)
    assert str(tmp_path / "ovd-0/result.json") in str(e.value) and "\n" not in str(e.value)
    (tmp_path / "ovd-0/result.json").write_text(json.dumps(whole))
    assert comparing.finished(run) == whole


def test_the_table_by_hand(tmp_path, capsys):
    """Gains of 30 and 50 points, and of 10 and 20: 12.71 x 14.14 / sqrt(2) = 127.1 either way."""
    figures = {}
    for name, gains in {"ovd": (0.5, 0.7), "sft": (0.3, 0.4)}.items():
        for seed, after in enumerate(gains):
            run = one_run(tmp_path)
            figures[name, seed] = comparing.figures_of(result_of(run, after))
    comparing.write_tables(tmp_path, figures)
    head, line, ovd, sft = (tmp_path / "compare.md").read_text().splitlines()
    assert head == ("| method | before | after | gain | ovd beyond it | greedy | pass@8 | entropy |"
                    " tied | s | sampled | read | written |")
    assert line == "|" + 13 * " --- |"
    assert ovd == ("| `ovd` | 20.0 | 60.0 | +40.0 ± 127.1 | – | 10.0 | 100.0 | 0.40 | 1.0 | 2 | "
                   "1.5k | 0.0k | 0.0k |")
    assert sft.startswith("| `sft` | 20.0 | 35.0 | +15.0 ± 63.5 | +25.0 ± 63.5 |")
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == (f"4 runs of 2 methods with 2 seeds, in {tmp_path}: ovd gained most, "
                    "+40.0 ± 127.1 points.")
    rows = list(csv.reader(open(tmp_path / "compare.csv")))
    assert [row[:5] for row in rows[:2]] == [["method", "seed", "before", "after", "gain"],
                                             ["ovd", "0", "20", "50", "30"]]


def test_a_worker_stays_with_its_seed_and_then_takes_one_that_nobody_is_at():
    waiting = [("ovd", 0), ("grpo", 0), ("ovd", 1), ("grpo", 1), ("ovd", 2)]
    assert comparing.next_run(waiting, None, set()) == ("ovd", 0)
    assert comparing.next_run(waiting, None, {0}) == ("ovd", 1)
    assert comparing.next_run(waiting, 1, {0}) == ("ovd", 1)
    assert comparing.next_run(waiting[:2], 1, {0, 1}) == ("ovd", 0)
    assert comparing.next_run(waiting, 3, {0, 1}) == ("ovd", 2)


def workers_of(pid):
    return [p for p in psutil.Process(pid).children() if "spawn_main" in str(p.cmdline())]


def test_workers_end_with_their_parent_and_what_is_finished_is_kept(tmp_path, monkeypatch, capsys):
    """Killed with -9 in the middle of a run, started again, and stopped by Ctrl-C."""
    flags = ["--methods", "format --steps 80, grpo --steps 1", "--seeds", "1", "--jobs", "2"]
    flags += ["--one-shot", "--eval-problems", "2", "--problems", "1", "--out", str(tmp_path)]
    long, short = tmp_path / "format_--steps_80-0", tmp_path / "grpo_--steps_1-0"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    parent = subprocess.Popen([sys.executable, "-m", "more.compare", *flags], cwd=ROOT, text=True,
                              stderr=subprocess.PIPE)
    wait_for(long / "metrics.csv", parent)
    workers = workers_of(parent.pid)
    parent.kill()
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert len(workers) == 2 and not alive
    assert "Traceback" not in parent.communicate()[1]
    seen = files_in(long)
    time.sleep(0.3)
    assert files_in(long) == seen  # nobody goes on writing
    (short / "result.json").unlink(missing_ok=True)

    def interrupt():
        wait_for(short / "result.json")
        while "pass_at_8" not in (short / "result.json").read_text():
            time.sleep(0.05)
        workers.extend(workers_of(os.getpid()))
        os.kill(os.getpid(), signal.SIGINT)

    workers.clear()
    Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        compare(monkeypatch, *flags)
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert len(workers) == 2 and not alive
    assert f"what is finished is kept in {tmp_path}" in capsys.readouterr().out
    runs = comparing.make_runs(comparing.flags().parse_args(flags), tmp_path)
    assert [bool(comparing.finished(run)) for run in runs.values()] == [False, True]


def wait_for(path, process=None, seconds=90):
    """Until a file is there; not for ever, and not when the process has ended."""
    for _ in range(20 * seconds):
        if path.exists():
            return
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError(f"{path} did not come")
