"""What makes sampling on a CPU quick: weights unpacked once, and freed memory kept.

sample.py samples within quick_sampling. Without it the same tokens come, later.

    python tests/speed.py    # how quick it is, beside transformers' generate
"""
from contextlib import contextmanager

from bitsandbytes.functional import dequantize_4bit

from more.machine import glibc


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
    """Inside this block W + B (alpha / r) A is one float32 matrix a layer: sampling is quicker.

    Many tokens are sampled between two updates, and to unpack W for each takes longer than to use
    it. Only on a CPU, which computes 4-bit layers in float32. Rounded to 16 bits the sum would be
    another policy than the one that is trained, and a GPU's memory is what 4-bit is for.
    """
    layers = [m for m in model.modules() if hasattr(m, "merged") and m.base.weight.device.type ==
              "cpu" and hasattr(m.base.weight, "quant_state")]  # LoRA around 4-bit weights
    for layer in layers:
        W = dequantize_4bit(layer.base.weight.data, layer.base.weight.quant_state)  # (out, in)
        layer.merged = W + layer.enabled * layer.scale * layer.lora_B @ layer.lora_A
    try:
        yield
    finally:
        for layer in layers:
            layer.merged = None


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
