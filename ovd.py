"""On-policy Verbal Distillation (OVD): the method on plain tensors, nothing but torch.

A student pi samples N whole trajectories y_1 .. y_N for a prompt x. A teacher reads each as text
and says how good it is in one word out of ten, the digits 0 .. 9. With p_j(k) the probability it
gives digit k after reading y_j, and theta a threshold:

    S(y_j) = sum_k k p_j(k)                        verbal score, 0 .. 9        expected_score
    a(y_j) = 1[S(y_j) >= theta]                    verbal rejection            accept
    y'_j   = y_j if a(y_j) = 1, else the teacher's own trajectory, where that earns more
    A_j    = R(y'_j) - mean_i R(y_i)               group-relative advantage    group_advantages
    L      = - 1/M sum_j A_j sum_t log pi(y'_jt)   trajectory-level update     trajectory_loss

R is the outcome: 1 if the answer is right, else 0. S picks what may be replaced. M counts the
trained tokens of the whole batch. The teacher gives a text a problem and ten numbers a trajectory,
so it may have any tokenizer. What this replaces is here too, to be compared with: the reverse KL
over the whole vocabulary at every student token (reverse_kl), dense and in chunks.

Source: arXiv 2601.21968, sections 3.2-3.4 as quoted in public. The quotes do not say how a
replacement enters the update, and that decides whether it works at all: see group_advantages.

    python ovd.py    # one group by numbers, then the memory of three losses: half a minute
"""
import time

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from more.machine import peak_bytes, pick_device, reset_peak, return_freed_memory
from more.terminal import fail_in_one_line, make_parser


# ------------------------------------------------------------------------------- digits to scores
def expected_score(probs):
    """S(y) = sum_k k p(k): probabilities (B, 10) -> (B,) in 0..9.

    The default. Where the likeliest digit ties for half a group, the expectation still tells its
    members apart (G-Eval, arXiv 2303.16634; the mean beats the mode in arXiv 2503.03064).
    """
    return probs @ torch.arange(10, dtype=probs.dtype, device=probs.device)


def most_likely_score(probs):
    """The likeliest digit, all that a teacher which only speaks can give: (B, 10) -> (B,)."""
    return probs.argmax(-1).to(probs.dtype)


def accept(scores, theta):
    """a(y) = 1[S(y) >= theta]: scores (...) and theta, both in 0..9 -> bool (...)."""
    return scores >= theta


# ------------------------------------------------------------------------------- advantages
def group_advantages(rewards, baseline=None):
    """A = R - mean of the group's baseline: rewards (..., N), N trajectories a prompt -> (..., N).

    baseline (..., K): the rewards the mean is taken over; `rewards` itself unless given. This is
    GRPO (arXiv 2402.03300) without the division by the group's standard deviation, which favours
    prompts that are almost always or almost never solved (arXiv 2503.20783). A trajectory is part
    of its own mean, so the expected update is the policy gradient times 1 - 1/N.

    For OVD the baseline is the student's own group, *before* replacement. Within the mixed group
    the update dies. What was accepted is right, and what replaced the rest is right, so all rewards
    tie and all advantages are 0. The few groups that do not tie are the judge's mistakes, and they
    are all the gradient there is. A group-relative update lives on contrast, and rejection has
    thrown it away.
    """
    return rewards - (rewards if baseline is None else baseline).mean(-1, keepdim=True)


def tied_groups(advantages):
    """How many groups of (P, N) give no gradient, every advantage being 0 -> int."""
    return int((advantages.abs() < 1e-6).all(-1).sum())


# ------------------------------------------------------------------------------- losses
def in_chunks(function, chunk, *tensors):
    """function(*tensors) -> (M,), for `chunk` of the M rows at a time; 0 or None: all at once.

    Exact in value and in gradient, because a row's result depends on that row alone. This is
    gradient checkpointing: what was computed inside is not kept, and the backward pass computes it
    again, one chunk at a time. So the peak is that of one chunk.
    """
    if not chunk:
        return function(*tensors)
    parts = zip(*(t.split(chunk) for t in tensors))
    # preserve_rng_state: nothing in a loss is random, so there is no random state to keep
    return torch.cat([checkpoint(function, *part, use_reentrant=False, preserve_rng_state=False)
                      for part in parts])  # (M,)


