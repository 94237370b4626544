"""Two runs of the published notebook: papermill's, whose question is refused, and nbval's, byte for byte."""

import itertools
import os
import re
import runpy
import signal
import subprocess
import sys
from types import SimpleNamespace

import nbformat
import pytest
from conftest import Emulator

from scenarios import notebook_runs as runs
from scenarios.faults import CASES, compare
from scenarios.notebook_runs import NOTEBOOK, ROOT

pytestmark = pytest.mark.gpu
CODE = [cell for cell in nbformat.read(ROOT / NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]
FAULT = "scoring-status=500"


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> SimpleNamespace:
    """What the two runs came to, and what the emulator said, which logs each request."""
    folder = runs.prepare(tmp_path_factory.mktemp("notebook"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCAL_AZUREML_LOG", "INFO")
        emulator = Emulator(folder / runs.DATA, f"--fault={FAULT}")
    status = runs.execute(folder, "fault.ipynb", {}, emulator.environment)
    survivors = runs.survivors(folder)
    row = runs.read(FAULT, folder, "fault.ipynb", status)
    row.deviations += survivors + compare(CASES[FAULT], row, status, folder)
    emulator.process.send_signal(signal.SIGUSR1)  # switches the fault off
    nbval = ["--nbval-lax", "--nbval-sanitize-with", str(ROOT / "tests" / "nbval.cfg"), "-x"]
    command = [sys.executable, "-m", "pytest", *nbval, "-p", "no:cacheprovider", NOTEBOOK]
    how = {"cwd": folder, "env": os.environ | emulator.environment, "capture_output": True, "text": True}
    nbval = subprocess.run(command, **how)
    return SimpleNamespace(folder=folder, row=row, nbval=nbval, said=emulator.end())


def test_every_step_of_the_published_notebook_shows_a_stored_output():
    assert [cell.id for cell in CODE if not cell.outputs] == ["parameters"]


def test_a_refused_question_stops_papermills_run_in_step_8_and_leaves_no_endpoint(ran):
    assert (ran.row.step, ran.row.left, ran.row.deviations) == ("8. Ask the model", [], [])
    assert "refused: (InternalServerError)" in ran.row.reads


def test_nbval_passes_every_cell_and_does_not_change_the_notebook(ran):
    assert f"{len(CODE)} passed" in ran.nbval.stdout, ran.nbval.stdout[-3000:]
    assert (ran.folder / NOTEBOOK).read_bytes() == (ROOT / NOTEBOOK).read_bytes()


def test_cluster_and_deployments_are_billed_and_nothing_is_left_running(ran):
    bills = re.findall(r"^(Azure would have billed: \w+|still running: .*)", ran.said, re.M)
    billed = [f"Azure would have billed: {what}" for what in ("cluster", "deployment", "deployment")]
    assert bills == [*billed, "still running: nothing"]


def test_the_emulators_page_marks_the_operations_that_the_notebook_uses(ran):
    pages = runpy.run_path(str(ROOT / "tools" / "refresh_pages.py"))
    answers = re.findall(r"local_azureml: \d+ ([A-Z]+) (\S+) (\d+)$", ran.said, re.M)
    played = [(method, path, re.compile(pages["pattern"](path))) for method, path, _ in pages["operations"]()]
    used = set()
    for asked, place in {(method, path) for method, path, status in answers if status != "501"}:
        taken = (path for method, path, takes in played if method == asked and takes.fullmatch(place))
        used |= {(asked, pages["short"](path)) for path in itertools.islice(taken, 1)}
    assert used == pages["used"](pages["EMULATOR"].read_text(encoding="utf-8"))
