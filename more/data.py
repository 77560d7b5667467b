"""Problems of your own, from a JSONL file here or on the Hugging Face hub.

A line is {"question": "...", "answer": "..."}. An answer may be a worked solution that ends in
"#### 7", as in GSM8K, or holds \\boxed{7}, as in MATH. It need not be a number, and what an attempt
answers may be written in another way: 0.5 is 1/2 is \\frac{1}{2}, and 5.4 cm is 5.4.

    python -m more.data my.jsonl    # the first five problems, and how answers are checked
    python -m more.data my.jsonl --question-field problem --answer-field solution
    python train.py --data my.jsonl --student NAME --teacher NAME
"""
import json
import logging
import os
import random
import re
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import islice, repeat
from operator import itemgetter

from more.search import SearchProblem, squad_words
from more.terminal import UserError, fail_in_one_line, make_parser
from tasks import Problem, extract_answer, task_stream

# How one answer is written in many ways. In this order: what is found, what it becomes, an example.
NUMBER = r"-?\$?\d(?:,?\d)*(?:\.\d+)?(?:/\d+)?"
WORDS = r"[,;.]?\s+\(?(?!(?:or|and|to)\b\W*(?:\w+\W+)?\d)[A-Za-z]{2,}.*"  # not "or maybe 4"
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
    (r"(?<=\d),(?=\d{3}(?!\d))(?![^(\[]*[)\]])", ""),  # 1,200 is 1200; 1,2 and (1,200) stay
    (r"^\s*[a-z]\s*=\s*", ""),                         # x = 7 is 7
    (rf"^\s*({NUMBER}){WORDS}", r"\1"),                # 42 km/h is 42
)
# Words after a number that are more than a unit. To compare the number alone would be wrong.
MORE_THAN_A_UNIT = re.compile(
    rf"\s*{NUMBER}(?={WORDS}).*(\d|\b([ap]\.?m|hundred|thousand|[mbtr]+illion|dozen|pi|sqrt)\b).*")


# ------------------------------------------------------------------------------- the check
@dataclass(frozen=True)
class TextProblem(Problem):
    """A problem whose answer may be a number, a formula or a name, written in one of many ways."""
    kind: str = "number"  # "answer" where it is no number: for the teacher's prompt in score.py

    real_instruction = (r"Please reason step by step in a few short lines, and put your final "
                        r"answer within \boxed{}.")
    example = ()  # that of a story would not fit

    def found_answer(self, text):
        """What a trajectory answers, or None."""
        return find_answer(text)

    def is_right(self, text):
        """Exact match, after normalise()."""
        answer = find_answer(text)
        return None not in (answer, self.answer) and normalise(answer) == normalise(self.answer)


def find_answer(text):
    """As tasks.extract_answer, and of a fraction with words behind it too the fraction alone."""
    answer = extract_answer(text) or ""
    number = re.fullmatch(rf"({NUMBER})(?:\\?%|{WORDS})?", answer)
    return number[1] if number else answer or None


def rewrite(answer, rules):
    """An answer in small letters, rewritten by the rules in their order."""
    text = answer.lower()
    for pattern, replacement in rules:
        text = re.sub(pattern, replacement, text)
    return text


def says_more(answer):
    """Do words after its number say more than a unit does? "10 am" is not "10 pm"."""
    # All rules but the last, which drops the words.
    return bool(MORE_THAN_A_UNIT.fullmatch(rewrite(answer, REWRITE[:-1])))


def normalise(answer):
    """What of an answer is compared: a number as a number (0.5 = 1/2), the rest as plain text."""
    text = rewrite(answer, REWRITE).strip().rstrip(".")
    sign, whole, rest = re.fullmatch(r"(?s)(-?)(?:(\d{1,50}) (?=\d+/))?(.*)", text).groups()
    try:
        if re.fullmatch(r"[\d./]{1,50}", rest):  # longer, or 1e999, would take all the memory
            return (Fraction(rest) + int(whole or 0)) * (-1 if sign else 1)
    except (ValueError, ZeroDivisionError):
        pass
    return re.sub(r"\s", "", text)


