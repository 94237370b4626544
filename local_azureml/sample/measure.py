"""Prints what the notebook's default fine-tune does to the base model: losses and answers.

python -m local_azureml.sample.measure [--base FOLDER] [--learning-rate 0.002] [--rows 4]
"""

import argparse
import json
import math
import tempfile
import time
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)
from trl import SFTConfig, SFTTrainer

from .base_model import SEEDS as BASE
from .conversations import SEEDS as DATA

SEED = 42


def read_rows(split: str, share: float) -> Dataset:
    """Return the first `share` of a split's conversations."""
    rows = Dataset.from_parquet(str(DATA / "data" / f"{split}-00000-of-00001.parquet"))
    return rows.select(range(int(len(rows) * share))).select_columns(["messages"])


def fine_tune(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Dataset, options) -> dict:
    """Return the merged model and the losses before and after training on the first 80 % of `rows`."""
    border = int(len(rows) * 0.8)
    settings = SFTConfig(
        output_dir=tempfile.mkdtemp(),
        assistant_only_loss=True,
        num_train_epochs=3,
        per_device_train_batch_size=options.rows,
        per_device_eval_batch_size=8,
        learning_rate=options.learning_rate,
        lr_scheduler_type="cosine",
        max_length=None,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        logging_steps=20,
        use_cpu=True,
        seed=SEED,
    )
    trainer = SFTTrainer(
        model=model,
        args=settings,
        processing_class=tokenizer,
        train_dataset=rows.select(range(border)),
        eval_dataset=rows.select(range(border, len(rows))),
        peft_config=LoraConfig(r=8, lora_alpha=128, lora_dropout=0.0, target_modules="all-linear"),
    )
    before = trainer.evaluate()["eval_loss"]
    started = time.monotonic()
    trainer.train()
    seconds = time.monotonic() - started
    after = trainer.evaluate()["eval_loss"]
    return {"model": trainer.model.merge_and_unload(), "before": before, "after": after, "seconds": seconds}


def ask(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, messages: list[dict]) -> tuple[str, bool]:
    """Return the model's greedy answer, and whether it ended by itself."""
    inputs = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    tokens = model.generate(**inputs, max_new_tokens=120, do_sample=False)[0, inputs.input_ids.shape[1] :]
    ended = tokens[-1].item() in model.generation_config.eos_token_id
    return tokenizer.decode(tokens, skip_special_tokens=True).strip(), ended


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the default fine-tune of the small base model.")
    parser.add_argument("--base", type=Path, default=BASE)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--samples", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(2)
    set_seed(SEED)
    tokenizer = AutoTokenizer.from_pretrained(options.base)
    base = AutoModelForCausalLM.from_pretrained(options.base)
    result = fine_tune(
        AutoModelForCausalLM.from_pretrained(options.base), tokenizer, read_rows("train_sft", 0.05), options
    )
    tuned = result["model"].eval()
    ends = 0
    samples = [row["messages"] for row in read_rows("test_sft", 0.05)][: options.samples]
    for messages in samples:
        question, truth = messages[:-1], messages[-1]["content"]
        answer, ended = ask(tuned, tokenizer, question)
        ends += ended
        print(f"\nprompt: {question[-1]['content']}\ntruth:  {truth}")
        print(f"base:   {ask(base, tokenizer, question)[0]}\ntuned:  {answer}")
    fall = 1 - result["after"] / result["before"]
    print(f"\nevaluation loss {result['before']:.3f} -> {result['after']:.3f}, {fall:.0%} less, ", end="")
    print(f"perplexity {math.exp(result['after']):.2f}; {result['seconds']:.0f} s; {ends}/{len(samples)} end")
    print(json.dumps(vars(options), default=str))


if __name__ == "__main__":
    main()
