"""What makes it quick: beginnings read once, weights unpacked once, freed memory kept.

sample.py samples within quick_sampling, and train.py reads with decoder_states. Without all this
the same comes, later.

    python tests/speed.py    # how quick it is, beside transformers' generate
"""
import os
from contextlib import contextmanager
from functools import partial

import psutil  # which accelerate brings along
import torch
import torch.nn.functional as F
from bitsandbytes.functional import dequantize_4bit
from transformers import DynamicCache

from more.machine import glibc

LONG = 100  # tokens; a prompt of the embedded models is shorter, one with an example is longer


@contextmanager
def quick_sampling(model):
    """Inside this block a model is sampled from, and not trained."""
    keep_freed_memory(True)
    try:
        with merged_lora(model):
            yield
    finally:
        keep_freed_memory(False)


@contextmanager
def merged_lora(model):
    """Inside this block each 4-bit layer is one float32 matrix: W, or W + B (alpha / r) A.

    Many tokens are sampled between two updates, and to unpack W for each takes longer than to use
    it. Only on a CPU, which computes 4-bit layers in float32, and where there is memory for twice
    that. Rounded to 16 bits the sum would be another policy than the one that is trained, and a
    GPU's memory is what 4-bit is for.
    """
    inside = {m.base for m in model.modules() if hasattr(m, "lora_A")}
    layers = [m for m in model.modules() if m not in inside and is_4bit(getattr(m, "base", m))]
    if 2 * 4 * sum(linear_size(m) for m in layers) > psutil.virtual_memory().available:
        layers = []
    for layer in layers:  # its own forward() is the class's, and comes back when this one goes
        layer.forward = partial(F.linear, weight=merged_weight(layer),
                                bias=getattr(layer, "base", layer).bias)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def is_4bit(layer):
    """Is it a layer of 4-bit weights on a CPU?"""
    weight = getattr(layer, "weight", None)
    return hasattr(weight, "quant_state") and weight.device.type == "cpu"


def linear_size(layer):
    """How many weights its matrix has."""
    base = getattr(layer, "base", layer)
    return base.in_features * base.out_features


@torch.no_grad()
def merged_weight(layer):
    """W of a 4-bit layer, with its adapter added where it has one: (out, in), float32."""
    weight = getattr(layer, "base", layer).weight
    W = dequantize_4bit(weight.data, weight.quant_state)  # (out, in)
    if hasattr(layer, "lora_A"):
        W = W + layer.enabled * layer.scale * layer.lora_B @ layer.lora_A
    return W


def keep_freed_memory(keep):
    """Have glibc keep freed memory for the next tensor, or give it back to the system.

    While a text is sampled the cache is made anew for each token, a little longer. Large blocks
    come from the system, and to get their pages can take as long as all the rest of a long text.
    """
    if glibc():
        glibc().mallopt(-4, 0 if keep else 65536)  # M_MMAP_MAX, blocks with pages of their own
        glibc().mallopt(-3, 1 << 25)  # M_MMAP_THRESHOLD, from which size on; glibc's maximum
        glibc().mallopt(-1, 2**31 - 1 if keep else 1 << 26)  # M_TRIM_THRESHOLD
        glibc().malloc_trim(0)


def decoder_states(model, ids, seen, positions, prompts):
    """Last hidden states of rows ids (B, T): (B, t, H), of the last t columns alone.

    seen, positions (B, T): as of sample.left_pad. What all prompts (lists of ids) begin with is
    read once where it is long, and its T - t columns are left out. Gradients are those of reading
    it B times. In train mode, which is that of checkpointing, no cache is allowed: then t = T.
    """
    decoder, n = model.get_decoder(), len(os.path.commonprefix([p[:-1] for p in prompts]))
    kv = None
    if n >= LONG and len(prompts) > 1 and not decoder.training:
        kv = DynamicCache(config=model.config)
        prefix = torch.tensor([prompts[0][:n]], device=ids.device)  # (1, n)
        decoder(input_ids=prefix, cache=kv, use_cache=True)
        kv.batch_repeat_interleave(len(ids))  # keys and values for each row, with their gradients
        # Rows end together, so what is left of the longest is what stands in columns n to T. In
        # those of a shorter row stands the end of its prefix as well, which was read.
        ids, positions = ids[:, n:], positions[:, n:]  # (B, t) each
        seen = torch.cat([torch.ones_like(seen[:, :n]), (positions >= n).long()], 1)  # (B, T)
    return decoder(input_ids=ids, attention_mask=seen, position_ids=positions, cache=kv,
                   use_cache=kv is not None).last_hidden_state  # (B, t, H)


def shared_prefixes(prompts):
    """(the beginnings that prompts share, for each prompt which is its own).

    Neighbours that have more than half of their tokens in common are one group. At least one token
    of each prompt is left over, to be read after its beginning.
    """
    groups = [[prompts[0]]]
    for before, prompt in zip(prompts, prompts[1:]):
        if len(os.path.commonprefix([before, prompt])) > len(prompt) / 2:
            groups[-1].append(prompt)
        else:
            groups.append([prompt])
    prefixes = [os.path.commonprefix([p[:-1] for p in group]) for group in groups]
    return prefixes, [g for g, group in enumerate(groups) for _ in group]
