"""more.report: what is gathered of a run, and its page in a real browser."""
import csv
import json
import os
import random
import select
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from more.report import write_report
from more.report_data import describe_run, draw_line, kinds_of, mark_words, read_gains
from more.terminal import UserError

ROOT = Path(__file__).parent.parent
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
                None)
HOSTILE = ["</script><script>window.broken = 1</script>", "<img src=x onerror='window.broken = 1'>",
           "<!-- <script>", "]]>", "a\u2028b\u2029c", "lone \ud800 half", "{{data}} ${1} `x` \\",
           "<svg onload=window.broken=1>", "&lt;b&gt; &amp;"]


# ------------------------------------------------------------------------------- runs to show
def attempt(step, text, reward=0.0, score=0.0, put=None, **more):
    """A line of samples.jsonl."""
    probs = [] if score is None else [1 - score / 9, *8 * [0.0], score / 9]
    return {"step": step, "question": "How many?", "answer": "7", "text": text, "reward": reward,
            "probs": probs, "score": score, "advantage": None if put else reward - 0.5,
            "replaced_by": put and {"text": put, "reward": 1.0, "advantage": 0.5}, **more}


def make_run(folder, attempts, method="ovd", **settings):
    """A finished run's folder with these lines."""
    folder.mkdir(parents=True)
    steps = max(t["step"] for t in attempts)
    with open(folder / "metrics.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["step", "reward", "score", "replaced"])
        rows.writerows([step, step / steps, "nan" if method == "grpo" else 9 * step / steps, 0.25]
                       for step in range(1, steps + 1))
    settings = {"theta": 5.0, "turns": 4, "one_shot": False, "student": "/a/tiny/student",
                "teacher": "x/y"} | settings
    (folder / "result.json").write_text(json.dumps({
        "method": method, "seed": 0, "steps": steps, "one_shot": False, "seconds": 3.0,
        "peak_bytes": 2**30, "settings": settings, "before": {"pass_at_1": 0.25, "greedy": 0.0, "entropy": 0.4},
        "after": {"pass_at_1": 0.75, "greedy": 1.0, "entropy": 0.1, "n": 500}}))
    (folder / "samples.jsonl").write_text("".join(json.dumps(t) + "\n" for t in attempts))
    return folder


def many_attempts(steps=16, questions=4, samples=8):
    """As many as a default run leaves, of every kind."""
    rng, attempts = random.Random(0), []
    for i in range(steps * questions * samples):
        score, reward = rng.choice([0.5, 5.0, 8.5]), float(rng.random() < 0.5)
        text = " ".join(f"Then {rng.randint(1, 9)} + {rng.randint(1, 9)}." for _ in range(8))
        t = attempt(1 + i // (questions * samples), text, reward, score,
                    f"First {text} Answer: 7" if score < 5 else None)
        attempts.append(t | {"question": f"Question {i // samples % questions}?"})
    return attempts


def make_comparison(folder):
    """Two methods, three seeds: gains of 50, 52, 54 and of 10, 10, 10."""
    gains = {"ovd": [50, 52, 54], "grpo --kl 1": [10, 10, 10]}
    for name, start in (("ovd", "ovd"), ("grpo --kl 1", "grpo_--kl_1")):
        for seed in range(3):
            make_run(folder / f"{start}-{seed}", [attempt(step, "x") for step in (1, 2, 3)],
                     name.split()[0])
    lines = [f"{name},{seed},20,{20 + gain},{gain}" for name, row in gains.items()
             for seed, gain in enumerate(row)]
    (folder / "compare.csv").write_text("\n".join(["method,seed,before,after,gain", *lines]) + "\n")
    # 4.30 * 2 / sqrt(3) = 4.97
    (folder / "compare.md").write_text(
        "| method | before | after | gain | ovd beyond it | greedy |\n|" + 6 * " --- |" + "\n"
        "| `ovd` | 20.0 | 72.0 | +52.0 ± 5.0 | – | 98.0 |\n"
        "| `grpo --kl 1` | 20.0 | 30.0 | +10.0 ± 0.0 | +42.0 ± 5.0 | 12.0 |\n")
    return folder


# ------------------------------------------------------------------------------- what is gathered
def test_differing_words_are_marked_on_both_sides():
    left, right = "Answer: 68", "First 1 + 2 = 3. Answer: 3"
    assert mark_words(left, right) == [["Answer: ", False, ""], ["68", True, ""]]
    assert mark_words(right, left) == [
        ["First 1 + 2 = 3.", True, ""], [" ", False, ""], ["Answer: ", False, ""], ["3", True, ""]]


@pytest.mark.parametrize("text", [
    "", " ", "a", " a  b\n", "<information> x y </information>", "<information> open", *HOSTILE,
    "<search> a </search> <information> b\nc </information>\n<answer> d </answer>"])
def test_no_character_is_lost(text):
    for other in ("", "a", text, "<answer> d </answer> b"):
        for label in ("", "kept"):
            assert "".join(words for words, _, _ in mark_words(text, other, label)) == text


def test_what_the_environment_said_is_labelled():
    text = "<search> a </search> <information> b c </information> <answer> d </answer>"
    assert [[words.strip(), who] for words, _, who in mark_words(text, text)] == [
        ["<search> a </search>", ""], ["<information> b c </information>", "environment"],
        ["<answer> d </answer>", ""]]


def test_kinds_by_hand():
    def kinds(**values):
        return kinds_of(attempt(1, "x") | values, 5.0, verbal=False)[1:]

    assert kinds(score=5.0, reward=0.0) == ["wrong but accepted"]  # accepted at theta itself
    assert kinds(score=4.9, reward=1.0) == ["right but rejected"]
    assert kinds(score=9.0, reward=0.5) == ["wrong but accepted"]  # F1 of a half is not right
    assert kinds(score=9.0, reward=1.0) == kinds(score=0.0) == []
    assert kinds(score=None, reward=1.0) == kinds(score=None) == []  # nobody judged it
    assert kinds(replaced_by={"text": "y"}) == ["replaced"]


def test_with_the_verbal_reward_nobody_knows_what_is_right(tmp_path):
    put = attempt(1, "x", 8.9 / 9, 8.9) | {"answer": None}
    folder = tmp_path / "run"
    make_run(folder, [put, attempt(1, "y", 0.0, 1.0, "z") | {"answer": None}])
    result = json.loads((folder / "result.json").read_text())
    result["settings"] |= {"reward": "verbal", "turns": 0}
    (folder / "result.json").write_text(json.dumps(result))
    page = describe_run(folder)
    assert page["kinds"] == ["all", "replaced"]
    assert [card["kinds"] for card in page["attempts"]] == [["all"], ["all", "replaced"]]
    assert [card["outcome"] for card in page["attempts"]] == ["R 0.99", "R 0.00"]
    assert page["attempts"][0]["answer"] == "unknown to this run"
    assert page["charts"][0]["lines"][0]["label"] == "R"


def test_path_of_a_curve_by_hand():
    line = draw_line(7, "score", [0.0, 4.5, float("nan"), 9.0, 9.0], 9)
    assert line == {"label": "score", "style": "line2",
                    "says": ["0.00", "4.50", "–", "9.00", "9.00"],
                    "path": "M0.00 100.00h0L25.00 50.00h0M75.00 0.00h0L100.00 0.00h0"}
    assert draw_line(0, "one", [0.5], 1)["path"] == "M0.00 50.00h0"


def test_gains_are_those_of_the_table(tmp_path):
    gains = read_gains(make_comparison(tmp_path / "compare"))
    assert gains == {"ovd": (52.0, 5.0, {"0": 50.0, "1": 52.0, "2": 54.0}),
                     "grpo --kl 1": (10.0, 0.0, {"0": 10.0, "1": 10.0, "2": 10.0})}


def test_gains_of_what_compare_itself_writes(tmp_path, capsys):
    from more.compare import write_tables
    row = {"before": 20.0, "after": 70.0, "greedy": 1.0}
    write_tables(tmp_path, {("ovd --theta 3", 0): row | {"gain": 50.0},
                            ("grpo", 0): row | {"gain": -4.0}})
    gains = read_gains(tmp_path)
    assert gains["ovd --theta 3"][0] == 50.0 and gains["grpo"][0] == -4.0
    assert all(half != half and len(seeds) == 1 for _, half, seeds in gains.values())


def test_page_of_a_default_run_is_small_soon_written_and_needs_no_torch(tmp_path):
    folder = make_run(tmp_path / "run", many_attempts())
    code = ("import runpy, sys; sys.argv[1:] = [sys.argv[-1]]\n"
            "runpy.run_module('more.report', run_name='__main__')\n"
            "assert not {'torch', 'transformers', 'matplotlib', 'numpy'} & set(sys.modules)")
    before = os.times()
    done = subprocess.run([sys.executable, "-c", code, str(folder)], cwd=ROOT, text=True,
                          capture_output=True)
    after = os.times()
    assert not done.returncode, done.stderr
    assert after.children_user + after.children_system < (
        before.children_user + before.children_system + 2)
    assert done.stdout.startswith(str(folder / "report.html"))
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert len(page) < 2e6
    assert "http" not in page.replace("http-equiv", "")


def test_a_bad_folder_is_one_line(tmp_path):
    with pytest.raises(UserError, match="result.json"):
        write_report(tmp_path)
    folder = make_run(tmp_path / "run", [attempt(1, "x")])
    (folder / "samples.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(UserError, match="KeyError.*give the --out"):
        write_report(folder)
    (folder / "samples.jsonl").write_text(json.dumps(attempt(1, "x")) + "\nhalf a li")
    with pytest.raises(UserError, match="line 2 column 1") as caught:
        write_report(folder)
    assert "\n" not in str(caught.value)
    (folder / "samples.jsonl").unlink()
    with pytest.raises(UserError, match="samples.jsonl"):
        write_report(folder)


# ------------------------------------------------------------------------------- a browser
LAUNCH = """import fcntl, os, sys
high = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 10) for fd in sys.argv[1:3]]
for here, there in zip(high, (3, 4)):  # where a browser looks for its pipe
    os.dup2(here, there)
os.execv(sys.argv[3], sys.argv[3:])"""
QUIET = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update"]


class Browser:
    """A headless Chromium, spoken to through a pipe in its DevTools protocol."""

    def __init__(self, folder):
        their_in, self.output = os.pipe()
        self.input, their_out = os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, str(their_in), str(their_out), CHROMIUM, *QUIET,
             f"--user-data-dir={folder}", "--remote-debugging-pipe", "about:blank"],
            pass_fds=(their_in, their_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(their_in)
        os.close(their_out)
        self.number, self.rest, self.events, self.session = 0, b"", [], {}
        page = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=page, flatten=True)
        self.session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def read(self):
        """The next message."""
        while b"\0" not in self.rest:
            assert select.select([self.input], [], [], 30)[0], "the browser does not answer"
            part = os.read(self.input, 1 << 20)
            assert part, "the browser has gone"
            self.rest += part
        message, _, self.rest = self.rest.partition(b"\0")
        return json.loads(message)

    def call(self, method, **params):
        """The result of a command."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params, **self.session}
        os.write(self.output, json.dumps(message).encode() + b"\0")
        while (answer := self.read()).get("id") != self.number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def open(self, folder, width=1280):
        """Show the page of a run's folder."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, mobile=width < 500,
                  deviceScaleFactor=1)
        self.events.clear()
        self.call("Page.navigate", url=write_report(folder).as_uri())
        while "Page.loadEventFired" not in [event["method"] for event in self.events]:
            self.events.append(self.read())
        self.run("window.all = query => [...document.querySelectorAll(query)]")
        assert not self.errors()

    def run(self, code):
        """The value of a JavaScript expression."""
        answer = self.call("Runtime.evaluate", expression=code, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key):
        """Press a key as a person would."""
        code = {"ArrowLeft": 37, "ArrowRight": 39, "Tab": 9}[key]
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key,
                      windowsVirtualKeyCode=code)

    def errors(self):
        """What the console complains of."""
        return [event["params"] for event in self.events
                if event["method"] in ("Runtime.exceptionThrown", "Log.entryAdded")]


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM:
        pytest.skip("no Chromium here; apt-get install chromium")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        browser = Browser(folder)
        yield browser
        browser.process.terminate()
        browser.process.wait()


