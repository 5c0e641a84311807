"""A pass over calibration data: hooks, batches and processes; `collect_statistics` is the door."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from lorascope.adapters import Component, components, low_rank_factors
from lorascope.core.errors import InputError, ModelError, unknown_name
from lorascope.core.seeds import derive_seed
from lorascope.initialization._capture import GradientCapture
from lorascope.initialization._loss import logits_of, loss_terms, targets
from lorascope.initialization.accumulators import Probes
from lorascope.initialization.calibration_batches import CalibrationBatches
from lorascope.initialization.layer_sums import LayerStatistics, LayerSums
from lorascope.initialization.memory import Chunk, Tokens, plan_chunks
from lorascope.initialization.samples import SampleOptions, SampleRecorder, SampleScores
from lorascope.measuring.losses import is_causal_lm
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
        self.device = next(model.parameters()).device
        self.data = CalibrationBatches(data, max_batches, self.device, compared=limit is not None)
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
        self.probes = Probes(sketch, seed, self.device)
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
        if len(chunks) > 1 and self.data.once:
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
        if (growth := self.data.growth()) > 1:
            notes.append(
                f"a batch is {growth:.1f} times as large as the first, which memory was planned "
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
            first = self.data.first()
            rows: list[int] = []

            def note(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _output: Any) -> None:
                x = args[0] if args else next(iter(kwargs.values()))
                rows.append(x.numel() // x.shape[-1])

            with GradientCapture(chosen, lambda *_: None) as capture, torch.no_grad():
                handles = [c.module.register_forward_hook(note, with_kwargs=True) for c in chosen]
                try:
                    self._forward(first)
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

        with GradientCapture(chunk.components, consume) as capture:
            for index, inputs in self.data.read(number, label, progress):
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
        if number == 0 and self.data.world > 1:
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
        if self.data.world > 1:
            for component in chunk.components:
                for tensor in states[component.name].tensors():
                    torch.distributed.all_reduce(tensor)
        return states, leaders

    def _agree(self, leaders: dict[str, str]) -> dict[str, str]:
        """Which layers share an input, also in a process that had no batch."""
        if self.data.world == 1:
            return leaders
        every: list[Any] = [None] * self.data.world
        torch.distributed.all_gather_object(every, leaders)
        return next((other for other in every if other), leaders)

    def _labels(self, index: int) -> torch.Generator | None:
        if self.label_seed is None:
            return None
        return torch.Generator().manual_seed(derive_seed(self.label_seed, "labels", index))

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
        if self.data.world > 1:
            every: list[Any] = [None] * self.data.world
            torch.distributed.all_gather_object(every, parts)
            parts = {number: part for one in every for number, part in one.items()}
        return recorder.scores(parts)
