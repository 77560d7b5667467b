"""The method on plain tensors, against hand-worked numbers, closed forms and torch's functions."""

import gc
import math
import sys

import pytest
import torch

import ovd
from more.machine import peak_bytes, reset_peak
from ovd import (accept, expected_score, group_advantages, most_likely_score, reverse_kl,
                 tied_groups, token_logprobs, trajectory_loss)


def test_expected_score_by_hand():
    probs = torch.zeros(3, 10)
    probs[0, 7] = 1.0  # certain: 7
    probs[1, 2], probs[1, 8] = 0.25, 0.75  # 0.25 * 2 + 0.75 * 8 = 6.5
    probs[2] = 0.1  # (0 + ... + 9) / 10 = 4.5
    assert expected_score(probs).tolist() == pytest.approx([7.0, 6.5, 4.5])
    assert most_likely_score(probs)[:2].tolist() == [7, 8]


def test_expectation_tells_apart_what_the_digit_ties():
    probs = torch.tensor(
        [[0, 0, 0, 0, 0, 0, 0, 0.1, 0.3, 0.6], [0.3, 0, 0, 0, 0, 0, 0, 0, 0.1, 0.6]]
    )
    assert most_likely_score(probs).tolist() == [9, 9]
    assert expected_score(probs).tolist() == pytest.approx([8.5, 6.2])


def test_accept_takes_its_own_threshold():
    assert accept(torch.tensor([4.99, 5.0, 9.0, 0.0]), 5).tolist() == [False, True, True, False]


# ------------------------------------------------------------------------------- advantages
def test_advantages_are_per_group_by_hand():
    rewards = torch.tensor([[1.0, 0, 0, 1], [0, 0, 0, 1]])
    expected = [
        [0.5, -0.5, -0.5, 0.5],
        [-0.25, -0.25, -0.25, 0.75],
    ]  # means 0.5 and 0.25: over a group, not the batch's 0.375
    assert group_advantages(rewards).tolist() == expected


def test_a_baseline_may_have_another_size_than_the_group():
    rewards, baseline = torch.tensor([1.0, 0.0, 1.0]), torch.tensor([1.0, 0, 0, 0])
    assert group_advantages(rewards, baseline).tolist() == [0.75, -0.25, 0.75]
    assert group_advantages(rewards, torch.zeros(1)).tolist() == [1, 0, 1]


def test_replacement_ties_the_mixed_group_but_not_against_its_own_mean():
    own, mixed = torch.tensor([[1.0, 0, 0, 0]]), torch.ones(1, 4)
    assert group_advantages(mixed).tolist() == [[0, 0, 0, 0]]
    assert tied_groups(group_advantages(mixed)) == 1
    assert group_advantages(mixed, own).tolist() == [[0.75, 0.75, 0.75, 0.75]]
    assert tied_groups(group_advantages(mixed, own)) == 0


def test_tied_groups_are_counted_by_hand():
    rewards = torch.tensor([[1.0, 1, 1], [0, 0, 0], [0, 1, 0], [0.3, 0.3, 0.3]])
    assert tied_groups(group_advantages(rewards)) == 3  # rounding is no difference


# ------------------------------------------------------------------------------- losses
def test_token_logprobs_are_a_log_softmax_at_the_temperature():
    torch.manual_seed(0)
    hidden, head, targets = torch.randn(6, 4), torch.randn(9, 4), torch.randint(9, (6,))
    for temperature in (1.0, 0.7, 2.0):
        logits = hidden @ head.T / temperature
        exact = [
            logits[i, t] - math.log(sum(math.exp(z) for z in logits[i].tolist()))
            for i, t in enumerate(targets)
        ]
        assert torch.allclose(
            token_logprobs(hidden, head, targets, temperature), torch.stack(exact), atol=1e-5
        )


def test_loss_gradient_in_closed_form():
    """d/dz of -A log softmax(z)[y] is A (softmax(z) - onehot(y)); with head = I the state is z."""
    z, targets = (
        torch.tensor([[0.2, -1.0, 0.5], [1.0, 0.0, 0.0]], requires_grad=True),
        torch.tensor([2, 1]),
    )
    advantages = torch.tensor([0.75, -0.5])
    trajectory_loss(token_logprobs(z, torch.eye(3), targets), advantages).backward()
    onehot = torch.eye(3)[targets]
    assert torch.allclose(
        z.grad, advantages[:, None] * (z.detach().softmax(-1) - onehot), atol=1e-6
    )


