"""Compare the emulator's fine-tune step with a plain `transformers.Trainer`, on one model and the same rows.

The rows are the sample's conversations, joined until their lengths spread as ultrachat_200k's do: log-normal,
half of the rows within a factor of 1.4 of the median. Both ways see the same rows at each step, in random
order, with the same labels, optimizer, schedule and seed; the plain Trainer pads each batch to its longest
row. One function evaluates both. Prints a Markdown table.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # what the emulator's processes run under

import torch
import transformers
from datasets import Dataset
from peft import PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    TrainingArguments,
)

from benchmarks.synthetic import full_size, write_rows
from local_azureml.engine.chat_completion import (
    finetune,
    inputs,
    loading,
    machine,
    memory,
    model_import,
    preprocess,
)
from local_azureml.engine.chat_completion.packing import DistributedBatchSampler
from local_azureml.engine.chat_completion.trainer import AS_THEY_ARE, adapters
from local_azureml.identifiers import SMALL_MODEL

ULTRACHAT_MEDIAN = 1200  # tokens of a row
FIRST_STEPS = 3  # not counted
SIXTEEN_BITS = {
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
}  # operations a second, by NVIDIA's data sheets


def main() -> None:
    """Make the rows, train both ways, print."""
    options = parse()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        values, results = prepare(options, folder), {}
        for turn in range(options.repeat):
            for train in (plain, ours)[:: 1 if turn % 2 else -1]:
                results.setdefault(train.__name__, []).append(train(values, folder))
        show(results)


def parse() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base-model", type=Path, default=SMALL_MODEL, help="a checkpoint folder")
    parser.add_argument(
        "--full-size-layers", type=int, help="random weights of Phi-3-mini's size, so many layers (32)"
    )
    parser.add_argument("--rows", type=int, default=400, help="training rows; as many again / 8 are held out")
    parser.add_argument("--median-tokens", type=int, default=160, help=f"ultrachat's own: {ULTRACHAT_MEDIAN}")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--lora", action="store_true", help="train adapters instead of all weights")
    parser.add_argument("--precision", default="32", choices=("16", "32"))
    parser.add_argument("--repeat", type=int, default=1, help="how often each way is run")
    parser.add_argument("--folder", type=Path, help="where temporary files go")
    return parser.parse_args()


def prepare(options: argparse.Namespace, folder: Path) -> dict:
    """Write rows and base model, run the steps before the fine-tune, and return its inputs."""
    base = full_size(options.full_size_layers, folder) if options.full_size_layers else options.base_model
    for split, rows, seed in (("train", options.rows, 1), ("validation", options.rows // 8, 2)):
        write_rows(folder / f"{split}.jsonl", rows, options.median_tokens, seed)
    given = {
        "mlflow_model_path": str(base),
        "train_file_path": str(folder / "train.jsonl"),
        "validation_file_path": str(folder / "validation.jsonl"),
        "per_device_train_batch_size": options.batch_size,
        "per_device_eval_batch_size": options.batch_size,
        "learning_rate": options.learning_rate,
        "num_train_epochs": 1,
        "apply_lora": str(options.lora).lower(),
        "precision": options.precision,
        "evaluation_strategy": "disable",
    }
    upstream = {"chat_completion_model_import": str(folder / "base")}
    specification = {"inputs": given, "upstream": upstream, "output": str(folder / "base"), "faults": {}}
    model_import.run(specification)
    preprocess.run(specification | {"output": str(folder / "tokens")})
    return inputs.typed(given)


def ours(values: dict, folder: Path) -> dict:
    """Train as the fine-tune step does."""
    task = finetune.Task(values, folder / "base", folder / "tokens", folder / "ours", {})
    trainer = finetune.build(task, machine.layout(values), None)
    trainer.args.save_strategy = "no"
    return measured(trainer, values, folder)


def plain(values: dict, folder: Path, recomputed: bool = False) -> dict:
    """Train with transformers' own Trainer on rows in random order, recomputing where it must."""
    kind = memory.plan(loading.load_config(folder / "base"), values).kind
    gpu = torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(folder / "plain"),
        **{name: values[name] for name in AS_THEY_ARE},
        bf16=kind == "bf16",
        fp16=kind == "fp16",
        gradient_checkpointing=recomputed,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=not gpu,
        dataloader_pin_memory=gpu,
        train_sampling_strategy="sequential",  # the rows are in random order
    )
    transformers.set_seed(values["seed"])
    half = values["apply_lora"] and kind == "bf16"
    model = AutoModelForCausalLM.from_pretrained(
        folder / "base", dtype=torch.bfloat16 if half else torch.float32
    )
    if lora := adapters(values):
        model = get_peft_model(model, lora)
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    rows = in_random_order(Dataset.from_file(str(folder / "tokens/train.arrow")), values)
    trainer = transformers.Trainer(model, arguments, DataCollatorForSeq2Seq(tokenizer), rows)
    trainer.remove_callback(transformers.PrinterCallback)
    try:
        return measured(trainer, values, folder)
    except torch.OutOfMemoryError:
        if recomputed:
            raise
    del model, trainer
    print("the plain Trainer does not fit, and recomputes activations", flush=True)
    return plain(values, folder, recomputed=True)


