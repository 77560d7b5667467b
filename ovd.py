"""On-policy Verbal Distillation (OVD): the method on plain tensors, nothing but torch.

A student pi samples N whole trajectories y_1 .. y_N for a prompt x. A teacher reads each as text
and says how good it is in one word out of ten, the digits 0 .. 9. With p_j(k) the probability it
gives digit k after reading y_j, and theta a threshold:

    S(y_j) = sum_k k p_j(k)                        verbal score, 0 .. 9        expected_score
    a(y_j) = 1[S(y_j) >= theta]                    verbal rejection            accept
    y'_j   = y_j if a(y_j) = 1, else the teacher's own trajectory
    A_j    = R(y'_j) - mean_i R(y_i)               group-relative advantage    group_advantages
    L      = - 1/M sum_j A_j sum_t log pi(y'_jt)   trajectory-level update     trajectory_loss

R is the outcome (1 if the answer is right), M the number of trained tokens in the whole batch (the
division by it comes last, in train.py). Ten numbers a trajectory are all that is ever asked of the
teacher's distribution, so any tokenizer and any black box can teach. What that replaces is here
too: token-level distillation, the reverse KL over the whole vocabulary at every student token
(reverse_kl), dense and in chunks.

Source: arXiv 2601.21968, sections 3.2-3.4 as quoted in public; the authors' code was not at hand.
How a replacement enters the update is not in those quotes, and it decides whether the method works
at all: see group_advantages.

    python ovd.py      # a group of eight trajectories, worked through by numbers
"""
import argparse

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint


# ------------------------------------------------------------------------------- digits to scores
def expected_score(probs):
    """S(y) = sum_k k p(k): (B, 10) -> (B,) in 0..9.

    The default. Where the likeliest digit ties for half a group, the expectation still tells its
    members apart (G-Eval, arXiv 2303.16634; the mean beats the mode in arXiv 2503.03064).
    """
    return probs @ torch.arange(10, dtype=probs.dtype, device=probs.device)


def most_likely_score(probs):
    """The likeliest digit, all that a teacher which only speaks can give: (B, 10) -> (B,)."""
    return probs.argmax(-1).to(probs.dtype)


def accept(scores, theta):
    """a(y) = 1[S(y) >= theta], scores (...) and theta in 0..9 -> bool (...)."""
    return scores >= theta


# ------------------------------------------------------------------------------- advantages
def group_advantages(rewards, baseline=None):
    """A = R - mean of the group's baseline. rewards (P, N), N trajectories a prompt -> (P, N).

    baseline (P, M): the rewards the mean is taken over, the same ones unless given. This is GRPO
    (arXiv 2402.03300) without its division by the group's standard deviation, which favours
    prompts that are almost always or almost never solved (arXiv 2503.20783). Each trajectory is
    part of the mean it is compared with, so what is expected of the update is (1 - 1/N) of the
    policy gradient: shorter, not turned. A reward that is NaN takes no part: it is left out of the
    mean, and its advantage is 0.

    For OVD the baseline is the student's own group, *before* replacement. Within the mixed group
    it would fail: what was accepted is right, what replaced the rest is right, so all rewards tie,
    all advantages vanish, and what gradient is left comes of the exceptions, noise. Rejection
    throws away the contrast a group-relative update lives on.
    """
    baseline = rewards if baseline is None else baseline
    return (rewards - baseline.nanmean(dim=1, keepdim=True)).nan_to_num(0.0)


def tied_groups(advantages):
    """How many groups of (P, N) give no gradient, every advantage being 0 -> int."""
    return int((advantages.abs() < 1e-6).all(dim=1).sum())


# ------------------------------------------------------------------------------- losses
def in_chunks(function, chunk, *tensors):
    """function(*tensors) -> (M,), for `chunk` of the M rows at a time; 0 or None: all at once.

    Exact in value and gradient, for a row's result depends on that row alone. What is inside is
    not kept but made again in the backward pass, so the peak is that of one chunk.
    """
    if not chunk:
        return function(*tensors)
    parts = [[t[i:i + chunk] for t in tensors] for i in range(0, len(tensors[0]), chunk)]
    return torch.cat([checkpoint(function, *part, use_reentrant=False) for part in parts])


