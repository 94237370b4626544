"""The notebook cut off at each step that costs, in each way that it can be, and gone on with each time."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from jupyter_client import BlockingKernelClient

from local_azureml.process_environment import processes_with
from scenarios import notebook_runs as runs
from scenarios.notebook_runs import DATA, PATIENCE, ROOT, Row

LONG_ANSWERS = {"score_samples": 60, "score_parameters": {"max_new_tokens": 200}}
LONG_TRAINING = {"finetune_parameters": {"max_steps": 150, "logging_steps": 10}}  # goes on after the cut


def training(folder: Path) -> bool:
    """Say whether the fine-tune runs."""
    return any(
        job["properties"]["displayName"] == "chat_completion_finetune"
        and job["properties"]["status"] == "Running"
        for job in runs.resources(folder, "jobs")
    )


def deploying(folder: Path) -> bool:
    """Say whether a deployment is being made."""
    endpoints = [found["name"] for found in runs.resources(folder, "onlineEndpoints")]
    made = [
        one for name in endpoints for one in runs.resources(folder, f"onlineEndpoints/{name}/deployments")
    ]
    return any(one["properties"]["provisioningState"] == "Creating" for one in made)


def answering(folder: Path) -> bool:
    """Say whether a deployment has answered a question."""
    return any("\n200 in " in log.read_text() for log in folder.glob(f"{DATA}/deployments/*/*/log.txt"))


STEPS: dict[str, Callable[[Path], bool]] = {"5": training, "7": deploying, "8": answering}


def shut_down(process: subprocess.Popen, folder: Path) -> None:
    """Do what a notebook server does to a kernel that is shut down from the browser."""
    [kernel] = named("ipykernel_launcher", folder)
    arguments = kernel.cmdline()
    client = BlockingKernelClient(connection_file=arguments[arguments.index("-f") + 1])
    client.load_connection_file()
    client.start_channels()
    kernel.send_signal(signal.SIGINT)
    client.shutdown()
    for number in (signal.SIGTERM, signal.SIGKILL):
        if psutil.wait_procs([kernel], timeout=2.5)[1]:
            kernel.send_signal(number)
    client.stop_channels()


def kill_kernel(process: subprocess.Popen, folder: Path) -> None:
    """Do what the kernel's want of memory does."""
    for kernel in named("ipykernel_launcher", folder):
        kernel.kill()


def kill_all(process: subprocess.Popen, folder: Path) -> None:
    """Do what a power cut does."""
    runs.end(*runs.header_of(folder))


WAYS: dict[str, Callable[[subprocess.Popen, Path], None]] = {
    "SIGINT to papermill": lambda process, _: process.send_signal(signal.SIGINT),  # as by Ctrl-C
    "SIGTERM to papermill": lambda process, _: process.terminate(),  # as by a CI system's time limit
    "kernel shut down": shut_down,
    "kernel killed": kill_kernel,
    "all killed": kill_all,
}
STEPS_OF = {"kernel killed": ("7",), "all killed": ("5", "8")}  # the other ways: each step


def named(word: str, folder: Path) -> list[psutil.Process]:
    """Return the processes of a case that have a word in their command line."""
    started = processes_with(*runs.header_of(folder))
    return [process for process in started if word in " ".join(process.cmdline())]


def cut_off(way: str, folder: Path) -> list[Row]:
    """Return a row for each step; each run goes on from the one before, and the last succeeds."""
    steps = STEPS_OF.get(way, tuple(STEPS))
    with runs.served(folder) as emulator:
        variables = emulator.variables
        rows = [cut_off_in(step, way, folder, variables, resume=step != steps[0]) for step in steps]
        if WAYS[way] is kill_all:
            return rows + after_all_killed(folder, variables)
        rows[-1].deviations += runs.again("again", folder, variables, resume=True).deviations
        if len(runs.jobs(folder)) > 1:
            rows[-1].deviations.append("the training was paid twice")
    return rows


def cut_off_in(step: str, way: str, folder: Path, variables: dict[str, str], resume: bool) -> Row:
    """Return the row of a run that is cut off while a step works."""
    output = f"step-{step}.ipynb"
    parameters = (
        LONG_ANSWERS | LONG_TRAINING | ({"resume_job_name": runs.submitted(folder)} if resume else {})
    )
    began = time.monotonic()
    process = runs.start(folder, runs.papermill(output, parameters), output, variables)
    while not STEPS[step](folder):
        if process.poll() is not None or time.monotonic() > began + PATIENCE:
            row = runs.read(f"{way}, step {step}", folder, output, 1)
            row.deviations.append("the step was never reached")
            return row
        time.sleep(0.05)
    WAYS[way](process, folder)
    status = process.wait(PATIENCE)
    deviations = runs.survivors(folder)
    row = runs.read(f"{way}, step {step}", folder, output, status)
    if WAYS[way] is kill_all:
        row.reads = ""
    row.seconds = time.monotonic() - began
    row.deviations += deviations
    if row.step.partition(".")[0] != step:
        row.deviations.append(f"stopped in {row.step}")
    endpoints = 1 if step == "8" and WAYS[way] is kill_all else 0
    jobs = 1 if step == "5" else 0  # it goes on by itself
    if len(row.left) != endpoints + jobs or len(runs.resources(folder, "onlineEndpoints")) != endpoints:
        row.deviations.append(f"left: {', '.join(row.left) or 'nothing'}")
    return row


def after_all_killed(folder: Path, variables: dict[str, str]) -> list[Row]:
    """Return the rows of the next run, which names what was left, and of the command that removes it."""
    [left] = runs.resources(folder, "onlineEndpoints")
    endpoint = left["name"]
    row = runs.again("the next run", folder, variables, resume=False)
    line = next((line for line in row.said.splitlines() if endpoint in line), "")
    row.reads = " ".join(line.split()) or row.reads
    row.deviations += [] if line else [f"{endpoint} is not named"]
    return [row, clean(endpoint, left["tags"]["run_id"], folder, variables)]


def clean(endpoint: str, run: str, folder: Path, variables: dict[str, str]) -> Row:
    """Return the row of the command that cleans up after a run, which left an endpoint."""
    began = time.monotonic()
    script = ROOT / "tools" / "clean_azure.py"
    ended = subprocess.run(
        [sys.executable, script, "--run", run, "--yes"],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
    )
    reads = (ended.stdout + ended.stderr).strip().replace("\n", "; ")
    left = runs.left(folder)
    fine = not ended.returncode and f"removed: endpoint {endpoint}" in reads and not left
    deviations = [] if fine else [f"the clean-up ends with {reads}"]
    seconds, bill = time.monotonic() - began, sum(runs.bills(folder).values())
    return Row("make clean-azure", "-", seconds, bill, left, reads, reads, deviations)