# ------------------------------------------------------------------------------- JSONL
def read_jsonl(path, flag, like, advice=""):
    """Yield (line number, row) of a JSONL file here or at hf://datasets/OWNER/NAME/FILE.

    like: an example of a line. Every row is a dict with all fields of it. Blank lines are passed
    over. Raises UserError, naming the flag, the file and the line; advice is what it ends with.
    """
    file = download(path, flag, like) if str(path).startswith("hf://") else path
    check_file(file, flag, like)
    try:
        with open(file, "rb") as lines:
            yield from read_lines(lines, f"{flag} {path}", like, advice)
    except (OSError, ValueError) as e:  # a NUL in its name is a ValueError
        raise UserError(f"{flag} {path}: cannot be read ({type(e).__name__}); give a file with "
                        f"{like} a line")


def check_file(path, flag, like):
    """Raise UserError where a path is empty, or names what opening would wait for: a pipe, say."""
    if not str(path):
        raise UserError(f"{flag} is empty; name a file with {like} a line")
    if os.path.exists(path) and not os.path.isfile(path):
        raise UserError(f"{flag} {path}: cannot be read, it is no ordinary file; give a file with "
                        f"{like} a line")


def download(path, flag, like):
    """The file here that holds hf://datasets/OWNER/NAME/FILE; the hub's library keeps it."""
    from huggingface_hub import hf_hub_download
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # no word of each retry
    try:
        data_set, name = re.fullmatch("hf://datasets/([^/]+/[^/]+)/(.+)", str(path)).groups()
        return hf_hub_download(data_set, name, repo_type="dataset")
    except Exception as e:  # a dozen kinds: no such data set, no network, a name that is none, ...
        raise UserError(f"{flag} {path}: cannot be downloaded ({type(e).__name__}); give "
                        f"hf://datasets/OWNER/NAME/FILE, or a file with {like} a line")


