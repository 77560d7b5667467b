"""The task: word problems in plain English, a prompt for them, and a check of the answer.

A problem is a short story of gains and losses. It is written from a random seed, so no data set has
to be downloaded and nobody can have seen it before. One of them, as the student reads it and as it
is worked out:

    Eva has 12 books. Eva buys 17. Eva sells 16. How many books does Eva have now? Think step by
    step. End with Answer: and the number.

    First 12 + 17 = 29. Then 29 - 16 = 13. Answer: 13

The *outcome reward* R(y) is exact match: 1 if what follows the last "Answer:" (or stands in the
last \\boxed{}) is the right answer, else 0.

    python tasks.py                    # a problem of each difficulty, and how answers are checked
    python tasks.py --data my.jsonl    # the same look at your own problems
"""
import argparse
import json
import math
import random
import re
import sys
import zlib
from dataclasses import dataclass
from fractions import Fraction

NAMES = "Mia Ben Zoe Tom Ana Leo Eva Sam Ida Max".split()
THINGS = "marbles apples coins shells cards stamps books pens".split()
GAINS = "wins finds buys gets".split()
LOSSES = "loses sells breaks uses".split()

# difficulty: (fewest steps, most steps, largest start, largest step, sentences that do not matter)
DIFFICULTY = {
    1: (2, 4, 50, 20, 0),       # what the embedded student was raised on
    2: (5, 6, 50, 20, 0),       # longer stories, of which it works out next to none
    3: (4, 6, 500, 200, 1),     # for real models from here on: larger numbers and a distractor
    4: (6, 9, 5000, 2000, 2),
    5: (9, 12, 50000, 20000, 3),
}
INSTRUCTION = "Think step by step. End with Answer: and the number."
ANSWER_MARK = re.compile(r"(?i)answer[\s*]*:|\\boxed\{")
JSONL = '{"question": "...", "answer": "..."}'

# How one answer is written in many ways. In this order: what is found, what it becomes, an example.
NUMBER = r"-?\$?\d(?:,?\d)*(?:\.\d+)?(?:/\d+)?"
WORDS = r"[,;.]?\s+\(?(?!(?:or|and)\b\W*\d)[A-Za-z]{2,}.*"  # after a number, "or 4" is no word
REWRITE = (
    (r"[\u2212\u2013]", "-"),                          # a typeset minus is a minus
    (r"\\left|\\right|\\[!,;: ]|\\[()]", ""),          # \left(1,\,2\right) is (1,2)
    (r"(\d)\s*\\[dt]?frac", r"\1 \\frac"),             # 1\frac12 is 1 1/2, and not 11/2
    (r"\\[dt]?frac(\d)(\d)", r"\\frac{\1}{\2}"),       # \frac12 is \frac{1}{2}
    (r"\\[dt]?frac\{(\d+)\}\{(\d+)\}", r"\1/\2"),      # \dfrac{1}{2} is 1/2
    (r"\\[dt]frac", r"\\frac"),                        # \tfrac{x}{2} is \frac{x}{2}
    (r"\\sqrt(\w)", r"\\sqrt{\1}"),                    # \sqrt3 is \sqrt{3}
    (r"\\(?:text|mbox|mathrm)\{([^{}]*)\}", r" \1"),   # 5\text{ cm} is 5 cm
    (r"\^\{?\\circ\}?|°", " degrees"),                 # 90^\circ is 90 degrees
    (r"\\?[%$]", ""),                                  # 12.5\% is 12.5, \$7 is 7, $x$ is x
    (r"(?<=\d),(?=\d{3}(?!\d))", ""),                  # 1,200 is 1200, and 1,2 is not 12
    (r"^\s*[a-z]\s*=\s*", ""),                         # x = 7 is 7
    (rf"^\s*({NUMBER}){WORDS}", r"\1"),                # 42 km/h is 42
)


class UserError(Exception):
    """Bad input. The message is one line that names the flag, file or line, and how to mend it."""


def fail_in_one_line(main):
    """Run a script's main(): a UserError becomes one line on stderr and exit code 2."""
    sys.stdout.reconfigure(errors="replace")  # a terminal without a letter shows "?", no traceback
    try:
        main()
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        sys.exit(130)


