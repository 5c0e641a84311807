from __future__ import annotations

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lorascope.core.seeds import preserved_random_state

NAMES = ["Oslo", "Bergen", "Lyon", "Paris", "Turin", "Milan", "Cadiz", "Seville"]
LANDS = ["Norway", "Norway", "France", "France", "Italy", "Italy", "Spain", "Spain"]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes as tokens: no file, no network."""
    vocab = {token: index for index, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocab |= {"<pad>": len(vocab), "</s>": len(vocab) + 1}
    raw = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="</s>", model_max_length=256)


def make_model(seed: int = 0) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=260,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
        pad_token_id=256,
        eos_token_id=257,
        bos_token_id=None,
    )
    with preserved_random_state():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()
