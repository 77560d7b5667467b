"""Version 2 of the replacement: keep the good prefix of an attempt, let the teacher go on from it.

Version 1 throws a rejected trajectory away. Version 2 cuts it after each of its steps, has the
teacher score every prefix, keeps the longest that is accepted, and lets the teacher write the rest.
The student's own beginning stays in the update, so more of the exploration survives.

    python train.py --replace suffix                  # train.py calls replace_suffixes below
    python train.py --replace suffix --suffix read    # the teacher's part is read, not trained on
    python -m more.suffix                             # attempts of the student, cut and mended
"""
from bisect import bisect_right
from dataclasses import replace

from more.flags import teacher_flags
from more.terminal import fail_in_one_line
from ovd import accept
from score import scored_attempts


def good_prefixes(teacher, rejected, solutions, theta):
    """(the text of each rejected trajectory up to its last good step, tokens the teacher read).

    The teacher scores the prefixes of all trajectories at once. The longest prefix that it accepts
    is kept, "" where it accepts none. solutions: the teacher's own, one a trajectory.
    """
    cuts = [(j, end) for j, t in enumerate(rejected) for end in t.problem.step_ends(t.text)]
    prefixes = [replace(rejected[j], text=rejected[j].text[:end]) for j, end in cuts]
    good = [""] * len(rejected)
    if not prefixes:
        return good, 0
    tokens = teacher.score(prefixes, [solutions[j] for j, _ in cuts])
    for (j, _), prefix in zip(cuts, prefixes):  # from the shortest of each to the longest
        if prefix.score is not None and accept(prefix.score, theta):
            good[j] = prefix.text
    return good, tokens


def splice(t, prefix, solution, tokenizer, train_suffix=True):
    """Trajectory t up to the text `prefix`, and from there how the teacher went on.

    The teacher's part is trained on, because it holds what the student could not do. Without
    train_suffix it is only read, and the update only tells good prefixes from bad ones.
    """
    def characters(k):
        """How long the text of the first k tokens is."""
        return len(tokenizer.decode(t.ids[:k], skip_special_tokens=True).lstrip())
    # The student's own tokens within the prefix. A token that reaches over its end is left out,
    # and the teacher's text begins where the last token that is kept ends.
    k = bisect_right(range(len(t.ids) + 1), len(prefix), key=characters) - 1 if prefix else 0
    spliced = replace(t, ids=t.ids[:k], logprobs=t.logprobs[:k], authors=t.authors[:k],
                      mask=t.mask[:k], text=solution.text, stopped=solution.stopped,
                      reward=solution.reward)
    from train import append_teacher  # train.py itself may be the script that is running
    append_teacher(spliced, solution.text[characters(k):], solution.stopped, tokenizer,
                   int(train_suffix))
    return spliced


def replace_suffixes(rejected, solutions, teacher, tokenizer, theta, train_suffix=True):
    """(for each rejected trajectory its good prefix with the teacher's ending, tokens read)."""
    prefixes, tokens = good_prefixes(teacher, rejected, solutions, theta)
    endings = teacher.solve([t.problem for t in rejected], prefixes)
    mended = [splice(t, prefix, ending, tokenizer, train_suffix)
              for t, prefix, ending in zip(rejected, prefixes, endings)]
    if mended and mended[0].problem.answer is None:  # --reward verbal: R is the teacher's word
        tokens += teacher.score(mended, solutions)
        for t in mended:
            t.reward = 0.0 if t.score is None else t.score / 9
    return mended, tokens


def main():
    """Cut attempts of the student after their last good step, and have the teacher go on."""
    args = teacher_flags(__doc__).parse_args()
    teacher, attempts, solutions = scored_attempts(args)
    rejected = [(t, s) for t, s in zip(attempts, solutions) if t.score is not None and t.score < 5]
    wrong, own = [t for t, _ in rejected], [s for _, s in rejected]
    prefixes, tokens = good_prefixes(teacher, wrong, own, 5)
    endings = teacher.solve([t.problem for t in wrong], prefixes)
    shown = sorted(zip(wrong, prefixes, endings), key=lambda row: -len(row[1]))[:8]
    for t, prefix, ending in shown:
        print(f"{t.problem.question} ({t.problem.answer})\n  attempt  {t.text}\n  kept     "
              f"{prefix}\n  becomes  {ending.text}\n")
    print(f"Of {len(wrong)} rejected attempts {sum(map(bool, prefixes))} keep a good prefix; the "
          f"teacher read {tokens:,} tokens to find it.")


if __name__ == "__main__":
    fail_in_one_line(main)
