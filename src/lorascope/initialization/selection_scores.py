"""What a model and its gradients say about each row of a pool, in parts that are kept so that nothing is computed twice."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.numpy import load, save
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from lorascope.adapters import adapter_digest, fingerprint
from lorascope.core.errors import InputError, ModelError
from lorascope.core.files import atomic_write_bytes
from lorascope.core.seeds import derive_seed
from lorascope.initialization._loss import IGNORED, logits_of, targets
from lorascope.initialization.layer_sums import LayerStatistics
from lorascope.initialization.samples import SampleOptions
from lorascope.initialization.selection_arrays import GradientScores, choice_shares, filled, joined
from lorascope.initialization.selection_model import (
    attention_spread,
    eager_attention,
    leading_directions,
    with_layers,
)
from lorascope.initialization.selection_options import ScoreOptions
from lorascope.initialization.selection_pool import SPLIT, Pool, without_answer
from lorascope.initialization.statistics import collect_statistics
from lorascope.tasks import PaddingCollator, encode_task, pad_token_id
from lorascope.tasks.encode import EncodedChoices, encode_choices
from lorascope.tasks.evaluate import allowed_length, evaluation_mode
from lorascope.tasks.rows import sample_indices
from lorascope.tasks.scoring import score_choices

PART = 64
"""Rows in a part: what an interruption can lose."""

_VERSION = 2
"""Of what the parts hold: other numbers under the same name need another one."""

_ATTENTION_ELEMENTS = 2**26

Feature = dict[str, list[int]]
Arrays = dict[str, np.ndarray]


class PoolScorer:
    """Scores a pool with a model, part by part.

    Args:
        model: A causal language model of transformers, or a PEFT model of one with a LoRA adapter, whose layers then count.
        tokenizer: Its tokenizer.
        pool: The rows.
        options: How.
        cache: Folder that parts are kept in, so that an interrupted or repeated call goes on from there; None keeps none.
        progress: Whether to show bars.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        pool: Pool,
        options: ScoreOptions | None = None,
        *,
        cache: str | Path | None = None,
        progress: bool = True,
    ) -> None:
        self.model, self.tokenizer, self.pool = model, tokenizer, pool
        self.options, self.progress = options or ScoreOptions(), progress
        self.longest = allowed_length(model, tokenizer, self.options.max_length)
        self.collate = PaddingCollator(pad_token_id(tokenizer, self.options.pad_token))
        about: dict[str, Any] = {
            "version": _VERSION,
            "pool": pool.digest(),
            "model": fingerprint(model),
            "options": dataclasses.asdict(self.options),
        }
        about["adapter"] = adapter_digest(model)
        self.key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
        self.folder = None if cache is None else Path(cache) / self.key

    def loss(self) -> Float[np.ndarray, " n"]:
        """Mean loss of each row's scored tokens, nats."""
        if self.pool.task.kind != "multiple_choice":
            return self._forward(answers=True)["loss"]
        found = self._all("choices", self._choices)
        answers = np.array([[getattr(row, "answer", 0)] for row in self.pool.rows])
        nats, tokens = (np.take_along_axis(found[key], answers, 1)[:, 0] for key in ("log_likelihoods", "tokens"))
        mean: np.ndarray = -nats / tokens
        return mean

    def entropy(self) -> Float[np.ndarray, " n"]:
        """Entropy in nats: of the answer over a question's choices, of an answer's first token, or a text's mean token."""
        if self.pool.task.kind != "multiple_choice":
            return self._forward(answers=False)["entropy"]
        shares = choice_shares(self._all("choices", self._choices)["log_likelihoods"])
        logs = np.log(np.where(shares > 0, shares, 1.0))
        found: np.ndarray = -(shares * logs).sum(1)
        return found

    def logit_norm(self) -> Float[np.ndarray, " n"]:
        """Mean square of the output logits about their mean.

        Softmax does not see a constant that is added to all logits, so that only the part about the mean counts. Over the
        choices' log-likelihoods for questions, else over the vocabulary, for an answer's first token or all of a text.
        """
        if self.pool.task.kind != "multiple_choice":
            return self._forward(answers=False)["logits"]
        found = self._all("choices", self._choices)["log_likelihoods"]
        known = np.isfinite(found)
        count = known.sum(1, keepdims=True)
        filled = np.where(known, found, 0.0)
        centred = np.where(known, filled - filled.sum(1, keepdims=True) / count, 0.0)
        squares: np.ndarray = np.square(centred).sum(1) / count[:, 0]
        return squares

    def attention_norm(self) -> Float[np.ndarray, " n"]:
        """Mean square of the attention logits about each query's mean, over queries, heads and layers.

        Read from log p, which is the logits up to a constant of the query. The first key (see `SINKS`) and queries with
        fewer than two keys left do not count. A row without any that counts has the largest norm of the others, so that it
        is not chosen for being short.

        Raises:
            InputError: No row has a query that counts.
        """
        with eager_attention(self.model):
            found = self._all("attention", self._attention)["attention"]
        short = np.isinf(found)
        if short.all():
            raise InputError(
                "no row is long enough for attention logits: they need four tokens before the answer; take another method"
            )
        filled: np.ndarray = np.where(short, found[~short].max(), found)
        return filled

    def gradients(self, *, labels: str = "given") -> GradientScores:
        """Gradients of each row in the leading Fisher subspace.

        Args:
            labels: ``given`` takes the rows' own; ``expected`` all choices of a question by the model's probabilities, or
                labels drawn from the model where there are no choices: an answer's first token, or all of a text.

        Raises:
            InputError: ``labels`` is unknown.
        """
        if labels not in ("given", "expected"):
            raise InputError(f"labels '{labels}' must be given or expected")
        with with_layers(self.model, self.options.target_modules) as model:
            subspaces = self._subspaces(model, labels) if self.options.subspace else None
            found = self._all(f"gradients-{labels}", lambda rows: self._gradients(model, rows, labels, subspaces))
        weights = found["weights"]
        if labels == "expected" and self.pool.task.kind == "multiple_choice":
            weights = choice_shares(found["log_likelihoods"])
        return GradientScores(found["energy"], found["features"].astype(np.float64), weights)

    # What the parts hold

    def _all(self, name: str, compute: Callable[[Sequence[int]], Arrays]) -> Arrays:
        """A part after the other, those that are on disk from there; narrower ones are filled up."""
        parts = []
        starts = range(0, len(self.pool), PART)
        with tqdm(total=len(self.pool), desc=f"scoring ({name})", unit="row", disable=not self.progress) as bar:
            for start in starts:
                rows = range(start, min(start + PART, len(self.pool)))
                parts.append(self._kept(f"{name}-{start:06d}", functools.partial(compute, rows)))
                bar.update(len(rows))
        return {key: joined([part[key] for part in parts], key) for key in parts[0]}

    def _kept(self, name: str, compute: Callable[[], Arrays]) -> Arrays:
        path = None if self.folder is None else self.folder / f"{name}.safetensors"
        if path is not None and path.is_file():
            try:
                kept: Arrays = load(path.read_bytes())
                return kept
            except (SafetensorError, OSError):
                path.unlink(missing_ok=True)  # torn or foreign: made again
        found = {key: np.ascontiguousarray(value) for key, value in compute().items()}
        if path is not None:
            atomic_write_bytes(path, save(found))
        return found

    def _encoded(self, index: int, *, answers: bool) -> list[Feature]:
        """The row, in windows if it is a long text; without ``answers`` up to a placeholder for the first token."""
        row = self.pool.rows[index] if answers else without_answer(self.pool.rows[index])
        task = dataclasses.replace(self.pool.task, splits={**self.pool.task.splits, SPLIT: (row,)})
        longest = self.options.max_length if task.kind == "text" else self.longest
        features = encode_task(task, self.tokenizer, SPLIT, max_length=longest, overlong=self.options.overlong).features
        if not answers and task.kind != "text":
            (feature,) = features
            first = next(place for place, label in enumerate(feature["labels"]) if label != IGNORED)
            return [{key: values[: first + 1] for key, values in feature.items()}]
        return features

    def _questions(self, rows: Sequence[int]) -> list[EncodedChoices]:
        picked = tuple(self.pool.rows[index] for index in rows)
        task = dataclasses.replace(self.pool.task, splits={**self.pool.task.splits, SPLIT: picked})
        return encode_choices(task, self.tokenizer, SPLIT, max_length=self.longest, overlong=self.options.overlong)[0]

    def _choices(self, rows: Sequence[int]) -> Arrays:
        questions = self._questions(rows)
        with evaluation_mode(self.model):
            scores = score_choices(
                self.model,
                [question.pairs for question in questions],
                batch_size=self.options.batch_size,
                pad_id=self.collate.pad_id,
            )
        tokens = [[len(continuation) for _, continuation in question.pairs] for question in questions]
        return {"log_likelihoods": filled(scores, -np.inf), "tokens": filled(tokens, 1.0)}

    def _forward(self, *, answers: bool) -> Arrays:
        """Loss, entropy and centred logits of rows without choices, over their answers or at the first token only."""
        return self._all(
            "forward-answers" if answers else "forward", lambda rows: self._forward_part(rows, answers=answers)
        )

    def _forward_part(self, rows: Sequence[int], *, answers: bool) -> Arrays:
        found: dict[str, list[float]] = {"loss": [], "entropy": [], "logits": []}
        for index in rows:
            sums, terms = np.zeros(3), 0
            for batch in self._batches(self._encoded(index, answers=answers)):
                with torch.no_grad(), evaluation_mode(self.model):
                    logits = logits_of(self.model(**{k: v for k, v in batch.items() if k != "labels"}))
                labels = targets(batch, logits, True)
                assert labels is not None
                places = labels != IGNORED
                picked, wanted = logits[places].double(), labels[places]
                logs = torch.log_softmax(picked, -1)
                loss = -logs.gather(1, wanted[:, None]).sum()
                entropy = -(logs.exp() * logs).sum()
                spread = picked.var(-1, correction=0).sum()
                sums += np.array([float(loss), float(entropy), float(spread)])
                terms += len(wanted)
            if not np.isfinite(sums).all():
                raise ModelError(f"{self.pool.rows[index].where}: the model's logits hold NaN or infinity")
            for key, value in zip(found, sums / max(terms, 1), strict=True):
                found[key].append(float(value))
        return {key: np.array(values) for key, values in found.items()}

    def _attention(self, rows: Sequence[int]) -> Arrays:
        """Spread of the attention logits; question and prompt only, since an answer may not be known yet."""
        found = []
        config: Any = self.model.config
        config = config.get_text_config()
        each = int(config.num_hidden_layers) * int(config.num_attention_heads)
        for index in rows:
            features = self._encoded(index, answers=False)
            if self.pool.task.kind != "text":
                features = [{key: values[:-1] for key, values in features[0].items()}]
            total, count = 0.0, 0
            for feature in features:
                length = len(feature["input_ids"])
                if each * length**2 > 16 * _ATTENTION_ELEMENTS:
                    raise InputError(
                        f"{self.pool.rows[index].where}: attention of {length} tokens over {each} heads does not fit "
                        "memory: give a smaller --max-length with --overlong truncate, or another method"
                    )
                for batch in self._batches([feature]):
                    with torch.no_grad(), evaluation_mode(self.model):
                        maps = self.model(
                            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], output_attentions=True
                        ).attentions
                    for layer in maps:
                        spread, number = attention_spread(layer[0])
                        total, count = total + spread, count + number
            found.append(total / count if count else math.inf)
        return {"attention": np.array(found)}

    def _batches(self, features: Sequence[Feature]) -> list[dict[str, Tensor]]:
        size = self.options.batch_size
        device = next(self.model.parameters()).device
        batches = [self.collate(features[start : start + size]) for start in range(0, len(features), size)]
        return [{key: value.to(device) for key, value in batch.items()} for batch in batches]

    # Gradients

    def _subspaces(self, model: PeftModel, labels: str) -> dict[str, Tensor]:
        """Leading eigenvectors of every layer's Fisher factor, on a sample of the pool."""
        rank = self.options.subspace

        def directions(layer: LayerStatistics) -> Tensor:
            assert layer.input_fisher is not None
            return leading_directions(layer.input_fisher, layer.tokens, rank)

        def compute() -> Arrays:
            rows = sample_indices(len(self.pool), self.options.fisher_rows, self.options.seed)
            drawn = labels == "expected" and self.pool.task.kind == "multiple_choice"
            features = (
                self._drawn_choices(rows)
                if drawn
                else [f for index in rows for f in self._encoded(index, answers=labels == "given")]
            )
            found = collect_statistics(
                model,
                self._batches(features),
                need=("input_fisher",),
                reduce=directions,
                fisher="true" if labels == "expected" and not drawn else "empirical",
                seed=self.options.seed,
                progress=self.progress,
            )
            return {name: vectors.cpu().numpy() for name, vectors in found.layers.items()}

        return {key: torch.from_numpy(value) for key, value in self._kept(f"subspaces-{labels}", compute).items()}

    def _drawn_choices(self, rows: Sequence[int]) -> list[Feature]:
        """Each question with one of its choices as its label, drawn from the model."""
        shares = choice_shares(self._choices(rows)["log_likelihoods"])
        rng = np.random.default_rng(derive_seed(self.options.seed, "choices"))
        questions = self._questions(rows)
        return [
            _feature(*question.pairs[int(rng.choice(len(share), p=share))])
            for question, share in zip(questions, shares, strict=True)
        ]

    def _gradients(
        self, model: PeftModel, rows: Sequence[int], labels: str, subspaces: Mapping[str, Tensor] | None
    ) -> Arrays:
        choices = labels == "expected" and self.pool.task.kind == "multiple_choice"
        if choices:
            groups = [[[_feature(*pair)] for pair in question.pairs] for question in self._questions(rows)]
        else:
            groups = [[self._encoded(index, answers=labels == "given")] for index in rows]
        flat = [feature for group in groups for windows in group for feature in windows]
        draws = self.options.draws if labels == "expected" and not choices else 1
        found = [
            collect_statistics(
                model,
                self._batches(flat),
                need=(),
                fisher="true" if labels == "expected" and not choices else "empirical",
                samples=SampleOptions(subspaces, embedding=self.options.features),
                generator=torch.Generator().manual_seed(derive_seed(self.options.seed, "draw", rows[0], draw)),
                seed=self.options.seed,  # of the projection, which must be the same in all parts
                progress=False,
            ).samples
            for draw in range(draws)
        ]
        energy, features, logs = [], [], []
        place = 0
        for group in groups:
            for windows in group:
                part = slice(place, place + len(windows))
                place += len(windows)
                for scores in found:
                    assert scores is not None and scores.embedding is not None
                    energy.append(scores.energy[part].sum(1).mean().item())
                    features.append((scores.embedding[part].sum(0) / len(windows) ** 0.5).numpy())
                    logs.append(-float(scores.loss_nats[part].sum()))
        counts = [len(group) * draws for group in groups]
        ends = np.cumsum([0, *counts])
        spans = [slice(int(a), int(b)) for a, b in itertools.pairwise(ends)]
        width = max(counts)
        stacked = np.zeros((len(groups), width, self.options.features), dtype=np.float32)
        for row, span in enumerate(spans):
            stacked[row, : counts[row]] = np.stack(features[span])
        return {
            "energy": filled([energy[span] for span in spans], 0.0),
            "features": stacked,
            "log_likelihoods": filled([logs[span] for span in spans], -np.inf),
            "weights": filled([[1 / count] * count for count in counts], 0.0),
        }


def _feature(context: list[int], continuation: list[int]) -> Feature:
    ids = context + continuation
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": [IGNORED] * len(context) + continuation}
