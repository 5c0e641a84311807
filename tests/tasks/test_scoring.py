from __future__ import annotations

import math
import random

import peft
import pytest
import torch

from lorascope.tasks import Task, TextRow, encode_task, evaluate_task, load_task, scoring
from lorascope.tasks.encode import encode_choices
from lorascope.tasks.scoring import score_choices, score_pairs
from tests.tasks.conftest import QUESTIONS, VOCABULARY


def reference(model, context: list[int], continuation: list[int]) -> float:
    """One row, no padding, no cache, float64 log-softmax."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([context + continuation])).logits[0].double()
    log_p = logits.log_softmax(-1)
    return sum(float(log_p[len(context) - 1 + i, token]) for i, token in enumerate(continuation))


@pytest.mark.parametrize("name", ["llama", "mistral-window", "gemma2-window", "gpt2", "opt", "mamba"])
@pytest.mark.parametrize("prompt", ["main", "prompt3", "plain"])
def test_cached_plain_and_reference_agree(name, prompt, make_model, tokenizer, write_rows, monkeypatch):
    model = make_model(name)
    task = load_task(write_rows(test=QUESTIONS), prompt=prompt)
    whole_rows = []
    original = scoring.score_pairs
    monkeypatch.setattr(scoring, "score_pairs", lambda *a, **k: whole_rows.append(1) or original(*a, **k))
    cached = evaluate_task(model, tokenizer, task, progress=False)
    assert bool(whole_rows) == (name == "mamba"), "only a model without a key-value cache runs rows whole"
    plain = evaluate_task(model, tokenizer, task, progress=False, use_cache=False, batch_size=2)
    assert cached.metrics == pytest.approx(plain.metrics, abs=1e-4, rel=1e-5)
    questions, _ = encode_choices(task, tokenizer, "test")
    for question, one, two in zip(questions, cached.per_example, plain.per_example, strict=True):
        expected = [reference(model, *pair) for pair in question.pairs]
        assert one["log_likelihoods"] == pytest.approx(expected, abs=1e-4, rel=2e-6)
        assert two["log_likelihoods"] == pytest.approx(expected, abs=1e-4, rel=2e-6)


def random_questions(seed: int, count: int = 12) -> list[list[tuple[list[int], list[int]]]]:
    """Questions with long and short prompts, shared or own contexts, choices that begin alike, and repeats."""
    generator = random.Random(seed)

    def ids(least: int, most: int) -> list[int]:
        return [generator.randrange(VOCABULARY) for _ in range(generator.randint(least, most))]

    questions = []
    for number in range(count):
        context, start = ids(1, 30), ids(0, 3)
        choices = [start + ids(1, 6) for _ in range(generator.randint(2, 5))]
        if number % 3 == 0:  # the options stand in the context, the continuation is shared
            questions.append([(context + choice, choices[0]) for choice in choices])
        else:
            questions.append([(context, choice) for choice in [*choices, choices[0]]])
    return questions


@pytest.mark.parametrize("name", ["llama", "gemma2-window", "gpt2"])
@pytest.mark.parametrize("budget", [2**26, VOCABULARY * 20])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_any_grouping_gives_the_same_scores(name, budget, batch_size, make_model, monkeypatch):
    """A small budget cuts the copies of the cache into several passes."""
    model, questions = make_model(name), random_questions(batch_size)
    monkeypatch.setattr(scoring, "_LOGIT_ELEMENTS", budget)
    done = []
    scores = score_choices(model, questions, batch_size=batch_size, pad_id=0, advance=done.append)
    assert sum(done) == len(questions)
    for pairs, values in zip(questions, scores, strict=True):
        assert values == pytest.approx([reference(model, *pair) for pair in pairs], abs=1e-4, rel=2e-6)
    flat = [pair for pairs in questions for pair in pairs]
    whole = score_pairs(model, flat, batch_size=batch_size, pad_id=0)
    assert whole == pytest.approx([value for values in scores for value in values], abs=1e-4, rel=2e-6)


def test_equal_choices_get_equal_scores_and_ties_go_to_the_first(make_model, tokenizer, write_rows):
    rows = [{"question": "Which?", "choices": ["this one", "this one"], "answer": 1}]
    with pytest.warns(UserWarning, match="1 of 1 rows offer a choice twice"):
        task = load_task(write_rows(test=rows))
    record = evaluate_task(make_model("llama"), tokenizer, task, progress=False).per_example[0]
    assert record["log_likelihoods"][0] == record["log_likelihoods"][1]
    assert record["choice"] == record["choice_norm"] == 0


def test_metrics_follow_from_the_likelihoods(make_model, tokenizer, write_rows):
    task = load_task(write_rows(test=QUESTIONS))
    result = evaluate_task(make_model("llama"), tokenizer, task, progress=False)
    chosen, normalised, nats, tokens = [], [], 0.0, 0
    for row, record in zip(task.rows("test"), result.per_example, strict=True):
        values = record["log_likelihoods"]
        chosen.append(max(range(len(values)), key=lambda i: values[i]) == row.answer)
        lengths = [len(choice) for choice in row.choices]  # characters, not bytes: "größer" counts 6
        normalised.append(max(range(len(values)), key=lambda i: values[i] / lengths[i]) == row.answer)
        nats -= values[row.answer]
        tokens += record["tokens"]
    n, p = len(chosen), sum(chosen) / len(chosen)
    assert result.metrics["accuracy"] == p
    assert result.metrics["accuracy_norm"] == sum(normalised) / n
    assert result.metrics["ce"] == pytest.approx(nats / tokens, rel=1e-12)
    assert result.metrics["ppl"] == pytest.approx(math.exp(nats / tokens), rel=1e-12)
    assert result.errors["accuracy"] == pytest.approx(math.sqrt(p * (1 - p) / (n - 1)))
    assert result.counts == {"samples": 5, "scored_tokens": tokens, "truncated": 0, "dropped": 0}
    assert result.to_dict()["settings"] == {"task": task.name, "split": "test", "prompt": "main"}


def test_cross_entropy_is_the_models_own_loss_on_the_encoded_features(make_model, tokenizer, write_rows):
    """What is evaluated is what is trained: same tokens, same labels."""
    model = make_model("llama")
    completions = [{"prompt": "Translate: the cat", "completion": " le chat"}, {"prompt": "Two", "completion": " deux"}]
    texts = [{"text": "A short text about the weather there. " * 8}, {"text": "Another one."}]
    for rows in (QUESTIONS, completions, texts):
        task = load_task(write_rows(test=rows))
        length = 64 if task.kind == "text" else None
        encoded = encode_task(task, tokenizer, "test", max_length=length)
        nats = tokens = 0.0
        for feature in encoded.features:
            scored = sum(label != -100 for label in feature["labels"])
            with torch.no_grad():
                loss = model(**{key: torch.tensor([value]) for key, value in feature.items()}).loss
            nats += float(loss) * scored
            tokens += scored
        result = evaluate_task(model, tokenizer, task, progress=False, max_length=length, batch_size=2)
        assert encoded.counts["scored_tokens"] == tokens == result.counts["scored_tokens"]
        assert result.metrics["ce"] == pytest.approx(nats / tokens, rel=1e-5)


def test_error_of_cross_entropy_matches_a_bootstrap(make_model, tokenizer):
    generator = random.Random(1)
    texts = ["".join(generator.choice("abcdehrt ") for _ in range(generator.randint(5, 60))) for _ in range(60)]
    task = Task("texts", "text", {"test": tuple(TextRow(text, str(i)) for i, text in enumerate(texts))})
    result = evaluate_task(make_model("llama"), tokenizer, task, progress=False)
    records = result.per_example
    means = []
    for _ in range(2000):
        drawn = generator.choices(records, k=len(records))
        means.append(sum(r["nats"] for r in drawn) / sum(r["tokens"] for r in drawn))
    centre = sum(means) / len(means)
    spread = math.sqrt(sum((mean - centre) ** 2 for mean in means) / (len(means) - 1))
    assert result.errors["ce"] == pytest.approx(spread, rel=0.1)
    perplexities = [math.exp(mean) for mean in means]
    centre = sum(perplexities) / len(perplexities)
    spread = math.sqrt(sum((value - centre) ** 2 for value in perplexities) / (len(perplexities) - 1))
    assert result.errors["ppl"] == pytest.approx(spread, rel=0.1)


def test_training_modes_and_gradients_are_left_as_they_were(make_model, tokenizer, write_rows):
    model = make_model("gpt2")
    task = load_task(write_rows(test=QUESTIONS))
    try:
        model.train()
        model.transformer.h[0].eval()
        state = torch.get_rng_state()
        evaluate_task(model, tokenizer, task, progress=False)
        assert model.training and not model.transformer.h[0].training
        assert torch.equal(torch.get_rng_state(), state)
        assert all(parameter.grad is None for parameter in model.parameters())
    finally:
        model.eval()


def test_an_adapter_changes_the_scores_through_both_paths(make_model, tokenizer, write_rows):
    import copy

    task = load_task(write_rows(test=QUESTIONS))
    base = make_model("llama")
    adapted = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    before = evaluate_task(base, tokenizer, task, progress=False).metrics["ce"]
    assert evaluate_task(adapted, tokenizer, task, progress=False).metrics["ce"] == pytest.approx(before, rel=1e-5)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator)
    cached = evaluate_task(adapted, tokenizer, task, progress=False).metrics["ce"]
    whole = evaluate_task(adapted, tokenizer, task, progress=False, use_cache=False).metrics["ce"]
    assert cached == pytest.approx(whole, rel=1e-5)
    assert abs(cached - before) > 0.01
