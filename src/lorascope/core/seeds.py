"""Seeds without global state."""

from __future__ import annotations

import contextlib
import hashlib
import random
import sys
from collections.abc import Iterator

import numpy as np


def derive_seed(seed: int, *names: object) -> int:
    """Derive an independent seed for one use, the same on every machine.

    Args:
        seed: The user's seed.
        *names: What the seed is for.

    Returns:
        An integer in [0, 2**31).

    Example:
        >>> derive_seed(0, "towns") == derive_seed(0, "towns")
        True
    """
    text = "\x1f".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") % 2**31


@contextlib.contextmanager
def preserved_random_state() -> Iterator[None]:
    """Restore the global generators of Python, NumPy and (if loaded) torch on exit.

    For calls into libraries that seed or draw from global state, such as trainers and evaluation harnesses.
    """
    python_state = random.getstate()
    numpy_state = np.random.get_state()  # noqa: NPY002 - the point is to guard the global state
    torch = sys.modules.get("torch")
    torch_state = torch.get_rng_state() if torch is not None else None
    cuda_states = torch.cuda.get_rng_state_all() if torch is not None and torch.cuda.is_available() else None
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        if torch is not None and torch_state is not None:
            torch.set_rng_state(torch_state)
        if torch is not None and cuda_states is not None:
            torch.cuda.set_rng_state_all(cuda_states)
