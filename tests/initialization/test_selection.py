from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from lorascope.core.errors import AdapterError, DataError, InputError
from lorascope.initialization.accumulators import SymmetricSum
from lorascope.initialization.selection import METHODS, Selection, select_rows
from lorascope.initialization.selection_model import attention_spread, leading_directions
from lorascope.initialization.selection_options import ScoreOptions
from lorascope.initialization.selection_pool import load_pool
from lorascope.initialization.selection_scores import PoolScorer
from lorascope.tasks import evaluate_task, load_task
from tests.training.tiny import LANDS, NAMES, make_model, make_tokenizer

CHOICES = sorted(set(LANDS))
ROWS: list[dict[str, Any]] = [
    {"question": f"Where is {name}?", "choices": CHOICES, "answer": CHOICES.index(land)}
    for name, land in zip(NAMES, LANDS, strict=True)
]
OPTIONS = ScoreOptions(subspace=4, features=64, fisher_rows=4, batch_size=3)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return make_model()


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


def scorer(model: Any, tokenizer: Any, rows: Any = ROWS, **changes: Any) -> PoolScorer:
    options = ScoreOptions(**{"subspace": 4, "features": 64, "fisher_rows": 4, "batch_size": 3, **changes})
    return PoolScorer(model, tokenizer, load_pool(rows), options, progress=False)


def gradients(model: LlamaForCausalLM, tokenizer: Any, row: dict[str, Any], choice: int) -> dict[str, torch.Tensor]:
    """Of the summed loss of one row, for every dense layer, by autograd."""
    context = f"Choose the correct answer for the following question: {row['question']}\nAnswer:"
    ids = tokenizer.encode(f"{context} {row['choices'][choice]}")
    start = len(tokenizer.encode(context))
    layers = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"}
    logits = model(input_ids=torch.tensor([ids])).logits[0]
    loss = torch.nn.functional.cross_entropy(logits[start - 1 : -1], torch.tensor(ids[start:]), reduction="sum")
    found = torch.autograd.grad(loss, [m.weight for m in layers.values()])
    return dict(zip(layers, found, strict=True))


def test_energy_is_the_squared_gradient_of_autograd(model: Any, tokenizer: Any) -> None:
    found = scorer(model, tokenizer, subspace=0).gradients(labels="given")
    for index, row in enumerate(ROWS[:3]):
        wanted = sum(float(g.square().sum()) for g in gradients(model, tokenizer, row, row["answer"]).values())
        assert found.energy[index, 0] == pytest.approx(wanted, rel=1e-4)


