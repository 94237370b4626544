"""Trains the small base model: the Phi-3 architecture on running prose, without any chat.

python -m tools.sample.base_model [--seed 7] [--steps 1600] [--folder FOLDER]
"""

import argparse
import math
from itertools import chain, islice
from pathlib import Path

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

from tools.sample.knowledge import FOLDER
from tools.sample.prose import write_documents

SEEDS = FOLDER.parents[1] / "local_azureml" / "seeds" / "base_model"
SPECIAL_TOKENS = ["<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>"]
VOCABULARY = 4096  # tokens
CONTEXT = 4096  # tokens, as the model that it stands in for
BLOCK = 256  # tokens a training row
ROWS = 4  # rows a step
DOCUMENTS = 20_000
CHAT_TEMPLATE = (SEEDS / "chat_template.jinja").read_text("utf-8")


def train_tokenizer(documents: list[str]) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer with Phi-3's special tokens and chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=SPECIAL_TOKENS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(documents, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        model_max_length=CONTEXT,
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
    )


def cut_blocks(tokenizer: PreTrainedTokenizerFast, documents: list[str]) -> list[list[int]]:
    """Return the documents' tokens, with an end mark after each, in rows of BLOCK tokens."""
    ended = (tokenizer(document + tokenizer.eos_token).input_ids for document in documents)
    tokens = list(chain.from_iterable(ended))
    return [tokens[start : start + BLOCK] for start in range(0, len(tokens) - BLOCK + 1, BLOCK)]


def build_model(tokenizer: PreTrainedTokenizerFast) -> Phi3ForCausalLM:
    """Return an untrained model of a few million parameters."""
    ends = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|end|>"])
    config = Phi3Config(
        vocab_size=VOCABULARY,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=CONTEXT,
        original_max_position_embeddings=CONTEXT,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Phi3ForCausalLM(config)
    model.generation_config.eos_token_id = ends
    return model


def train(model: Phi3ForCausalLM, blocks: list[list[int]], steps: int, seed: int) -> None:
    """Train `model` on `blocks` for `steps` steps."""
    rows = Dataset.from_dict({"input_ids": blocks, "labels": blocks})
    arguments = TrainingArguments(
        output_dir="build/base_model",
        max_steps=steps,
        per_device_train_batch_size=ROWS,
        learning_rate=3e-3,
        lr_scheduler_type="cosine",
        warmup_steps=100,
        adam_beta2=0.98,
        weight_decay=0.01,
        logging_steps=max(1, steps // 20),
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        seed=seed,
    )
    Trainer(model=model, args=arguments, train_dataset=rows, data_collator=default_data_collator).train()


@torch.no_grad()
def mark_special_tokens(model: Phi3ForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Give the chat's tokens, which no prose holds, distinct embeddings of the usual size.

    LoRA leaves the embeddings as they are, so that a fine-tune must find the tokens apart.
    """
    unseen = tokenizer.convert_tokens_to_ids(SPECIAL_TOKENS[1:])
    for weight in (model.model.embed_tokens.weight, model.lm_head.weight):
        seen = weight[len(SPECIAL_TOKENS) : len(tokenizer)]
        weight[unseen] = seen.mean(0) + seen.std(0) * torch.randn(len(unseen), weight.shape[1])


@torch.no_grad()
def measure_loss(model: Phi3ForCausalLM, blocks: list[list[int]]) -> float:
    """Return the mean loss a token over `blocks`."""
    model.eval()
    rows = torch.tensor(blocks)
    return model(input_ids=rows, labels=rows).loss.item()


def save(model: Phi3ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the checkpoint in 16 bit."""
    model.to(torch.bfloat16).save_pretrained(folder)
    model.config.dtype = "float32"  # to compute in: CPUs are slow in 16 bit
    model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the small base model.")
    parser.add_argument("--folder", type=Path, default=SEEDS)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--steps", type=int, default=1600)
    options = parser.parse_args()
    set_seed(options.seed)
    documents = list(islice(write_documents(options.seed), DOCUMENTS))
    tokenizer = train_tokenizer(documents)
    model = build_model(tokenizer)
    train(model, cut_blocks(tokenizer, documents), options.steps, options.seed)
    loss = measure_loss(model, cut_blocks(tokenizer, list(islice(write_documents(options.seed + 1), 200))))
    mark_special_tokens(model, tokenizer)
    save(model, tokenizer, options.folder)
    counts = f"{model.num_parameters():,} parameters, {len(tokenizer):,} tokens"  # which the card says too
    print(f"{counts}, loss {loss:.3f}, perplexity {math.exp(loss):.2f} in {options.folder}")


if __name__ == "__main__":
    main()
