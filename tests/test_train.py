"""The whole loop, through the command line a user types."""

import csv
import json
import math
import os
import runpy
import signal
import subprocess
import sys
import time
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import sample
import train
from sample import Trajectory, sample_trajectories
from score import write_solutions
from tasks import Problem, UserError, fail_in_one_line, problem_stream

ROOT = Path(__file__).parent.parent
QUICK = ["--one-shot", "--steps", "3", "--eval-problems", "20"]


def run(*args, name="train.py", env=None):
    """A script in a process of its own, without a GPU unless `env` gives it one."""
    return subprocess.run(
        [sys.executable, name, *map(str, args)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", **(env or {})},
    )


@pytest.fixture(scope="module")
def one_shot(tmp_path_factory):
    """(folder, last line printed, result.json) of the main job, just as a user would start it."""
    folder = tmp_path_factory.mktemp("one-shot") / "run"
    done = run("--one-shot", "--out", folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout.splitlines()[-1], json.loads((folder / "result.json").read_text())


def test_one_shot_learns_and_leaves_its_results(one_shot):
    folder, last_line, result = one_shot
    assert (
        result["method"] == "ovd"
        and result["task"] == "math"
        and result["one_shot"]
        and result["seed"] == 0
    )
    assert result["before"]["n"] == result["after"]["n"] == 500
    assert result["after"]["pass_at_1"] - result["before"]["pass_at_1"] >= 0.20
    assert result["peak_bytes"] > 0 and result["seconds"] > 0 and result["versions"]["torch"]
    rows = list(csv.DictReader(open(folder / "metrics.csv")))
    assert [int(float(r["step"])) for r in rows] == list(range(1, 17))
    assert all(float(r["logprob_gap"]) < 1e-3 for r in rows)  # what is trained is what was sampled
    samples = [json.loads(line) for line in open(folder / "samples.jsonl")]
    assert len(samples) == 16 * 32 and len({s["question"] for s in samples}) == 1
    assert all(len(s["probs"]) == 10 and 0 <= s["score"] <= 9 for s in samples)
    assert f"{result['after']['pass_at_1']:.1%}" in last_line
    # the adapter is where it says, and does what it says
    again = run(
        "--student",
        folder / "adapter",
        "--problems",
        "40",
        "--samples",
        "4",
        name="sample.py",
    )
    assert again.returncode == 0, again.stderr
    assert (
        float(again.stdout.split("second: ")[1].split("%")[0]) / 100
        > result["before"]["pass_at_1"] + 0.1
    )


@pytest.fixture
def script(monkeypatch):
    """Run a script as `python script args` would, in this process, which has imported all."""

    def run_script(name, *args):
        monkeypatch.setattr(sys, "argv", [name, *map(str, args)])
        runpy.run_path(str(ROOT / name), run_name="__main__")

    return run_script


@pytest.mark.parametrize(
    "flags",
    [
        ["--method", "judge"],
        ["--method", "grpo"],
        ["--method", "logits"],
        ["--method", "ovd"],
        ["--kl", 0.1],
        ["--bits", 16],
        ["--score", "reply"],
        ["--score", "digit"],
        ["--baseline", "none"],
        ["--baseline", "union"],
        ["--replace", "none"],
        ["--replace", "suffix"],
        ["--replace", "suffix", "--suffix", "read"],
        ["--method", "format"],
        ["--method", "sft"],
    ],
    ids=lambda flags: " ".join(map(str, flags)),
)
def test_every_knob_runs(tmp_path, script, flags):
    script("train.py", "--steps", 2, "--eval-problems", 10, "--out", tmp_path / "r", *flags)
    rows = list(csv.DictReader(open(tmp_path / "r/metrics.csv")))
    assert len(rows) == 2 and all(float(r["grad_norm"]) > 0 for r in rows)


def test_the_literal_reading_ties_its_groups(tmp_path, script):
    """Accepted is right, replaced is right: within the mixed group there is nothing to learn from."""
    for baseline in ("mixed", "own"):
        out = tmp_path / baseline
        flags = ["--steps", 3, "--eval-problems", 10, "--baseline", baseline, "--out", out]
        script("train.py", *flags)
    tied = [
        json.loads((tmp_path / b / "result.json").read_text())["tied_groups"]
        for b in ("mixed", "own")
    ]
    assert tied[0] >= 10 and tied[1] <= 2  # of 3 x 4


def settings(**changed):
    return Namespace(
        **{
            **dict(
                method="ovd", micro_batch=32, chunk=0, temperature=1.0, kl=0.0, checkpointing=False
            ),
            **changed,
        }
    )


def gradient(student, teacher, **changed):
    """The gradient of one update on a fixed batch, without taking the step."""
    model, tokenizer = student
    torch.manual_seed(0)
    stream = problem_stream(5)
    batch = sample_trajectories(
        model, tokenizer, [p for p in (next(stream), next(stream)) for _ in range(5)]
    )
    for t, a in zip(batch, [0.7, -0.3, 0.2, -1.0, 0.4, 0.9, -0.1, 0.3, -0.6, 0.5]):
        t.advantage = a
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.SGD(parameters, lr=0.0)
    row = train.update(
        model, teacher[0], optimiser, batch, settings(**changed), tokenizer.pad_token_id
    )
    return row["loss"], torch.cat([p.grad.flatten() for p in parameters])


@pytest.mark.parametrize("method", ["ovd", "logits"])
@pytest.mark.parametrize(
    "changed",
    [
        dict(micro_batch=1),
        dict(micro_batch=3),
        dict(chunk=1),
        dict(chunk=37),
        dict(micro_batch=4, chunk=16),
        dict(checkpointing=True),
    ],
)
def test_micro_batch_and_chunk_change_nothing(student, teacher, method, changed):
    """With LoRA on a 4-bit model, and padding: the trajectories have many lengths."""
    loss, grad = gradient(student, teacher, method=method)
    other_loss, other_grad = gradient(student, teacher, method=method, **changed)
    wide = 10 if "micro_batch" in changed else 1  # another padding, so another order of sums
    assert other_loss == pytest.approx(loss, rel=wide * 1e-6)
    assert (other_grad - grad).norm() <= wide * 1e-5 * grad.norm()


@pytest.mark.parametrize(
    "flags, says",
    [
        (["--theta", "12"], "--theta"),
        (["--samples", "0"], "--samples 0 must be at least 1"),
        (["--samples", "1"], "group of one"),
        (["--steps", "-1"], "--steps"),
        (["--temperature", "0"], "--temperature"),
        (["--lr", "5"], "--lr"),
        (["--student", "./nowhere"], "--student ./nowhere"),
        (["--teacher", "./nowhere"], "--teacher ./nowhere"),
        (["--data", "none.jsonl"], "--data none.jsonl"),
        (["--max-new-tokens", "500"], "--max-new-tokens"),
        (["--out", "tests"], "--out tests"),
        (["--chunk", "-1"], "--chunk"),
        (["--compare", "--seeds", "0"], "--seeds"),
        (["--compare", "--methods", "ovd, ovd --theta 12"], "--theta 12"),
        (["--compare", "--methods", ","], "--methods"),
        (["--methods", "ovd, grpo"], "--methods ovd, grpo is for --compare"),
        (["--plan", "gpu"], "--plan: invalid choice: 'gpu'"),  # without the whole usage
        (["--student", "tiny/search-student"], "has no words for these problems"),
        (["--compare", "--methods", "ovd --theta '5"], "--methods"),
        (["--plan", "cuda", "--student", "./nowhere"], "--student ./nowhere"),
        (["--plan", "cuda", "--chunk", "-1"], "--chunk"),
        (["--plan", "cuda", "--json", "/no/such/folder/x.json"], "--json /no/such/folder/x.json"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, flags, says):
    if flags[0] == "--out":
        (tmp_path / "metrics.csv").write_text("")
        flags, says = ["--out", str(tmp_path)], str(tmp_path)
    monkeypatch.setattr(
        sys, "argv", ["train.py", "--eval-problems", "5", "--out", str(tmp_path / "new"), *flags]
    )
    with pytest.raises(SystemExit) as e:
        fail_in_one_line(train.main)
    assert e.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert says in line and line.startswith("error: ")


def plan(tmp_path, script, *flags):
    script("train.py", "--plan", *flags, "--json", tmp_path / "plan.json")
    return {r["method"]: r for r in json.loads((tmp_path / "plan.json").read_text())}


def test_the_plan_is_within_15_percent_of_the_measured_peak(tmp_path, one_shot):
    """Of the embedded pair on a CPU, both in processes of their own."""
    done = run("--plan", "cpu", "--json", tmp_path / "plan.json")
    assert done.returncode == 0, done.stderr
    planned = json.loads((tmp_path / "plan.json").read_text())[0]["peak_bytes"]
    _, _, result = one_shot
    assert result["peak_bytes"] == max(result["peak_by_phase"].values())
    assert set(result["peak_by_phase"]) == {"loading", "testing", "sampling", "scoring", "update"}
    assert planned == pytest.approx(result["peak_bytes"], rel=0.15)


def test_a_plan_knows_weights_rungs_cards_and_vocabularies(tmp_path, script, capsys):
    pair = ["--student", "Qwen/Qwen3-0.6B", "--teacher", "Qwen/Qwen3-4B-Instruct-2507"]
    rows = plan(tmp_path, script, "cuda", *pair)
    held = rows["ovd"]["held"]
    # 0.440 and 3.633 billion linear weights; 151,936 x (1,024 + 2,560) embeddings, tied, 2 bytes
    assert held["4-bit weights"] == pytest.approx(0.516 * (0.4404e9 + 3.6333e9), rel=1e-3)
    assert held["embeddings and heads"] == 151936 * (1024 + 2560) * 2
    assert rows["logits, dense"]["loss"] > 3 * rows["logits, chunked"]["loss"]
    assert rows["ovd"]["loss"] < rows["logits, chunked"]["loss"]
    assert rows["ovd"]["fits"]["24"] == "fits" and "--batch" in rows["ovd"]["fits"]["6"]
    more = plan(tmp_path, script, "cuda", *pair, "--batch", 16)
    assert more["ovd"]["fits"]["6"] == "fits"  # what was advised does it
    assert plan(tmp_path, script, "cuda", *pair, "--bits", 16)["ovd"]["fits"]["8"] is None
    rows = plan(tmp_path, script, "cuda", "--student", "Qwen/Qwen2.5-3B-Instruct", *pair[2:])
    assert rows["ovd"]["peak_bytes"] and rows["logits, dense"]["peak_bytes"] is None
    assert "cannot be matched" in capsys.readouterr().out


def test_a_run_beyond_the_free_memory_is_warned_of_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train.py"])
    for free, lines in ((10**12, 0), (10**6, 1)):
        monkeypatch.setattr(train, "free_bytes", lambda device, free=free: free)
        train.warn(train.knobs(), "cpu")
        assert capsys.readouterr().out.count("\n") == lines


def test_whole_runs_are_compared_by_phase(tmp_path):
    """A process each; one that cannot run is a row, and the others go on."""
    small = ["--steps", 1, "--problems", 1, "--samples", 4, "--max-new-tokens", 8]
    done = run("--compare-memory", *small, "--json", tmp_path / "c.json")
    assert done.returncode == 0, done.stderr
    rows = {r["method"]: r["peak_by_phase"] for r in json.loads((tmp_path / "c.json").read_text())}
    assert set(rows) == {"ovd", "logits, chunked", "logits, dense"}
    assert {"loading", "sampling", "scoring", "update"} <= set(rows["ovd"])
    for logits in ("logits, chunked", "logits, dense"):
        assert {"loading", "sampling", "teacher forward", "update"} <= set(rows[logits])


def test_bad_input_from_the_command_line(tmp_path):
    done = run("--theta", "12", "--out", tmp_path / "r")
    assert done.returncode == 2 and done.stderr == "error: --theta 12.0 must lie between 0 and 9\n"
    assert not (tmp_path / "r").exists()


def test_a_hub_name_without_a_network_is_one_line(tmp_path):
    done = run(
        "--student", "nobody/no-such-model", "--out", tmp_path / "r", env={"HF_HUB_OFFLINE": "1"}
    )
    assert done.returncode == 2
    assert (
        len(done.stderr.strip().splitlines()) == 1
        and "--student nobody/no-such-model" in done.stderr
    )


def test_own_data(tmp_path, script):
    stream = problem_stream(11)
    with open(tmp_path / "d.jsonl", "w") as f:
        for _ in range(20):
            p = next(stream)
            f.write(json.dumps({"question": p.question, "answer": p.answer}) + "\n")
    script("train.py", *QUICK, "--data", tmp_path / "d.jsonl", "--out", tmp_path / "r")
    assert json.loads((tmp_path / "r/result.json").read_text())["after"]["n"] == 4


def test_problems_in_words_that_the_student_does_not_know(tmp_path, script, capsys):
    capitals = {"Which city is the capital of France?": "Paris", "And of Peru?": "Lima"}
    lines = [json.dumps({"question": q, "answer": a}) for q, a in capitals.items()]
    (tmp_path / "d.jsonl").write_text("\n".join(lines))
    with pytest.raises(SystemExit) as e:
        script("train.py", *QUICK, "--data", tmp_path / "d.jsonl", "--out", tmp_path / "r")
    said = capsys.readouterr().err.strip().splitlines()
    assert e.value.code == 2 and "has no words for these problems" in said[-1]


def test_ctrl_c_saves_the_adapter(tmp_path):
    process = subprocess.Popen(
        [
            sys.executable,
            "train.py",
            "--one-shot",
            "--steps",
            "500",
            "--eval-problems",
            "5",
            "--out",
            str(tmp_path / "r"),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    metrics = tmp_path / "r/metrics.csv"
    for _ in range(600):
        if metrics.exists() and len(metrics.read_text().splitlines()) > 2:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err
    assert (tmp_path / "r/adapter/adapter_model.safetensors").exists() and str(
        tmp_path / "r/adapter"
    ) in out + err


def attempt(text, score, reward):
    return Trajectory(
        Problem("q", "1"), [1], [5, 6], [-0.5, -0.5], [1, 1], True, text, reward, [], score
    )


def advantages(own, new, **changed):
    args = Namespace(**{**dict(method="ovd", baseline="own", theta=5), **changed})
    own, new = ([t and replace(t, advantage=None) for t in ts] for ts in (own, new))
    train.give_advantages(own, new, 1, args)
    return [[t and t.advantage for t in ts] for ts in (own, new)]


def test_what_each_method_and_baseline_gives_by_hand():
    """Four attempts: right, wrong and replaced by a right one, blurted right and replaced, unscored."""
    own = [attempt("w. Answer: 1", 9, 1.0), attempt("Answer: 2", 0, 0.0)]
    own += [attempt("Answer: 1", 3, 1.0), attempt("w. Answer: 3", None, 0.0)]
    whole = attempt("teacher's", None, 1.0)
    new, none = [None, whole, whole, None], [None] * 4
    assert advantages(own, new) == [
        [0.5, None, None, None],
        [None, 0.5, 0.5, None],
    ]  # own mean: 2/4
    assert advantages(own, new, baseline="none") == [[1, None, None, None], [None, 1, 1, None]]
    assert advantages(own, new, baseline="mixed") == [[0, None, None, None], [None, 0, 0, None]]
    ((a, b, c, d), (e, f, g, h)) = advantages(own, new, baseline="union")  # 4 of 5 right
    assert [a, b, c, f, g] == pytest.approx([0.2, -0.8, 0.2, 0.2, 0.2]) and d is e is h is None
    assert advantages(own, none) == [[0.5, None, None, None], none]  # --replace none: dropped
    assert advantages(own, none, method="grpo") == [[0.5, -0.5, 0.5, -0.5], none]
    judged, _ = advantages(own, none, method="judge")  # 9, 0, 3 of 9: mean 4/9
    assert judged[:3] == pytest.approx([5 / 9, -4 / 9, -1 / 9]) and judged[3] is None
    assert advantages(own, none, method="format") == [[0.5, -0.5, -0.5, 0.5], none]
    assert advantages(own, none, method="sft") == [[1, 1, 1, 1], none]


def test_a_suffix_keeps_the_good_steps_token_by_token(student, teacher):
    """v2: up to the last good step the student's own tokens, from there the teacher's."""
    p = next(p for p in problem_stream(3, held_out=True) if p.solution.count("=") == 3)
    first, second, third, _ = p.solution.split(". ")
    slip = f"{second.rsplit(' ', 1)[0]} {(int(second.rsplit(' ', 1)[1]) + 3) % 200}"
    ids = student[1].encode(f"{first}. {slip}. Answer: 7") + [student[1].eos_token_id]
    text = student[1].decode(ids, skip_special_tokens=True)
    own = Trajectory(p, [1], ids, [-0.1] * len(ids), [1] * len(ids), True, text, 0.0, [], 0.2)
    worked = {}
    solutions = write_solutions(*teacher, [p], worked)
    args = Namespace(
        theta=5, replace="suffix", suffix="trained", score="expected", batch=8, max_new_tokens=64
    )
    for args.suffix, mask in (("trained", 1), ("read", 0)):
        (new,), read = train.replace_rejected([own], solutions, worked, student[1], *teacher, args)
        kept = len(student[1].encode(first + "."))
        assert new.text == p.solution and new.reward == 1 and read > 0
        assert new.ids[:kept] == ids[:kept] and new.logprobs[:kept] == [-0.1] * kept
        assert student[1].decode(new.ids, skip_special_tokens=True) == p.solution
        assert new.sampled == [1] * kept + [mask] * (len(new.ids) - kept)
        assert (
            all(lp != lp for lp in new.logprobs[kept:]) and new.ids[-1] == student[1].eos_token_id
        )
    args.replace = "none"
    assert train.replace_rejected([own], solutions, worked, student[1], *teacher, args) == (
        [None],
        0,
    )


def test_a_token_that_reaches_over_the_cut_is_written_anew():
    """As ".\n\n" is one token of Qwen's: what is kept ends within it."""
    tok = SimpleNamespace(
        decode=lambda ids: "".join(map(chr, ids)).replace("@", ".\n\n"),  # "@" says all three
        encode=lambda text, **_: [ord(c) for c in text],
        eos_token_id=0,
        all_special_tokens=[],
        get_added_vocab=dict,
    )
    problem = next(problem_stream(0))
    ids = [ord(c) for c in "1+1=2@2+1=4"]
    t = Trajectory(problem, [1], ids, [-0.1] * 11, [1] * 11, True, "1+1=2.\n\n2+1=4", 0.0)
    end = replace(t, text="1+1=2.\n\n2+1=3", stopped=False, reward=1.0)
    for kept, own in (("1+1=2.", 5), ("1+1=2.\n\n", 6), ("1+1=2.\n\n2+1=", 10), ("", 0)):
        new = train.by_teacher(t, end, kept, tok)
        assert tok.decode(new.ids) == end.text and new.logprobs[:own] == [-0.1] * own
        assert all(lp != lp for lp in new.logprobs[own:]) and len(new.logprobs) == len(new.ids)


def test_eight_trajectories_a_step_are_compared_with_the_start(student, monkeypatch):
    model, tok = student
    own = sample_trajectories(model, tok, list(islice(problem_stream(0), 12)), 1.0, 8)
    for t in own:
        t.advantage = 1.0
    passes = []
    real = train.trained_positions
    monkeypatch.setattr(
        train, "trained_positions", lambda m, ts, pad: passes.append(len(ts)) or real(m, ts, pad)
    )
    parameters = [p for p in model.parameters() if p.requires_grad]
    for kl, micro_batch, looked_at in ((0.0, 1, 8), (0.0, 12, 8), (0.0, 5, 8), (0.1, 5, 12)):
        args = Namespace(
            method="grpo", temperature=1.0, chunk=0, kl=kl, micro_batch=micro_batch, checkpointing=False
        )
        passes.clear()
        still = torch.optim.SGD(parameters, lr=0.0)
        figures = train.update(model, None, still, own, args, tok.pad_token_id)
        assert sum(passes) == 12 + looked_at and abs(figures["kl"]) < 1e-5


def test_two_methods_that_would_share_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py"])
    args = train.knobs(["--compare", "--methods", "ovd --out a/b, ovd --out a_b", "--out", str(tmp_path)])
    with pytest.raises(UserError, match="one folder"):
        train.compare(args)


def test_a_folder_that_cannot_be_written_to_is_refused_at_once():
    with pytest.raises(UserError, match="--out /proc"):
        train.new_folder(Namespace(out="/proc"))


def test_interval_by_hand():
    """Mean 2, standard deviation 1, so 4.30 / sqrt(3) either way."""
    assert train.interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, 2.483), abs=1e-3)
    assert train.interval([5.0])[0] == 5.0 and train.interval([5.0])[1] != train.interval([5.0])[1]


def figures(**changed):
    usual = dict(
        reward=0.4, score=4.0, auc=0.99, scored=1.0, accepted=0.4, replaced=0.6, tied_groups=0
    )
    usual |= dict(spread=0.5, advantage=0.4, entropy=0.3, cut_off=0.0, grad_norm=0.5, kl=0.5)
    return [
        {k: v[i // 3] if isinstance(v, tuple) else v for k, v in (usual | changed).items()}
        for i in range(6)
    ]


@pytest.mark.parametrize(
    "method, changed, says",
    [
        ("ovd", {"cut_off": 0.9}, "--max-new-tokens"),
        ("grpo", {"tied_groups": 1, "reward": 0.0}, "hardly anything was right"),
        ("grpo", {"tied_groups": 1, "reward": 1.0}, "nearly all was right"),
        ("judge", {"score": (3.0, 6.0), "reward": (0.4, 0.1)}, "please the teacher"),
        ("ovd", {"auc": 0.5}, "do not tell right from wrong"),
        ("ovd", {"kl": 0.001}, "hardly moved"),
        ("ovd", {}, "none of the usual reasons"),
    ],
)
def test_a_run_that_learned_nothing_says_why(capsys, method, changed, says):
    args = Namespace(method=method, one_shot=True, problems=4, baseline="own")
    test = {"pass_at_1": 0.3, "entropy": 0.3, "n": 500}
    train.explain(figures(**changed), test, test, args)
    assert says in capsys.readouterr().out.splitlines()[-1]
    train.explain(figures(**changed), test, {**test, "pass_at_1": 0.6}, args)
    assert "little was learned" not in capsys.readouterr().out


def table_without_seconds(folder):
    rows = list(csv.DictReader(open(folder / "compare.csv")))
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def test_a_comparison_interrupted_goes_on_to_the_same_table(tmp_path, monkeypatch, capsys):
    """Stopped in the middle of its third run of four, and started again."""
    monkeypatch.setattr(train, "ProcessPoolExecutor", lambda jobs, context: ThreadPoolExecutor(1))
    flags = ["--one-shot", "--compare", "--methods", "ovd, grpo --samples 4", "--seeds", "2"]
    flags += ["--steps", "2", "--eval-problems", "4"]

    def compare(folder):
        monkeypatch.setattr(sys, "argv", ["train.py", *flags, "--out", str(folder)])
        train.main()

    compare(tmp_path / "alone")
    update, calls = train.update, []

    def break_off(*args):
        calls.append(1)
        if len(calls) > 5:  # whatever begins after the power cut gets no further either
            raise RuntimeError("power cut")
        return update(*args)

    monkeypatch.setattr(train, "update", break_off)
    with pytest.raises(RuntimeError):
        compare(tmp_path / "broken")
    assert len(list((tmp_path / "broken").glob("*/result.json"))) == 2
    assert not (tmp_path / "broken/compare.csv").exists()
    again = []
    monkeypatch.setattr(train, "update", lambda *args: again.append(1) or update(*args))
    compare(tmp_path / "broken")
    assert len(again) == 4  # the two that were finished are not run again
    assert table_without_seconds(tmp_path / "broken") == table_without_seconds(tmp_path / "alone")
    assert len(table_without_seconds(tmp_path / "alone")) == 4
    assert "| `grpo --samples 4` |" in (tmp_path / "alone/compare.md").read_text()
    flags += ["--lr", "0.001"]
    with pytest.raises(UserError, match="another --lr"):
        compare(tmp_path / "alone")


@pytest.mark.parametrize("name", ["ovd.py", "sample.py", "score.py", "tasks.py"])
def test_every_script_shows_its_stage(script, capsys, name):
    began = time.time()
    script(name)
    assert time.time() - began < 20
    assert any(c.isdigit() for c in capsys.readouterr().out.splitlines()[-1])
    with pytest.raises(SystemExit) as e:
        script(name, "--help")
    assert e.value.code == 0 and f"python {name}" in capsys.readouterr().out


def test_texts_that_are_all_empty_have_no_entropy():
    empty = Trajectory(next(problem_stream(0)), [1], [], [], [], False, "", 0.0)
    assert math.isnan(train.entropy([empty, empty]))


def test_a_model_too_large_for_the_gpu_is_one_line(monkeypatch):
    def too_large(*_, **__):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(sample.AutoModelForCausalLM, "from_pretrained", too_large)
    with pytest.raises(UserError, match="--teacher .*too large for the GPU"):
        sample.load_model(sample.TINY / "teacher", 4, "cpu", "--teacher")
