"""ft_nlp_common_validation: refuses what can't work before anything heavy starts."""

import json
from pathlib import Path

from local_azureml.engine.chat_completion.inputs import NOT_USED, broken, interface, typed
from local_azureml.engine.chat_completion.rows import FORMATS, read_head
from local_azureml.engine.processes import UserError


def run(specification: dict) -> None:
    """Check the inputs by the rules, and the head of each file; write `validation_info.json`."""
    if "validation-failed" in specification["faults"]:
        raise UserError("the fault validation-failed is switched on")
    values = typed(specification["inputs"])
    if sentence := broken(values):
        raise UserError(sentence)
    check_files(values)
    _say_what_is_unused(specification["inputs"])
    output = Path(specification["output"])
    output.mkdir(parents=True, exist_ok=True)
    (output / "validation_info.json").write_text(json.dumps(values, default=str, indent=1))
    print(f"validated {len(values)} inputs", flush=True)


def check_files(values: dict) -> None:
    """Raise for a base model or training file that is missing or can't be read."""
    if not {"pytorch_model_path", "mlflow_model_path"} & values.keys():
        raise UserError("no base model was given; set mlflow_model_path")
    if "train_file_path" not in values:
        raise UserError("no training file was given; set train_file_path")
    for name in sorted(values.keys() & {"train_file_path", "validation_file_path", "test_file_path"}):
        path = values[name]
        if not path.is_file():
            raise UserError(f"{name}: there is no file {path.name}")
        if path.suffix not in FORMATS:
            raise UserError(f"{name}: {path.name} is none of the formats {', '.join(FORMATS)}")
        if name != "test_file_path":
            read_head(path)


def _say_what_is_unused(given: dict) -> None:
    declared = {name: spec.get("default") for name, spec in interface().items()}
    for name, value in given.items():
        if name in NOT_USED and str(value) != str(declared[name]):
            print(f"{name} is not used: {NOT_USED[name]}", flush=True)
