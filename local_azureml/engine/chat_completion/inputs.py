"""The component's 69 inputs: their types, and what becomes of each here."""

import json
import math
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import NamedTuple

from local_azureml.engine.processes import UserError

COMPONENT = Path(__file__).parents[2] / "seeds/registry/components/chat_completion_pipeline/0.0.82.json"
FILES = ("uri_file", "mlflow_model", "custom_model", "mltable")

# What an input does in this emulator. One that starts with "not used" is accepted and named in a log.
USES = {
    "task_name": "must be ChatCompletion",
    "instance_type_model_import": "names the size of the first two jobs; this machine runs them",
    "instance_type_preprocess": "names the size of the preprocess job; this machine runs it",
    "instance_type_finetune": "names the size of the last two jobs; this machine runs them",
    "instance_type_model_evaluation": "not used: the published component runs no evaluation job",
    "compute_model_import": "the cluster on which the first two jobs are billed",
    "compute_preprocess": "the cluster on which the preprocess job is billed",
    "compute_finetune": "the cluster on which the last two jobs are billed",
    "compute_model_evaluation": "not used: the published component runs no evaluation job",
    "shm_size_finetune": "not used: no container, so the machine's own shared memory serves",
    "num_nodes_finetune": "times number_of_gpu_to_use_finetuning: how many processes' batches make a step",
    "number_of_gpu_to_use_finetuning": "times num_nodes_finetune: how many processes' batches make a step",
    "mlflow_model_path": "the base model: an MLflow folder or a checkpoint folder",
    "pytorch_model_path": "the base model: a checkpoint folder; wins over mlflow_model_path",
    "huggingface_id": "refused",
    "finetune_config_path": "refused",
    "trust_remote_code": "refused if true",
    "train_file_path": "the training rows",
    "validation_file_path": "the validation rows; without it, the last 20 % of the training rows",
    "test_file_path": "not used: the published component runs no evaluation job",
    "train_mltable_path": "refused",
    "validation_mltable_path": "refused",
    "test_mltable_path": "refused",
    "batch_size": "rows given to the tokenizer at once",
    "max_seq_length": "rows are cut to so many tokens; -1 is the model's own maximum",
    "pad_to_max_length": "every row is padded to max_seq_length",
    "apply_lora": "train low-rank adapters on all linear layers instead of all weights",
    "merge_lora_weights": "pytorch_model_folder holds merged weights, or base and adapter side by side",
    "lora_alpha": "peft's lora_alpha",
    "lora_r": "peft's r",
    "lora_dropout": "peft's lora_dropout",
    "num_train_epochs": "the Trainer's num_train_epochs",
    "max_steps": "if positive, overrides num_train_epochs",
    "per_device_train_batch_size": "rows of one process in one forward pass",
    "per_device_eval_batch_size": "the same in evaluation",
    "auto_find_batch_size": "halve the batch until it fits; an error together with apply_deepspeed",
    "optim": "the Trainer's optim",
    "learning_rate": "the Trainer's learning_rate",
    "warmup_steps": "the Trainer's warmup_steps",
    "weight_decay": "the Trainer's weight_decay",
    "adam_beta1": "the Trainer's adam_beta1",
    "adam_beta2": "the Trainer's adam_beta2",
    "adam_epsilon": "the Trainer's adam_epsilon",
    "gradient_accumulation_steps": "the Trainer's gradient_accumulation_steps",
    "eval_accumulation_steps": "the Trainer's eval_accumulation_steps; -1 is none",
    "lr_scheduler_type": "the Trainer's lr_scheduler_type",
    "precision": "16 is bf16 where that is faster, else fp16 on a GPU and 32 on a CPU; the log says why",
    "seed": "seeds weights, row order and dropout",
    "enable_full_determinism": "deterministic kernels, so that two runs agree to the last digit",
    "dataloader_num_workers": "the Trainer's dataloader_num_workers",
    "ignore_mismatched_sizes": "passed on to from_pretrained",
    "max_grad_norm": "the Trainer's max_grad_norm",
    "evaluation_strategy": "when to evaluate and to save a checkpoint",
    "evaluation_steps_interval": "if positive, evaluates after every such share of an epoch, not eval_steps",
    "eval_steps": "steps between evaluations, if evaluation_strategy is steps",
    "logging_strategy": "the Trainer's logging_strategy",
    "logging_steps": "the Trainer's logging_steps",
    "metric_for_best_model": "loss; f1 and exact are refused",
    "resume_from_checkpoint": "go on from the newest checkpoint of this job's output or of the base model",
    "save_total_limit": "how many checkpoints are kept; -1 is all",
    "apply_early_stopping": "stop when evaluations no longer improve",
    "early_stopping_patience": "how many evaluations may fail to improve",
    "early_stopping_threshold": "by how much one has to improve",
    "apply_deepspeed": "used where DeepSpeed is installed and there is a GPU, else named as left out",
    "deepspeed": "the DeepSpeed configuration, a JSON file; without it, one for deepspeed_stage",
    "deepspeed_stage": "the ZeRO stage of the emulator's own DeepSpeed configuration",
    "apply_ort": "refused if true",
    "evaluation_config": "not used: the published component runs no evaluation job",
    "evaluation_config_params": "not used: the published component runs no evaluation job",
}