def token_logprobs(hidden, head, targets, temperature=1.0, chunk=None):
    """log pi(target) from the states that predict them: (M, H), (V, H), (M,) -> (M,) float32.

    temperature must be the one the tokens were sampled at. Sampled from one distribution and
    scored under another, an update is off-policy whatever it is called.
    """
    def logprobs(hidden, targets):
        """The same for some of the M rows."""
        logits = (hidden @ head.T).float() / temperature  # (M, V)
        return -F.cross_entropy(logits, targets, reduction="none")  # (M,)
    return in_chunks(logprobs, chunk, hidden, targets)


def trajectory_loss(logprobs, advantages, ref_logprobs=None, kl=0.0):
    """-sum A log pi over M tokens, each with its trajectory's advantage: (M,), (M,) -> scalar.

    A sum and not a mean: the caller divides once by the *whole* batch's token count, as DAPO does
    (arXiv 2503.14476; GRPO takes each trajectory's mean first), whatever the micro-batch. One step
    a batch, so PPO's ratio pi / pi_old is 1 for a student's token; for a teacher's it is set to 1.

    kl > 0 pulls to pi_ref, the student without adapters: kl/2 (log pi - log pi_ref)^2. On its own
    tokens the mean of its gradient is the reverse KL's (k2 in joschu.net/blog/kl-approx.html).
    """
    loss = -(advantages * logprobs).sum()
    if kl:
        loss = loss + kl / 2 * (logprobs - ref_logprobs).square().sum()
    return loss


def reverse_kl(hidden, head, teacher_hidden, teacher_head, temperature=1.0, chunk=None):
    """KL(pi || teacher) at M tokens: (M, H), (V, H), (M, H_T), (V, H_T) -> (M,) float32.

    Logit matching on the student's own trajectories, as in arXiv 2306.13649. Both models must have
    the same V token ids at the same M positions. Dense, it holds several (M, V) tensors at once.
    """
    def kl(hidden, teacher_hidden):
        """The same for some of the M rows."""
        student = F.log_softmax((hidden @ head.T).float() / temperature, -1)  # (M, V)
        teacher = F.log_softmax((teacher_hidden @ teacher_head.T).float() / temperature, -1)
        return (student.exp() * (student - teacher)).sum(-1)  # (M,)
    return in_chunks(kl, chunk, hidden, teacher_hidden)


# ------------------------------------------------------------------------------- memory, measured
# Three ways to a loss from the last hidden states of M tokens: h (M, H) the student's, g (M, H_T)
# the teacher's, their frozen heads W (V, H) and U (V, H_T), y (M,) the ids of the tokens. At the
# peak about 5 float32 tensors of (M, V), 5 of (c, V) and 3 of (c, V) are held, c tokens a chunk.
def dense_kl(h, W, g, U, y, c):
    """The textbook: all (M, V) logits of both models at once."""
    return reverse_kl(h, W, g, U).sum()


def chunked_kl(h, W, g, U, y, c):
    """The same loss and the same gradient, c tokens at a time."""
    return reverse_kl(h, W, g, U, chunk=c).sum()


def ovd_update(h, W, g, U, y, c):
    """OVD's loss needs log pi of the trained tokens alone, and no logits of the teacher's."""
    return trajectory_loss(token_logprobs(h, W, y, chunk=c), torch.ones_like(y))


def loss_inputs(M, V, H, H_T, dtype, device):
    """h (M, H) with a gradient, W (V, H), g (M, H_T), U (V, H_T) and y (M,), all of them dull."""
    h, W, g, U = (torch.full(shape, 0.01, dtype=dtype, device=device)
                  for shape in ((M, H), (V, H), (M, H_T), (V, H_T)))
    return h.requires_grad_(), W, g, U, torch.arange(M, device=device) % V


