"""The published notebook, byte for byte, run from its first cell to its last on an emulator of its own."""

import itertools
import os
import re
import runpy
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest
import recorded
import witness

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.gpu
NOTEBOOK = "finetune_phi3_ultrachat.ipynb"
PARAMETERS = """
model_name: Phi-4
compute_size: ""
dataset_split_pc: 1
score_samples: 2
finetune_parameters: {max_steps: 6, logging_steps: 1}
"""


@dataclass
class Run:
    """A papermill run with changed parameters: how it ended, its cells, what it asked of the emulator."""

    ended: subprocess.CompletedProcess
    code: list
    requests: set[tuple[str, str]]  # method and path of those that the emulator did not answer with 501


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with what the notebook needs beside it."""
    place = tmp_path_factory.mktemp("notebook")
    for file in (ROOT / NOTEBOOK, *ROOT.glob("*.py")):
        shutil.copy(file, place)
    return place


@pytest.fixture(scope="module")
def run(folder: Path, installed: Path) -> Run:
    places = [str(folder / NOTEBOOK), str(folder / "out.ipynb"), "--cwd", str(folder)]
    options = ["--fault", "answer-shape=openai"]
    ended = on_the_emulator(installed, folder / "answers", options, "papermill", *places, "-y", PARAMETERS)
    cells = nbformat.read(folder / "out.ipynb", as_version=4).cells
    answers = re.findall(r"local_azureml: ([A-Z]+) (\S+) (\d+)$", ended.stderr, re.M)
    requests = {(method, path) for method, path, status in answers if status != "501"}
    return Run(ended, [cell for cell in cells if cell.cell_type == "code"], requests)


def on_the_emulator(place: Path, answers: Path, options: list[str], *words: str):
    """Return how a Python program ended on the emulator installed at `place`, which logs each request."""
    command = [*recorded.EMULATOR, "run", *options, "--", sys.executable, "-m", *words]
    told = {"LOCAL_AZUREML_LOG": "INFO", **recorded.variables(answers), "PYTHONPATH": str(place)}
    how = {"env": os.environ | told, "capture_output": True, "text": True, "timeout": 280}
    return subprocess.run(command, cwd=answers.parent, **how)


def printed(cell) -> str:
    return "".join(output.get("text", "") for output in cell.outputs)


def shown(cell) -> str:
    return "".join(output.data["text/plain"] for output in cell.outputs if "data" in output)


def test_every_step_of_the_published_notebook_shows_a_stored_output():
    cells = nbformat.read(ROOT / NOTEBOOK, as_version=4).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert [cell.id for cell in code if not cell.outputs] == ["parameters"]


def test_nbval_passes_every_cell_of_the_published_notebook_with_vllms_form_of_answers(folder, installed):
    sanitize = ["--nbval-sanitize-with", str(ROOT / "tests" / "nbval.cfg")]
    nbval = ["--nbval-lax", *sanitize, "-x", "-p", "no:cacheprovider", str(folder / NOTEBOOK)]
    options = ["--fault", "answer-shape=vllm"]
    ended = on_the_emulator(installed, folder / "answers of nbval", options, "pytest", *nbval)
    cells = nbformat.read(ROOT / NOTEBOOK, as_version=4).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert f"{len(code)} passed" in ended.stdout, ended.stdout[-3000:]
    assert "still running: nothing" in ended.stderr


def test_papermill_runs_it_with_changed_parameters_and_openais_form_of_answers_to_the_last_cell(run):
    assert run.ended.returncode == 0, run.ended.stderr[-3000:]
    assert printed(run.code[-1]).endswith("Nothing left running.\n")


def test_the_run_is_billed_and_leaves_nothing_running(run):
    bills = re.findall(r"^(Azure would have billed: \w+|still running: .*)", run.ended.stderr, re.M)
    assert bills == [
        "Azure would have billed: cluster",
        "Azure would have billed: deployment",
        "still running: nothing",
    ]


def test_another_model_and_fewer_rows_reach_the_registered_model(run):
    registered = next(shown(cell) for cell in run.code if cell.id == "register")
    assert "Phi-4-ultrachat-200k" in registered and " HuggingFaceH4/ultrachat_200k\n" in registered


def test_the_emulators_page_marks_the_operations_that_the_notebook_uses(run):
    pages = runpy.run_path(str(ROOT / "tools" / "refresh_pages.py"))
    played = [(method, path, re.compile(pages["pattern"](path))) for method, path, _ in pages["operations"]()]
    used = set()
    for asked, place in run.requests:
        taken = (path for method, path, takes in played if method == asked and takes.fullmatch(place))
        used |= {(asked, pages["short"](path)) for path in itertools.islice(taken, 1)}
    assert used == pages["used"](pages["EMULATOR"].read_text(encoding="utf-8"))


def test_every_answer_to_the_notebook_is_as_azure_describes_it(run, folder):
    exchanges = witness.read(folder / "answers")
    assert (len(exchanges) > 40, witness.departures(exchanges)) == (True, [])


def test_the_published_notebook_is_not_changed_by_a_run(run, folder):
    assert (folder / NOTEBOOK).read_bytes() == (ROOT / NOTEBOOK).read_bytes()
