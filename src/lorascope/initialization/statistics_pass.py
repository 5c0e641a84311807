"""A pass over calibration data: hooks, batches and processes; `collect_statistics` is the door."""

from __future__ import annotations

import itertools
import operator
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from accelerate.data_loader import BatchSamplerShard
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler
from tqdm.auto import tqdm

from lorascope.adapters import Component, components, low_rank_factors
from lorascope.core.errors import DataError, InputError, ModelError, unknown_name
from lorascope.core.seeds import derive_seed
from lorascope.initialization._capture import GradientCapture
from lorascope.initialization._loss import logits_of, loss_terms, targets
from lorascope.initialization.accumulators import Probes
from lorascope.initialization.layer_sums import LayerStatistics, LayerSums
from lorascope.initialization.memory import Chunk, Tokens, plan_chunks
from lorascope.initialization.samples import SampleOptions, SampleRecorder, SampleScores
from lorascope.measuring.batches import make_batches
from lorascope.measuring.losses import is_causal_lm
from lorascope.measuring.processes import processes
from lorascope.measuring.selection import Selection, select_tokens

T = TypeVar("T")


@dataclass(frozen=True)
class Collected(Generic[T]):
    """What a pass over the data gave.

    Attributes:
        layers: Layer -> `LayerStatistics`, or what ``reduce`` made of them; in the model's order.
        samples: Numbers of each sample, where asked for.
        counts: ``samples``, ``tokens``, ``terms`` (losses summed), ``batches``, ``passes``, ``sketched`` layers,
            ``predicted_bytes``.
        loss_nats: Mean loss of a term.
        warnings: What a reader must know, one sentence each.
    """

    layers: dict[str, T]
    samples: SampleScores | None
    counts: dict[str, int]
    loss_nats: float
    warnings: list[str] = field(default_factory=list)


def adaptable(model: nn.Module) -> tuple[list[Component], list[str]]:
    """The active LoRA layers that have an input and an output matrix, and the names of the others."""
    found = components(model)
    good = [c for c in found if low_rank_factors(c) is not None and not isinstance(c.base, nn.Embedding)]
    names = {c.name for c in good}
    return good, [c.name for c in found if c.name not in names]