TEXTS = "all('.card > div:not(.score) .text').map(text => text.textContent)"


def test_run_opens_at_its_first_update(browser, tmp_path):
    attempts = many_attempts()
    browser.open(make_run(tmp_path / "my run", attempts))
    assert browser.run("document.title") == "my run"
    assert browser.run("$('#sentence').textContent") == (
        "ovd: 25.0% → 75.0% of 500 unseen problems right (+50.0 points)")
    assert browser.run("all('.card').length") == 32
    assert browser.run("all('h2').map(h => h.textContent)") == [
        "In training", *(f"Question {i}?" for i in range(4))]
    assert browser.run("all('.card')[0].querySelectorAll('.axis path').length") == 3
    assert browser.run(TEXTS)[0] == attempts[0]["text"]
    assert browser.run("all('.key').map(key => key.textContent)") == [
        "update 1", "outcome 6%", "score S(y) 0.56", "replaced 25%"]
    assert not browser.errors()


def test_slider_and_curve_move_together_by_keyboard_and_by_hand(browser, tmp_path):
    attempts = many_attempts()
    browser.open(make_run(tmp_path / "run", attempts))
    at = "[$('#step').value, $('#at').textContent, $('#curves input').value]"
    browser.run("$('#step').focus()")
    browser.press("ArrowRight")
    browser.press("ArrowRight")
    assert browser.run(at) == ["3", "update 3", "2"]
    assert browser.run(TEXTS + "[0]") == attempts[64]["text"]
    browser.run("$('#curves input').focus()")
    browser.press("ArrowLeft")
    assert browser.run(at) == ["2", "update 2", "1"]
    assert browser.run(TEXTS + "[0]") == attempts[32]["text"]
    right, top = browser.run("(r => [r.right, r.top])($('.plot').getBoundingClientRect())")
    mouse = {"x": right - 3, "y": top + 20}
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", **mouse)  # to hover is to read
    assert browser.run("$('.key').textContent") == "update 16"
    assert browser.run("$('#at').textContent") == "update 2"
    for kind in ("mousePressed", "mouseReleased"):
        browser.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **mouse)
    assert browser.run("$('#at').textContent") == "update 16"
    assert not browser.errors()


