from __future__ import annotations

import pytest
import torch

from lorascope.core.errors import DataError, InputError, ModelError
from lorascope.tasks import PaddingCollator, encode_task, evaluate_task, load_task, pad_token_id
from lorascope.tasks.encode import encode_pair
from lorascope.testing.tasks import check_task
from tests.tasks.conftest import QUESTIONS, make_tokenizer

GOOD = {"question": "Q?", "choices": ["aa", "bb"], "answer": 1}
LONG = {"question": "x" * 300, "choices": ["aa", "bb"], "answer": 1}


def decode(tokenizer, feature):
    prompt = [token for token, label in zip(feature["input_ids"], feature["labels"], strict=True) if label == -100]
    answer = [label for label in feature["labels"] if label != -100]
    return tokenizer.decode(prompt), tokenizer.decode(answer)


def test_only_the_correct_answer_has_labels(tokenizer, write_rows):
    task = load_task(write_rows(train=QUESTIONS))
    encoded = encode_task(task, tokenizer, "train")
    for row, feature in zip(QUESTIONS, encoded.features, strict=True):
        prompt, answer = decode(tokenizer, feature)
        assert prompt == f"Choose the correct answer for the following question: {row['question']}\nAnswer:"
        assert answer == f" {row['choices'][row['answer']]}"
    assert encoded.where[2].endswith("train.jsonl:3")
    check_task(task, tokenizer)


def test_context_and_continuation_are_tokenised_together(tokenizer):
    """ " the" is one token: a space at the end of the context belongs to the continuation, as in lm-eval."""
    joint = tokenizer.encode("to the")
    context, continuation = encode_pair(tokenizer, "to ", "the", "x:1")
    assert tokenizer.decode(context) == "to"
    assert context + continuation == joint
    context, continuation = encode_pair(tokenizer, "", "the", "x:1")
    assert context == [tokenizer.eos_token_id]
    assert tokenizer.decode(continuation) == "the"
    with pytest.raises(DataError, match="x:1: the text '' has no token of its own"):
        encode_pair(tokenizer, "to", "", "x:1")


def test_completion_ends_with_eos(tokenizer, write_rows):
    task = load_task(
        write_rows(test=[{"prompt": "Sum: 1+1", "completion": "=2"}, {"prompt": "", "completion": "free"}])
    )
    first, second = encode_task(task, tokenizer, "test").features
    assert decode(tokenizer, first) == ("Sum: 1+1", "=2<eos>")
    assert decode(tokenizer, second) == ("<eos>", "free<eos>")
    check_task(task, tokenizer)


MESSAGES = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Ho"},
]
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def test_chat_uses_the_template_where_there_is_one(tokenizer, write_rows):
    task = load_task(write_rows(test=[{"messages": MESSAGES}]))
    [feature] = encode_task(task, tokenizer, "test").features
    assert decode(tokenizer, feature) == ("System: Be short.\nUser: Hi\nAssistant:", " Ho<eos>")
    templated = make_tokenizer()
    templated.chat_template = TEMPLATE
    [feature] = encode_task(task, templated, "test").features
    assert decode(templated, feature) == ("<system>Be short.</system><user>Hi</user><assistant>", "Ho</assistant>")
    check_task(task, templated)
    templated.chat_template = "{{ messages | length }}"
    with pytest.raises(DataError, match=r"test\.jsonl:1: the chat template writes the conversation differently"):
        encode_task(task, templated, "test")
    templated.chat_template = "{{ raise_exception('no system role') }}"
    with pytest.raises(DataError, match=r"test\.jsonl:1: .* refuses these messages \(no system role\)"):
        encode_task(task, templated, "test")


def test_text_windows_predict_every_token_once(tokenizer, write_rows):
    texts = ["abcdefghij" * 5, "xyz", "k" * 16]
    task = load_task(write_rows(test=[{"text": text} for text in texts]))
    encoded = encode_task(task, tokenizer, "test", max_length=17)
    scored: dict[str, list[int]] = {}
    for feature, where in zip(encoded.features, encoded.where, strict=True):
        assert feature["labels"][0] == -100
        assert feature["labels"][1:] == feature["input_ids"][1:]
        assert len(feature["input_ids"]) <= 17
        scored.setdefault(where, []).extend(feature["labels"][1:])
    assert [tokenizer.decode(ids) for ids in scored.values()] == texts
    assert encoded.counts == {"samples": 6, "tokens": 69 + 6, "scored_tokens": 69, "truncated": 0, "dropped": 0}
    assert encode_task(task, tokenizer, "test", max_length=17, limit=2).counts["samples"] == 2
    check_task(task, tokenizer, max_length=17)


