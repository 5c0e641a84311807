"""What every cell needs and takes seconds to import; the server of `LocalExecutor` imports this once.

Frozen objects are left alone by the garbage collector of every cell, which would otherwise walk through all of torch and
copy the memory that the processes share.
"""

from __future__ import annotations

import gc
import importlib

importlib.import_module("lorascope.sweeps.worker")
gc.collect()
gc.freeze()
