"""The step of a command job: its command in a shell, with this Python first on the path."""

import re
import shutil
import subprocess
from pathlib import Path

from local_azureml.engine import processes
from local_azureml.engine.processes import UserError

PLACEHOLDER = re.compile(r"\$\{\{\s*(inputs|outputs)\.(\w+)\s*\}\}")
OPTIONAL = re.compile(r"\$\[\[(.*?)\]\]")  # left out where an input in it is not given


def run(specification: dict) -> None:
    """Run the command in a copy of its code; a failing one fails the step."""
    for folder in specification["outputs"].values():
        Path(folder).mkdir(parents=True, exist_ok=True)
    code = Path("code")
    source = specification["code"] and Path(specification["code"])
    if source and source.is_dir():
        shutil.copytree(source, code)
    else:
        code.mkdir()
        if source:
            shutil.copy(source, code)
    environment = processes.here.environment | specification["variables"]
    ended = subprocess.run(["bash", "-c", fill(specification)], cwd=code, env=environment)
    if ended.returncode:
        raise UserError(f"the command ended with exit status {ended.returncode}; its output is above")


def fill(specification: dict) -> str:
    """Return the command with paths and values in the places of its inputs and outputs."""
    given = {key: value for key, value in specification["inputs"].items() if value is not None}
    places = {"inputs": given, "outputs": specification["outputs"]}

    def optional(found: re.Match) -> str:
        missing = any(key not in places[kind] for kind, key in PLACEHOLDER.findall(found[1]))
        return "" if missing else found[1]

    def value(found: re.Match) -> str:
        if found[2] not in places[found[1]]:
            raise UserError(f"the command names ${{{{{found[1]}.{found[2]}}}}}, which is not given")
        return str(places[found[1]][found[2]])

    return PLACEHOLDER.sub(value, OPTIONAL.sub(optional, specification["command"]))
