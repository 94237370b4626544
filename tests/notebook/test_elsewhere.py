"""The surroundings of `make elsewhere`, each with a job of seconds in place of the main one."""

import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest

from scenarios.elsewhere import BEGINS, KEPT, MARK, copy_of_project, execute
from scenarios.notebook_runs import end
from scenarios.surroundings import ANOTHER_PYTHON, FULL_DISK, NOBODY, PLAIN, SURROUNDINGS, Surrounding

BY_NAME = {surrounding.name: surrounding for surrounding in SURROUNDINGS}
SHORT = "short.ipynb"
RUN_COMMAND = [".venv/bin/python", "-m", "local_azureml", "run", "--"]
MAKE_RUN = ["make", "--old-file=.venv/installed", "run", f"notebook={SHORT}", "PARAMETERS="]
CELL = """\
import os
import subprocess
import sys

import mlflow
from azure.ai.ml import MLClient, command
from azure.ai.ml.entities import Environment
from azure.identity import DefaultAzureCredential

names = [os.environ[f"AZUREML_ARM_{name}"] for name in ("SUBSCRIPTION", "RESOURCEGROUP", "WORKSPACE_NAME")]
# as the notebook does: on Python 3.12 telemetry ends in a traceback of its own when the kernel does
workspace = MLClient(DefaultAzureCredential(), *names, enable_telemetry=False)
job = command(
    command="python -c 'import mlflow; mlflow.log_metric(\\"answer\\", 42)'",
    environment=Environment(name="plain", version="1", image="python:3.11"),
)
name = workspace.jobs.create_or_update(job).name
workspace.jobs.stream(name)
mlflow.set_tracking_uri(workspace.workspaces.get(names[2]).mlflow_tracking_uri)
print(mlflow.get_run(name).data.metrics)
options = ["--dataset", "HuggingFaceH4/ultrachat_200k", "--dataset_split_pc", "1"]
print(subprocess.run([sys.executable, "download-dataset.py", *options], check=True).returncode)
"""


def run_short(
    surrounding: Surrounding, folder: Path, job: list[str] = MAKE_RUN
) -> tuple[int, str, list[str]]:
    """Return a short job's exit status in a surrounding, what it said, and what it left running."""
    project = copy_of_project(folder / surrounding.project, surrounding.git)
    cell = nbformat.v4.new_code_cell(CELL)
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata=metadata()), project / SHORT)
    status = execute(surrounding, project, folder / "log.txt", job)
    said = (folder / "log.txt").read_text(errors="replace")
    if BEGINS not in said:
        pytest.skip(f"{surrounding.name} can't be had here: {said}")
    return status, said, end(MARK, str(folder), seconds=10)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that another user may enter too, which pytest's own are closed to."""
    with tempfile.TemporaryDirectory(prefix="elsewhere-") as name:
        Path(name).chmod(0o755)
        yield Path(name)
        end(MARK, name)


def metadata() -> dict:
    return {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}


def test_a_job_logs_its_metric_as_another_user_under_the_variables_of_all_surroundings(folder):
    variables = {
        name: value
        for surrounding in SURROUNDINGS
        for name, value in surrounding.variables.items()
        if name != "TMPDIR"  # its umlaut can't be spelt in C
    }
    shell = ANOTHER_PYTHON.replace(PLAIN, PLAIN if os.geteuid() else NOBODY)
    status, said, left = run_short(Surrounding("all", variables, shell, mounts=not os.geteuid()), folder)
    assert (status, "{'answer': 42.0}\n" in said, "Traceback" in said, left) == (0, True, False, []), said


def test_a_full_disk_ends_the_run_with_one_sentence(folder):
    full = replace(BY_NAME["a full disk"], shell=FULL_DISK.replace("size=24m", "size=100k"))
    status, said, left = run_short(full, folder, [*RUN_COMMAND, "true"])
    assert status and left == [] and "No space left on device" in said.splitlines()[-1], said
    assert len(said.splitlines()) == 2  # the other one says that it began


def test_ctrl_c_at_the_terminal_ends_what_runs_in_a_folder_with_a_space_and_an_umlaut(folder):
    waiting = ["sh", "-c", "sleep 2; echo waiting; exec sleep 60"]
    pressed = replace(BY_NAME["Ctrl-C at the terminal"], interrupt="waiting", project="Grüne Wiese")
    status, said, left = run_short(pressed, folder, [*RUN_COMMAND, *waiting])
    assert (status, left) == (130, []) and "still running: nothing" in said and "Traceback" not in said, said


def test_the_kept_table_has_a_line_for_each_surrounding():
    kept = KEPT.read_text("utf-8")
    assert [name for name in BY_NAME if f"| {name} |" not in kept] == []