def read_lines(lines, source, like, advice=""):
    """As read_jsonl(), from lines of bytes. source: how an error names where they are from."""
    fields = itemgetter(*json.loads(like))  # raises KeyError where one is missing
    for number, line in enumerate(lines, 1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            if not text.strip():
                continue
            row = json.loads(text, parse_constant=int)  # NaN is no JSON: ValueError
            fields(row)
            if "\\u" in text:  # half an emoji can be written so, but it is no text: this raises
                json.dumps(row, ensure_ascii=False).encode()
        except (ValueError, KeyError, TypeError, RecursionError) as e:
            raise UserError(f"{source}, line {number}: {type(e).__name__} {e}; every line must be "
                            f"like {like}{advice}")
        yield number, row


# ------------------------------------------------------------------------------- problems
def read_problems(path, question="question", answer="answer", flag="--data", search=None,
                  most=None):
    """Problems from JSONL, a file or hf://datasets/OWNER/NAME/FILE; UserError names a bad line.

    question, answer: the names of the two fields. With `search`, an engine, they are questions to
    search for, and an answer is short text, or a list of several that are right. most: how many
    lines are read, all unless given.
    """
    if question == answer:
        raise UserError(f"--question-field and --answer-field are both {question!r}: every answer "
                        "would stand in its question; name two fields")
    like = json.dumps({question: "...", answer: "..."})
    advice = ", or see --question-field and --answer-field"
    problems = {}  # by question: one that stands twice cannot be both trained and tested on
    for number, row in islice(read_jsonl(path, flag, like, advice), most):
        where, text = f"{flag} {path}, line {number}", row[question]
        if not (isinstance(text, str) and text.strip()):
            raise UserError(f"{where}: the question is {str(text)[:60]!r}; give it as text, or see "
                            "--question-field")
        problem = as_problem(text.strip(), row[answer], search)
        if not problem:
            raise UserError(f"{where}: no attempt could ever match the answer "
                            f"{str(row[answer])[:60]!r}; give the bare answer alone")
        problems[problem.question] = problem
    if not problems:
        raise UserError(f"{flag} {path}: no problem in it; write one {like} a line")
    return list(problems.values())


def as_problem(question, answer, search):
    """A row's SearchProblem or TextProblem; None where no attempt could ever be told right."""
    listed = answer if isinstance(answer, list) else [answer]
    answers = [str(a).strip() for a in listed if type(a) in (str, int, float)]
    if search:
        answers = [a for a in answers if squad_words(a)]
        problem = SearchProblem(question, answers[0], None, search, tuple(answers[1:])) \
            if answers else None
        return problem if problem and problem.is_right(f"<answer> {answers[0]} </answer>") else None
    if len(answers) != 1 or len(listed) != 1:
        return None
    last = answers[0].rpartition("####")[2].strip()
    short = (find_answer(last) or "") if "\\boxed{" in last else last
    problem = TextProblem(question, short, None if answers[0] == short else answers[0],
                          "number" if isinstance(normalise(short), Fraction) else "answer")
    fits = problem.is_right(f"Answer: {short}") and not says_more(short)
    return problem if fits else None


def split_problems(args):
    """(endless training problems, list of test problems) of train.py's --data and --eval-data.

    Without --eval-data a fifth of --data is held out; without --data the training problems are
    written here.
    """
    search = None
    if args.corpus:
        from more.corpus import open_corpus
        search = open_corpus(args.corpus, args.turns)
    rows, test = (read_problems(path, args.question_field, args.answer_field, flag, search)
                  if path else [] for flag, path in (("--data", args.data),
                                                     ("--eval-data", args.eval_data)))
    if not rows:
        return task_stream(args.task, args.seed, args.difficulty, False, args.turns), test
    if len(rows) < 2 and not test:
        raise UserError(f"--data {args.data}: one problem is too few, one trains and one tests")
    random.Random(0).shuffle(rows)  # whatever the seed, the same fifth is held out
    test = test or rows[:max(1, len(rows) // 5)]
    tested = {p.question for p in test}
    rows = [p for p in rows if p.question not in tested]
    if not rows:
        raise UserError(f"--data {args.data}: all its problems are in --eval-data too")
    rng = random.Random(args.seed)
    return iter(lambda: rng.choice(rows), None), test


# ------------------------------------------------------------------------------- a look at it
def load_problems(args):
    """(endless training problems, list of test problems). One-shot: the same one for ever."""
    if args.data or args.eval_data:
        stream, test = split_problems(args)
    else:
        stream = task_stream(args.task, args.seed, args.difficulty, False, args.turns)
        test = task_stream(args.task, 0, args.difficulty, True, args.turns)
    if args.reward == "verbal":  # what is not there cannot be read by mistake
        stream = (replace(p, answer=None, solution=None) for p in stream)
    return repeat(next(stream)) if args.one_shot else stream, list(islice(test, args.eval_problems))


def main():
    """Show the first five problems of a file, and how an answer is checked."""
    parser = make_parser(__doc__)
    parser.add_argument("file", help='JSONL of {"question": "...", "answer": "..."}')
    parser.add_argument("--question-field", default="question", help="the question [%(default)s]")
    parser.add_argument("--answer-field", default="answer", help="the answer [%(default)s]")
    args = parser.parse_args()
    problems = read_problems(args.file, args.question_field, args.answer_field, "FILE")
    for number, p in enumerate(problems[:5], 1):
        print(f"{args.file}, problem {number}\n    {p.messages(True)[-1]['content']}\n"
              f"    {p.solution or p.answer}\n")
    p = problems[0]
    print("how an attempt at the first one is checked")
    for text in (p.solution or f"So it is {p.answer}. Answer: {p.answer}", f"Answer: {p.answer}.0",
                 rf"\boxed{{{p.answer}}}", "Answer: 7 or so", f"It is {p.answer}."):
        print(f"    R = {p.reward(text):.0f}  answers {p.found_answer(text)!s:>6}  {text}")
    passed = sum(q.is_right(f"Answer: {q.answer}") for q in problems)
    print(f"\n{passed} of {len(problems)} reference answers pass the check of their own problem.")


if __name__ == "__main__":
    fail_in_one_line(main)
