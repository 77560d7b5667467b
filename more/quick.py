"""What makes it quick: weights unpacked once, a cache with room to grow, beginnings read once.

sample.py samples and train.py updates within unpacked; a roomy_cache is what is sampled into. What
of a batch is alike is found by distinct, and what its prompts begin with by shared_prefixes, see
sample.read_beginnings. Without all this the same comes, later.

    python tests/speed.py    # how quick it is, beside transformers' generate
"""
import os
from contextlib import contextmanager
from functools import partial

import psutil  # which accelerate brings along
import torch
import torch.nn.functional as F
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from more.machine import trim

ROOM = 32  # tokens that a cache has room for beyond what it holds


def repair_4bit(model):
    """What a model of 4-bit layers needs on a CPU once it is loaded, before it can learn.

    On one with AVX512-BF16 bitsandbytes would repack a layer as soon as it runs without gradients,
    as in sampling. No gradient passes through it from then on, and `unpacked` cannot read it. And
    what is not 4-bit, the embeddings, is a view of the mapped file, all of which stays in memory:
    it is copied.
    """
    layers = [layer for layer in model.modules() if is_4bit_on_cpu(layer)]
    for layer in layers:
        layer.support_avx512bf16_for_cpu = False
    for p in model.parameters() if layers else ():
        if p.is_floating_point():
            p.data = p.data.clone()


@contextmanager
def unpacked(model, merge=False):
    """Inside this block each 4-bit layer of a model on a CPU is one matrix W, unpacked once.

    To unpack takes as long as to use W for a few tokens. Else it is done for each token that is
    sampled, and twice for each micro-batch of an update. On a GPU nothing is unpacked here, for its
    memory is what 4-bit is for, nor where there is not memory for twice that.

    merge: W + B (alpha / r) A, the adapter added; in sampling, as no gradient reaches A and B. Only
    in float32: rounded to 16 bits the sum would be another policy than the one that is trained.
    """
    layers = [m for m in model.modules() if is_4bit_on_cpu(m)]
    around = {m.base: m for m in model.modules() if merge and hasattr(m, "lora_A")
              and is_4bit_on_cpu(m.base) and m.base.weight.quant_state.dtype == torch.float32}
    size = sum(m.in_features * m.out_features * m.weight.quant_state.dtype.itemsize
               for m in layers)  # bytes
    if 2 * size > psutil.virtual_memory().available:
        layers, size = [], 0
    replaced = [around.get(layer, layer) for layer in layers]
    for layer in replaced:  # its own forward() is the class's, and comes back when this one goes
        layer.forward = partial(F.linear, weight=matrix(layer),
                                bias=getattr(layer, "base", layer).bias)
    try:
        yield
    finally:
        for layer in replaced:
            del layer.forward
        if size > 1e8:
            trim()  # else what is freed stays with this process


def is_4bit_on_cpu(layer):
    """Is it a layer of 4-bit weights in a CPU's memory?"""
    return isinstance(layer, Linear4bit) and layer.weight.device.type == "cpu"


@torch.no_grad()
def matrix(layer):
    """W of a 4-bit layer, or of a LoRALinear around it, with its adapter added: (out, in)."""
    weight = getattr(layer, "base", layer).weight
    W = dequantize_4bit(weight.data, weight.quant_state)  # (out, in)
    if hasattr(layer, "lora_A"):
        W = W + layer.enabled * layer.scale * layer.lora_B @ layer.lora_A
    return W


class RoomyLayer(DynamicLayer):
    """A layer's keys and values, with room for more behind them.

    While a text is sampled they grow by a token at a time. DynamicLayer copies all that it holds
    for each. Here a token is written behind the others, and all are copied when the room is full.
    """
    room = None  # two tensors (B, heads, more than T, D), which keys and values are the first T of

    def update(self, keys, values, *args, **kwargs):
        """Keep keys and values (B, heads, t, D) of t more tokens -> all so far (B, heads, T, D)."""
        n = self.get_seq_length()
        if not n:  # prompts: rows are picked from them next, and that drops any room
            return super().update(keys, values)
        T = n + keys.shape[-2]
        if self.room is None or self.room[0].shape[-2] < T:
            self.room = [new.new_empty(*new.shape[:2], T + ROOM, new.shape[-1])
                         for new in (keys, values)]
            self.room[0][:, :, :n], self.room[1][:, :, :n] = self.keys, self.values
        self.room[0][:, :, n:T], self.room[1][:, :, n:T] = keys, values
        self.keys, self.values = (room[:, :, :T] for room in self.room)
        return self.keys, self.values

    def batch_select_indices(self, indices):
        """Keep some rows, or several copies of a row: (b,). The next token makes new room."""
        super().batch_select_indices(indices)
        self.room = None


def roomy_cache(config):
    """A cache to sample into. Layers that forget what is too long ago stay as they are."""
    kv = DynamicCache(config=config)
    kv.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in kv.layers]
    return kv


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


def distinct(rows):
    """Lists of ids -> (each different one once, for each of the lists which is its own)."""
    unique = {row: i for i, row in enumerate(dict.fromkeys(map(tuple, rows)))}
    return list(map(list, unique)), [unique[tuple(row)] for row in rows]
