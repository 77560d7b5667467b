"""Worked solutions of 4_search.ipynb: python notebooks/solutions/4_search.py"""

import re
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import course


def f1(said, right):
    """4.1: of two Counters, & keeps of each word the smaller count."""
    common = (Counter(said) & Counter(right)).total()
    return 2 * common / (len(said) + len(right))


course.check("4.1", f1)


def mask(parts):
    """4.2: it goes by the author, not by the word: a student may write <information> too."""
    return [int(author != "environment") for author, tokens in parts for _ in tokens]


course.check("4.2", mask)


def supported(attempts):
    """4.3: compared as words, with a space at both ends, so that a part of one is none."""

    def words(text):
        return " " + " ".join(re.findall(r"\w+", text.lower())) + " "

    found = [
        answer.strip() and any(words(answer) in words(p) for p in passages)
        for answer, passages in attempts
    ]
    return sum(map(bool, found)) / len(attempts)


course.check("4.3", supported)


def safe_query(text):
    """4.4: take nothing of the text but its words, and each in quotes."""
    return " OR ".join(f'"{word}"' for word in re.findall(r"\w+", text)) or '""'


course.check("4.4", safe_query)
