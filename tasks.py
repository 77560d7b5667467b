"""The tasks: problems in plain English, a prompt for them, and a check of the answer.

*math*. A problem is a short story of gains and losses. It is written from a random seed, so no data
set has to be downloaded and nobody can have seen it before. One of them, as the student reads it
and as it is worked out:

    Eva has 12 books. Eva buys 17. Eva sells 16. How many books does Eva have now? Think step by
    step. End with Answer: and the number.

    First 12 + 17 = 29. Then 29 - 16 = 13. Answer: 13

The *outcome reward* R(y) is exact match: 1 if what follows the last "Answer:" (or stands in the
last \\boxed{}) is the right answer, else 0.

*search*. A question about a world that was made up for it, so that nothing can be known by heart.
The student writes searches, the environment answers them, and R(y) is the F1 of its answer:

    In which city was the author of Hollow Desert born? Find out with <search> words </search>, as
    often as you need to. End with <answer> words </answer>

    <search> Hollow Desert book </search> <information> Hollow Desert: a book by Marta Silva.
    Review: Hollow Desert is better than Savage Bridge. </information> <search> Marta Silva writer
    </search> <information> Marta Silva: a writer born in West Marlow. Hollow Desert: a book by
    Marta Silva. </information> <answer> West Marlow </answer>

    python tasks.py                    # a problem of each difficulty, and how answers are checked
    python tasks.py --data my.jsonl    # the same look at your own problems
    python tasks.py --search "Hollow Desert book"                        # try the search engine
    python tasks.py --search "who wrote it" --corpus passages.jsonl      # on passages of your own
"""
import argparse
import json
import logging
import math
import os
import random
import re
import sqlite3
import string
import sys
import time
import unicodedata
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import accumulate, count

from tqdm import tqdm

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
SEARCH_INSTRUCTION = ("Find out with <search> words </search>, as often as you need to. "
                      "End with <answer> words </answer>")
ANSWER_MARK = re.compile(r"(?i)answer[\s*]*:|\\boxed\{")
INFORMATION = re.compile("<information>[^<]*</information>")  # what the environment says
PASSAGE = '{"id": "...", "title": "...", "text": "..."}'
JSONL = '{"question": "...", "answer": "..."}'

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
    (r"(?<=\d),(?=\d{3}(?!\d))", ""),                  # 1,200 is 1200, and 1,2 is not 12
    (r"^\s*[a-z]\s*=\s*", ""),                         # x = 7 is 7
    (rf"^\s*({NUMBER}){WORDS}", r"\1"),                # 42 km/h is 42
)


class UserError(Exception):
    """Bad input. The message is one line that names the flag, file or line, and how to mend it."""


def fail_in_one_line(main):
    """Run a script's main(): a UserError becomes one line on stderr and exit code 2."""
    sys.stdout.reconfigure(errors="replace")  # a terminal without a letter shows "?", no traceback

    def error(parser, message):
        """In place of argparse's own, which prints every flag first."""
        raise UserError(message)

    argparse.ArgumentParser.error = error
    try:
        main()
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        sys.exit(130)


# ------------------------------------------------------------------------------- problems
@dataclass(frozen=True)
class Problem:
    """question and answer as text. solution: a worked solution, None where the data has none."""
    question: str
    answer: str
    solution: str | None = None
    search: "Search | None" = None  # of a search task: the engine to ask
    also: tuple = ()                # of a search task: other answers that are right


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


