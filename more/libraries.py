"""Loads torch, transformers and bitsandbytes in two thirds of the time.

A script imports this before them. They make a million Python objects, nearly all of which stay to
the end, and Python's garbage collector would search them again and again: while they are loaded, in
every run, and once more at its end. So it is off while they are loaded, and leaves them out from
then on. And transformers loads torch's compiler, which does less where it is switched off; nothing
here is compiled. Last, memory that a run has freed stays with it, see machine.keep_freed_memory.

    python -X importtime -m more.libraries    # what takes how long
"""
import gc
import logging
import os
import time
from importlib import import_module

BEGAN = time.time()  # a run counts its seconds from here: loading is part of them
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
# oneDNN, which multiplies in bfloat16, keeps the code it makes for a shape: for 1,024 shapes unless
# told otherwise, a quarter of a GB after two steps of a 0.5B student.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
# bitsandbytes warns of a kernel that it misses on some CPUs. It is for a layout of weights that is
# not used here, see repair_4bit in more/quick.py.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
gc.disable()
for name in ("torch", "transformers.modeling_utils", "bitsandbytes"):
    import_module(name)
gc.freeze()
gc.enable()
import_module("more.machine").keep_freed_memory()  # after torch, which it loads too