def test_expected_energy_weighs_every_choice_by_the_models_probability(
    model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    found = scorer(model, tokenizer, subspace=0).gradients(labels="expected")
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    scored = evaluate_task(model, tokenizer, load_task(tmp_path), progress=False).per_example
    for index, row in enumerate(ROWS[:2]):
        shares = np.exp(scored[index]["log_likelihoods"])
        shares /= shares.sum()
        np.testing.assert_allclose(found.weights[index], shares, rtol=1e-4)
        energies = [
            sum(float(g.square().sum()) for g in gradients(model, tokenizer, row, choice).values())
            for choice in range(4)
        ]
        assert found.expected_energy[index] == pytest.approx(float(shares @ energies), rel=1e-4)


def test_features_keep_the_inner_products_of_gradients(model: Any, tokenizer: Any) -> None:
    found = scorer(model, tokenizer, subspace=0, features=4096).gradients(labels="given")
    flat = []
    for row in ROWS:
        parts = gradients(model, tokenizer, row, row["answer"]).values()
        flat.append(torch.cat([part.flatten() for part in parts]).double().numpy())
    exact = np.array(flat) @ np.array(flat).T
    guessed = found.features[:, 0] @ found.features[:, 0].T
    scale = np.sqrt(np.outer(exact.diagonal(), exact.diagonal()))
    assert np.abs(guessed - exact).max() / scale.max() < 0.12


def test_a_subspace_of_all_directions_is_the_whole_gradient(model: Any, tokenizer: Any) -> None:
    whole = scorer(model, tokenizer, subspace=0).gradients().energy
    some = scorer(model, tokenizer, subspace=4).gradients().energy
    every = scorer(model, tokenizer, subspace=48).gradients().energy
    np.testing.assert_allclose(every, whole, rtol=1e-4)
    assert (some < whole).all()
    assert (some > 0).all()


def test_directions_by_lanczos_are_those_of_the_whole_decomposition() -> None:
    x = torch.randn(300, 90, generator=torch.Generator().manual_seed(0)) * torch.logspace(1, -2, 90)
    total = SymmetricSum(90, torch.device("cpu"))
    total.update(x)
    found = leading_directions(total, 300, 5)
    wanted = torch.linalg.eigh(total.sum.double()).eigenvectors.flip(1)[:, :5].float()
    torch.testing.assert_close((found.T @ wanted).abs(), torch.eye(5), atol=1e-4, rtol=0)
    torch.testing.assert_close(found.T @ found, torch.eye(5), atol=1e-5, rtol=0)


def test_the_model_and_the_random_state_stay_as_they_were(tokenizer: Any) -> None:
    model = make_model()
    model.model.layers[0].self_attn.q_proj.weight.requires_grad_(False)
    needed = {name: p.requires_grad for name, p in model.named_parameters()}
    before = {name: p.clone() for name, p in model.named_parameters()}
    state, attention = torch.get_rng_state(), model.config._attn_implementation
    for method in METHODS:
        select_rows(ROWS, 2, method=method, model=model, tokenizer=tokenizer, options=OPTIONS, progress=False)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == needed
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert model.config._attn_implementation == attention
    assert not hasattr(model, "peft_config")


@pytest.mark.parametrize("method", list(METHODS))
def test_the_order_of_the_pool_does_not_matter(model: Any, tokenizer: Any, method: str) -> None:
    if method == "random":
        return
    options = ScoreOptions(subspace=0, features=64, batch_size=3)
    order = [5, 2, 7, 0, 1, 6, 3, 4]
    call = {"method": method, "model": model, "tokenizer": tokenizer, "options": options, "progress": False}
    one = select_rows(ROWS, 4, **call)
    other = select_rows([ROWS[index] for index in order], 4, **call)
    assert {one.lines[i] for i in range(4)} == {other.lines[i] for i in range(4)}


@pytest.mark.parametrize("method", list(METHODS))
def test_every_method_is_deterministic_and_takes_other_batches(model: Any, tokenizer: Any, method: str) -> None:
    found = []
    for size in (3, 3, 8):
        options = ScoreOptions(subspace=4, features=64, batch_size=size, seed=3)
        found.append(
            select_rows(ROWS, 4, method=method, model=model, tokenizer=tokenizer, options=options, progress=False)
        )
    assert found[0].to_dict() == found[1].to_dict()
    assert found[0].chosen == found[2].chosen
    assert Selection.from_dict(json.loads(json.dumps(found[0].to_dict()))) == found[0]
    scores = [row["score"] for row in found[0].scores]
    assert all(score is None for score in scores) == (method == "random")


def test_scores_are_kept_and_go_on_where_they_stopped(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lorascope.initialization import selection_scores

    monkeypatch.setattr(selection_scores, "PART", 3)
    model, rows = make_model(), ROWS
    call: dict[str, Any] = {"method": "energy", "model": model, "tokenizer": tokenizer, "options": OPTIONS}
    whole = select_rows(rows, 3, **call, progress=False)
    before = selection_scores.collect_statistics
    calls = []

    def stop(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return before(*args, **kwargs)

    monkeypatch.setattr(selection_scores, "collect_statistics", stop)
    with pytest.raises(KeyboardInterrupt):
        select_rows(rows, 3, **call, cache=tmp_path, progress=False)
    assert not hasattr(model, "peft_config"), "the idle layers are taken off after an interruption"
    calls.clear()
    monkeypatch.setattr(selection_scores, "collect_statistics", lambda *a, **k: (calls.append(1), before(*a, **k))[1])
    assert select_rows(rows, 3, **call, cache=tmp_path, progress=False).to_dict() == whole.to_dict()
    assert len(calls) == 2, "the subspaces and the first part are not computed again"
    monkeypatch.setattr(selection_scores, "collect_statistics", None)
    again = select_rows(rows, 5, **{**call, "method": "d_optimal"}, cache=tmp_path, progress=False)
    assert len(again.chosen) == 5
    part = next(tmp_path.glob("*/gradients-given-000003.safetensors"))
    part.write_bytes(part.read_bytes()[:40])
    monkeypatch.setattr(selection_scores, "collect_statistics", before)
    assert select_rows(rows, 3, **call, cache=tmp_path, progress=False).chosen == whole.chosen


def test_other_rows_models_and_options_have_other_scores(model: Any, tokenizer: Any) -> None:
    keys = {
        scorer(model, tokenizer).key,
        scorer(make_model(1), tokenizer).key,
        scorer(model, tokenizer, ROWS[:7]).key,
        scorer(model, tokenizer, seed=1).key,
    }
    assert len(keys) == 4


def test_entropy_loss_and_logits_are_those_of_the_scores(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    scored = evaluate_task(model, tokenizer, load_task(tmp_path), progress=False).per_example
    found = scorer(model, tokenizer)
    logs = np.array([row["log_likelihoods"] for row in scored])
    shares = np.exp(logs) / np.exp(logs).sum(1, keepdims=True)
    np.testing.assert_allclose(found.entropy(), -(shares * np.log(shares)).sum(1), rtol=1e-5)
    np.testing.assert_allclose(found.logit_norm(), logs.var(1), rtol=1e-4)
    np.testing.assert_allclose(found.loss(), [row["nats"] / row["tokens"] for row in scored], rtol=1e-5)


def test_another_adapter_has_other_scores_also_from_the_cache(tokenizer: Any, tmp_path: Path) -> None:
    def scores(seed: int, **lora: Any) -> list[Any]:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            adapted = get_peft_model(make_model(), LoraConfig(r=2, **lora))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_" in name:
                    parameter += seed * torch.randn(parameter.shape, generator=generator)
        found = select_rows(
            ROWS, 2, model=adapted, tokenizer=tokenizer, options=OPTIONS, cache=tmp_path, progress=False
        )
        return [row["score"] for row in found.scores]

    one = scores(1, target_modules=["q_proj"])
    assert scores(1, target_modules=["q_proj"]) == one
    others = [scores(0, target_modules=["q_proj"]), scores(2, target_modules=["q_proj"])]
    others.append(scores(1, target_modules=["q_proj"], lora_alpha=1))
    assert all(other != one for other in others)


def test_a_row_too_short_for_attention_logits_is_not_chosen_for_that(model: Any, tokenizer: Any) -> None:
    rows = [{"text": "W"}, {"text": "Where is it and what is it?"}, {"text": "What is it and where is it?"}]
    found = select_rows(
        rows, 1, method="smallest_attention", model=model, tokenizer=tokenizer, options=OPTIONS, progress=False
    )
    scores = [row["score"] for row in found.scores]
    assert scores[0] == max(scores[1:]) and found.chosen != (0,)
    with pytest.raises(InputError, match="no row is long enough"):
        select_rows(
            rows[:1], 1, method="smallest_attention", model=model, tokenizer=tokenizer, options=OPTIONS, progress=False
        )


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated")
def test_gradient_checkpointing_leaves_no_hook(tokenizer: Any) -> None:
    checked = make_model()
    checked.gradient_checkpointing_enable()
    before = [len(module._forward_hooks) for module in checked.modules()]
    scorer(checked, tokenizer).gradients()
    assert [len(module._forward_hooks) for module in checked.modules()] == before


def test_text_is_its_own_label(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    texts = [{"text": "a town by the sea"}, {"text": "another town, further north. " * 4}]
    found = scorer(model, tokenizer, texts, max_length=32)
    for index, text in enumerate(texts):
        folder = tmp_path / str(index)
        folder.mkdir()
        (folder / "test.jsonl").write_text(json.dumps(text) + "\n")
        ce = evaluate_task(model, tokenizer, load_task(folder), max_length=32, progress=False).metrics["ce"]
        assert found.loss()[index] == pytest.approx(ce, rel=1e-5)
    assert (found.entropy() < np.log(260) + 1e-6).all()
    assert found.gradients(labels="given").energy.shape == (2, 1)
    assert found.gradients(labels="expected").energy.shape == (2, 2)


def test_attention_logits_are_read_up_to_what_softmax_cannot_see() -> None:
    logits = torch.randn(3, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask = torch.ones(6, 6).tril().bool()
    for shift in (0.0, 7.0):
        attention = (logits + shift).masked_fill(~mask, -torch.inf).softmax(-1).float()
        total, count = attention_spread(attention)
        wanted = [logits[head, query, 1 : query + 1].var(correction=0) for head in range(3) for query in range(2, 6)]
        assert count == 12
        assert total == pytest.approx(float(sum(wanted)), rel=1e-5)


def test_keys_outside_a_window_are_no_attention_logits() -> None:
    logits = torch.randn(2, 7, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    window = torch.ones(7, 7).tril().triu(-2).bool()
    total, count = attention_spread(logits.masked_fill(~window, -torch.inf).softmax(-1).float())
    wanted = [logits[h, q, max(1, q - 2) : q + 1].var(correction=0) for h in range(2) for q in range(2, 7)]
    assert count == 10
    assert total == pytest.approx(float(sum(wanted)), rel=1e-5)


def test_weights_that_underflow_are_not_taken_for_masked_keys() -> None:
    logits = 40 * torch.randn(2, 7, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask = torch.ones(7, 7).tril().bool()
    exact = logits.masked_fill(~mask, -torch.inf).softmax(-1)
    (single, count), (half, others) = attention_spread(exact.float()), attention_spread(exact.half())
    assert count == others == 10
    mild = attention_spread((logits / 40).masked_fill(~mask, -torch.inf).softmax(-1).half())[0]
    assert single > half > 10 * mild, "cut off, and still large"


def test_attention_grows_with_the_query_weights(tokenizer: Any) -> None:
    small, large = make_model(), make_model()
    with torch.no_grad():
        for layer in large.model.layers:
            layer.self_attn.q_proj.weight *= 3
    assert (scorer(large, tokenizer).attention_norm() > 2 * scorer(small, tokenizer).attention_norm()).all()


def test_layers_of_an_adapter_count_where_there_is_one(tokenizer: Any) -> None:
    model = get_peft_model(make_model(), LoraConfig(r=2, target_modules=["q_proj"]))
    all_layers = scorer(make_model(), tokenizer, subspace=0).gradients().energy
    queries = scorer(make_model(), tokenizer, subspace=0, target_modules=("q_proj",)).gradients().energy
    adapted = scorer(model, tokenizer, subspace=0).gradients().energy
    np.testing.assert_allclose(adapted, queries, rtol=1e-4)
    assert (adapted < all_layers).all()


def test_rows_without_labels(model: Any, tokenizer: Any) -> None:
    bare = [{key: row[key] for key in ("question", "choices")} for row in ROWS]
    call: dict[str, Any] = {"model": model, "tokenizer": tokenizer, "options": OPTIONS, "progress": False}
    for method, kind in METHODS.items():
        if kind.labels:
            with pytest.raises(DataError, match=r"needs labels, and 8 of 8 rows have none, the first at row 1"):
                select_rows(bare, 2, method=method, **call)
        else:
            with_labels = select_rows(ROWS, 3, method=method, **call)
            assert select_rows(bare, 3, method=method, **call).chosen == with_labels.chosen, "labels are not looked at"
    prompts = [
        {"prompt": "How many cats?"},
        {"prompt": 'She said "no"'},
        {"prompt": "A list (of two) "},
        {"prompt": "One two"},
        {"prompt": "Three", "completion": None},
        {"prompt": "Four", "completion": " five"},
    ]
    chats = [{"messages": [{"role": "user", "content": "hi"}]}, {"messages": [{"role": "user", "content": "you"}]}]
    for rows in (prompts, chats):
        for method in ("d_optimal_expected", "energy_expected", "entropy", "smallest_logits", "smallest_attention"):
            assert len(select_rows(rows, 2, method=method, **call).chosen) == 2


def test_what_needs_no_label_does_not_see_one(model: Any, tokenizer: Any) -> None:
    prompts = [f"Name {count} towns" for count in ("one", "two", "three", "four", "five")]
    turns = [[{"role": "user", "content": text}] for text in prompts]
    pools = [
        ([{"prompt": t} for t in prompts], [{"prompt": t, "completion": f" {t[5:]} is it"} for t in prompts]),
        (
            [{"messages": t} for t in turns],
            [{"messages": [*t, {"role": "assistant", "content": f"{i} of them"}]} for i, t in enumerate(turns)],
        ),
    ]
    call: dict[str, Any] = {"model": model, "tokenizer": tokenizer, "options": OPTIONS, "progress": False}
    for bare, answered in pools:
        for method, kind in METHODS.items():
            if not kind.labels:
                one, other = (select_rows(rows, 2, method=method, **call) for rows in (bare, answered))
                assert [row["score"] for row in one.scores] == [row["score"] for row in other.scores], method


def test_pools_keep_rows_as_they_were(tmp_path: Path) -> None:
    lines = ['{"prompt":"a",  "completion":"b", "id": 7}', '{"completion": "\u00e9", "prompt": "c"}']
    path = tmp_path / "rows.jsonl"
    path.write_bytes(("\ufeff" + "\r\n".join([*lines, lines[0]]) + "\r\n").encode())
    pool = load_pool(path)
    assert pool.lines == tuple(lines)
    assert (pool.duplicates, pool.indices) == (1, (0, 1))
    found = select_rows(pool, 2, method="random")
    assert sorted(found.lines) == sorted(lines)
    assert any("same as an earlier one" in note for note in found.warnings)
    assert any("whole pool" in note for note in found.warnings)
    towns = load_pool("towns")
    assert len(towns) > 1000
    assert json.loads(towns.lines[0])["choices"]


def test_a_label_makes_a_row_different() -> None:
    bare = {"question": "Q?", "choices": ["a", "b"]}
    assert load_pool([bare, {**bare, "answer": 0}, {**bare, "answer": 1}, dict(bare)]).duplicates == 1


@pytest.mark.parametrize(
    ("rows", "budget", "changes", "error", "words"),
    [
        ([], 1, {}, DataError, "the pool is empty"),
        (ROWS, 9, {}, InputError, "budget 9 is over the 8 different rows"),
        ([*ROWS, ROWS[0]], 9, {}, InputError, r"1 more are the same as another"),
        (ROWS, 0, {}, InputError, "budget 0 must be"),
        (ROWS, 1, {"method": "fisher"}, InputError, "unknown method 'fisher'"),
        (ROWS, 1, {"method": "entropy", "model": None}, InputError, "needs a model"),
        ([{"question": "Q?"}], 1, {}, DataError, "'choices'"),
        ([{"text": "a"}, ROWS[0]], 1, {}, DataError, "keep one kind of row"),
        (ROWS, 1, {"method": "d_optimal", "ridge": -1.0}, InputError, "ridge -1.0"),
        (
            ROWS,
            1,
            {"method": "energy", "options": ScoreOptions(target_modules=("nothing",))},
            AdapterError,
            "target_modules",
        ),
    ],
)
def test_bad_input_is_named(
    model: Any, tokenizer: Any, rows: Any, budget: int, changes: dict[str, Any], error: type[Exception], words: str
) -> None:
    call = {"method": "random", "model": model, "tokenizer": tokenizer, "options": OPTIONS, "progress": False}
    with pytest.raises(error, match=words):
        select_rows(rows, budget, **{**call, **changes})


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"features": 250}, "square"), ({"subspace": -1}, "subspace"), ({"overlong": "drop"}, "can't be dropped")],
)
def test_bad_options_are_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        ScoreOptions(**changes)
