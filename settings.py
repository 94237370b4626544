"""What each setting of finetune_phi3_ultrachat.ipynb takes: type, range and meaning, as JSON Schema.

Of the training inputs the component declares most itself; INPUTS adds what it does not say. Where `title` is
given, it says what is needed; elsewhere `needed` makes the words of the keywords.
"""

import ast
import math
import re
from collections.abc import Iterable
from contextlib import suppress
from difflib import get_close_matches
from typing import NamedTuple

from jsonschema import validators

COUNT = {"type": "integer", "minimum": 1}
TEXT = {"type": "string"}
FLAG = {"type": "boolean"}
NAME = r"[A-Za-z](-?[A-Za-z0-9])*\Z"
LEGAL = "letters, digits and single dashes, a letter first"
PARAMETERS = {
    "subscription_id": TEXT
    | {"description": "Azure's subscription; empty asks the environment, then config.json"},
    "resource_group": TEXT | {"description": "the group that the workspace is in; empty likewise"},
    "workspace_name": TEXT | {"description": "the workspace that runs everything; empty likewise"},
    "registry_name": TEXT | {"description": "the catalogue that model and training program come from"},
    "model_name": TEXT | {"description": "a chat model of the catalogue"},
    "model_version": {
        "type": ["string", "integer"],
        "title": "latest, or a version",
        "description": "which version of it; 14 is the last of Phi-3-mini that lists the machines it fits",
    },
    "compute_cluster": {
        "type": "string",
        "pattern": r"^(?=.{2,32}\Z)" + NAME,
        "title": f"2 to 32 {LEGAL}",
        "description": "the cluster that trains: reused where there is one of this name, else created",
    },
    "compute_size": TEXT
    | {"description": "the machine that trains; empty takes the first that fits the model"},
    "compute_nodes": COUNT | {"description": "how many machines the cluster grows to at most"},
    "compute_tier": {
        "enum": ["dedicated", "low_priority"],
        "description": "low_priority is cheaper, and can be taken away at any moment",
    },
    "compute_idle_seconds": COUNT
    | {"description": "after so long without work the cluster has zero machines"},
    "dataset_name": TEXT
    | {"description": "a dataset of the Hugging Face hub, or the path of a file or a folder of your own"},
    "dataset_split_pc": {
        "type": "number",
        "exclusiveMinimum": 0,
        "maximum": 100,
        "description": "how many percent of a dataset of the hub are used; a file of your own is taken whole",
    },
    "download_dir": TEXT | {"description": "the folder for the rows; empty is named after the dataset"},
    "finetune_parameters": {
        "type": "object",
        "description": 'training inputs that win over all others, as {"num_train_epochs": 2}',
    },
    "job_limit_minutes": {
        "type": "number",
        "exclusiveMinimum": 0,
        "description": "a longer job is cancelled, while this kernel watches it: it bounds the bill",
    },
    "resume_job_name": TEXT
    | {"description": "a job that an earlier run submitted, to watch instead of a new one"},
    "endpoint_name": {
        "type": "string",
        "pattern": rf"^(\Z|(?=.{{3,32}}\Z){NAME})",
        "title": f'3 to 32 {LEGAL}, or ""',
        "description": "the address that answers; empty makes up a name",
    },
    "instance_type": TEXT | {"description": "the machine that answers"},
    "instance_count": COUNT | {"description": "how many machines answer"},
    "score_samples": COUNT | {"description": "how many test conversations are asked"},
    "score_seed": {"type": "integer", "description": "the random seed of their choice"},
    "score_parameters": {"type": "object", "description": "how the model answers"},
    "compare_with_base": FLAG
    | {"description": "True asks the base model too, on a second machine that is billed"},
    "keep_endpoint": FLAG | {"description": "True leaves it running, and billing, after the notebook"},
    "delete_cluster": FLAG
    | {"description": "True deletes the cluster, which costs nothing at zero machines"},
}
FRACTION = {"minimum": 0, "exclusiveMaximum": 1}
UNLIMITED = {"anyOf": [{"const": -1}, {"minimum": 1}], "title": "a whole number, -1, or 1 or more"}
INPUTS = {  # of the component: what it leaves out
    "learning_rate": {"exclusiveMinimum": 0, "exclusiveMaximum": 1},
    "adam_epsilon": {"exclusiveMinimum": 0},
    "weight_decay": {"minimum": 0},
    "max_grad_norm": {"minimum": 0},
    "lora_dropout": FRACTION,
    "adam_beta1": FRACTION,
    "adam_beta2": FRACTION,
    "warmup_steps": {"minimum": 0},
    "max_seq_length": UNLIMITED,
    "max_steps": UNLIMITED,
    "eval_accumulation_steps": UNLIMITED,
    "save_total_limit": UNLIMITED,
    "lora_alpha": {"minimum": 1},
    "lora_r": {"minimum": 1},
    "gradient_accumulation_steps": {"minimum": 1},
    "logging_steps": {"minimum": 1},
    "eval_steps": {"minimum": 1},
    "evaluation_steps_interval": {"minimum": 0, "maximum": 1},
    "early_stopping_patience": {"minimum": 1},
    "early_stopping_threshold": {"minimum": 0},
    "dataloader_num_workers": {"minimum": 0},
    "seed": {"minimum": 0, "maximum": 2**32 - 1},
    "metric_for_best_model": {"enum": ["loss"]},  # the chat task measures no other
}
OF_THE_NOTEBOOK = re.compile(
    "compute_|mlflow_model_path|train_|validation_|test_|pytorch_model_path|huggingface_id|task_name"
)
CONFLICTS = [  # what an input has to be where another has a value
    ("auto_find_batch_size", {"enum": ["false"]}, "apply_deepspeed", "true"),
    ("apply_early_stopping", {"enum": ["false"]}, "evaluation_strategy", "disable"),
    ("learning_rate", {"type": "number", "exclusiveMinimum": 1e-7}, "lr_scheduler_type", "polynomial"),
]
ANSWERS = {  # the parameters of an answer
    "temperature": {"type": "number", "minimum": 0, "maximum": 10},
    "top_p": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    "do_sample": FLAG,
    "max_new_tokens": COUNT,
}
KINDS = {
    "integer": "a whole number",
    "number": "a number",
    "string": "text",
    "boolean": "True or False, with a capital",
    "object": "a dictionary",
}
BOUNDS = {
    "exclusiveMinimum": "above {:.10g}",
    "minimum": "{:.10g} or more",
    "exclusiveMaximum": "below {:.10g}",
    "maximum": "at most {:.10g}",
}