def test_kl_term_by_hand_and_its_gradient_is_that_of_the_reverse_kl():
    logp, start = torch.tensor([-1.0, -2.0]), torch.tensor([-1.5, -2.0])
    assert trajectory_loss(logp, torch.zeros(2), start, kl=2.0).item() == pytest.approx(
        2.0 * 0.5 * 0.25
    )
    # over all three tokens: E[(log p - log q) grad log p] = grad KL(p || q)
    z, q = torch.tensor([0.3, -0.2, 0.9], requires_grad=True), torch.tensor([0.2, 0.5, 0.3])
    logp = z.log_softmax(-1)
    mean_k2 = (logp.exp().detach() * 0.5 * (logp - q.log()).square()).sum()
    kl = (logp.exp() * (logp - q.log())).sum()
    for a, b in zip(torch.autograd.grad(mean_k2, z, retain_graph=True), torch.autograd.grad(kl, z)):
        assert torch.allclose(a, b, atol=1e-6)


def test_reverse_kl_against_torch():
    torch.manual_seed(0)
    hidden, head = torch.randn(5, 4), torch.randn(11, 4)
    teacher_hidden, teacher_head = (
        torch.randn(5, 6),
        torch.randn(11, 6),
    )  # another width, the same vocabulary
    p = torch.distributions.Categorical(logits=hidden @ head.T)
    q = torch.distributions.Categorical(logits=teacher_hidden @ teacher_head.T)
    expected = torch.distributions.kl_divergence(p, q)  # student first: the reverse direction
    assert torch.allclose(
        reverse_kl(hidden, head, teacher_hidden, teacher_head), expected, atol=1e-5
    )


@pytest.mark.parametrize("chunk", [1, 3, 7, 16, 17, 100])
@pytest.mark.parametrize("loss", ["ovd", "logits"])
def test_chunked_equals_dense_in_value_and_gradient(loss, chunk):
    torch.manual_seed(0)
    head, targets = torch.randn(50, 8), torch.randint(50, (17,))
    teacher_hidden, teacher_head, advantages = (
        torch.randn(17, 12),
        torch.randn(50, 12),
        torch.randn(17),
    )

    def value_and_gradient(chunk):
        hidden = torch.randn(17, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
        value = (
            trajectory_loss(token_logprobs(hidden, head, targets, 0.9, chunk), advantages)
            if loss == "ovd"
            else reverse_kl(hidden, head, teacher_hidden, teacher_head, 0.9, chunk).sum()
        )
        value.backward()
        return value.detach(), hidden.grad

    (dense, dense_grad), (chunked, chunked_grad) = (
        value_and_gradient(None),
        value_and_gradient(chunk),
    )
    assert chunked.item() == pytest.approx(dense.item(), rel=1e-6)
    assert (chunked_grad - dense_grad).norm() <= 1e-5 * dense_grad.norm()


def test_a_dropped_chunk_would_be_noticed(monkeypatch):
    hidden, head, targets = torch.randn(8, 4), torch.randn(9, 4), torch.randint(9, (8,))
    dense = token_logprobs(hidden, head, targets)
    real = torch.cat
    monkeypatch.setattr(
        ovd.torch, "cat", lambda parts: real([torch.zeros_like(parts[0]), *parts[1:]])
    )
    assert not torch.allclose(token_logprobs(hidden, head, targets, chunk=3), dense)


@pytest.mark.parametrize("method", ["grpo", "judge"])
def test_the_mean_of_many_updates_is_the_policy_gradient(method):
    """A policy of two tokens, two steps long: four trajectories, all of them enumerated.

    The exact gradient of E[R] is sum_y p(y) R(y) grad log p(y). A group of N that is compared with
    its own mean gives (1 - 1/N) of it: each trajectory is part of what it is compared with.
    """
    torch.manual_seed(0)
    policy = torch.tensor([[0.3, -0.4], [1.0, 0.2], [-0.5, 0.8]], requires_grad=True)
    # (3 states, 2): before anything, after a 0, after a 1; with head = I a state's row is its logits
    trajectories = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])  # (4, 2)
    states = torch.stack([torch.zeros(4, dtype=torch.long), 1 + trajectories[:, 0]], 1)  # (4, 2)
    probs = torch.tensor(
        [[0.0] * 9 + [1], [0.5] * 2 + [0] * 8, [0] * 6 + [0.5, 0, 0.5, 0], [0.1] * 10]
    )
    reward = {"grpo": torch.tensor([0.0, 1, 0, 1]), "judge": expected_score(probs) / 9}[method]

    def logp(which):  # (M,) which trajectory -> (M, 2) its tokens' log-probabilities
        hidden = policy[states[which]].flatten(0, 1)  # (2 M, 2)
        return token_logprobs(hidden, torch.eye(2), trajectories[which].flatten()).view(-1, 2)

    everything = logp(torch.arange(4)).sum(1)  # (4,)
    assert everything.exp().sum().item() == pytest.approx(1)
    (exact,) = torch.autograd.grad((everything.exp() * reward).sum(), policy)

    groups, n = 40_000, 4
    drawn = torch.multinomial(everything.detach().exp(), groups * n, replacement=True)
    advantages = group_advantages(reward[drawn].view(groups, n)).flatten()  # (groups * n,)
    loss = trajectory_loss(logp(drawn).flatten(), advantages.repeat_interleave(2))
    (sampled,) = torch.autograd.grad(loss, policy)
    assert torch.allclose(
        -sampled / (groups * n), (1 - 1 / n) * exact, atol=4 / (groups * n) ** 0.5 / 2
    )
    assert exact.abs().max() > 0.05  # far above what the comparison tolerates


