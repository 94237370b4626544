"""The process behind a deployment of one's own: a scoring script or any MLflow model, in its environment."""

import json
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement

from local_azureml.conda import read
from local_azureml.engine import environments, processes
from local_azureml.engine.processes import UserError
from local_azureml.errors import AzureError

SERVER = Path(__file__).with_name("script_server.py")


def run(specification: dict) -> None:
    """Make the environment, load the model or script in it and serve until the process is killed."""
    if "deployment-unhealthy" in specification["faults"]:
        raise UserError("the fault deployment-unhealthy is switched on")
    script, model = specification["script"], specification["model"]
    asked = specification["environment"] if script else _of_model(Path(model), specification["one_python"])
    python = environments.python_of(asked, Path(specification["environments"]))
    variables = environments.layer(python, Path("layer"), processes.here.environment)
    code, place = Path("code"), Path("model")
    for folder in (code, place):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    if script:
        shutil.copytree(specification["code"], code, dirs_exist_ok=True)  # a script may write beside itself
    if script and model:  # no link: MLflow follows none
        copy = shutil.copytree if Path(model).is_dir() else shutil.copy2
        copy(model, place / Path(model).name)
    variables |= {"AZUREML_MODEL_DIR": str(place.resolve()), "AML_APP_ROOT": str(code.resolve())}
    variables |= specification["variables"]
    told = {
        "socket": specification["socket"],
        "script": str((code / script).resolve()) if script else None,
        "model": model,
        "most": specification["max_concurrent_requests"],
        "timeout": specification["request_timeout"],
    }
    file = Path("server.json").resolve()
    file.write_text(json.dumps(told), encoding="utf-8")
    command = [Path("layer/bin/python").absolute(), "-u", SERVER, file]
    ended = subprocess.run(command, cwd=code, env=variables)
    raise UserError(f"the scoring server ended with exit status {ended.returncode}; its output is above")


def _of_model(folder: Path, one_python: bool) -> dict | None:
    """Return the specification of the environment that an MLflow model asks for; None where it fits ours."""
    file = folder / "conda.yaml"
    if one_python or not file.is_file():
        return None
    name = f"of the model {folder.name}"
    try:
        asked = read(name, file.read_text(encoding="utf-8"))
    except AzureError as error:
        raise UserError(error.message) from None
    if all(_is_here(line) for line in asked["requirements"]):
        count = len(asked["requirements"])
        print(f"the model's {count} requirements are met by {sys.executable}", flush=True)
        return None
    return {"name": name, **asked}


def _is_here(line: str) -> bool:
    """Return whether a requirement is met by the packages of the emulator's own Python."""
    try:
        requirement = Requirement(line)
        there = metadata.version(requirement.name)
    except (InvalidRequirement, metadata.PackageNotFoundError):
        return False
    return requirement.specifier.contains(there, prereleases=True)
