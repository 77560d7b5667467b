"""Worked solutions of 2_one_shot.ipynb: python notebooks/solutions/2_one_shot.py"""

import math
import sys
from pathlib import Path
from statistics import mean, stdev

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import course


def auc(right, wrong):
    """2.1: one point for each pair in the right order, half a point for a tie."""
    points = [1.0 if r > w else 0.5 if r == w else 0.0 for r in right for w in wrong]
    return sum(points) / len(points)


course.check("2.1", auc)


def taken_in(samples, theta):
    """2.2: accepted means at least theta; wrong means a reward of 0."""
    return [s["text"] for s in samples if s["score"] >= theta and s["reward"] == 0]


course.check("2.2", taken_in)


def learns_to_please(scores, rewards):
    """2.3: thirds and not single updates, for a single one is 32 attempts and jumps about."""
    third = len(scores) // 3
    score_rose = mean(scores[-third:]) > mean(scores[:third])
    reward_rose = mean(rewards[-third:]) > mean(rewards[:third])
    return score_rose and not reward_rose


course.check("2.3", learns_to_please)


def interval(gains):
    """2.4: the standard error is the standard deviation over the root of the number of seeds."""
    return [mean(gains), 2.78 * stdev(gains) / math.sqrt(len(gains))]


course.check("2.4", interval)
