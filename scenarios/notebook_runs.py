"""Runs of the published notebook on an emulator, and what they came to."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import nbformat
import psutil

from local_azureml import identifiers
from local_azureml.control_plane.jobs import FINAL
from local_azureml.meter import Meter
from local_azureml.process_environment import processes_with
from local_azureml.state import State

ROOT = Path(__file__).parents[1]
NOTEBOOK = "finetune_phi3_ultrachat.ipynb"
DATA = "cloud"  # the emulator's data folder, in a case's own folder
SHORT = {  # the notebook's parameters for the shortest run that still trains
    "dataset_split_pc": 1,
    "compute_idle_seconds": 10,
    "finetune_parameters": {"max_steps": 2, "logging_steps": 1},
    "score_samples": 1,
    "score_parameters": {"max_new_tokens": 8},
}
PATIENCE = 300  # seconds for one run
VARIABLES = {"PYTHONPATH": str(ROOT), "PYDEVD_DISABLE_FILE_VALIDATION": "1"}  # of a case's processes
EMULATOR = [sys.executable, "-X", "faulthandler", "-m", "local_azureml"]


@dataclass
class Row:
    """What a run came to."""

    what: str
    step: str  # the heading of the step that stopped, or "-"
    seconds: float  # until it did, or until the end
    node_seconds: float
    left: list[str]
    reads: str  # the line that the user reads at the end
    said: str  # all that was printed
    deviations: list[str] = field(default_factory=list)


def prepare(folder: Path) -> Path:
    """Return an empty folder with the published notebook and the programs beside it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for file in (ROOT / NOTEBOOK, *ROOT.glob("*.py")):
        shutil.copy(file, folder)
    return folder


def papermill(output: str, parameters: dict) -> list[str]:
    """Return the command that executes the notebook."""
    values = json.dumps({**SHORT, **parameters})
    options = ["--no-progress-bar", "--parameters_yaml", values]
    return [sys.executable, "-m", "papermill", NOTEBOOK, output, *options]


def execute(folder: Path, output: str, parameters: dict, variables: dict[str, str]) -> int:
    """Run the notebook to its end and return the exit status."""
    process = start(folder, papermill(output, parameters), output, variables)
    try:
        return process.wait(PATIENCE)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def start(
    folder: Path, command: list[str], name: str, variables: dict[str, str] = MappingProxyType({})
) -> subprocess.Popen:
    """Start a command in a case's folder, its output in `name`.log."""
    with (folder / f"{name}.log").open("wb") as log:
        return subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **VARIABLES, **variables},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


class Emulator:
    """An emulator that serves in a case's folder, and the variables that point clients at it."""

    def __init__(self, folder: Path, *options: str):
        self._folder, self._options = folder, options
        self.process, self.variables = self._start()

    def _start(self, *options: str) -> tuple[subprocess.Popen, dict[str, str]]:
        command = [*EMULATOR, "serve", "--data-dir", DATA, "--poll", "0.1", *self._options, *options]
        process = start(self._folder, command, "serve")
        until = time.monotonic() + PATIENCE
        while "# ready" not in (said := (self._folder / "serve.log").read_text()):
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the emulator does not start: {said}")
            time.sleep(0.1)
        lines = [line.removeprefix("export ") for line in said.splitlines() if line.startswith("export ")]
        variables = (line.partition("=") for line in lines)
        return process, {name: value.strip("'") for name, _, value in variables}

    def kill_and_start_again(self) -> None:
        """Kill it, and start another at the same place."""
        self.process.kill()
        self.process.wait()
        self.process, _ = self._start("--port", self.variables["HF_ENDPOINT"].rpartition(":")[2])

    def close(self) -> None:
        """End it."""
        stop(self.process, self._folder / "serve.log")


@contextmanager
def served(folder: Path, *faults: str) -> Iterator[Emulator]:
    """Keep an emulator up."""
    emulator = Emulator(folder, *(f"--fault={fault}" for fault in faults))
    try:
        yield emulator
    finally:
        emulator.close()


def stop(process: subprocess.Popen, log: Path, number: signal.Signals = signal.SIGTERM) -> str:
    """End an emulator and return its log; one that does not end is aborted, and shows its threads."""
    process.send_signal(number)
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)
        process.wait()
        raise RuntimeError(f"the emulator does not stop: {log.read_text()}") from None
    return log.read_text()


def survivors(folder: Path) -> list[str]:
    """Return a line for each process of a case's notebook that lives on for a minute, and end it."""
    return [f"a process was left: {line}" for line in end(*header_of(folder), seconds=60)]


