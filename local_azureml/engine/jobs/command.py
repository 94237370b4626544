"""The step of a command job: its command in a shell, on as many processes as it asks for."""

import shutil
import socket
import time
from pathlib import Path

import psutil

from local_azureml.engine import environments, processes
from local_azureml.engine.jobs.placeholders import fill
from local_azureml.engine.processes import UserError
from local_azureml.process_environment import ON_LOOPBACK

CODE = "code"  # the folder in which a command runs


def run(specification: dict) -> None:
    """Run the command in a copy of its code; a failing one fails the step."""
    for name, place in specification["outputs"].items():
        (Path(place).parent if name in specification["files"] else Path(place)).mkdir(
            parents=True, exist_ok=True
        )
    code = Path(CODE)
    source = specification["code"] and Path(specification["code"])
    if source and source.is_dir():
        shutil.copytree(source, code)
    else:
        code.mkdir()
        if source:
            shutil.copy(source, code)
    command, paths = fill(specification)
    python = environments.python_of(specification["environment"], Path(specification["environments"]))
    environment = environments.layer(python, Path("layer"), processes.here.environment)
    environment |= specification["variables"] | paths
    started = [
        psutil.Popen(["bash", "-c", command], cwd=code, env=environment | rank)
        for rank in _ranks(specification)
    ]
    _wait(started, specification["timeout"])


def _ranks(specification: dict) -> list[dict[str, str]]:
    """Return the variables by which each process of PyTorch's finds the others; none for a single process."""
    nodes, context = specification["nodes"], specification["processes"]
    if context is None:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shared = {**ON_LOOPBACK, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    shared |= {"WORLD_SIZE": str(nodes * context), "LOCAL_WORLD_SIZE": str(context)}
    return [
        {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank % context), "NODE_RANK": str(rank // context)}
        for rank in range(nodes * context)
    ]


def _wait(started: list[psutil.Popen], timeout: float | None) -> None:
    """Return when all have succeeded; the first to fail fails the step, which ends the others."""
    until = time.monotonic() + timeout if timeout else float("inf")
    running = started
    while running:
        ended, running = psutil.wait_procs(running, timeout=0.1)
        for process in ended:
            if process.returncode:
                many = f" as process {started.index(process)} of {len(started)}" if len(started) > 1 else ""
                raise UserError(
                    f"the command{many} ended with exit status {process.returncode}; its output is above"
                )
        if running and time.monotonic() > until:
            raise UserError(f"the command took longer than its timeout of {timeout:g} s")