def _whole(_, value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(_, value) -> bool:
    return _whole(_, value) or (isinstance(value, float) and math.isfinite(value))


_latest = validators.validator_for({})
_types = _latest.TYPE_CHECKER.redefine_many(
    {"integer": _whole, "number": _number}
)  # of its own: 1.0, and nan
Validator = validators.extend(_latest, type_checker=_types)


class Check(NamedTuple):
    """A line of step 3's table."""

    what: str
    found: object
    needed: str
    fine: bool
    advice: str


def needed(schema: dict) -> str:
    """Return what a schema asks for, in words."""
    if "title" in schema:
        return schema["title"]
    if "enum" in schema:
        return " or ".join(dict.fromkeys(repr(str(choice)) for choice in schema["enum"]))
    bounds = ", ".join(words.format(schema[key]) for key, words in BOUNDS.items() if key in schema)
    kind = KINDS[schema["type"]]
    return f"{kind}{' ' if bounds.startswith('above') else ', '}{bounds}" if bounds else kind


def check(name: str, value, schema: dict, where: str) -> Check:
    """Check a value against its schema; `where` is what to mend."""
    advice = f"mend {where}"
    if isinstance(value, str) and schema.get("type") in ("integer", "number"):
        with suppress(ValueError):  # YAML reads 5e-6 as a text, and 5.0e-6 as a number
            number = int(value) if schema["type"] == "integer" else float(value)
            advice = "write " + re.sub("^([0-9-]+)e", r"\1.0e", str(number))
    return Check(name, repr(value), needed(schema), Validator(schema).is_valid(value), advice)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a question with the known name that is meant, most likely; "" where none is near."""
    return "".join(f"; did you mean {near}?" for near in get_close_matches(name, known, 1))


def strangers(cells: list[str]) -> list[str]:
    """Return the names that cells set as parameters, or nearly, and that are none.

    In the cell of parameters, as it was last run, and in the one that papermill adds, these are all names but
    those that the cell itself uses; in any other cell those that are a typing error away from a parameter.
    """
    found = []
    for cell in cells:
        with suppress(SyntaxError):
            names = [node for node in ast.walk(ast.parse(cell)) if isinstance(node, ast.Name)]
            used = {node.id for node in names if isinstance(node.ctx, ast.Load)}
            given = {node.id for node in names if isinstance(node.ctx, ast.Store)}
            found = [] if len(given & PARAMETERS.keys()) > len(PARAMETERS) / 2 else found
            near = 0 if given & PARAMETERS.keys() or cell.startswith("# Parameters\n") else 0.85
            found += [
                name
                for name in sorted(given - used - PARAMETERS.keys())
                if get_close_matches(name, PARAMETERS, 1, near)
            ]
    return found


def check_parameters(given: dict) -> None:
    """Raise ValueError for the parameters that are missing, unknown, of the wrong type or out of range.

    `given`: the kernel's variables; its `In` holds the cells that were run.
    """
    if missing := sorted(PARAMETERS.keys() - given.keys()):
        raise ValueError(f"parameter {missing[0]} is missing: run the cell of parameters first")
    if unknown := strangers(given.get("In", [])):
        raise ValueError(f"there is no parameter {unknown[0]}{nearest(unknown[0], PARAMETERS)}")
    checks = [check(name, given[name], schema, "") for name, schema in PARAMETERS.items()]
    wrong = [f"parameter {one.what} is {one.found}: it takes {one.needed}" for one in checks if not one.fine]
    if wrong:
        raise ValueError("; ".join(wrong).replace("takes text", "takes text, by -r of papermill"))


def declared(known) -> dict:
    """Return the schema of an input of the component, as the registry declares it."""
    if known.enum:  # all texts, and the SDK takes 2 for "2"
        numbers = [int(choice) for choice in known.enum if choice.isdecimal()]
        return {"type": ["string", "integer"], "enum": [*known.enum, *numbers]}
    bounds = {"minimum": known.min, "maximum": known.max}
    schema = {key: bound for key, bound in bounds.items() if bound is not None}
    if known.type in ("integer", "number", "boolean"):
        return {"type": known.type, **schema}
    return {"type": ["string", "integer"], "title": "text"}


def inputs(component) -> dict[str, dict]:
    """Return the schemas of the inputs that can be set in finetune_parameters."""
    return {
        name: declared(known) | INPUTS.get(name, {})
        for name, known in component.inputs.items()
        if not OF_THE_NOTEBOOK.match(name)
    }


def check_inputs(component, settings: dict, given: dict, answering: dict) -> list[Check]:
    """Check the training inputs and the parameters of an answer that were given, and known conflicts."""
    checks = []
    for values, known, words, where in [
        (
            given,
            inputs(component),
            "an input of the component, and not of this notebook",
            "finetune_parameters",
        ),
        (answering, ANSWERS, f"one of {', '.join(ANSWERS)}", "score_parameters"),
    ]:
        for name, value in values.items():
            if name in known:
                checks.append(check(name, value, known[name], where))
            else:
                checks.append(Check(name, repr(value), words, False, f"mend {where}{nearest(name, known)}"))
    final = {name: known.default for name, known in component.inputs.items()} | settings
    for name, schema, other, value in CONFLICTS:
        one = check(name, final.get(name), schema, "finetune_parameters")
        if final.get(other) == value and not one.fine:
            checks.append(one._replace(needed=f"{one.needed} where {other} is {value!r}"))
    if given.get("max_steps", -1) != -1 and "num_train_epochs" in given:
        checks.append(
            Check("max_steps", given["max_steps"], "-1 beside num_train_epochs", False, "give one of them")
        )
    return checks
