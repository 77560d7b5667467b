"""The task: problems in plain English, a prompt for them, and a check of the answer.

A problem is a short story of gains and losses, written from a random seed. No data set has to be
downloaded, and nobody can have seen it before. One of them, as the student reads it and worked out:

    Eva has 12 books. Eva buys 17. Eva sells 16. How many books does Eva have now? Think step by
    step. End with Answer: and the number.

    First 12 + 17 = 29. Then 29 - 16 = 13. Answer: 13

The *outcome reward* R(y) is exact match: 1 if what follows the last "Answer:" (or stands in the
last \\boxed{}) is the right number, else 0.

A task of another kind is a class with the methods of Problem: more/search.py has one in which an
environment replies to the student, more/data.py one for problems of your own.

    python tasks.py    # a problem of each difficulty, and how answers are checked
"""
import random
import re
import zlib
from dataclasses import dataclass

from more.terminal import fail_in_one_line, make_parser, number

# What stories are made of. Every word is one token of the embedded models.
NAMES = "Mia Ben Zoe Tom Ana Leo Eva Sam Ida Max".split()
THINGS = "marbles apples coins shells cards stamps books pens".split()
GAINS = "wins finds buys gets".split()
LOSSES = "loses sells breaks uses".split()

# difficulty: (fewest steps, most steps, largest start, largest step, sentences that do not matter)
DIFFICULTY = {
    1: (2, 4, 50, 20, 0),       # what the embedded student was trained on
    2: (5, 6, 50, 20, 0),       # longer stories, of which it works out next to none
    3: (4, 6, 500, 200, 1),     # for real models from here on: larger numbers and a distractor
    4: (6, 9, 5000, 2000, 2),
    5: (9, 12, 50000, 20000, 3),
}
ANSWER_MARK = re.compile(r"(?i)answer(?:[\s*]*:|\s+is\b[\s*]*:?)|\\boxed\{")
# A number as people write it, and the words that may follow it: "$1,200", "42 books", "12.5%".
NUMBER = re.compile(r"(?P<number>-?\$?\d(?:,?\d)*(?:\.\d+)?)(?:\\?%|[,;.]?\s+\(?"
                    r"(?!(?:or|and|to)\b\W*(?:\w+\W+)?\d)[A-Za-z]{2,}.*)?")  # not "20 or maybe 21"
# Where an environment's words stand in a text. The student may not write these marks.
INFORMATION = re.compile("<information>[^<]*</information>")


# ------------------------------------------------------------------------------- a problem
@dataclass(frozen=True)
class Problem:
    """A question with one number as its answer. solution: it worked out. None: not known."""
    question: str
    answer: str | None
    solution: str | None = None

    instruction = "Think step by step. End with Answer: and the number."
    # For real models, which the project did not make: they parrot that, and know \boxed{}. A
    # problem worked out before their eyes keeps them short. Measured in RESULTS.md.
    real_instruction = (r"Write one short calculation a line and nothing else, and put your final "
                        r"answer within \boxed{}.")
    example = ("Ida has 5 pens. Ida buys 13. Ida loses 2. How many pens does Ida have now?",
               "5 + 13 = 18\n18 - 2 = 16\n\\boxed{16}")
    until = None  # the text at which a student pauses for its environment; None: there is none
    grading_prompt = None  # a prompt of its own for the teacher; None: the one in score.py
    kind = "number"  # of answer: what that prompt calls it, to a real model

    def messages(self, real=False):
        """The student's prompt, in the form chat templates take. real: sample.is_real."""
        instruction = self.real_instruction if real else self.instruction
        texts = [*self.example, self.question] if real else [self.question]  # user, assistant, ...
        return [dict(role="assistant", content=text) if i % 2 else
                dict(role="user", content=f"{text} {instruction}") for i, text in enumerate(texts)]

    def found_answer(self, text):
        """What a trajectory answers, or None."""
        return extract_answer(text)

    def is_right(self, text):
        """Exact match: is the trajectory's answer the problem's?"""
        answer = self.found_answer(text)
        return None not in (answer, self.answer) and as_number(answer) == as_number(self.answer)

    def reward(self, text):
        """The outcome reward R(y) in 0..1."""
        return float(self.is_right(text))

    def is_well_formed(self, text):
        """Form alone, right or wrong: some work is shown, and then an answer."""
        work = ANSWER_MARK.split(text)[0].strip()
        return bool(work) and self.found_answer(text) is not None

    def step_ends(self, text):
        """Where each step but the last ends, in characters. A step is a line or a sentence."""
        return [m.end() for m in re.finditer(r"[.!?](?=\s)|[^\s.!?](?=\n)", text.rstrip())]

    def reply(self, text):
        """What the environment says to a trajectory so far; None: nothing, it is over."""
        return None

    def condense(self, solution):
        """What of the teacher's own solution the teacher reads when it grades: all of it."""
        return solution


