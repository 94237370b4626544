"""Step 3 against the job: over values and pairs of values of every training input, step 3 refuses first."""

import functools
import itertools
import math
from pathlib import Path

import pytest

import settings
from local_azureml.engine.chat_completion import inputs
from local_azureml.engine.chat_completion.inputs import FILES, RULES, broken, interface, typed
from local_azureml.engine.processes import UserError

NUMBERS = [-(2**31), -2, -1, 0, 1, 2, 3, 7, 500, 2**31, 2**32 - 1, 2**32, 10**12]
NUMBERS += [-0.5, 0.0, 1e-12, 1e-9, 1e-7, 1.1e-7, 5e-6, 0.05, 0.5, 0.999, 1.0, 1.5, 1e4]
NUMBERS += [math.nan, math.inf, -math.inf]
OTHERS = ["", "x", "true", "false", "True", "1", "-1", "0.5", "nan", True, False, [], {}]
RULED = [rule for rule in RULES if rule.played]
TRAINER = Path(inputs.__file__).with_name("trainer.py").read_text("utf-8")
OF_THE_TRAINER = [name for name in interface() if f'"{name}"' in TRAINER]


@pytest.fixture(scope="module")
def component(registry_client):
    return registry_client.components.get("chat_completion_pipeline", label="latest")


def values(name: str) -> list:
    """Return values of every kind for an input: of other types, at and beyond its bounds, its own."""
    declared = interface()[name]
    enum = declared.get("enum", [])
    own = [*enum, *(choice.upper() for choice in enum), *(int(choice) for choice in enum if choice.isdigit())]
    return [*NUMBERS, *OTHERS, *own, *([declared["default"]] if "default" in declared else [])]


def refusal(given: dict) -> str | None:
    """Return why the job refuses inputs, as they come over the wire: by its rules, or in the Trainer."""
    try:
        found = typed({name: str(value) for name, value in given.items()})
    except UserError as error:
        return str(error)
    return broken(found, RULED) or trainers_refusal(*map(found.get, OF_THE_TRAINER))


@functools.cache
def trainers_refusal(*values) -> str | None:
    """Return why what the training makes of these inputs before its first step can't be made."""
    import torch
    from transformers import Trainer, get_scheduler, set_seed

    from local_azureml.engine.chat_completion import machine, trainer

    found = dict(zip(OF_THE_TRAINER, values, strict=True))
    weight = torch.nn.Parameter(torch.zeros(1))
    alone = machine.Layout(asked=1, processes=1, repeats=1, gpus=False, threads=1)
    try:
        arguments = trainer.training_arguments(found, alone, None, Path("output"), None, "fp32")
        set_seed(found["seed"])
        kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
        get_scheduler(arguments.lr_scheduler_type, kind([weight], **options), arguments.warmup_steps, 100)
        trainer.adapters(found), trainer.early_stopping(found), trainer.evaluation_steps(found)
    except (UserError, ValueError, TypeError, ArithmeticError) as error:
        return f"{type(error).__name__}: {error}"


def step_3_is_fine(component, given: dict) -> bool:
    return all(one.fine for one in settings.check_inputs(component, given, given, {}))


def spread(passed: list) -> list:
    """Return a few of the values of an input: the ends and the middle of the numbers, and all others."""
    numbers = sorted({float(value) for value in passed if isinstance(value, (int, float))})
    kept = {numbers[0], numbers[len(numbers) // 2], numbers[-1]} if numbers else {}
    told = {str(value): value for value in passed if isinstance(value, str) or value in kept}
    return list(told.values())


def test_whatever_the_job_refuses_step_3_refuses_first(component, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # which PyTorch makes when it is imported
    names = [name for name in interface() if interface()[name]["type"] not in FILES]
    passed = {
        name: [value for value in values(name) if step_3_is_fine(component, {name: value})] for name in names
    }
    singles = [{name: value} for name in names for value in passed[name]]
    few = [{name: value} for name in names for value in spread(passed[name])]
    pairs = [one | other for one, other in itertools.combinations(few, 2) if one.keys() != other.keys()]
    wrong = [(given, why) for given in singles if (why := refusal(given))]
    wrong += [(given, why) for given in pairs if (why := refusal(given)) and step_3_is_fine(component, given)]
    print(f"{len(names)} inputs, {sum(len(values(name)) for name in names)} values, {len(pairs)} pairs")
    assert wrong == []