def token_logprobs(hidden, head, targets, temperature=1.0, chunk=None):
    """log pi(target) from the states that predict them: (M, H), (V, H), (M,) -> (M,) float32.

    temperature must be the one the tokens were sampled at: sampled from one distribution and
    scored under another, an update is off-policy whatever it is called.
    """
    def logprobs(hidden, targets):
        logits = (hidden @ head.T).float() / temperature  # (M, V)
        return -F.cross_entropy(logits, targets, reduction="none")  # (M,)
    return in_chunks(logprobs, chunk, hidden, targets)


def trajectory_loss(logprobs, advantages, start_logprobs=None, kl=0.0):
    """-sum A log pi over M tokens, each with its trajectory's advantage: (M,), (M,) -> scalar.

    A sum and not a mean: the caller divides once by the *whole* batch's token count, so the size
    of a micro-batch changes nothing. One gradient step is taken a batch, so a student token's
    policy ratio is 1. A teacher's token has it set to 1: a black box has no probability to show.

    kl > 0 pulls towards the start by kl/2 (log pi - log pi_start)^2. On the student's own tokens
    the mean of its gradient is that of the reverse KL (k2 in joschu.net/blog/kl-approx.html).
    """
    loss = -(advantages * logprobs).sum()
    if kl:
        loss = loss + kl / 2 * (logprobs - start_logprobs).square().sum()
    return loss


def reverse_kl(hidden, head, teacher_hidden, teacher_head, temperature=1.0, chunk=None):
    """KL(pi || teacher) at M tokens: (M, H), (V, H), (M, H_T), (V, H_T) -> (M,) float32.

    Logit matching on the student's own trajectories, as in arXiv 2306.13649. Both models must have
    the same V token ids at the same M positions, and dense it holds several (M, V) tensors.
    """
    def kl(hidden, teacher_hidden):
        student = F.log_softmax((hidden @ head.T).float() / temperature, -1)  # (M, V)
        teacher = F.log_softmax((teacher_hidden @ teacher_head.T).float() / temperature, -1)
        return (student.exp() * (student - teacher)).sum(-1)  # (M,)
    return in_chunks(kl, chunk, hidden, teacher_hidden)


# ------------------------------------------------------------------------------- a look at it
def main():
    """One group, by numbers."""
    argparse.ArgumentParser(description=__doc__,
                            formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    theta = 5
    outcome = torch.tensor([[1., 0, 0, 1, 0, 0, 0, 0]])  # (1, 8) R(y_j): two have the right answer
    opinion = torch.tensor([8.6, 0.7, 1.2, 7.9, 2.3, 0.4, 3.1, 4.2])  # of the teacher, roughly
    probs = (-0.5 * (torch.arange(10) - opinion[:, None]).square()).softmax(-1)  # (8, 10)
    scores, digits = expected_score(probs), most_likely_score(probs)  # (8,), (8,)
    kept = accept(scores, theta)  # (8,)
    mixed = torch.where(kept, outcome, 1.0)  # (1, 8) R(y'_j): the teacher's own are right
    own, literal = group_advantages(mixed, outcome), group_advantages(mixed)  # (1, 8)
    print(f"one prompt, eight trajectories, theta = {theta}\n\n"
          "                                              advantage A_j against the mean of\n"
          " j  likeliest  S(y_j)  verdict   R(y_j) R(y'_j)   the student's own   the mixed group")
    for j in range(8):
        print(f"{j + 1:2}  {digits[j]:9.0f}  {scores[j]:6.2f}  "
              f"{'kept    ' if kept[j] else 'replaced'}  {outcome[0, j]:6.0f} {mixed[0, j]:7.0f}   "
              f"{own[0, j]:17.2f}   {literal[0, j]:15.2f}")
    print(f"\n{int(kept.sum())} of 8 trajectories were kept. In the mixed group the rewards tie "
          f"and every advantage is {literal.abs().max():.2f}: no gradient. Against the student's "
          f"own mean of {outcome.mean():.2f} they are {own[0, 0]:+.2f}.")


if __name__ == "__main__":
    main()