def test_filters_count_and_show_what_is_in_samples(browser, tmp_path):
    folder = make_run(tmp_path / "run", many_attempts())
    lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    fits = {"all": lines,
            "wrong but accepted": [t for t in lines if t["score"] >= 5 and t["reward"] < 1],
            "right but rejected": [t for t in lines if t["score"] < 5 and t["reward"] == 1],
            "replaced": [t for t in lines if t["replaced_by"]]}
    browser.open(folder)
    assert browser.run("all('#filters button').map(button => button.textContent)") == [
        f"{name} {len(found)}" for name, found in fits.items()]
    for i, found in enumerate(fits.values()):
        browser.run(f"all('#filters button')[{i}].click()")
        assert browser.run("all('#filters [aria-pressed=true]').length") == 1
        shown = 0
        for step in range(1, 17):
            browser.run(f"$('#step').value = {step}; $('#step').oninput()")
            assert browser.run(TEXTS)[0] in [t["text"] for t in found if t["step"] == step]
            shown += browser.run("all('.card').length")
        assert shown == len(found)


def test_a_filter_leads_to_the_first_update_with_a_match(browser, tmp_path):
    attempts = [attempt(1, "a", 1.0, 9.0), attempt(2, "b", 1.0, 9.0), attempt(3, "c", 0.0, 9.0)]
    browser.open(make_run(tmp_path / "run", attempts))
    browser.run("all('#filters button')[1].click()")
    assert browser.run("$('#at').textContent") == "update 3" and browser.run(TEXTS) == ["c"]
    browser.run("all('#filters button')[2].click()")
    assert browser.run("$('#groups').textContent") == "None in this update."