def test_rows_over_the_limit_are_an_error_or_counted(tokenizer, write_rows, make_model):
    task = load_task(write_rows(test=[GOOD, LONG, GOOD]))
    line = r"test\.jsonl:2: prompt and answer are \d+ tokens, over the limit of 100: give --overlong drop"
    with pytest.raises(DataError, match=line):
        encode_task(task, tokenizer, "test", max_length=100)
    with pytest.raises(DataError, match=line):
        evaluate_task(make_model("llama"), tokenizer, task, max_length=100, progress=False)
    dropped = encode_task(task, tokenizer, "test", max_length=100, overlong="drop")
    assert (dropped.counts["samples"], dropped.counts["dropped"], dropped.counts["truncated"]) == (2, 1, 0)
    cut = encode_task(task, tokenizer, "test", max_length=100, overlong="truncate")
    assert (cut.counts["samples"], cut.counts["dropped"], cut.counts["truncated"]) == (3, 0, 1)
    assert len(cut.features[1]["input_ids"]) == 100
    prompt, answer = decode(tokenizer, cut.features[1])
    assert prompt.startswith("xxx") and prompt.endswith("xxx\nAnswer:") and answer == " bb"
    result = evaluate_task(make_model("llama"), tokenizer, task, max_length=100, overlong="truncate", progress=False)
    assert result.counts["truncated"] == 1 and result.counts["samples"] == 3
    assert evaluate_task(
        make_model("llama"), tokenizer, task, max_length=100, overlong="drop", progress=False
    ).counts == {"samples": 2, "scored_tokens": 6, "truncated": 0, "dropped": 1}
    check_task(task, tokenizer, max_length=100)


def test_the_models_own_context_is_the_limit(tokenizer, write_rows, make_model):
    task = load_task(write_rows(test=[{**LONG, "question": "y" * 600}]))
    with pytest.raises(DataError, match="over the limit of 512"):
        evaluate_task(make_model("llama"), tokenizer, task, progress=False)
    with pytest.raises(DataError, match="all 1 rows of split 'test' are over the limit of 512 tokens and were dropped"):
        evaluate_task(make_model("llama"), tokenizer, task, progress=False, overlong="drop")


def test_an_answer_is_never_cut_and_a_bos_token_is_kept(write_rows):
    tokenizer = make_tokenizer(bos_token="<bos>")
    rows = [{"prompt": "<bos>" + "p" * 30, "completion": "c" * 10}]
    task = load_task(write_rows(test=rows))
    [feature] = encode_task(task, tokenizer, "test", max_length=20, overlong="truncate").features
    assert decode(tokenizer, feature) == ("<bos>" + "p" * 8, "c" * 10 + "<eos>")
    with pytest.raises(DataError, match="the answer alone is 11 tokens of the limit of 11, and an answer is never cut"):
        encode_task(task, tokenizer, "test", max_length=11, overlong="truncate")


def test_wrong_options(tokenizer, write_rows):
    task = load_task(write_rows(test=[GOOD]))
    with pytest.raises(InputError, match="unknown overlong 'cut'"):
        encode_task(task, tokenizer, "test", overlong="cut")
    with pytest.raises(InputError, match="max_length 1 leaves no room"):
        encode_task(task, tokenizer, "test", max_length=1)
    with pytest.raises(DataError, match="has no split 'dev': it has test"):
        encode_task(task, tokenizer, "dev")


def test_pad_token(tokenizer, make_model, write_rows):
    bare = make_tokenizer(pad_token=None)
    assert pad_token_id(tokenizer) == tokenizer.pad_token_id
    assert pad_token_id(bare, "eos") == bare.eos_token_id
    assert pad_token_id(bare, "a") == bare.convert_tokens_to_ids("a")
    message = "has no pad token: give one with --pad-token eos"
    with pytest.raises(ModelError, match=message):
        pad_token_id(bare)
    task = load_task(write_rows(test=QUESTIONS))
    with pytest.raises(ModelError, match=message):
        evaluate_task(make_model("llama"), bare, task, progress=False)
    with pytest.raises(ModelError, match="pad token '<nope>' is not in the vocabulary"):
        pad_token_id(bare, "<nope>")
    with pytest.raises(ModelError, match="has no eos token"):
        pad_token_id(make_tokenizer(pad_token=None, eos_token=None), "eos")
    with_eos = evaluate_task(make_model("llama"), bare, task, progress=False, pad_token="eos")
    assert with_eos.metrics == evaluate_task(make_model("llama"), tokenizer, task, progress=False).metrics


def test_collator_pads_on_the_right(tokenizer):
    batch = PaddingCollator(tokenizer)(
        [
            {"input_ids": [5, 6, 7], "attention_mask": [1, 1, 1], "labels": [-100, 6, 7]},
            {"input_ids": [8], "attention_mask": [1], "labels": [8]},
        ]
    )
    pad = tokenizer.pad_token_id
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, pad, pad]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 6, 7], [8, -100, -100]]
    assert all(tensor.dtype == torch.long for tensor in batch.values())
    assert set(PaddingCollator(0)([{"input_ids": [1]}])) == {"input_ids", "attention_mask"}
