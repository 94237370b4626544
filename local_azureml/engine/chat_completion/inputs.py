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

NOT_USED = {  # accepted, and named in a log; local_azureml/README.md says what each of the others does
    "shm_size_finetune": "no container, so the machine's own shared memory serves",
    **dict.fromkeys(
        (
            "instance_type_model_evaluation",
            "compute_model_evaluation",
            "test_file_path",
            "evaluation_config",
            "evaluation_config_params",
        ),
        "the published component runs no evaluation job",
    ),
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