# ------------------------------------------------------------------------------- a look at it
def show_group():
    """Print one group by numbers: scores, verdicts, and advantages against two baselines."""
    theta = 5
    rewards = torch.tensor([[1., 0, 0, 1, 0, 0, 0, 0]])  # (1, 8) R(y_j): two are right
    opinion = torch.tensor([8.6, 0.7, 1.2, 7.9, 2.3, 0.4, 3.1, 4.2])  # (8,) the teacher's, roughly
    probs = (-0.5 * (torch.arange(10) - opinion[:, None]).square()).softmax(-1)  # (8, 10)
    scores = expected_score(probs)  # (8,) S(y_j)
    kept = accept(scores, theta)  # (8,) a(y_j)
    mixed = torch.where(kept, rewards, 1.0)  # (1, 8) R(y'_j): the teacher's own are right
    own, literal = group_advantages(mixed, rewards), group_advantages(mixed)  # (1, 8) each
    print(f"one prompt, eight trajectories, theta = {theta}\n\n"
          "                                   advantage A_j against the mean of\n"
          " j  S(y_j)  verdict   R(y_j) R(y'_j)   the student's own   the mixed group")
    for j in range(8):
        print(f"{j + 1:2}  {scores[j]:6.2f}  {'kept    ' if kept[j] else 'replaced'}  "
              f"{rewards[0, j]:6.0f} {mixed[0, j]:7.0f}   {own[0, j]:17.2f}   "
              f"{literal[0, j]:15.2f}")
    print(f"\n{int(kept.sum())} of 8 trajectories were kept. In the mixed group the rewards tie "
          f"and every advantage is {literal.abs().max():.2f}: no gradient. Against the student's "
          f"own mean of {rewards.mean():.2f} they are {own[0, 0]:+.2f}.")


def show_memory(device):
    """Measure the three losses, forward and backward, at the sizes of Qwen3 0.6B taught by 4B."""
    M, c = (4096, 128) if device == "cuda" else (128, 32)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32  # many a CPU is slow in bfloat16
    sizes = dict(V=151936, H=1024, H_T=2560, dtype=dtype, device=device)
    print(f"\nthe loss of M = {M:,} tokens, vocabulary {sizes['V']:,}, c = {c}, on {device}:\n\n"
          f"{'':24}{'peak, MiB':>11}{'x OVD':>8}{'seconds':>9}")
    peaks, (h, W, g, U, y) = [], loss_inputs(M, **sizes)
    # The smallest first: where a peak cannot be reset, the peak so far is still each one's own.
    for name, loss in (("OVD's update", ovd_update), ("reverse KL, in chunks", chunked_kl),
                       ("reverse KL, dense", dense_kl)):
        loss(h[:8], W, g[:8], U, y[:8], c).backward()  # a small one first, which loads libraries
        h.grad = None
        return_freed_memory()
        before, began = reset_peak(device), time.time()
        loss(h, W, g, U, y, c).backward()
        peaks.append(max(1, peak_bytes(device) - before))  # above the inputs, with h's gradient
        print(f"{name:24}{peaks[-1] / 2**20:11,.0f}{peaks[-1] / peaks[0]:8.1f}"
              f"{time.time() - began:9.1f}")
    print(f"\nAt {M:,} tokens OVD's update takes {peaks[0] / 2**20:,.0f} MiB; logit matching takes "
          f"{peaks[2] / peaks[0]:.1f} times that dense, {peaks[1] / peaks[0]:.1f} in chunks.")


def main():
    """One group by numbers, then the memory of three losses."""
    make_parser(__doc__).parse_args()
    show_group()
    show_memory(pick_device())


if __name__ == "__main__":
    fail_in_one_line(main)
