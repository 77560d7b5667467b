"""The machine: which device, which type of numbers, and how much memory is held.

On a GPU memory is that of torch's allocator, on a CPU that of the whole process. `mark` notes the
peak of each phase of a run, for its result.json.

    python train.py --one-shot    # peak_bytes in its result.json
"""
import ctypes
import sys

import torch

PEAKS = {}  # phase: the most memory held in it, in bytes, see mark()


def pick_device():
    """The device to run on: "cuda" where there is one, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def pick_dtype(device, real):
    """The type to compute in. real: no embedded model, see sample.is_real.

    On a CPU: bfloat16 for real models if it has instructions for that, else float32. The embedded
    models are always in float32, so that they learn the same on every CPU.
    """
    if device == "cpu":
        return torch.bfloat16 if real and has_bfloat16() else torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float16


def has_bfloat16():
    """Has this CPU instructions for bfloat16? Without them it is many times slower than float32.

    Linux on x86 tells. Elsewhere the answer is no.
    """
    try:
        with open("/proc/cpuinfo") as f:  # Linux alone tells
            return not {"avx512_bf16", "amx_bf16"}.isdisjoint(f.read().split())
    except OSError:
        return False


# ------------------------------------------------------------------------------- memory
def status_bytes(field):
    """VmRSS (held now) or VmHWM (the most held) of this process, in bytes. Linux alone."""
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) * 1024 for line in f if line.startswith(field))


def memory_info():
    """What a system other than Linux tells of this process's memory, in bytes."""
    import psutil  # which accelerate brings along
    return psutil.Process().memory_info()


def peak_bytes(device):
    """The most memory held so far: by the GPU's allocator, or without a GPU by this process."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    if sys.platform == "linux":
        return status_bytes("VmHWM")
    usage = memory_info()
    return getattr(usage, "peak_wset", usage.rss)  # Windows knows the peak, macOS what is held now


def reset_peak(device):
    """Forget the peak so far -> bytes held now. A CPU's can be reset on Linux alone."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    try:
        with open("/proc/self/clear_refs", "w") as f:
            f.write("5")
        return status_bytes("VmRSS")
    except OSError:
        return memory_info().rss


def mark(phase):
    """Note in PEAKS that the most memory held since the last mark was held by `phase`."""
    device = pick_device()
    PEAKS[phase] = max(PEAKS.get(phase, 0), peak_bytes(device))
    reset_peak(device)


# ------------------------------------------------------------------------------- freed memory
def glibc():
    """The C library where it is glibc, whose mallopt is called below; else None."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if hasattr(libc, "mallopt") else None


def keep_freed_memory():
    """Have glibc keep up to 256 MiB that are free, in blocks of up to 32 MiB, for what comes next.

    Else the tensors of a step are given back to the system and asked for again, 4 KiB at a time,
    and that is a tenth of a short run.
    """
    if glibc():
        glibc().mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD: larger blocks are given back at once
        glibc().mallopt(-1, 256 << 20)  # M_TRIM_THRESHOLD


def return_freed_memory():
    """Have glibc give blocks of 1 MiB or more back once they are freed, or chunks pile up."""
    if glibc():
        glibc().mallopt(-3, 1 << 20)  # M_MMAP_THRESHOLD
    trim()


def trim():
    """Have glibc give back to the system what is free now."""
    if glibc():
        glibc().malloc_trim(0)