# ------------------------------------------------------------------------------- memory
def test_the_three_losses_that_are_measured_are_what_they_are_named_for():
    """The two KLs are one, in value and gradient; OVD's is -sum log pi of the sampled tokens."""
    torch.manual_seed(0)
    h, W, g, U, y = ovd.loss_inputs(12, 80, 8, 10, torch.float32, "cpu")
    assert [tuple(t.shape) for t in (h, W, g, U, y)] == [(12, 8), (80, 8), (12, 10), (80, 10), (12,)]
    assert h.requires_grad and not W.requires_grad and y.max() < 80
    h, W, g, U = (torch.randn(t.shape, requires_grad=t.requires_grad) for t in (h, W, g, U))
    dense, chunked = ovd.dense_kl(h, W, g, U, y, 5), ovd.chunked_kl(h, W, g, U, y, 5)
    assert chunked.item() == pytest.approx(dense.item(), rel=1e-6)
    gradients = [torch.autograd.grad(loss, h)[0] for loss in (dense, chunked)]
    assert (gradients[0] - gradients[1]).norm() <= 1e-5 * gradients[0].norm()
    logprobs = (h @ W.T).log_softmax(-1)[range(12), y]
    assert ovd.ovd_update(h, W, g, U, y, 5).item() == pytest.approx(-logprobs.sum().item(), rel=1e-6)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a peak is reset on Linux only")
def test_a_peak_is_that_of_what_was_held_since_it_was_reset():
    """What other tests left may be given back meanwhile: so 256 MiB, and half of it as leeway."""
    gc.collect()
    before = reset_peak("cpu")
    big = torch.ones(2**28, dtype=torch.uint8)  # written to and let go again
    del big
    assert 2**27 < peak_bytes("cpu") - before < 3 * 2**27
    again = reset_peak("cpu")
    assert peak_bytes("cpu") - again < 2**26


def test_one_group_by_numbers_is_what_the_docstring_says(capsys):
    """Of eight, two are right and accepted: against their mean of 1/4 the right earn 0.75."""
    ovd.show_group()
    *rows, last = capsys.readouterr().out.strip().splitlines()
    rows = [row.split() for row in rows if row.strip()[:1].isdigit()]
    assert [row[2] for row in rows] == ["kept" if j in (0, 3) else "replaced" for j in range(8)]
    assert [row[3:] for row in rows] == [
        [str(int(j in (0, 3))), "1", "0.75", "0.00"] for j in range(8)
    ]
    assert last.startswith("2 of 8 trajectories were kept") and "+0.75" in last


def test_the_memory_of_the_three_losses_is_shown(monkeypatch, capsys):
    """As `python ovd.py` does it, with smaller models: a second in place of half a minute."""
    inputs, small = ovd.loss_inputs, {"V": 65536, "H": 64, "H_T": 64}
    monkeypatch.setattr(ovd, "loss_inputs", lambda M, **sizes: inputs(M, **sizes | small))
    monkeypatch.setattr("sys.argv", ["ovd.py"])
    monkeypatch.setattr(ovd.torch.cuda, "is_available", lambda: False)
    ovd.main()
    *_, update, chunked, dense, _, last = capsys.readouterr().out.splitlines()
    assert [update[:12], chunked[:21], dense[:17]] == ["OVD's update", "reverse KL, in chunks",
                                                       "reverse KL, dense"]
    peaks = [float(row[24:35]) for row in (update, chunked, dense)]
    assert max(peaks[:2]) < peaks[2] and "times that dense" in last  # more in test_ladder.py
    # Where no peak can be reset and one before it was higher, nothing can be told, and nothing ends.
    monkeypatch.setattr(ovd, "reset_peak", lambda device: 2**50)
    ovd.main()
    assert "0 MiB" in capsys.readouterr().out.splitlines()[-1]
