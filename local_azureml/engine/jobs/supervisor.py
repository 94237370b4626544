"""Jobs that run: a thread for each, which leads it from state to state."""

import logging
import threading
import time
from collections.abc import Callable

from local_azureml import identifiers
from local_azureml.context import Context
from local_azureml.control_plane import named_outputs, outputs
from local_azureml.control_plane.jobs import FINAL
from local_azureml.data_plane import tracking
from local_azureml.engine.jobs import command_steps, fine_tuning, records, sweeps
from local_azureml.engine.jobs.journal import Journal
from local_azureml.engine.jobs.pipelines import Pipelines, check_pipeline
from local_azureml.engine.jobs.steps import STEP_LOG, CancelledError, StepError, Steps
from local_azureml.errors import AzureError, full_disk, not_played

log = logging.getLogger(__name__)


class Jobs:
    """The jobs that run."""

    def __init__(self, context: Context, runs: tracking.Tracking):
        self._context = context
        self._records = records.Records(context, runs)
        self._steps = Steps(context, self._records)
        self._sweeps = sweeps.Sweeps(context, self._records, self._steps, runs)
        self._pipelines = Pipelines(context, self._records, self._steps, self._sweeps)
        self._threads: dict[str, threading.Thread] = {}
        self._recover()

    def _recover(self) -> None:
        """End the jobs that ran when the emulator was killed."""
        error = records.error("SystemError", "the emulator stopped while the job ran")
        for document in self._context.state.children(identifiers.JOBS):
            if document["properties"]["status"] not in FINAL:
                self._records.end(document["name"], "Failed", error)

    def submit(self, name: str, properties: dict) -> dict:
        """Return the document of a new job, and start it."""
        run = {
            "pipeline": self._pipelines.run,
            "command": self._command,
            "finetuning": self._fine_tuning,
            "sweep": self._sweeps.run,
        }.get(properties.get("jobType", "").lower())
        if run is None:
            raise not_played(f"a job of the type {properties.get('jobType')}")
        command_steps.check_inputs(self._context, properties.get("inputs"))
        if properties["jobType"].lower() == "pipeline":
            check_pipeline(self._context, properties.get("jobs") or {})
        elif properties["jobType"].lower() == "finetuning":
            fine_tuning.check(self._context, properties)
        elif properties["jobType"].lower() == "sweep":
            properties = sweeps.check(self._context, properties)
        else:
            command_steps.check(self._context, {}, properties)
        if self._records.exists(name):
            raise AzureError(
                409, "Conflict", f"{name!r} was the name of a job that is deleted: choose another"
            )
        placed = outputs.placed(self._context, name, properties.get("outputs") or {}, properties)
        named_outputs.check(self._context, placed)
        document = self._records.open(name, {**properties, "outputs": placed}, parent=None, root=None)
        thread = threading.Thread(target=self._supervise, args=(name, run), daemon=True)
        self._threads[name] = thread
        thread.start()
        return document

    def cancel(self, name: str) -> None:
        """Kill what a submitted job runs."""
        self._records.set(name, "CancelRequested")
        self._steps.cancel(name)

    def wait(self, name: str) -> None:
        """Return when a submitted job's thread has ended."""
        if thread := self._threads.get(name):
            thread.join()

    def stop(self) -> None:
        """Cancel all that runs, and wait for it."""
        for name in self._alive():
            self.cancel(name)
        for name in self._alive():
            self.wait(name)

    def running(self) -> list[str]:
        """Return a line for each submitted job that has not ended and was not asked to."""
        return [f"job {name}" for name in self._alive() if not self._steps.cancelled(name)]

    def _alive(self) -> list[str]:
        return [name for name, thread in list(self._threads.items()) if thread.is_alive()]

    def _command(self, name: str, properties: dict) -> None:
        """Run a job that is one command."""
        step = command_steps.of_job(self._context, name, properties)
        self._steps.run(name, name, step, Journal(self._context, name, STEP_LOG), quiet=True)

    def _fine_tuning(self, name: str, properties: dict) -> None:
        """Run a fine-tuning job as the pipeline of one node that it is."""
        self._pipelines.run(name, fine_tuning.as_pipeline(self._context, properties))

    def _supervise(self, name: str, run: Callable[[str, dict], None]) -> None:
        document = self._records.get(name)
        try:
            self._records.set(name, "Preparing")
            self._steps.wait_for_nodes(name)
            self._records.set(name, "Running")
            run(name, document["properties"])
            self._records.end(name, "Completed")
        except CancelledError:
            time.sleep(self._context.polling_seconds)  # on Azure too, CancelRequested lasts a while
            self._records.end(name, "Canceled")
        except StepError as error:
            self._records.end(name, "Failed", records.error(error.code, error.message))
        except AzureError as error:
            self._records.end(name, "Failed", records.error("UserError", error.message))
        except Exception as error:
            if sentence := full_disk(error):
                self._records.end(name, "Failed", records.error("UserError", sentence))
                return
            log.exception("job %s", name)
            message = f"{type(error).__name__}: {error}"
            self._records.end(name, "Failed", records.error("SystemError", message))