class Rule(NamedTuple):
    """What has to hold of inputs beyond what the component declares of each."""

    inputs: tuple[str, ...]
    holds: Callable[..., bool]  # of their values
    words: str
    played: bool = True  # False: Azure can do what is refused, and the emulator can't


def between(name: str, least: float, most: float = math.inf) -> Rule:
    words = f"it has to be at least {least}" if most == math.inf else f"it has to be {least} to {most}"
    return Rule((name,), lambda number: least <= number <= most, words)


def below_one(name: str) -> Rule:
    return Rule((name,), lambda number: 0 <= number < 1, "it has to be at least 0 and below 1")


def unplayed(name: str, words: str) -> Rule:
    """Return the rule that an input is not given, or not true."""
    return Rule((name,), lambda value: value is False, words, played=False)


MLTABLE = "the emulator reads files, not MLTables; give the file itself as {}_file_path"
RULES = [
    between("gradient_accumulation_steps", 1),
    between("warmup_steps", 0),
    between("logging_steps", 1),
    between("eval_steps", 1),
    between("dataloader_num_workers", 0),
    between("learning_rate", 0),
    between("weight_decay", 0),
    between("max_grad_norm", 0),
    between("adam_epsilon", 0),
    between("lora_r", 1),
    between("lora_alpha", 1),
    between("early_stopping_patience", 1),
    between("evaluation_steps_interval", 0, 1),  # a fraction of an epoch
    between("seed", 0, 2**32 - 1),  # numpy takes no other
    below_one("lora_dropout"),
    below_one("adam_beta1"),
    below_one("adam_beta2"),
    Rule(
        ("max_seq_length",), lambda n: n == -1 or n >= 1, "it has to be positive, or -1 for the model's own"
    ),
    Rule(("metric_for_best_model",), lambda name: name == "loss", "the chat task measures the loss alone"),
    Rule(
        ("apply_deepspeed", "auto_find_batch_size"),
        lambda shares, halves: not (shares and halves),
        "they can't be true together; switch one off",
    ),
    Rule(
        ("apply_early_stopping", "evaluation_strategy"),
        lambda stops, evaluates: not stops or evaluates != "disable",
        "early stopping needs evaluations; use epoch or steps",
    ),
    Rule(
        ("lr_scheduler_type", "learning_rate"),
        lambda kind, rate: kind != "polynomial" or rate > 1e-7,
        "the polynomial ends at 1e-7, and has to begin above it",
    ),
    unplayed("huggingface_id", "the emulator downloads no models; start it with --base-model FOLDER"),
    unplayed("finetune_config_path", "the format of this file is not published; use the inputs themselves"),
    unplayed("trust_remote_code", "the emulator runs no code that comes with a model; leave it at false"),
    unplayed("train_mltable_path", MLTABLE.format("train")),
    unplayed("validation_mltable_path", MLTABLE.format("validation")),
    unplayed("test_mltable_path", MLTABLE.format("test")),
    unplayed("apply_ort", "ONNX Runtime training is not part of the emulator; leave it at false"),
]


@cache
def interface() -> dict[str, dict]:
    """Return the component's inputs as the registry declares them."""
    return json.loads(COMPONENT.read_text())["properties"]["componentSpec"]["inputs"]


def typed(given: dict) -> dict:
    """Return all inputs as Python values, defaults filled in; what is absent is not in it."""
    unknown = sorted(given.keys() - interface().keys())
    if unknown:
        raise UserError(f"the component has no input named {unknown[0]!r}; it has {', '.join(interface())}")
    declared = {name: spec["default"] for name, spec in interface().items() if "default" in spec}
    wire = declared | {name: value for name, value in given.items() if value is not None}
    return {name: _typed(name, value) for name, value in wire.items()}


def broken(values: dict, rules: Iterable[Rule] = RULES) -> str | None:
    """Return a sentence on the first rule that values break."""
    for names, holds, words, _ in rules:
        if all(name in values for name in names) and not holds(*map(values.get, names)):
            return f"{' and '.join(f'{name} is {values[name]!r}' for name in names)}; {words}"
    return None


def not_played(given: dict) -> str | None:
    """Return a sentence on the first of the inputs of a node, as given, that the emulator can't honour."""
    rules = [rule for rule in RULES if not rule.played]
    return broken({name: str(given[name]).lower() != "false" and given[name] for name in given}, rules)


def _typed(name: str, value):
    spec = interface()[name]
    if spec["type"] in ("integer", "number"):
        return _number(name, value, int if spec["type"] == "integer" else float, spec)
    if spec["type"] in FILES:
        return Path(value)
    if "enum" in spec and str(value).lower() not in [choice.lower() for choice in spec["enum"]]:
        raise UserError(f"{name} is {value!r}; it may be {' or '.join(spec['enum'])}")
    if spec.get("enum") == ["true", "false"]:
        return str(value).lower() == "true"
    return str(value)


def _number(name: str, value, kind: type, spec: dict):
    try:
        number = kind(value)
        finite = math.isfinite(number)
    except (TypeError, ValueError, OverflowError):
        finite = False
    if not finite:
        raise UserError(f"{name} is {value!r}; it has to be {'an integer' if kind is int else 'a number'}")
    if number < (least := kind(spec.get("min", number))):
        raise UserError(f"{name} is {value}; it has to be at least {least}")
    return number
