"""What every cell needs and takes seconds to import; the server of `LocalExecutor` imports this once.

PEFT imports bitsandbytes, which asks each GPU what it can do and so opens a context, and no context outlives a fork. Where
there is a GPU, cells share torch alone and import the rest themselves.

Frozen objects are left alone by the garbage collector of every cell, which would otherwise walk through all of torch and
copy the memory that the processes share.
"""

from __future__ import annotations

import gc
import importlib
import logging

import torch

logging.getLogger("bitsandbytes").setLevel(
    logging.ERROR
)  # as in the command line: it would name a kernel it does without
if not torch.cuda.is_available():
    importlib.import_module("lorascope.sweeps.worker")
gc.collect()
gc.freeze()
