"""The published notebook, byte for byte, run from its first cell to its last on a stand-in of its own."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOK = "finetune_phi3_ultrachat.ipynb"
PARAMETERS = """
model_name: Phi-4
compute_size: ""
dataset_split_pc: 1
score_samples: 2
finetune_parameters: {max_steps: 6, logging_steps: 1}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with what the notebook needs beside it."""
    place = tmp_path_factory.mktemp("notebook")
    for name in (NOTEBOOK, "download-dataset.py"):
        shutil.copy(ROOT / name, place)
    return place


def on_a_stand_in(*command: str | Path) -> subprocess.CompletedProcess:
    """Return how a Python program ended that ran against a stand-in of its own."""
    run = [sys.executable, "-m", "local_azureml", "run", "--", sys.executable, "-m", *map(str, command)]
    return subprocess.run(run, cwd=ROOT, capture_output=True, text=True, timeout=280)


@pytest.fixture(scope="module")
def papermill(folder: Path) -> tuple[subprocess.CompletedProcess, list]:
    """A run with changed parameters: how it ended, and the code cells that it left."""
    places = (folder / NOTEBOOK, folder / "out.ipynb", "--cwd", folder)
    ended = on_a_stand_in("papermill", *places, "--no-progress-bar", "-y", PARAMETERS)
    cells = nbformat.read(folder / "out.ipynb", as_version=4).cells
    return ended, [cell for cell in cells if cell.cell_type == "code"]


def printed(cell) -> str:
    return "".join(output.get("text", "") for output in cell.outputs)


def shown(cell) -> str:
    return "".join(output.data["text/plain"] for output in cell.outputs if "data" in output)


def test_nbval_passes_every_cell_of_the_published_notebook(folder):
    ended = on_a_stand_in("pytest", "--nbval-lax", "-x", "-p", "no:cacheprovider", folder / NOTEBOOK)
    cells = nbformat.read(ROOT / NOTEBOOK, as_version=4).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert f"{len(code)} passed" in ended.stdout, ended.stdout[-3000:]
    assert "still running: nothing" in ended.stderr


def test_papermill_runs_it_with_changed_parameters_to_the_last_cell(papermill):
    ended, code = papermill
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert printed(code[-1]).endswith("Nothing left running.\n")


def test_the_run_is_billed_and_leaves_nothing_running(papermill):
    bills = re.findall(r"^(billed: \w+|still running: .*)", papermill[0].stderr, re.M)
    assert bills == ["billed: cluster", "billed: deployment", "still running: nothing"]


def test_another_model_and_fewer_rows_reach_the_registered_model(papermill):
    registered = next(shown(cell) for cell in papermill[1] if cell.id == "register")
    assert "Phi-4-ultrachat-200k" in registered and "HuggingFaceH4/ultrachat_200k, 1 %" in registered


def test_the_published_notebook_is_not_changed_by_a_run(papermill, folder):
    assert (folder / NOTEBOOK).read_bytes() == (ROOT / NOTEBOOK).read_bytes()