def in_random_order(rows: Dataset, values: dict) -> Dataset:
    """Return `rows` shuffled as the fine-tune step does, so that both ways see the same rows at each step."""
    epochs = DistributedBatchSampler(rows["length"], len(rows), 1, 1, 0, values["seed"])
    return rows.select(epochs.steps()[0])


class Clock(transformers.TrainerCallback):
    """Begins when the first steps are done, which load kernels and find room."""

    def on_step_end(self, args, state, control, **kwargs):
        """Begin."""
        if state.global_step == FIRST_STEPS:
            self.begun = self.now()

    @staticmethod
    def now() -> tuple[float, float]:
        """Return seconds on the clock and of the processor, when the GPU has done what it was told."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter(), time.process_time()


def measured(trainer: transformers.Trainer, values: dict, folder: Path) -> dict:
    """Train and return what the steps after the first took, the evaluation loss and a GPU's peak memory."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    clock = Clock()
    trainer.add_callback(clock)
    trainer.train()
    seconds, busy = (end - begun for end, begun in zip(clock.now(), clock.begun, strict=True))
    rows = in_random_order(Dataset.from_file(str(folder / "tokens/train.arrow")), values)
    useful = sum(rows["length"][FIRST_STEPS * values["per_device_train_batch_size"] :])
    peak = torch.cuda.max_memory_allocated() / machine.GIB if torch.cuda.is_available() else 0
    operations = (4 if values["apply_lora"] else 6) * trainer.model.num_parameters()
    return {
        "tokens": useful / seconds,
        "seconds": seconds,
        "busy": busy,
        "loss": evaluation_loss(trainer.model, folder),
        "memory": peak,
        "operations": operations * useful / seconds,
    }


@torch.inference_mode()
def evaluation_loss(model: torch.nn.Module, folder: Path) -> float:
    """Return the loss of a token of the held-out answers, on average."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    base.set_attn_implementation("sdpa")
    model.eval()
    total = count = 0
    for row in Dataset.from_file(str(folder / "tokens/validation.arrow")):
        labels = torch.tensor(row["labels"][1:], device=model.device)
        logits = model(torch.tensor([row["input_ids"]], device=model.device)).logits[0, :-1].float()
        total += torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item()
        count += int((labels != -100).sum())
    return total / count


def show(results: dict[str, list[dict]]) -> None:
    """Print both ways' medians and their ratio."""
    medians = {
        way: {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        for way, runs in results.items()
    }
    names = {"plain": "plain Trainer, random order, padded", "ours": "the fine-tune step"}
    print("| | useful tokens/s | seconds | CPU seconds | evaluation loss | GPU memory, GiB |")
    print("|---|---|---|---|---|---|")
    for way, name in names.items():
        got = medians[way]
        print(
            f"| {name} | {got['tokens']:,.0f} | {got['seconds']:.1f} | {got['busy']:.1f} | {got['loss']:.4f}"
            f" | {got['memory']:.1f} |"
        )
    tokens, loss = (medians["ours"][key] / medians["plain"][key] for key in ("tokens", "loss"))
    cpu = f"{torch.get_num_threads()} CPU threads"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else cpu
    print(f"\non {device}: {tokens:.2f} x the useful tokens a second, {loss - 1:+.1%} evaluation loss")
    if peak := next((most for name, most in SIXTEEN_BITS.items() if name in device), None):
        print(f"the fine-tune step does {medians['ours']['operations'] / peak:.0%} of what the card can")


if __name__ == "__main__":
    main()
