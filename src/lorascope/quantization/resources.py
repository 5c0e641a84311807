"""Memory and time of a model that is dense, quantised by bitsandbytes, or quantised by ICQ."""

from __future__ import annotations

import ctypes
import gc
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import psutil
import torch
from torch import nn
from tqdm.auto import tqdm

from lorascope.core.errors import InputError

VARIANTS = ("dense", "nf4", "icq")
MODES = ("forward", "backward")


def _give_back() -> None:
    """Return what was freed to the system, where the C library can: else whoever takes it again seems to need nothing."""
    gc.collect()
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


class PeakMemory:
    """How far memory rises while a block runs, in MiB.

    On a GPU it is what the allocator says; on a processor the resident size of the process, read each millisecond.

    Attributes:
        mib: The rise, after the block.

    Example:
        >>> with PeakMemory() as peak:
        ...     size = torch.zeros(2**22).sum()
        >>> peak.mib >= 0
        True
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.mib = 0.0
        self._cuda = device if device is not None and device.type == "cuda" else None

    def __enter__(self) -> PeakMemory:
        _give_back()
        if self._cuda is not None:
            torch.cuda.synchronize(self._cuda)
            torch.cuda.reset_peak_memory_stats(self._cuda)
            self._before = torch.cuda.memory_allocated(self._cuda)
            return self
        self._process = psutil.Process()
        self._before = self._highest = self._process.memory_info().rss
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.001):
            self._highest = max(self._highest, self._process.memory_info().rss)

    def __exit__(self, *exc: Any) -> None:
        if self._cuda is not None:
            torch.cuda.synchronize(self._cuda)
            highest = torch.cuda.max_memory_allocated(self._cuda)
        else:
            self._stop.set()
            self._thread.join()
            highest = max(self._highest, self._process.memory_info().rss)
        self.mib = (highest - self._before) / 2**20


def weights_mib(model: nn.Module) -> float:
    """All parameters and buffers of a model, and what bitsandbytes keeps beside them, in MiB; shared ones once.

    Example:
        >>> weights_mib(nn.Linear(1024, 256, bias=False))
        1.0
    """
    tensors = [*model.parameters(), *model.buffers()]
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        while state is not None:
            tensors += [t for t in (state.absmax, state.code, getattr(state, "offset", None)) if t is not None]
            state = getattr(state, "state2", None)
    sizes = {t.data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(sizes.values()) / 2**20


def resources(
    load: Callable[[str], nn.Module],
    *,
    vocabulary: int,
    variants: Sequence[str] = VARIANTS,
    modes: Sequence[str] = MODES,
    batches: Sequence[int] = (1, 8),
    lengths: Sequence[int] = (1, 32, 256),
    rounds: int = 5,
    seed: int = 0,
    progress: bool = False,
) -> list[dict[str, Any]]:
    """Memory and time of passes through each variant of a causal language model.

    Args:
        load: Variant -> model; called once a variant, which is let go before the next.
        vocabulary: Token ids are below this.
        variants: Of `VARIANTS`.
        modes: ``"forward"``: a pass without gradients. ``"backward"``: forward and backward to the embeddings, which is what
            a step of training adapters costs but for the adapters.
        batches: Rows in a pass.
        lengths: Tokens a row.
        rounds: Passes that are timed, after one that is not.
        seed: Of the token ids.
        progress: Show a progress bar.

    Returns:
        A row a variant, mode, batch and length: ``weights_mib``, ``peak_mib`` (rise during a pass), ``seconds`` (median),
        ``time_ratio`` over the first variant.

    Raises:
        InputError: A variant or mode is unknown, a number is below 1, or a variant's kernels do not take the model.
    """
    for name, given, known in (("variant", variants, VARIANTS), ("mode", modes, MODES)):
        for item in given:
            if item not in known:
                raise InputError(f"unknown {name} '{item}': choose from {', '.join(known)}")
    if min([*batches, *lengths, rounds]) < 1:
        raise InputError("batches, lengths and rounds must be at least 1")
    cases = [(mode, batch, length) for mode in modes for batch in batches for length in lengths]
    records: list[dict[str, Any]] = []
    with tqdm(total=len(variants) * len(cases), desc="passes", disable=not progress, leave=False) as bar:
        for variant in variants:
            model = load(variant)
            stored = weights_mib(model)
            context = getattr(getattr(model, "config", None), "max_position_embeddings", None)
            if context is not None and max(lengths) > context:
                raise InputError(
                    f"{max(lengths)} tokens are more than this model's context of {context}: give smaller lengths"
                )
            for mode, batch, length in cases:
                generator = torch.Generator().manual_seed(seed)
                ids = torch.randint(0, vocabulary, (batch, length), generator=generator)
                try:
                    seconds, peak = _passes(model, ids, mode, rounds)
                except AssertionError as error:  # bitsandbytes, for sizes that its kernels do not take
                    raise InputError(
                        f"variant '{variant}' cannot run this model here ({error}): leave it out"
                    ) from error
                except IndexError as error:
                    raise InputError(
                        f"{length} tokens are more than this model's context: give smaller lengths"
                    ) from error
                records.append(
                    {
                        "variant": variant,
                        "mode": mode,
                        "batch": batch,
                        "length": length,
                        "weights_mib": stored,
                        "peak_mib": peak,
                        "seconds": seconds,
                    }
                )
                bar.update()
            del model
            gc.collect()
    first = {(r["mode"], r["batch"], r["length"]): r["seconds"] for r in records if r["variant"] == variants[0]}
    for record in records:
        record["time_ratio"] = record["seconds"] / first[record["mode"], record["batch"], record["length"]]
    return records


def _passes(model: Any, ids: torch.Tensor, mode: str, rounds: int) -> tuple[float, float]:
    device = next(model.parameters()).device
    ids = ids.to(device)
    embed = model.get_input_embeddings()

    def once() -> None:
        if mode == "forward":
            with torch.no_grad():
                model(input_ids=ids, use_cache=False)
        else:
            start = embed(ids).detach().requires_grad_()
            model(inputs_embeds=start, use_cache=False).logits.float().square().mean().backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    asked = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in asked:
        parameter.requires_grad_(False)
    try:
        once()
        with PeakMemory(device) as peak:
            once()
        times = []
        for _ in range(rounds):
            begin = time.perf_counter()
            once()
            times.append(time.perf_counter() - begin)
    finally:
        for parameter in asked:
            parameter.requires_grad_(True)
    return statistics.median(times), peak.mib
