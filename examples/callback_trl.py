"""Watch what LoRA learns while TRL trains it: one line, `callbacks=[InformationCallback()]`.

Runs in seconds on a laptop without a network: the model is tiny and random, the tokenizer's tokens are bytes.

    python examples/callback_trl.py
"""

from __future__ import annotations

import tempfile

from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from lorascope.training import InformationCallback


def tiny_model() -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=260,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=128,
            pad_token_id=256,
            eos_token_id=257,
            bos_token_id=None,
        )
    )


def byte_tokenizer() -> PreTrainedTokenizerFast:
    vocab = {token: index for index, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    raw = Tokenizer(models.BPE(vocab=vocab | {"<pad>": 256, "</s>": 257}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="</s>")


def main() -> None:
    rows = [{"prompt": f"{a} + {b} =", "completion": f" {a + b}"} for a in range(8) for b in range(8)]
    data = Dataset.from_list(rows).train_test_split(test_size=16, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=tiny_model(),
            args=SFTConfig(
                output_dir=folder,
                max_steps=20,
                per_device_train_batch_size=8,
                learning_rate=1e-2,
                eval_strategy="steps",
                eval_steps=5,
                save_strategy="no",
                report_to="none",  # "tensorboard", "wandb", "mlflow" ... get the same values
                bf16=False,
                disable_tqdm=True,
            ),
            train_dataset=data["train"],
            eval_dataset=data["test"],
            processing_class=byte_tokenizer(),
            peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
            callbacks=[InformationCallback()],
        )
        trainer.train()
    print("step  loss    MIUB (nats)  update ratio")
    evaluations: dict[int, dict[str, float]] = {}
    for line in trainer.state.log_history:
        evaluations.setdefault(line["step"], {}).update(line)
    for step, line in evaluations.items():
        if "eval_miub_js" in line:
            print(f"{step:4d}  {line['eval_loss']:.3f}  {line['eval_miub_js']:.6f}     {line['eval_update_ratio']:.4f}")


if __name__ == "__main__":
    main()