def end(name: str, value: str, seconds: float = 0) -> list[str]:
    """Return the command lines of the processes with a variable that live on for `seconds`, and end them."""
    until = time.monotonic() + seconds
    while (alive := processes_with(name, value)) and time.monotonic() < until:
        time.sleep(0.2)
    lines = []
    for process in alive:
        with suppress(psutil.Error):  # gone meanwhile
            lines.append(" ".join(process.cmdline())[:100])
            process.kill()
    return lines


def header_of(folder: Path) -> tuple[str, str]:
    """Return the variable by which the processes are known that a case's notebook started."""
    return "IDENTITY_HEADER", json.loads((folder / DATA / "secrets.json").read_text())["identity_header"]


def read(what: str, folder: Path, output: str, status: int) -> Row:
    """Return the row that an executed notebook, its log and the emulator's state tell."""
    notebook = nbformat.read(folder / output, as_version=4)
    started = [cell for cell in notebook.cells if cell.metadata.get("papermill", {}).get("start_time")]
    step, heading, printed, reads = "-", "", [], ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and cell.source.startswith("## "):
            heading = cell.source.splitlines()[0].removeprefix("## ")
        for said in cell.get("outputs", []):
            printed += said.text.splitlines() if said.output_type == "stream" else []
            printed += said.data.get("text/plain", "").splitlines() if "data" in said else []
            if said.output_type == "error":
                step, reads = heading, f"{said.ename}: {said.evalue}"
        if status and step == "-" and cell is started[-1]:
            step, reads = heading, (folder / f"{output}.log").read_text().strip().rpartition("\n")[2]
        if step != "-":
            break
    reads = reads or next((line for line in reversed(printed) if line.strip()), "")
    seconds = notebook.metadata.papermill.get("duration") or 0.0
    bill = sum(bills(folder).values())
    row = Row(what, step, seconds, bill, left(folder), " ".join(reads.split()), "\n".join(printed))
    if holds_secrets(folder, (folder / output).read_text()):
        row.deviations.append(f"{output} holds a key, a token or the subscription's id")
    return row


def again(what: str, folder: Path, variables: dict[str, str], resume: bool) -> Row:
    """Return the row of a run that nothing disturbs: it has to succeed, and to pay for no training twice."""
    before = bills(folder)
    parameters = {"resume_job_name": submitted(folder)} if resume else {}
    status = execute(folder, "again.ipynb", parameters, variables)
    deviations, row = survivors(folder), read(what, folder, "again.ipynb", status)
    row.deviations += deviations
    if status or row.step != "-":
        row.deviations.append(f"the run after it ends in {row.step} with {row.reads!r}")
    after = bills(folder)
    if resume and any(after[name] > before[name] for name in before if name.startswith("cluster")):
        row.deviations.append("the training was paid twice")
    return row


def holds_secrets(folder: Path, text: str) -> bool:
    """Say whether a text holds what nobody should read in a notebook."""
    secrets = json.loads((folder / DATA / "secrets.json").read_text()).values()
    keys = [key for found in resources(folder, "onlineEndpoints") for key in found["keys"].values()]
    known = any(secret in text for secret in [*secrets, *keys, identifiers.SUBSCRIPTION])
    return known or re.search(r"eyJ[\w-]+\.eyJ|[?&]sig=|Bearer \w", text) is not None


def bills(folder: Path) -> dict[str, float]:
    """Return the node-seconds of each thing billed."""
    with closing(State(folder / DATA)) as state:
        return {bill.resource: bill.node_seconds for bill in Meter(state).bills()}


def left(folder: Path) -> list[str]:
    """Return what costs on: endpoints, and jobs that run."""
    endpoints = [f"endpoint {found['name']}" for found in resources(folder, "onlineEndpoints")]
    running = [job for job in jobs(folder) if job["properties"]["status"] not in FINAL]
    return endpoints + [f"job {job['name']}" for job in running]


def jobs(folder: Path) -> list[dict]:
    """Return the jobs that were submitted."""
    return [job for job in resources(folder, "jobs") if not job["run"]["parent"]]


def created(folder: Path) -> list[str]:
    """Return the names of all that there is in the workspace."""
    kinds = ("computes", "jobs", "models", "onlineEndpoints")
    return [f"{kind}/{found['name']}" for kind in kinds for found in resources(folder, kind)]


def resources(folder: Path, kind: str) -> list[dict]:
    """Return the workspace's documents of a kind."""
    with closing(State(folder / DATA)) as state:
        return state.children(f"{identifiers.WORKSPACE_ID}/{kind}")


def submitted(folder: Path) -> str:
    """Return the newest job: the one that the notebook names for a later run."""
    return jobs(folder)[-1]["name"]
