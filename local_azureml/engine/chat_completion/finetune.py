"""chat_completion_finetune: trains in as many processes as the machine has room for."""

import importlib.util
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed
from transformers.trainer_utils import get_last_checkpoint

from local_azureml.engine import processes
from local_azureml.engine.chat_completion.attention import WITHIN_ROWS
from local_azureml.engine.chat_completion.inputs import typed
from local_azureml.engine.chat_completion.loading import load_config, load_model, load_tokenizer
from local_azureml.engine.chat_completion.machine import GIB, Layout, Machine, layout
from local_azureml.engine.chat_completion.memory import plan
from local_azureml.engine.chat_completion.model_import import link_files
from local_azureml.engine.chat_completion.packing import DistributedBatchSampler
from local_azureml.engine.chat_completion.trainer import Trainer, training_arguments
from local_azureml.engine.chat_completion.turns import end_tokens
from local_azureml.engine.processes import UserError

ADAPTER = "adapter"  # the folder of LoRA weights that are not merged
MEETING = "meeting"  # the file in the step's folder by which its processes find one another


@dataclass(frozen=True)
class Task:
    """What one fine-tune works on."""

    values: dict  # the component's inputs, typed
    base: Path
    tokens: Path
    output: Path
    faults: dict

    @classmethod
    def of(cls, specification: dict) -> "Task":
        """Return the task of a step's specification."""
        upstream = specification["upstream"]
        return cls(
            typed(specification["inputs"]),
            Path(upstream["chat_completion_model_import"]),
            Path(upstream["chat_completion_datapreprocess"]),
            Path(specification["outputs"]["pytorch_model_folder"]),
            specification["faults"],
        )


def run(specification: dict) -> None:
    """Train, and leave the checkpoint in the output pytorch_model_folder."""
    task = Task.of(specification)
    if "finetune-failed" in task.faults:
        raise UserError("the fault finetune-failed is switched on")
    running = layout(task.values)
    print(f"processes: {running}", flush=True)
    deepspeed = deepspeed_config(task.values, running)
    if running.processes == 1 and not deepspeed:
        train(task, running, None)
    else:
        _launch(specification, running)


def deepspeed_config(values: dict, running: Layout) -> dict | None:
    """Return DeepSpeed's configuration where it is asked for and can be used; say so where it can't."""
    if not values["apply_deepspeed"]:
        return None
    given = _read_deepspeed(values["deepspeed"]) if "deepspeed" in values else None
    if not running.gpus or not importlib.util.find_spec("deepspeed"):
        why = "it is not installed" if running.gpus else "there is no GPU"
        print(f"DeepSpeed is left out: {why}", flush=True)
        return None
    automatic = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    return given or {
        "zero_optimization": {
            "stage": int(values["deepspeed_stage"]),
            "stage3_gather_16bit_weights_on_model_save": True,
        },
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": "auto"},
        **dict.fromkeys(automatic, "auto"),
    }


def _read_deepspeed(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"deepspeed: {path.name} is no JSON file: {error}") from error


def _launch(specification: dict, running: Layout) -> None:
    """Run `train` in processes as torchrun does, forked from the warm server."""
    Path(MEETING).unlink(missing_ok=True)
    shared = {"OMP_NUM_THREADS": str(running.threads)}
    shared |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(running.processes))
    here = processes.here
    ranks = [dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank)) for rank in range(running.processes)]
    places = [replace(here, environment=here.environment | shared | rank) for rank in ranks]
    processes.join([processes.Child(f"{__name__}:work", specification, place) for place in places])


def work(specification: dict) -> None:
    """Train one process's share, with others that are met over a file.

    Left to itself, torch opens a port on all interfaces for that, where anybody may have a say.
    """
    task = Task.of(specification)
    running = layout(task.values)
    met = torch.distributed.FileStore(str(Path(MEETING).resolve()), running.processes)
    rank = int(os.environ["RANK"])
    torch.distributed.init_process_group(running.backend, store=met, rank=rank, world_size=running.processes)
    train(task, running, deepspeed_config(task.values, running))