class StatisticsPass:
    """One call of `collect_statistics`: its settings, and what is counted on the way."""

    def __init__(
        self,
        model: nn.Module,
        data: Any,
        need: tuple[str, ...],
        fisher: str,
        generator: torch.Generator | None,
        samples: SampleOptions | None,
        max_batches: int | None,
        limit: int | None,
        exact_width: int,
        sketch: int,
        seed: int,
    ) -> None:
        self.model, self.need, self.samples = model, need, samples
        self.limit, self.exact_width, self.sketch, self.seed = limit, exact_width, sketch, seed
        self.max_batches = max_batches
        self.data = _batches(data)
        self.device = next(model.parameters()).device
        self.causal = is_causal_lm(model)
        config = getattr(model, "config", None)
        if getattr(config, "is_encoder_decoder", False):
            raise InputError(
                f"{type(config).__name__.removesuffix('Config')} is an encoder with a decoder, whose inputs are made from "
                "labels: only causal language models and classifiers can be measured"
            )
        self.problem = getattr(config, "problem_type", None)
        self.label_seed: int | None = None
        if fisher == "true":
            source = generator if generator is not None else torch.Generator().manual_seed(seed)
            self.label_seed = int(torch.randint(2**31, (1,), generator=source, device=source.device))
        group = processes()
        sampler = getattr(self.data, "batch_sampler", None)
        if group is not None and (
            isinstance(sampler, BatchSamplerShard)
            or isinstance(getattr(self.data, "sampler", None), DistributedSampler)
        ):
            raise InputError(
                "the dataloader gives each process its own part already, and parts are made here: give every process the "
                "same DataLoader, as it was before prepare() and without a DistributedSampler"
            )
        self.rank = int(group.process_index) if group is not None else 0
        self.world = int(group.num_processes) if group is not None else 1
        self.probes = Probes(sketch, seed, self.device)
        self.marks: list[int] = []
        self.sizes: list[int] = []
        self.batches = 0
        # samples, tokens, terms, batches, batches without a label, loss
        self.seen = torch.zeros(6, dtype=torch.float64, device=self.device)

    def run(
        self, layers: Iterable[str] | None, reduce: Callable[[LayerStatistics], Any] | None, progress: bool
    ) -> Collected[Any]:
        """Plan, pass, reduce."""
        chosen, left = adaptable(self.model)
        notes = []
        if left:
            notes.append(f"{len(left)} adapted layers have no factors A and B and do not count: {', '.join(left[:5])}")
        if layers is not None:
            names = list(layers)
            for name in names:
                if name not in {c.name for c in chosen}:
                    raise unknown_name("layer", name, [c.name for c in chosen])
            chosen = [c for c in chosen if c.name in set(names)]
        if not chosen:
            raise InputError(
                "no layer to measure: the adapter sits on layers without an input and an output matrix only"
            )
        options = self.samples
        if options is not None and options.subspaces is not None:
            lacking = [c.name for c in chosen if c.name not in options.subspaces]
            if len(lacking) == len(chosen):
                raise InputError(f"subspaces name none of the layers, such as '{lacking[0]}'")
        counted = tuple(
            c.name for c in chosen if options is None or options.subspaces is None or c.name in options.subspaces
        )
        recorder = SampleRecorder(options, counted, self.seed) if options is not None else None
        chunks = self._plan(chosen)
        if len(chunks) > 1 and isinstance(self.data, Iterator):
            raise InputError(
                f"{len(chunks)} passes are needed for max_memory, and the data can be read once only: give a DataLoader or "
                "a list of batches, or more memory"
            )
        found: dict[str, Any] = {}
        for number, chunk in enumerate(chunks):
            label = "statistics" if len(chunks) == 1 else f"statistics {number + 1}/{len(chunks)}"
            states, leaders = self._pass(chunk, number, recorder, label, progress)
            found |= self._reduce(chunk, states, leaders, reduce, notes)
        samples, tokens, terms, batches, unlabelled, loss = (float(x) for x in self.seen)
        if unlabelled:
            notes.append(f"{unlabelled:.0f} batches have no label that counts and were left out")
        if self.max_batches is not None and batches + unlabelled < self.max_batches:
            notes.append(f"the data ended after {batches + unlabelled:.0f} batches of {self.max_batches} asked for")
        if self.sizes and max(self.sizes) > self.sizes[0]:
            notes.append(
                f"a batch is {max(self.sizes) / self.sizes[0]:.1f} times as large as the first, which memory was planned "
                "by: put the largest first to keep within max_memory"
            )
        counts = {"samples": int(samples), "tokens": int(tokens), "terms": int(terms), "batches": int(batches)}
        sketched = sorted(frozenset().union(*(chunk.sketched for chunk in chunks)))
        counts |= {"passes": len(chunks), "sketched": len(sketched)}
        counts["predicted_bytes"] = max(chunk.bytes for chunk in chunks)
        if sketched:
            notes.append(f"{len(sketched)} layers were sketched with {self.sketch} columns, such as {sketched[0]}")
        order = [c.name for c in chosen if c.name in found]
        scores = self._scores(recorder) if recorder is not None else None
        return Collected({name: found[name] for name in order}, scores, counts, loss / max(terms, 1), notes)

    def _plan(self, chosen: list[Component]) -> list[Chunk]:
        leaders: dict[str, str] = {}
        tokens = Tokens(0, 4)
        if self.limit is not None:
            batches = iter(self.data)
            first = next(batches, None)
            if first is None:
                raise InputError("no data: the dataloader gave no batch")
            if isinstance(self.data, Iterator):
                self.data = itertools.chain([first], batches)
            rows: list[int] = []

            def note(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _output: Any) -> None:
                x = args[0] if args else next(iter(kwargs.values()))
                rows.append(x.numel() // x.shape[-1])

            with GradientCapture(chosen, lambda *_: None) as capture, torch.no_grad():
                handles = [c.module.register_forward_hook(note, with_kwargs=True) for c in chosen]
                try:
                    self._forward(self._on_device(first, 0))
                finally:
                    for handle in handles:
                        handle.remove()
            leaders = capture.leaders
            dtype = next((p.dtype for p in self.model.parameters() if p.is_floating_point()), torch.float32)
            tokens = Tokens(max(rows), dtype.itemsize)
        return plan_chunks(
            chosen,
            leaders,
            self.need,
            tokens=tokens,
            limit=self.limit,
            sketch=self.sketch,
            exact_width=self.exact_width,
        )

    def _on_device(self, batch: Any, number: int) -> dict[str, Any]:
        if not isinstance(batch, Mapping):
            raise InputError(
                f"batch {number + 1} is of type {type(batch).__name__}: give mappings of the model's inputs by name"
            )
        return {key: value.to(self.device) if isinstance(value, Tensor) else value for key, value in batch.items()}

    def _forward(self, inputs: dict[str, Any]) -> Any:
        try:
            return self.model(**{key: value for key, value in inputs.items() if key != "labels"})
        except IndexError as error:
            raise InputError(
                f"the model cannot take a batch ({error}): a token id is outside its vocabulary, or a row is longer than "
                "its context"
            ) from error
        except (TypeError, ValueError) as error:
            raise InputError(
                f"the model cannot take a batch with {', '.join(inputs) or 'nothing in it'} ({error}): give them by "
                "their names"
            ) from error

    def _pass(
        self, chunk: Chunk, number: int, recorder: SampleRecorder | None, label: str, progress: bool
    ) -> tuple[dict[str, LayerSums], dict[str, str]]:
        """Pass all data once for the layers of a chunk."""
        states: dict[str, LayerSums] = {}
        selection: Selection

        def consume(component: Component, x: Tensor, gradient: Tensor) -> None:
            name = component.name
            if name not in states:
                # All forward hooks of the batch have run: it is known which layers share an input.
                leads = capture.leaders.get(name, name) == name
                need = tuple(item for item in self.need if item != "input" or leads)
                states[name] = LayerSums(component, need, self.probes if name in chunk.sketched else None, self.device)
            states[name].update(x, gradient, selection, recorder)

        total = operator.length_hint(self.data) or None
        if self.max_batches is not None:
            total = min(total or self.max_batches, self.max_batches)
        with GradientCapture(chunk.components, consume) as capture:
            batches = itertools.islice(iter(self.data), self.max_batches)
            bar = tqdm(batches, total=total, desc=label, unit="batch", disable=not progress or self.rank > 0)
            count = 0
            for index, batch in enumerate(bar):
                count += 1
                if index % self.world != self.rank:
                    continue
                inputs = self._on_device(batch, index)
                self._mark(inputs, index, number)
                selection = select_tokens(inputs, "all")
                with torch.enable_grad():
                    logits = logits_of(self._forward(inputs))
                    labels, drawn = targets(inputs, logits, self.causal), self._labels(index)
                    losses, owners, _ = loss_terms(logits, labels, drawn, self.problem)
                    loss = losses.sum()
                if number == 0:
                    self._count(selection, losses, len(logits))
                if recorder is not None:
                    recorder.begin(index, len(logits), losses, owners)
                if len(losses) and loss.requires_grad:
                    if not bool(torch.isfinite(loss)):
                        raise ModelError(
                            f"the loss of batch {index + 1} is {float(loss.detach())}: check the model's weights and the "
                            "data, or load the model in float32 or bfloat16"
                        )
                    loss.backward()  # type: ignore[no-untyped-call]
                for state in states.values():
                    state.end_batch()
                del logits, losses, loss
        if count == 0 and number == 0:
            raise InputError("no data: the dataloader gave no batch")
        if number == 0:
            self.batches = count
        elif count != self.batches:
            raise DataError(
                f"the dataloader ended after {count} batches in pass {number + 1}, with {self.batches} in the first: give "
                "one that can be read again, or more max_memory"
            )
        if number == 0 and self.world > 1:
            torch.distributed.all_reduce(self.seen)
        if number == 0 and not self.seen[2]:
            raise InputError(
                "no label counts in any batch (all are -100): check the labels, or take fisher on other data"
            )
        leaders = self._agree(capture.leaders)
        for component in chunk.components:
            if component.name not in states:  # a process without data, or a layer that never ran
                leads = leaders.get(component.name, component.name) == component.name
                need = tuple(item for item in self.need if item != "input" or leads)
                probes = self.probes if component.name in chunk.sketched else None
                states[component.name] = LayerSums(component, need, probes, self.device)
        if self.world > 1:
            for component in chunk.components:
                for tensor in states[component.name].tensors():
                    torch.distributed.all_reduce(tensor)
        return states, leaders

    def _agree(self, leaders: dict[str, str]) -> dict[str, str]:
        """Which layers share an input, also in a process that had no batch."""
        if self.world == 1:
            return leaders
        every: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(every, leaders)
        return next((other for other in every if other), leaders)

    def _labels(self, index: int) -> torch.Generator | None:
        if self.label_seed is None:
            return None
        return torch.Generator().manual_seed(derive_seed(self.label_seed, "labels", index))

    def _mark(self, inputs: Mapping[str, Any], index: int, number: int) -> None:
        """Refuse data that come in another order, or others, in a later pass."""
        if self.limit is None:
            return
        named = (inputs.get(key) for key in ("input_ids", "pixel_values"))
        first = next((value for value in named if isinstance(value, Tensor)), None)
        flat = torch.zeros(0) if first is None else first.detach().cpu().reshape(-1)
        self.sizes.append(len(flat))
        mark = zlib.crc32(flat.view(torch.uint8).numpy().tobytes())
        place = index // self.world
        if number == 0:
            self.marks.append(mark)
        elif place >= len(self.marks) or self.marks[place] != mark:
            raise DataError(
                f"batch {index + 1} of pass {number + 1} is not the one of the first pass: give a dataloader that does not "
                "shuffle, or more max_memory"
            )

    def _count(self, selection: Selection, losses: Tensor, samples: int) -> None:
        if not len(losses):
            self.seen[4] += 1
            return
        values = [samples, sum(selection.sizes), len(losses), 1, 0, float(losses.detach().double().sum())]
        self.seen += torch.tensor(values, dtype=torch.float64, device=self.device)

    def _reduce(
        self,
        chunk: Chunk,
        states: dict[str, LayerSums],
        leaders: dict[str, str],
        reduce: Callable[[LayerStatistics], Any] | None,
        notes: list[str],
    ) -> dict[str, Any]:
        found: dict[str, Any] = {}
        idle, foreign = [], []
        followers = {name: lead for name, lead in leaders.items() if name != lead and name in states}
        for component in chunk.components:
            name = component.name
            state = states[name]
            if int(state.foreign):
                foreign.append(name)
            if state.routed and self.samples is not None:
                raise ModelError(
                    f"layer '{name}' gets a part of the tokens only, which can't be told apart by sample: leave it out of "
                    "target_modules"
                )
            if not int(state.rows) or state.routed:
                idle.append(name)
                continue
            shared = states[followers[name]] if name in followers else state
            if int(shared.rows) != int(state.rows):
                raise ModelError(
                    f"layer '{name}' did not run on all of the input it shares: take a mode without activations"
                )
            statistics = state.statistics(shared)
            found[name] = statistics if reduce is None else reduce(statistics)
            del statistics
            if reduce is not None:
                waiting = name in followers.values()
                state.release(keep_input=waiting)
                followers.pop(name, None)
        if idle:
            notes.append(f"{len(idle)} adapted layers saw no token with a gradient: {', '.join(idle[:5])}")
        if foreign:
            notes.append(
                f"{len(foreign)} layers also ran on rows that are no tokens of the batch, which do not count: "
                f"{', '.join(foreign[:5])}"
            )
        return found

    def _scores(self, recorder: SampleRecorder) -> SampleScores:
        parts = recorder.parts()
        if self.world > 1:
            every: list[Any] = [None] * self.world
            torch.distributed.all_gather_object(every, parts)
            parts = {number: part for one in every for number, part in one.items()}
        return recorder.scores(parts)


def _batches(data: Any) -> Any:
    """The user's batches as an iterable."""
    if isinstance(data, DataLoader):
        return make_batches(data, tokenizer=None, batch_size=1)[0]
    base = getattr(data, "base_dataloader", None)
    if isinstance(base, DataLoader):
        return base
    if isinstance(data, str | Mapping) or not isinstance(data, Iterable):
        raise InputError(f"data of type {type(data).__name__}: give a DataLoader or a list of batches")
    return data
