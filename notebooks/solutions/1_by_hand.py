"""Worked solutions of 1_by_hand.ipynb: python notebooks/solutions/1_by_hand.py"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import course


def score_of(probs):
    """1.1: the expectation. Each digit counts as much as the teacher believes in it."""
    return sum(k * p for k, p in enumerate(probs))


course.check("1.1", score_of)


def mixed_rewards(scores, rewards, teacher_reward, theta):
    """1.2: what is accepted keeps its own outcome; what is not earns the better of the two.

    "At least theta" accepts a score equal to theta. And the teacher may be wrong: then even a
    rejected attempt stays.
    """
    return [r if s >= theta else max(r, teacher_reward) for s, r in zip(scores, rewards)]


course.check("1.2", mixed_rewards)


def push(said, advantages, n):
    """1.3: who said it, minus each word's share, 1/n, of the sum of all advantages."""
    total = sum(advantages)
    return [sum(A for v, A in zip(said, advantages) if v == word) - total / n for word in range(n)]


course.check("1.3", push)


def dead_theta(scores, rewards):
    """1.4: at 6 the slip of attempt 4, scored 5.2, is replaced too, and every reward is 1.

    Where nothing at all is right, theta = 0 does it: nothing is rejected and all tie at 0.
    """
    for theta in range(10):
        mixed = [r if s >= theta else 1 for s, r in zip(scores, rewards)]
        if len(set(mixed)) == 1:
            return theta
    return None


course.check("1.4", dead_theta)
