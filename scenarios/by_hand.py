"""The notebook as somebody runs it who sits before it: cell by cell, and a failed cell a second time."""

import os
import signal
import time
from pathlib import Path

import nbformat
from jupyter_client import KernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from scenarios import notebook_runs as runs
from scenarios.notebook_runs import NOTEBOOK, SHORT, Row

FAULT = "scoring-status=500"


def try_by_hand(what: str, folder: Path) -> list[Row]:
    """Return the row of a session in which step 8 fails and the steps are run again."""
    began, deviations = time.monotonic(), []
    notebook = nbformat.read(folder / NOTEBOOK, as_version=4)
    steps = [cell for cell in notebook.cells if cell.cell_type == "code"]
    steps[0].source += "".join(f"\n{name} = {value!r}" for name, value in SHORT.items())
    with runs.served(folder, FAULT) as emulator:
        session = NotebookClient(notebook, km=KernelManager(), timeout=runs.PATIENCE)
        variables = {**os.environ, **runs.VARIABLES, **emulator.variables}
        session.start_new_kernel(env=variables, cwd=str(folder))
        session.start_new_kernel_client()
        try:
            reads = refused(session, steps[:9])
            if len(runs.left(folder)) != 1:
                deviations.append(f"another try finds {runs.left(folder) or 'no endpoint'}")
            emulator.process.send_signal(signal.SIGUSR1)
            for step in steps[1:]:  # as the text under the title says
                run(session, step)
            deviations += ["the training was paid twice"] if len(runs.jobs(folder)) > 1 else []
        except CellExecutionError as error:
            deviations.append(f"a repeated cell fails: {error.ename} {error.evalue}")
        finally:
            session.km.shutdown_kernel()
            session.kc.stop_channels()
        deviations += runs.survivors(folder)
        left, bill = runs.left(folder), sum(runs.bills(folder).values())
    deviations += [f"left: {name}" for name in left]
    return [Row(what, "8. Ask the model", time.monotonic() - began, bill, left, reads, "", deviations)]


def refused(session: NotebookClient, steps: list) -> str:
    """Run steps of which the last one has to fail, and return its words."""
    for step in steps[:-1]:
        run(session, step)
    try:
        run(session, steps[-1])
    except CellExecutionError as error:
        return f"{error.ename}: {error.evalue}"
    return "nothing: it did not fail"


def run(session: NotebookClient, step) -> None:
    session.execute_cell(step, session.nb.cells.index(step))
