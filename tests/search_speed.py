"""How quick is the search engine on a large corpus, and what does its shortcut cost?

    python tests/search_speed.py 1000000

Makes a file of as many passages of a hundred words, drawn from 200,000 words with the frequencies
of natural language (Zipf's law: the n-th most frequent word is n times rarer than the first), has
the index built as train.py would, and asks 1,000 questions: six words of one passage, two of them
among the hundred most frequent, as in "who was the author of ...". The first 100 are also answered
by plain BM25, all passages in one index and all words ranked at once, to see whether the shortcut
and the parts of the index still find the same passage first.
"""

import json
import os
import random
import sys
import tempfile
import time
from itertools import accumulate
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))
import tasks  # noqa: E402

WORDS = 200_000


def main(passages):
    rng = random.Random(0)
    syllables = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
    spoken = ("".join(rng.choices(syllables, k=2 + (n > 2000) + (n > 50_000))) for n in range(WORDS))
    lexicon = list(dict.fromkeys(spoken))  # as in English, what is said often is short
    weights = list(accumulate(1 / (i + 1) for i in range(len(lexicon))))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "passages.jsonl"
        with open(path, "w") as f:
            for i in range(passages):
                text = rng.choices(lexicon, cum_weights=weights, k=100)
                row = {"id": str(i), "title": " ".join(text[:2]), "text": " ".join(text)}
                f.write(json.dumps(row) + "\n")
        began = time.time()
        search = tasks.open_corpus(path)
        took = time.time() - began
        size = sum(p.stat().st_size for p in Path(folder).glob("*.index*"))
        print(f"{passages} passages indexed in {took:.1f} s, {passages / took:.0f} a second; the index takes "
              f"{size / path.stat().st_size:.2f} of the file's {path.stat().st_size / 1e6:.0f} MB")
        common, questions, times = set(lexicon[:100]), [], []
        while len(questions) < 1000:
            (text,), *_ = search.rows("SELECT text FROM passages WHERE rowid = ?",
                                      rng.randint(1, passages // tasks.PARTS))
            rare = [w for w in set(tasks.words_of(text)) if w not in common]
            questions.append(" ".join(rng.sample(rare, 4) + rng.sample(sorted(common), 2)))
        process, memory = psutil.Process(), []
        for question in questions:
            began = time.perf_counter()
            search.find(question, 3)
            times.append(1000 * (time.perf_counter() - began))
            memory.append(process.memory_info().rss / 2**20)
        first = sorted(times)[500]
        print(f"1,000 questions: p50 {first:.1f} ms, p99 {sorted(times)[990]:.0f} ms, memory "
              f"{memory[0]:.0f} MiB after the first and {memory[-1]:.0f} after the last")
        os.link(path, f"{folder}/plain.jsonl")
        tasks.PARTS, began = 1, time.time()
        plain = tasks.open_corpus(f"{folder}/plain.jsonl")
        plain.SCAN = passages * 100
        print(f"The same passages in one index, by one thread: {passages / (time.time() - began):.0f} a second")
        missed, slow = 0, []
        for question in questions[:100]:
            began = time.perf_counter()
            missed += plain.find(question, 1) != search.find(question, 1)
            slow.append(1000 * (time.perf_counter() - began))
        print(f"plain BM25 takes {sorted(slow)[50]:.0f} ms (p50) and puts another passage first in "
              f"{missed} of 100 questions.")


if __name__ == "__main__":
    main(int(sys.argv[1]))
