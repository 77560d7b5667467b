"""How quick is the index of a large corpus, and does it find what plain BM25 puts first?

    python tests/search_speed.py 1000000

Makes a file of as many passages of a hundred words, drawn from 200,000 words with the frequencies
of natural language (Zipf's law: the n-th most frequent word is n times rarer than the first), has
the index built as train.py would, and asks 1,000 questions: six words of one passage, two of them
among the hundred most frequent, as in "who was the author of ...". The first 100 are also answered
by the other engine, SQLite's, which ranks every passage that holds one of the words. What tantivy
alone takes, given text that is read and checked already, says what of the time is the machine's.
"""

import json
import random
import sys
import tempfile
import time
from itertools import accumulate, islice
from pathlib import Path

import psutil
import tantivy

sys.path.insert(0, str(Path(__file__).parents[1]))
from more.corpus import MEMORY, open_corpus, open_index  # noqa: E402
from more.search import Search  # noqa: E402

WORDS = 200_000


def write_corpus(path, passages, rng):
    """Write the file; returns a thousand questions that passages of it answer."""
    syllables = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
    spoken = ("".join(rng.choices(syllables, k=2 + (n > 2000) + (n > 50_000))) for n in range(WORDS))
    lexicon = list(dict.fromkeys(spoken))  # as in English, what is said often is short
    weights = list(accumulate(1 / (i + 1) for i in range(len(lexicon))))
    common, asked, questions = set(lexicon[:100]), set(rng.sample(range(passages), 1000)), []
    with open(path, "w") as f:
        for i in range(passages):
            text = rng.choices(lexicon, cum_weights=weights, k=100)
            row = {"id": str(i), "title": " ".join(text[:2]), "text": " ".join(text)}
            f.write(json.dumps(row) + "\n")
            if i in asked:
                rare = sorted(set(text) - common)
                questions.append(" ".join(rng.sample(rare, 4) + rng.sample(sorted(common), 2)))
    rng.shuffle(questions)
    return questions


def ask(engine, questions, k):
    """([what is found first for each], sorted milliseconds)."""
    first, times = [], []
    for question in questions:
        began = time.perf_counter()
        found = engine.find(question, k)
        times.append(1000 * (time.perf_counter() - began))
        first.append(found[0])
    return first, sorted(times)


def time_tantivy(path, passages):
    """Seconds in which tantivy indexes the first passages of a file that were read beforehand."""
    with open(path) as file, tempfile.TemporaryDirectory() as folder:
        rows = map(json.loads, islice(file, passages))
        ready = [tantivy.Document(id=r["id"].encode(), passage=[r["title"], r["text"]]) for r in rows]
        writer, began = open_index(Path(folder)).writer(MEMORY), time.time()
        for document in ready:
            writer.add_document(document)
        writer.commit()
        writer.wait_merging_threads()
        return time.time() - began


def main(passages):
    process, rng = psutil.Process(), random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "passages.jsonl"
        questions = write_corpus(path, passages, rng)
        began, cpu = time.time(), sum(process.cpu_times()[:2])
        corpus = open_corpus(path)
        took, cpu = time.time() - began, sum(process.cpu_times()[:2]) - cpu
        size = sum(file.stat().st_size for file in Path(f"{path}.index").iterdir())
        print(f"{passages} passages indexed in {took:.1f} s, {passages / took:.0f} a second ({cpu:.0f} s of "
              f"CPU time); the index takes {size / path.stat().st_size:.2f} of the file's "
              f"{path.stat().st_size / 1e6:.0f} MB")
        some = min(passages, 200_000)
        print(f"tantivy alone, given the text of {some} passages: {some / time_tantivy(path, some):.0f} a second")
        memory = process.memory_info().rss >> 20
        first, times = ask(corpus, questions, 3)
        print(f"1,000 top-3 questions: p50 {times[500]:.1f} ms, p99 {times[990]:.1f} ms; memory {memory} MiB "
              f"before the first and {process.memory_info().rss >> 20} after the last")
        rows = map(json.loads, open(path))
        plain = Search((row["id"], row["title"], row["text"]) for row in rows)
        other, times = ask(plain, questions[:100], 1)
        missed = sum(a != b for a, b in zip(first, other))
        print(f"SQLite's FTS5 takes {times[50]:.0f} ms (p50) and puts another passage first in {missed} of "
              "100 questions.")


if __name__ == "__main__":
    main(int(sys.argv[1]))