def read_problems(path, question="question", answer="answer", flag="--data", search=None):
    """Problems from JSONL, a file or hf://datasets/OWNER/NAME/FILE; UserError names a bad line.

    question, answer: the names of the two fields. An answer may be a worked solution that ends in
    "#### 7", as in GSM8K, or holds \\boxed{7}, as in MATH. With `search`, an engine, it is short
    text, or a list of several that are right.
    """
    like = JSONL.replace("question", question).replace("answer", answer)
    file, hub = path, None
    try:
        if hub := re.fullmatch("hf://datasets/([^/]+/[^/]+)/(.+)", str(path)):
            from huggingface_hub import hf_hub_download
            logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # no word of each retry
            file = hf_hub_download(*hub.groups(), repo_type="dataset")
        lines = open(file, encoding="utf-8-sig").read().split("\n")
    except Exception as e:  # the hub's kinds among them: no such data set, no network, ...
        how = "downloaded" if hub and file == path else "read as UTF-8 text"
        raise UserError(f"{flag} {path}: cannot be {how} ({type(e).__name__}); give a file with "
                        f"{like} a line")
    problems = {}  # by question: one that stands twice cannot be both trained and tested on
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            text, said = str(row[question]).strip(), row[answer]
            work, *also = [str(x).strip() for x in (said if isinstance(said, list) else [said])]
        except (ValueError, KeyError, TypeError) as e:
            raise UserError(f"{flag} {path}, line {number}: {type(e).__name__} {e}; every line "
                            f"must be like {like}, or see --question-field and --answer-field")
        end = work if search else work.rpartition("####")[2].strip()
        short = extract_answer(end) if "\\boxed{" in end and not search else end
        problem = Problem(text, short, None if work == short else work, search, tuple(also))
        tried = f"<answer> {short} </answer>" if search else f"Answer: {short}"
        if said is None or search and not squad_words(short) or not is_correct(tried, problem):
            raise UserError(f"{flag} {path}, line {number}: no attempt could ever match the answer "
                            f"{end[:60]!r}; give the bare answer alone")
        problems[problem.question] = problem
    if not problems:
        raise UserError(f"{flag} {path}: no problem in it; write one {like} a line")
    return list(problems.values())


