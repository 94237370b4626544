"""Steps of jobs: child processes on nodes, from the queue to their end."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from local_azureml import identifiers, process_environment
from local_azureml.context import Context
from local_azureml.control_plane import datastores
from local_azureml.data_plane import identity, tracking
from local_azureml.engine import processes
from local_azureml.engine.jobs import records
from local_azureml.engine.jobs.command import CODE
from local_azureml.engine.jobs.journal import Journal
from local_azureml.engine.jobs.nodes import Nodes
from local_azureml.errors import AzureError

REASON = "{reason}"


KEPT = ("outputs", "logs")  # the folders beside a command's code that become the job's artifacts
TRAINING = "chat_completion_finetune"
PIPELINE_LOG, STEP_LOG = "logs/azureml/executionlogs.txt", "user_logs/std_log.txt"


class StepError(Exception):
    """A step that ended badly; `code` is UserError or SystemError."""

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code, self.message = code, message


class CancelledError(Exception):
    """The job was asked to stop."""


@dataclass
class Step:
    """One child process to be: what it runs, on what, with which nodes."""

    name: str
    entry: str  # "module:function"
    specification: dict
    compute: str
    instance_type: str
    nodes: int


class Steps:
    """What the jobs run now, and which of them were asked to stop."""

    def __init__(self, context: Context, documents: records.Records):
        self._context, self._records = context, documents
        self._processes: dict[str, tuple[str, processes.Process]] = {}  # by the name of its job: the root
        self._cancelled: set[str] = set()

    def cancel(self, name: str) -> None:
        """Kill what a job runs, be it submitted or the child of one, and let it run nothing more."""
        self._cancelled.add(name)
        for child, (root, process) in list(self._processes.items()):
            if name in (root, child):
                process.kill()

    def cancelled(self, *names: str) -> bool:
        """Say whether one of these jobs was asked to stop."""
        return not self._cancelled.isdisjoint(names)

    def wait_for_nodes(self, name: str) -> None:
        """Return when a job may begin: at once, without the fault stuck-preparing."""
        until = time.time() + (self._context.faults.value("stuck-preparing") or 0)
        while time.time() < until:
            self.check(name)
            time.sleep(0.1)

    @contextmanager
    def ending(self, child: str, key: str, words: str, journal: Journal) -> Iterator[None]:
        """End a child job as what it runs ends; `words` tell the parent of a failure and its REASON."""
        try:
            yield
            self._records.end(child, "Completed")
        except CancelledError:
            self._records.end(child, "Canceled")
            raise
        except (StepError, AzureError) as error:
            self._records.end(child, "Failed", records.error(error.code, error.message))
            journal.say(f"{key} failed: {error.message}")
            raise StepError(error.code, words.replace(REASON, error.message)) from error
        except Exception as error:
            message = f"{type(error).__name__}: {error}"
            self._records.end(child, "Failed", records.error("SystemError", message))
            raise

    def check(self, *names: str) -> None:
        """Raise CancelledError where one of these jobs was asked to stop."""
        if self.cancelled(*names):
            raise CancelledError

    def run(self, root: str, child: str, step: Step, journal: Journal, quiet: bool) -> None:
        """Run one child process on its nodes; raise StepError where it fails."""
        self.check(root, child)
        self._records.set(child, "Queued")
        nodes = Nodes(self._context, child, step.compute, step.nodes, step.instance_type)
        trains_cheaply = step.name == TRAINING and nodes.low_priority
        preempted = trains_cheaply and self._context.faults.first("preempted")
        with nodes:
            process = self._run_process(root, child, step, journal, quiet, preempted)
        self.check(root, child)
        if preempted:
            journal.say(f"The nodes of {step.name} were preempted: it waits for others and starts over")
            return self.run(root, child, step, journal, quiet)
        if process.wait() != 0:
            error = process.error()
            raise StepError(error["code"], error["message"])

    def _run_process(
        self, root: str, child: str, step: Step, journal: Journal, quiet: bool, preempted: bool
    ) -> processes.Process:
        """Return a step's process when it has ended, or been killed since its nodes are taken away."""
        step_log = datastores.run_log(self._context, child, STEP_LOG)
        folder = self._context.folder / "runs" / child
        self._records.set(child, "Running")
        process = processes.start(
            step.entry, step.specification, folder, step_log, self._variables(root, child)
        )
        self._processes[child] = root, process
        if self.cancelled(root, child):
            process.kill()
        while process.wait(0.2) is None:
            if not quiet:
                journal.follow(step_log)
            if preempted and step_log.stat().st_size:
                process.kill()
        if not quiet:
            journal.follow(step_log)
        del self._processes[child]
        self._keep(child, folder / CODE, step_log)
        return process

    def _keep(self, child: str, code: Path, step_log: Path) -> None:
        """Copy what a command left in its folders for that to the job's artifacts; name what can't be."""
        for name in KEPT:
            if (made := code / name).is_dir() and not made.is_symlink():
                try:
                    place = datastores.run_log(self._context, child, name)
                    shutil.copytree(made, place, symlinks=True, dirs_exist_ok=True)
                except shutil.Error as error:
                    with step_log.open("a", encoding="utf-8") as log:
                        log.writelines(f"not kept: {source}: {why}\n" for source, _, why in error.args[0])

    def _variables(self, root: str, child: str) -> dict[str, str]:
        expires = int(time.time()) + identifiers.LIFETIME
        return process_environment.of_child(
            self._context,
            MLFLOW_TRACKING_URI=tracking.uri(self._context),
            MLFLOW_TRACKING_TOKEN=identity.make_token(self._context, identifiers.AUDIENCE, expires),
            MLFLOW_RUN_ID=child,
            AZUREML_RUN_ID=child,
            AZUREML_ROOT_RUN_ID=root,
        )
