"""A teacher that only speaks: the one digit is read from the text of its reply.

What remains where the probabilities behind a reply are out of reach: --score reply for a model on
this machine, and a server without log-probabilities (more/server.py).

    python score.py --score reply                # the digit that is said
    python -m more.reply "I give it a seven."    # which digit a text says
"""
import math
import re

import torch

from more.terminal import fail_in_one_line, make_parser
from sample import generate, stop_ids


def parse_reply(reply, stopped=True):
    """The one digit a teacher said, or None.

    "7", "Score: 7.", "7/9" and "seven" are 7; "10", "-3", "3.5" and "3 or 4" are nothing. Where it
    was cut off, a number at its end may have gone on, and is nothing either.
    """
    if not stopped and re.search(r"\d\.?\s*$", reply):
        return None
    reply = re.sub(r"/\s*9\b|\bout of (9|nine)\b", "", reply.lower())
    for value, word in enumerate("zero one two three four five six seven eight nine".split()):
        reply = re.sub(rf"\b{word}\b", str(value), reply)
    numbers = set(re.findall(r"-?\d+(?:\.\d+)?", reply))
    number = numbers.pop() if len(numbers) == 1 else ""
    return int(number) if re.fullmatch(r"\d", number) else None


def score_replies(model, tokenizer, prompts, batch=16, max_new_tokens=8):
    """What score_probs gives, of a teacher that only speaks: no digit is a row of NaN."""
    rows, stops = [], stop_ids(model, tokenizer)
    for i in range(0, len(prompts), batch):
        for ids, _ in generate(model, tokenizer, prompts[i:i + batch], 0.0, max_new_tokens):
            digit = parse_reply(tokenizer.decode(ids, skip_special_tokens=True), ids[-1] in stops)
            rows.append([math.nan if digit is None else float(k == digit) for k in range(10)])
    return torch.tensor(rows)


def main():
    """Say which digit a text says."""
    parser = make_parser(__doc__)
    parser.add_argument("text", help="what a teacher replies")
    digit = parse_reply(parser.parse_args().text)
    print("It says no digit, or more than one." if digit is None else f"It says {digit} of 9.")


if __name__ == "__main__":
    fail_in_one_line(main)