def train(task: Task, running: Layout, deepspeed: dict | None) -> None:
    """Train one process's share; the first process saves the result."""
    torch.set_num_threads(running.threads)
    try:
        trainer = build(task, running, deepspeed)
        trainer.train(resume_from_checkpoint=_checkpoint(task))
        if trainer.is_world_process_zero():
            save(trainer, task)
        trainer.tracker.close()
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"out of memory while training with {Machine.here().free / GIB:.1f} GiB free: lower"
            " per_device_train_batch_size or max_seq_length, or set apply_lora"
        ) from error


def is_out_of_memory(error: Exception) -> bool:
    """Say whether `error` is PyTorch's or Python's way of having no memory left."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


def build(task: Task, running: Layout, deepspeed: dict | None) -> Trainer:
    """Return the trainer, its model loaded and its rows at hand."""
    values = task.values
    rows = _rows(task, "train")
    need = plan(load_config(task.base), values, _largest_batch(rows["length"], values, running))
    if os.environ.get("RANK", "0") == "0":
        free = Machine.here().free / GIB
        print(f"{need}, {free:.2f} GiB free; computing in {need.kind}{need.why}", flush=True)
    arguments = training_arguments(values, running, deepspeed, task.output, need.recomputed, need.kind)
    set_seed(values["seed"])
    return Trainer(
        _model(task, torch.bfloat16 if values["apply_lora"] and need.kind == "bf16" else torch.float32),
        arguments,
        rows,
        None if values["evaluation_strategy"] == "disable" else _rows(task, "validation"),
        load_tokenizer(task.base),
        values,
        task.faults,
    )


def _largest_batch(lengths: list[int], values: dict, running: Layout) -> list[int]:
    """Return how many tokens the rows of a process's largest batch have."""
    size, accumulation = values["per_device_train_batch_size"], values["gradient_accumulation_steps"]
    last = running.processes - 1  # which gets the longest rows of each step
    epochs = DistributedBatchSampler(
        lengths, size, accumulation * running.repeats, running.processes, last, values["seed"]
    )
    return epochs.largest(values["num_train_epochs"])


def _rows(task: Task, split: str) -> Dataset:
    return Dataset.from_file(str(task.tokens / f"{split}.arrow"))


def _model(task: Task, dtype: torch.dtype) -> PreTrainedModel:
    mismatched = task.values["ignore_mismatched_sizes"]
    try:
        return load_model(
            task.base, dtype=dtype, attn_implementation=WITHIN_ROWS, ignore_mismatched_sizes=mismatched
        )
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise UserError(
            "the base model's weights have other shapes than its config.json says;"
            " set ignore_mismatched_sizes to reinitialise them"
        ) from error


def _checkpoint(task: Task) -> str | None:
    """Return the newest checkpoint to go on from, if that is asked for and there is one."""
    if not task.values["resume_from_checkpoint"]:
        return None
    folders = [folder for folder in (task.output, task.base) if folder.exists()]
    found = next(filter(None, (get_last_checkpoint(str(folder)) for folder in folders)), None)
    print(f"going on from {Path(found).name}" if found else "no checkpoint: starting at step 0", flush=True)
    return found


def save(trainer: Trainer, task: Task) -> None:
    """Write the trained checkpoint; LoRA merged into it, or the base with the adapter in a folder within."""
    values, output = task.values, task.output
    model = trainer.accelerator.unwrap_model(trainer.model)
    apart = values["apply_lora"] and not values["merge_lora_weights"]
    if apart:
        model.peft_config["default"].base_model_name_or_path = ".."
        model.save_pretrained(output / ADAPTER)
    else:
        model = model.merge_and_unload() if values["apply_lora"] else model
        stop_at_turn_end(model, trainer.processing_class)
        model.save_pretrained(output)
    link_files(task.base, output, weights=apart)
    print(f"saved the model in {output.name}", flush=True)


def stop_at_turn_end(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let generation stop at the end of the assistant's turn, not only at the end of the text."""
    ends = end_tokens(model.generation_config, tokenizer)
    model.generation_config.eos_token_id = sorted(ends) or None