def test_cards_sort_within_their_group(browser, tmp_path):
    attempts = [attempt(1, name, reward, score, advantage=advantage) for name, reward, score,
                advantage in (("a", 0.0, 1.0, 0.1), ("b", 1.0, 9.0, -0.5), ("c", 1.0, 5.0, 0.9))]
    browser.open(make_run(tmp_path / "run", attempts))
    orders = {}
    for by in ("score", "advantage", "order"):
        browser.run(f"$('#sort').value = '{by}'; $('#sort').onchange()")
        orders[by] = "".join(browser.run(TEXTS))
    assert orders == {"score": "bca", "advantage": "cab", "order": "abc"}


def test_a_card_says_what_became_of_the_attempt(browser, tmp_path):
    attempts = [attempt(1, "Answer: 8", 0.0, 0.9, "Answer: 7"),
                attempt(1, "Answer: 7", 1.0, 5.0), attempt(1, "no end", 0.0, 9.0, stopped=False),
                attempt(1, "x", 0.25, None)]
    attempts[1]["advantage"] = 0.0
    attempts[0]["replaced_by"]["kept"] = len("Answer:")
    browser.open(make_run(tmp_path / "run", attempts))
    assert browser.run("all('.score').map(score => score.firstChild.textContent)") == [
        "S(y) 0.90 < θ, rejected", "S(y) 5.00 ≥ θ, accepted", "S(y) 9.00 ≥ θ, accepted",
        "no score"]
    assert browser.run("all('.title').map(title => title.innerText.split('\\n').join(' '))") == [
        "student: wrong not trained on", "put in its place: right advantage +0.50",
        "student: right advantage 0", "student: wrong, cut off advantage −0.50",
        "student: F1 0.25 advantage −0.25"]
    assert browser.run("all('.title b').map(b => b.className)") == ["", "plus", "", "minus",
                                                                    "minus"]
    assert browser.run("all('.kept, del, ins').map(part => part.textContent)") == [
        "8", "Answer:", "7"]
    axis = browser.run("all('.axis')[0].ariaLabel")
    assert axis.startswith("0: 90%, 1: 0%") and axis.endswith("9: 10%")