def extract_answer(text):
    """What follows the last "Answer:" or "answer is" on its line, or the last \\boxed{}; or None.

    Markup around it is dropped, and what comes after a number: "**42 books**" answers 42.
    """
    marks = list(ANSWER_MARK.finditer(text))
    if not marks:
        return None
    answer, open_braces = text[marks[-1].end():].strip(), 1
    for i, c in enumerate(answer):  # up to the end of the line, or the brace that closes \boxed{
        open_braces += (c == "{") - (c == "}")
        if c == "\n" or not open_braces:
            answer = answer[:i]
            break
    answer = re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", answer)
    answer = re.sub(r"\\+[()\[\]]", "", answer).lstrip(" *$`=").rstrip(" *$`.")
    found = NUMBER.fullmatch(answer)
    return found["number"] if found else answer or None


def as_number(answer):
    """"1,200" and "$1200.0" -> 1200.0; what is no number stays the text that it is."""
    plain = re.sub(r"(?<=\d),(?=\d{3}(?!\d))|\$", "", answer)  # commas of thousands alone
    return float(plain) if re.fullmatch(r"-?(\d+\.?\d*|\.\d+)", plain) else plain


# ------------------------------------------------------------------------------- stories
def make_problem(rng, difficulty=1):
    """One story of `difficulty` 1..5 from a random.Random. The total never falls below 0."""
    fewest, most, start, largest, distractors = DIFFICULTY[difficulty]
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    total = rng.randint(start // 5, start)
    story, work = [f"{name} has {total} {thing}."], []  # what is told, and how it is worked out
    for i in range(rng.randint(fewest, most)):
        amount = rng.randint(1, largest)
        gain = rng.random() < 0.5 or amount > total
        story.append(f"{name} {rng.choice(GAINS if gain else LOSSES)} {amount}.")
        after = total + amount if gain else total - amount
        # Every worked solution opens with the same word. What is learned from one problem carries
        # over to others through what they share, and a solution that opens with the problem's own
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


def task_stream(task, seed, difficulty=1, held_out=False, turns=4):
    """Endless problems of "math", stories of a difficulty, or of "search" in so many turns."""
    if task == "search":
        from more.search import world_stream
        return world_stream(seed, held_out, turns)
    return problem_stream(seed, difficulty, held_out)


# ------------------------------------------------------------------------------- a look at it
def main():
    """Show a problem of each difficulty, and how an answer is checked."""
    parser = make_parser(__doc__)
    parser.add_argument("--seed", type=number(int, 0, 2**63), default=0, help="of the problems")
    args = parser.parse_args()
    problems = [next(problem_stream(args.seed, d)) for d in DIFFICULTY]
    for difficulty, p in zip(DIFFICULTY, problems):
        print(f"difficulty {difficulty}\n    {p.messages()[0]['content']}\n    {p.solution}\n")
    p = problems[0]  # how an attempt at it is checked, in several spellings
    print("how an attempt at the first one is checked")
    for text in (p.solution, f"Answer: {p.answer}.0", rf"\boxed{{{p.answer}}}", "Answer: 7 or so",
                 f"It is {p.answer}."):
        print(f"    R = {p.reward(text):.0f}  answers {p.found_answer(text)!s:>6}  {text}")
    passed = sum(q.is_right(q.solution) for q in problems)
    print(f"\n{passed} of {len(problems)} worked solutions pass the check of their own problem.")


if __name__ == "__main__":
    fail_in_one_line(main)