# ------------------------------------------------------------------------------- problems
@dataclass
class Problem:
    """question and answer as text. solution: a worked solution, None where the data has none."""
    question: str
    answer: str
    solution: str | None = None


def make_problem(rng, difficulty=1):
    """One story of `difficulty` 1..5 from a random.Random. The total never falls below 0."""
    fewest, most, start, largest, distractors = DIFFICULTY[difficulty]
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    total = rng.randint(start // 5, start)
    story, work = [f"{name} has {total} {thing}."], []
    for i in range(rng.randint(fewest, most)):
        amount = rng.randint(1, largest)
        gain = rng.random() < 0.5 or amount > total
        story.append(f"{name} {rng.choice(GAINS if gain else LOSSES)} {amount}.")
        after = total + amount if gain else total - amount
        # Every worked solution opens with the same word. What is learned from one problem carries
        # over to others through what they share; a solution that opens with the problem's own
        # first number shares little.
        opening = "Then" if i else "First"
        work.append(f"{opening} {total} {'+' if gain else '-'} {amount} = {after}.")
        total = after
    for _ in range(distractors):  # somebody else's gain or loss, which changes nothing
        other, verb = rng.choice([n for n in NAMES if n != name]), rng.choice(GAINS + LOSSES)
        story.insert(rng.randint(1, len(story)), f"{other} {verb} {rng.randint(1, largest)}.")
    question = " ".join(story) + f" How many {thing} does {name} have now?"
    return Problem(question, str(total), " ".join(work) + f" Answer: {total}")


def is_held_out(question):
    """A tenth of all questions, chosen by their own text, is kept for testing: no seed leaks."""
    return zlib.crc32(question.encode()) % 10 == 0


def problem_stream(seed, difficulty=1, held_out=False):
    """Endless problems, all of them for training or all of them held out."""
    rng = random.Random(seed)
    while True:
        problem = make_problem(rng, difficulty)
        if is_held_out(problem.question) == held_out:
            yield problem


def read_problems(path, question="question", answer="answer", flag="--data"):
    """Problems from JSONL, a file or hf://datasets/OWNER/NAME/FILE; UserError names a bad line.

    question, answer: the names of the two fields. An answer may be a worked solution that ends in
    "#### 7", as in GSM8K, or holds \\boxed{7}, as in MATH.
    """
    like = JSONL.replace("question", question).replace("answer", answer)
    try:
        file = path
        if hub := re.fullmatch("hf://datasets/([^/]+/[^/]+)/(.+)", str(path)):
            from huggingface_hub import hf_hub_download
            file = hf_hub_download(*hub.groups(), repo_type="dataset")
        lines = open(file, encoding="utf-8-sig").read().split("\n")
    except Exception as e:  # the hub's kinds among them: no such data set, no network, ...
        raise UserError(f"{flag} {path}: cannot be read as UTF-8 text ({type(e).__name__}); "
                        f"give a file with {like} a line")
    problems = {}  # by question: one that stands twice cannot be both trained and tested on
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            text, work = (str(row[field]).strip() for field in (question, answer))
        except (ValueError, KeyError, TypeError) as e:
            raise UserError(f"{flag} {path}, line {number}: {type(e).__name__} {e}; every line "
                            f"must be like {like}, or see --question-field and --answer-field")
        end = work.rpartition("####")[2].strip()
        problem = Problem(text, extract_answer(end) if "\\boxed{" in end else end)
        if problem.answer != work:
            problem.solution = work
        if row[answer] is None or not is_correct(f"Answer: {problem.answer}", problem):
            raise UserError(f"{flag} {path}, line {number}: no attempt could ever match the answer "
                            f"{end[:60]!r}; give the bare answer alone")
        problems[problem.question] = problem
    if not problems:
        raise UserError(f"{flag} {path}: no problem in it; write one {like} a line")
    return list(problems.values())


# ------------------------------------------------------------------------------- prompt and check
def messages(question):
    """The student's prompt, in the form chat templates take."""
    return [{"role": "user", "content": f"{question} {INSTRUCTION}"}]


def extract_answer(text):
    """What a trajectory answers: what follows its last "Answer:" or \\boxed{ on the line, or None.

    Markup around it is dropped, and what comes after a number ("42 books" answers 42).
    """
    marks = list(ANSWER_MARK.finditer(text))
    if not marks:
        return None
    said, open_braces = text[marks[-1].end():].strip(), 1
    for i, c in enumerate(said):  # up to the end of the line, or the brace that closes \boxed{
        open_braces += (c == "{") - (c == "}")
        if c == "\n" or not open_braces:
            said = said[:i]
            break
    said = re.sub(r"\\+[()\[\]]", "", said).lstrip(" *$`=").rstrip(" *$`.")
    number = re.fullmatch(rf"({NUMBER})(?:\\?%|{WORDS})?", said)
    return number[1] if number else said or None


def normalise(answer):
    """What of an answer is compared: a number as a number (0.5 = 1/2), the rest as plain text."""
    text = answer.lower()
    for found, becomes in REWRITE:
        text = re.sub(found, becomes, text)
    text = text.strip().rstrip(".")
    sign, whole, rest = re.fullmatch(r"(?s)(-?)(?:(\d{1,50}) (?=\d+/))?(.*)", text).groups()
    try:
        if re.fullmatch(r"[\d./]{1,50}", rest):  # longer, or 1e999, would take all the memory
            return (Fraction(rest) + int(whole or 0)) * (-1 if sign else 1)
    except (ValueError, ZeroDivisionError):
        pass
    return re.sub(r"\s", "", text)


def is_correct(text, problem):
    """Outcome reward R(y): does the trajectory's answer match the problem's exactly?"""
    answer = extract_answer(text)
    return answer is not None and normalise(answer) == normalise(problem.answer)


def is_well_formed(text):
    """Form alone, right or wrong: some work is shown, and then an answer."""
    return bool(ANSWER_MARK.split(text)[0].strip()) and extract_answer(text) is not None


def step_ends(text):
    """Where each step but the last ends, in characters. A step is a line or a sentence."""
    return [m.end() for m in re.finditer(r"[.!?](?=\s)|[^\s.!?](?=\n)", text.rstrip())]


def pass_at_k(n, right, k):
    """Chance that k of n samples, `right` of them right, hold a right one: an unbiased estimate.

    1 - C(n - right, k) / C(n, k), arXiv 2107.03374. The share of groups of k solved, taken over
    all groups that can be drawn from the n.
    """
    return 1 - math.comb(n - right, k) / math.comb(n, k)


# ------------------------------------------------------------------------------- a look at it
def main():
    """Show a problem of each difficulty, or some of a file, and how answers are checked."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help=f"your own problems, JSONL of {JSONL}")
    parser.add_argument("--question-field", default="question", help="its name in --data")
    parser.add_argument("--answer-field", default="answer", help="likewise")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.data:
        problems = read_problems(args.data, args.question_field, args.answer_field)
        shown = [(f"{args.data}, problem {i + 1}", p) for i, p in enumerate(problems[:5])]
    else:
        problems = [next(problem_stream(args.seed, d)) for d in DIFFICULTY]
        shown = [(f"difficulty {d}", p) for d, p in zip(DIFFICULTY, problems)]
    for name, p in shown:
        print(f"{name}\n    {messages(p.question)[0]['content']}\n    {p.solution or p.answer}\n")
    p = problems[0]
    print("how an attempt at the first one is checked")
    for text in (p.solution or f"So it is {p.answer}. Answer: {p.answer}", f"Answer: {p.answer}.0",
                 rf"\boxed{{{p.answer}}}", "Answer: 7 or so", f"It is {p.answer}."):
        print(f"    R = {is_correct(text, p):d}  answers {extract_answer(text)!s:>6}  {text}")
    passed = sum(is_correct(f"Answer: {q.answer}", q) for q in problems)
    print(f"\n{passed} of {len(problems)} reference answers pass their own check.")


if __name__ == "__main__":
    fail_in_one_line(main)
