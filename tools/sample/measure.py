"""Prints what the notebook's default fine-tune does to the base model: losses, seconds and answers.

python -m tools.sample.measure [--base FOLDER] [--learning-rate RATE] [--samples 8]
"""

import argparse
import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from datasets import Dataset, disable_progress_bars
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging
from trl import SFTConfig, SFTTrainer

from tools.sample.base_model import SEEDS as BASE
from tools.sample.conversations import SEEDS as DATA

SHARE = 0.05  # of a split, as in the notebook


def read_defaults() -> dict:
    """Return the settings that suit the small model."""
    return json.loads(BASE.with_suffix(".json").read_text("utf-8"))["model_specific_defaults"]


def read_rows(split: str) -> Dataset:
    """Return the first conversations of a split."""
    rows = Dataset.from_parquet(str(DATA / "data" / f"{split}-00000-of-00001.parquet"))
    return rows.select(range(int(len(rows) * SHARE))).select_columns(["messages"])


def make_trainer(
    base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, options: argparse.Namespace, folder: str
) -> SFTTrainer:
    """Return a trainer for the first 80 % of the training rows, as the pipeline splits them."""
    rows = read_rows("train_sft")
    border = int(len(rows) * 0.8)
    settings = SFTConfig(
        output_dir=folder,
        assistant_only_loss=True,
        num_train_epochs=options.epochs,
        per_device_train_batch_size=options.batch_size,
        per_device_eval_batch_size=8,
        learning_rate=options.learning_rate,
        lr_scheduler_type="cosine",
        bf16=False,
        max_length=None,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        logging_steps=20,
        use_cpu=True,
    )
    return SFTTrainer(
        model=base,
        args=settings,
        processing_class=tokenizer,
        train_dataset=rows.select(range(border)),
        eval_dataset={"validation": rows.select(range(border, len(rows))), "test": read_rows("test_sft")},
        peft_config=LoraConfig(r=8, lora_alpha=128, lora_dropout=0.0, target_modules="all-linear"),
    )


def answer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, messages: list[dict]
) -> tuple[str, bool]:
    """Return the model's most likely answer, and whether it came to an end by itself."""
    inputs = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    [tokens] = model.generate(**inputs, max_new_tokens=100, do_sample=False)
    new = tokens[inputs.input_ids.shape[1] :]
    ended = new[-1].item() in model.generation_config.eos_token_id
    return tokenizer.decode(new, skip_special_tokens=True).strip(), ended


def show_answers(base: PreTrainedModel, tuned: PreTrainedModel, tokenizer, split: str, count: int) -> int:
    """Print both models' answers to `count` prompts, and return how many tuned ones came to an end."""
    ends = 0
    for row in read_rows(split).select(range(count)):
        last = -1 if row["messages"][-1]["role"] == "assistant" else None
        messages = row["messages"][:last]
        text, ended = answer(tuned, tokenizer, messages)
        ends += ended
        print("\n" + "\n".join(f"{message['role']}: {message['content']}" for message in messages))
        print(f"  truth: {row['messages'][-1]['content'] if last else None}")
        print(f"  base:  {answer(base, tokenizer, messages)[0]}\n  tuned: {text}")
    return ends


def main() -> None:
    defaults = read_defaults()
    parser = argparse.ArgumentParser(description="Measure the default fine-tune of the small base model.")
    parser.add_argument("--base", type=Path, default=BASE)
    parser.add_argument("--epochs", type=int, default=defaults["num_train_epochs"])
    parser.add_argument("--batch-size", type=int, default=defaults["per_device_train_batch_size"])
    parser.add_argument("--learning-rate", type=float, default=defaults["learning_rate"])
    parser.add_argument("--samples", type=int, default=8)
    options = parser.parse_args()
    disable_progress_bars()
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(options.base)
    base, model = (AutoModelForCausalLM.from_pretrained(options.base, dtype=torch.float32) for _ in range(2))
    with TemporaryDirectory() as folder:
        trainer = make_trainer(model, tokenizer, options, folder)
        before = trainer.evaluate()
        started = time.monotonic()
        trainer.train()
        seconds = time.monotonic() - started
        after = trainer.evaluate()
    tuned = trainer.model.merge_and_unload().eval()
    for split in ("test_sft", "test_gen"):
        ends = show_answers(base, tuned, tokenizer, split, options.samples)
        print(f"\n{split}: {ends} of {options.samples} answers end by themselves")
    for name in ("validation", "test"):
        first, last = before[f"eval_{name}_loss"], after[f"eval_{name}_loss"]
        print(f"{name} loss {first:.3f} -> {last:.3f}, {1 - last / first:.0%} less")
    print(
        f"{options.epochs} epochs, batch {options.batch_size}, rate {options.learning_rate}: {seconds:.0f} s"
    )


if __name__ == "__main__":
    main()