def test_hostile_text_is_shown_as_text(browser, tmp_path):
    attempts = [attempt(1, text, 0.0, 1.0, text[::-1]) | {"question": text, "answer": text}
                for text in HOSTILE]
    browser.open(make_run(tmp_path / "a<b>&'c", attempts, student=HOSTILE[0], teacher=HOSTILE[1]))
    elements = "[all('script').length, all('img').length, all('main svg *:not(path)').length]"
    assert browser.run(f"[window.broken ?? 0, ...{elements}]") == [0, 2, 0, 0]
    shown = [text.replace("\ud800", "\ufffd") for text in HOSTILE]
    texts = [text.replace("\ud800", "\ufffd") for text in browser.run(TEXTS)]
    assert texts == [part for text in shown for part in (text, text[::-1])]
    questions = browser.run("all('main h2').map(h => h.textContent)")
    assert [text.replace("\ud800", "\ufffd") for text in questions] == shown
    assert browser.run("document.title") == "a<b>&'c"
    assert not browser.errors()


def test_environment_stands_apart(browser, tmp_path):
    text = "<search> a </search> <information> b c </information> <answer> d </answer>"
    browser.open(make_run(tmp_path / "run", [attempt(1, text, 1.0, 9.0)]))
    assert browser.run("all('.environment').map(part => part.textContent.trim())") == [
        "<information> b c </information>"]
    style = "getComputedStyle($('.environment'))"
    assert browser.run(f"[{style}.borderLeftStyle, {style}.display]") == ["dashed", "block"]