# ------------------------------------------------------------------------------- searching
class Search:
    """A search engine: passages ranked by BM25 (SQLite's FTS5), in memory or in files.

    BM25, k1 = 1.2 and b = 0.75: a passage of |d| words scores sum_w idf(w) f (k1 + 1) / (f + k1
    (1 - b + b |d| / mean |d|)), f times holding word w, idf(w) = log((N - n + 1/2) / (n + 1/2))
    where n of N passages hold it, and at least 1e-6.
    """
    SCAN, SHORT = 10_000, 200  # matches that are ranked at once; a short list's length
    TABLE = ("CREATE VIRTUAL TABLE IF NOT EXISTS passages USING fts5(id UNINDEXED, title, text, "
             "tokenize='unicode61 remove_diacritics 2')")

    def __init__(self, *paths, top=2, turns=4):
        """top: passages to show for a search; turns: searches to answer in a trajectory.

        paths: one file or several, each an index of its own of a share of the passages.
        """
        self.top, self.turns, self.counts = top, turns, {}
        self.parts = [sqlite3.connect(path, timeout=600, isolation_level=None,
                                      check_same_thread=False) for path in paths or [":memory:"]]
        for db in self.parts:
            db.execute(self.TABLE)
            db.execute("CREATE VIRTUAL TABLE temp.words USING fts5vocab(main, passages, row)")

    def add(self, passages, part=0):
        """Take up (id, title, text) of each."""
        self.parts[part].executemany("INSERT INTO passages VALUES (?, ?, ?)", passages)

    def rows(self, sql, *values):
        """What all parts answer to a command of SQL: the rows of the first, of the second, ..."""
        return [row for db in self.parts for row in db.execute(sql, values)]

    def holding(self, word):
        """How many passages hold it: n. Of a common word that takes long, so it is kept."""
        if word not in self.counts:
            if len(self.counts) > 100_000:
                self.counts.clear()
            rows = self.rows("SELECT doc FROM temp.words WHERE term = ?", word)
            self.counts[word] = sum(n for n, in rows)
        return self.counts[word]

    def find(self, query, k):
        """The k best passages for any text: [(id, title, text), ...], the best first.

        To rank all that hold a common word takes half a second among a million. So the rarest
        words choose a short list, and the common ones count only within it. A part of the index
        knows its own n only, so what several found is ranked once more as well.
        """
        words = sorted((n, w) for w in set(words_of(query)[:50]) if (n := self.holding(w)))
        if not words:
            return []
        sums = accumulate(n for n, _ in words)
        # So many of the rarest lead: two at least, since one word alone leaves a list of ties
        lead = max(2, sum(total <= self.SCAN for total in sums))
        match = " OR ".join(f'"{w}"' for _, w in words[:lead])  # letters and digits: no commands
        again = lead < len(words) or len(self.parts) > 1
        found = self.rows(
            "SELECT id, title, text FROM passages WHERE passages MATCH ? ORDER BY rank LIMIT ?",
            match, max(k, self.SHORT // len(self.parts)) if again else k)
        if again:
            found.sort(key=lambda passage: self.bm25(passage, words), reverse=True)
        return found[:k]

    def bm25(self, passage, words):
        """The formula above, for [(n, word), ...]."""
        total, mean = self.size
        said = words_of(" ".join(passage[1:]))
        length, held = 1.2 * (0.25 + 0.75 * len(said) / mean), Counter(said)
        return sum(max(1e-6, math.log((total - n + 0.5) / (n + 0.5)))
                   * held[w] * 2.2 / (held[w] + length) for n, w in words)

    @cached_property
    def size(self):
        """How many passages there are, and their mean length, taken from a thousand of a part."""
        some = self.rows("SELECT title, text FROM passages LIMIT 1000")
        total = sum(n or 0 for n, in self.rows("SELECT max(rowid) FROM passages"))
        return total, sum(len(words_of(" ".join(p))) for p in some) / len(some)


def words_of(text):
    """Words as the engine takes them: runs of letters and digits, in lower case; é is e."""
    apart = unicodedata.normalize("NFD", text.lower())  # Latin letters alone lose their accents
    plain = re.sub(r"(?<=[a-z])[\u0300-\u036f]+", "", apart)
    return re.findall(r"[^\W_]+", unicodedata.normalize("NFC", plain))


PARTS = 2  # indexes of a corpus, each made by a thread of its own
BATCH = 1 << 26  # bytes of a corpus taken up at a time: fewer sorted runs, less to merge


def open_corpus(path, turns=4):
    """Search over a file of passages, a JSON object with id, title and text a line.

    The index is made once and kept beside the file, in PARTS that take the lines in turn: SQLite
    works without Python's lock, so two threads use two cores. UserError names the file and the
    line.
    """
    try:
        open(path).close()
        total, stamp = os.path.getsize(path), f"{os.path.getsize(path)} {os.path.getmtime(path)}"
        search = Search(*(f"{path}.index{part}" for part in range(PARTS)), top=3, turns=turns)
        for db in search.parts:
            db.execute("PRAGMA synchronous = OFF")  # survives the program's end, not the machine's
            db.execute("CREATE TABLE IF NOT EXISTS progress (stamp, bytes, lines)")
    except (OSError, sqlite3.Error) as e:
        raise UserError(f"--corpus {path}: cannot be read, or {path}.index0 not be written ({e}); "
                        f"give a file with {PASSAGE} a line, in a folder that can be written to")
    try:
        with ThreadPoolExecutor(PARTS) as threads, tqdm(
                total=total, desc="indexing", unit="B", unit_scale=True, leave=False) as bar:
            before, done = -1, 0
            while before < min(done, total):
                reached = threads.map(lambda part: take_up(search, part, path, stamp), range(PARTS))
                before, done = done, min(reached)
                bar.update(done - bar.n)
    except sqlite3.Error as e:  # a full disk
        raise UserError(f"--corpus {path}: its index cannot be written ({e}); it takes twice the "
                        "file's size; free some disk and start again, it goes on from there")
    if done != total:
        raise UserError(f"--corpus {path}: it changed while it was indexed; start again")
    for db in search.parts:
        db.execute("PRAGMA query_only = ON")
    if not search.rows("SELECT 1 FROM passages LIMIT 1"):
        raise UserError(f"--corpus {path}: no passage in it; write one {PASSAGE} a line")
    return search


def take_up(search, part, path, stamp):
    """One part's lines of the next BATCH of the file; returns how far it is now, in bytes.

    They and how far that is are written together or not at all, so killed at any moment it goes
    on from there, and two runs that find no index share the work.
    """
    db = search.parts[part]
    with open(path, "rb") as file, db:
        db.execute("BEGIN IMMEDIATE")
        of, done, number = db.execute("SELECT * FROM progress").fetchone() or (stamp, 0, 0)
        if of != stamp:  # the file has changed since
            db.execute("DROP TABLE passages")
            db.execute(search.TABLE)
            done = number = 0
        file.seek(done)
        lines = file.readlines(BATCH)
        if lines:
            # FTS5 is to sort a batch in memory, and to merge what it has rarely
            db.execute("INSERT INTO passages (passages, rank) VALUES ('hashsize', ?)",
                       (16 * BATCH,))
            db.execute("INSERT INTO passages (passages, rank) VALUES ('automerge', 0)")
            search.add(passages_of(lines, number, part, path), part)
            db.execute("REPLACE INTO progress (rowid, stamp, bytes, lines) VALUES (1, ?, ?, ?)",
                       (stamp, file.tell(), number + len(lines)))
        return file.tell()


def passages_of(lines, number, part, path):
    """(id, title, text) of one part's lines; the first of all is line number + 1 of the file."""
    for number, line in enumerate(lines, number + 1):
        try:
            if number % PARTS == part and line.strip():
                row = json.loads(line.decode())  # of bytes it would guess the encoding first
                row = str(row["id"]), str(row["title"]), str(row["text"])
                "".join(row).encode()  # half a character, as where an emoji was cut, is an error
                yield row
        except (ValueError, KeyError, TypeError, RecursionError) as e:
            raise UserError(f"--corpus {path}, line {number}: {type(e).__name__} {e}; every line "
                            f"must be like {PASSAGE}")


def look_up(search, query):
    """What the environment says to a query, whatever is in it."""
    found = search.find(query, search.top)
    found = "\n".join(f"{title}: {text[:1000]}" for _, title, text in found)
    # a passage cannot close the brackets it stands in, nor give an answer
    return f"<information> {found.replace('<', '(') or 'Nothing was found.'} </information>"


def environment(turn, search):
    """What the environment says to a turn that ends in </search>, well written or not."""
    call = re.search(r"<search>([^<>]*\w[^<>]*)</search>[^<]*$", turn)
    return look_up(search, call[1]) if call else (
        "<information> Nothing was searched for, the words must stand between two brackets. "
        "</information>")


FIRST = ("Ada Bruno Clara Dario Edith Felix Greta Hugo Irene Jonas Karin Louis Marta Nils Olga "
         "Pavel Rosa Stefan Thea Viktor").split()
LAST = ("Abel Berg Costa Dahl Engel Falk Gruber Holm Ivers Jansen Keller Lund Moreau Novak Olsen "
        "Petri Quist Rossi Silva Turner").split()
KIND = ("Silent Golden Broken Hidden Distant Burning Frozen Crooked Scarlet Hollow Restless Velvet "
        "Bitter Gentle Secret Wooden Empty Endless Crystal Savage").split()
NOUN = ("Garden River Mirror Tower Harbor Forest Letter Window Bridge Lantern Orchard Island "
        "Shadow Clock Mountain Piano Candle Desert Kingdom Feather").split()
SIDE = "New Old Upper Lower East West North South Saint Port Fort Great".split()
TOWN = ("Alden Barrow Calder Dunmore Elston Farley Garth Hexham Ilford Kendal Luton Marlow Norwich "
        "Oakham Penrith Redcar Selby Tarrant Ulster Wexford").split()
COUNTRIES = ("Arvania Belmora Cordova Drakia Estoria Fennmark Galdria Hestia Ilyria Jorvik Kaldova "
             "Lorvania Mersia Norland Ostrava Pelagia").split()
OTHERS = "painter singer doctor".split()


def make_world(rng, turns=4):
    """(its Search, its questions as Problems) from a random.Random: people, places and books.

    Hard on purpose: there are people of one name, people who like a book and did not write it,
    and reviews of two books at once. One question in four needs a third search.
    """
    def names(first, last, n=12):
        """n different pairs of words."""
        return rng.sample([f"{a} {b}" for a in first for b in last], n)

    titles, writers, cities = names(KIND, NOUN), names(FIRST, LAST), names(SIDE, TOWN)
    lies = {c: rng.choice(COUNTRIES) for c in cities}
    born = {w: rng.choice(cities) for w in writers}
    by = {t: rng.choice(writers) for t in titles}
    passages = [(c, f"a city in {lies[c]}.") for c in cities]
    passages += [(w, f"a writer born in {born[w]}.") for w in writers]
    passages += [(t, f"a book by {by[t]}.") for t in titles]
    for t in titles:
        fan = rng.choice(writers) if rng.random() < 0.5 else names(FIRST, LAST, 1)[0]
        passages.append((fan, f"a {rng.choice(OTHERS)} born in {rng.choice(cities)}" + (
            f" who likes {t}." if rng.random() < 0.5 else ".")))
        if rng.random() < 0.5:
            passages.append(("Review", f"{t} is better than {rng.choice(titles)}."))
    rng.shuffle(passages)
    search = Search(turns=turns)
    search.add((str(i), *p) for i, p in enumerate(passages))
    problems = []
    for t in titles:
        place, answer = "city", born[by[t]]
        queries = [f"{t} book", f"{by[t]} writer"]
        if rng.random() < 0.25:
            queries.append(f"{answer} city")
            place, answer = "country", lies[answer]
        work = "".join(f"<search> {q} </search> {look_up(search, q)} " for q in queries)
        problems.append(Problem(f"In which {place} was the author of {t} born?", answer,
                                f"{work}<answer> {answer} </answer>", search))
    return search, problems


def world_stream(seed, held_out=False, turns=4):
    """Endless search problems, a new world every dozen; none is both trained and tested on."""
    kind = "test" if held_out else "train"
    for number in count():
        yield from make_world(random.Random(f"{kind} {seed} {number}"), turns=turns)[1]


def task_stream(task, seed, difficulty=1, held_out=False, turns=4):
    """Endless problems of "math" or "search"; difficulty is of the one, turns of the other."""
    if task == "search":
        return world_stream(seed, held_out, turns)
    return problem_stream(seed, difficulty, held_out)


# ------------------------------------------------------------------------------- prompt and check
def messages(problem):
    """The student's prompt, in the form chat templates take."""
    asked = SEARCH_INSTRUCTION if problem.search else INSTRUCTION
    return [{"role": "user", "content": f"{problem.question} {asked}"}]


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
    """Exact match: is the trajectory's answer the problem's?"""
    if problem.search:
        answers = [squad_words(a) for a in (problem.answer, *problem.also)]
        return squad_words(found_answer(text)) in answers
    answer = extract_answer(text)
    return answer is not None and normalise(answer) == normalise(problem.answer)


def outcome(text, problem):
    """The outcome reward R(y) in 0..1: exact match in math, F1 in search."""
    if not problem.search:
        return float(is_correct(text, problem))
    said = squad_words(found_answer(text))
    return max(f1(said, squad_words(a)) for a in (problem.answer, *problem.also))


def found_answer(text):
    """What stands in the last <answer> ... </answer> of a search trajectory, or ""."""
    return ["", *re.findall(r"<answer>([^<>]*)</answer>", text)][-1].strip()


def squad_words(text):
    """The words by which answers are compared in SQuAD (arXiv 1606.05250): no case, no punctuation,
    no articles."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def f1(said, right):
    """Of the words said and of the right ones, the shares they have in common: harmonic mean."""
    common = sum((Counter(said) & Counter(right)).values())
    return 2 * common / (len(said) + len(right)) if said or right else 1.0


def is_supported(text):
    """Does the answer of a search trajectory stand in what the environment said to it?"""
    told = " ".join(INFORMATION.findall(text))
    answer = " ".join(squad_words(found_answer(text)))
    return bool(answer) and f" {answer} " in f" {' '.join(squad_words(told))} "


def is_well_formed(text, problem):
    """Form alone, right or wrong: some work is shown, or a search, and then an answer."""
    if problem.search:
        return bool(INFORMATION.search(text)) and bool(found_answer(text))
    return bool(ANSWER_MARK.split(text)[0].strip()) and extract_answer(text) is not None


def step_ends(text):
    """Where each step but the last ends, in characters: a line, a sentence, or a search's turn."""
    if ends := [m.end() for m in re.finditer("</information>", text)]:
        return ends
    return [m.end() for m in re.finditer(r"[.!?](?=\s)|[^\s.!?](?=\n)", text.rstrip())]


def pass_at_k(n, right, k):
    """Chance that k of n samples, `right` of them right, hold a right one: an unbiased estimate.

    1 - C(n - right, k) / C(n, k), arXiv 2107.03374. The share of groups of k solved, taken over
    all groups that can be drawn from the n.
    """
    return 1 - math.comb(n - right, k) / math.comb(n, k)


# ------------------------------------------------------------------------------- a look at it
def show_search(args):
    """What the engine finds; without a corpus, in a small world that was made up."""
    if args.corpus:
        search = open_corpus(args.corpus)
    else:
        search, problems = make_world(random.Random(args.seed))
        print(f"a world of {search.size[0]} passages, and one of its questions\n"
              f"    {problems[0].question} ({problems[0].answer})\n    {problems[0].solution}\n")
    began = time.time()
    found = search.find(args.search or "", 5)
    for _, title, text in found:
        print(f"    {title}: {text[:200]}")
    print(f"\n{len(found)} of {search.size[0]} passages for {args.search or ''!r}, in "
          f"{1000 * (time.time() - began):.1f} ms.")


def main():
    """Show a problem of each difficulty, or some of a file, and how answers are checked."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help=f"your own problems, JSONL of {JSONL}")
    parser.add_argument("--question-field", default="question", help="the question in --data")
    parser.add_argument("--answer-field", default="answer", help="the answer")
    parser.add_argument("--search", metavar="WORDS", help="ask the search engine, and no more")
    parser.add_argument("--corpus", help="the passages to search, JSONL of id, title, text")
    parser.add_argument("--seed", type=int, default=0, help="of the problems")
    args = parser.parse_args()
    if args.search is not None or args.corpus:
        return show_search(args)
    if args.data:
        problems = read_problems(args.data, args.question_field, args.answer_field)
        shown = [(f"{args.data}, problem {i + 1}", p) for i, p in enumerate(problems[:5])]
    else:
        problems = [next(problem_stream(args.seed, d)) for d in DIFFICULTY]
        shown = [(f"difficulty {d}", p) for d, p in zip(DIFFICULTY, problems)]
    for name, p in shown:
        print(f"{name}\n    {messages(p)[0]['content']}\n    {p.solution or p.answer}\n")
    p = problems[0]
    print("how an attempt at the first one is checked")
    for text in (p.solution or f"So it is {p.answer}. Answer: {p.answer}", f"Answer: {p.answer}.0",
                 rf"\boxed{{{p.answer}}}", "Answer: 7 or so", f"It is {p.answer}."):
        print(f"    R = {is_correct(text, p):d}  answers {extract_answer(text)!s:>6}  {text}")
    passed = sum(is_correct(f"Answer: {q.answer}", q) for q in problems)
    print(f"\n{passed} of {len(problems)} reference answers pass their own check.")


if __name__ == "__main__":
    fail_in_one_line(main)