@pytest.mark.parametrize("method", ["grpo", "format", "sft", "logits"])
def test_without_scores_there_are_no_bars_and_a_line_says_so(browser, tmp_path, method):
    attempts = [attempt(step, "Answer: 7", 1.0, None) for step in (1, 1, 2)]
    browser.open(make_run(tmp_path / "run", attempts, method))
    assert browser.run("[all('.card').length, all('.score, .axis').length]") == [2, 0]
    assert "no bars" in browser.run("$('#note').textContent")
    assert browser.run("all('#filters button').length") == 0


def test_comparison_shows_gains_and_the_curves_behind_each(browser, tmp_path):
    browser.open(make_comparison(tmp_path / "compare"))
    assert browser.run("$('#sentence').textContent") == "ovd gained most: +52.0 ± 5.0 points"
    assert browser.run("all('#rows button').map(row => row.lastChild.textContent)") == [
        "+52.0 ± 5.0", "+10.0 ± 0.0"]
    # low 0, high 57: the dot at 52, the line from 47 to 57
    paths = browser.run("all('#rows button')[0].innerHTML.match(/ d=\"[^\"]*/g).slice(-2)")
    assert paths == [' d="M82.46 50H100.0', ' d="M91.23 50h0']
    titles = "all('#curves h2').map(h => h.textContent)"
    assert browser.run(titles) == ["outcome", "score S(y)", "replaced"]
    assert browser.run("all('.plot')[0].querySelectorAll(':scope > svg').length") == 3  # seeds
    browser.run("all('#rows button')[0].focus()")
    browser.press("Tab")
    assert browser.run("$('#rows [aria-pressed=true]').firstChild.textContent") == "grpo --kl 1"
    assert browser.run(titles) == ["outcome", "replaced"]
    assert browser.run("all('#tools, #groups').map(part => part.offsetHeight)") == [0, 0]
    assert not browser.errors()


@pytest.mark.parametrize("width", [320, 390, 1280, 1920])
def test_nothing_sticks_out(browser, tmp_path, width):
    attempts = many_attempts(2) + [attempt(1, 300 * "x", 0.0, 1.0, 300 * "y")]
    browser.open(make_run(tmp_path / "run", attempts), width)
    assert browser.run("document.documentElement.scrollWidth") <= width
    browser.open(make_comparison(tmp_path / "compare"), width)
    assert browser.run("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_of_every_text(browser, tmp_path, scheme):
    """At least 7 to 1, as WCAG asks for at its strictest (AAA), for a projector in a lit room."""
    browser.call("Emulation.setEmulatedMedia",
                 features=[{"name": "prefers-color-scheme", "value": scheme}])
    browser.open(make_run(tmp_path / "run", many_attempts(1)))
    colours = """all('p, h1, h2, label, button, figcaption, .card div, .title b, select').map(e => {
      let behind = e;
      while (getComputedStyle(behind).backgroundColor === 'rgba(0, 0, 0, 0)')
        behind = behind.parentNode;
      return [getComputedStyle(e).color, getComputedStyle(behind).backgroundColor];
    })"""

    def light(colour):
        parts = [int(part) / 255 for part in colour[4:-1].split(",")]
        parts = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), parts))

    pairs = {tuple(pair) for pair in browser.run(colours)}
    assert len(pairs) >= 6
    for text, ground in pairs:
        dark, bright = sorted((light(text), light(ground)))
        assert (bright + 0.05) / (dark + 0.05) >= 7, (text, ground)
