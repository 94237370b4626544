"""The documents of jobs and child jobs, and their runs in MLflow."""

from local_azureml import identifiers, resource
from local_azureml.context import Context
from local_azureml.control_plane import jobs, named_outputs
from local_azureml.data_plane import browser_sessions, tracking

MLFLOW_STATUS = {"Completed": "FINISHED", "Failed": "FAILED", "Canceled": "KILLED"}


class Records:
    """The documents of all jobs, each with its run in MLflow."""

    def __init__(self, context: Context, runs: tracking.Tracking):
        self._context, self._runs = context, runs

    def exists(self, name: str) -> bool:
        """Return whether a job had this name, be it deleted since."""
        return self._runs.has_run(name)

    def get(self, name: str) -> dict | None:
        """Return a job's document, or None."""
        return self._context.state.get(job_id(name))

    def root(self, name: str) -> str:
        """Return the name of the submitted job that a job belongs to; its own, where it is that."""
        return self.get(name)["run"]["root"] or name

    def open(self, name: str, properties: dict, parent: str | None, root: str | None) -> dict:
        """Write the document of a job or child job, and open its run in MLflow."""
        experiment = properties.get("experimentName") or "Default"
        title = properties.get("displayName") or name
        tags = {"mlflow.rootRunId": root or name}
        if parent:
            tags["mlflow.parentRunId"] = parent
        tags |= {key: value or "" for key, value in (properties.get("tags") or {}).items()}
        self._runs.start_run(name, experiment, title, tags)
        services = {
            "Tracking": {
                "jobServiceType": "Tracking",
                "endpoint": f"azureml://{tracking.uri(self._context)[8:]}?",
            },
            "Studio": {"jobServiceType": "Studio", "endpoint": browser_sessions.link(self._context, name)},
        }
        shown = {**properties, "experimentName": experiment, "displayName": title}
        shown |= {
            "status": "NotStarted",
            "services": services,
            "isArchived": bool(properties.get("isArchived")),
        }
        shown["tags"], shown["properties"] = properties.get("tags") or {}, properties.get("properties") or {}
        document = {
            "id": job_id(name),
            "name": name,
            "type": f"{identifiers.PROVIDER}/workspaces/jobs",
            "properties": shown,
            "systemData": resource.system_data(),
            "run": {
                "parent": parent,
                "root": root,
                "error": None,
                "warnings": [],
                "start": resource.now(),
                "end": None,
            },
        }
        return self._context.state.put(document["id"], document)

    def set(self, name: str, status: str, **run) -> None:
        """Write a state, and what changed of the run, over a job that has not ended."""
        with self._context.state.locked():
            document = self._context.state.get(job_id(name))
            if document is None or document["properties"]["status"] in jobs.FINAL:
                return
            properties = {**document["properties"], "status": status}
            self._context.state.merge(job_id(name), properties=properties, run={**document["run"], **run})

    def end(self, name: str, status: str, error: dict | None = None) -> None:
        """Write the state in which a job ended; the outputs of a completed one that have names are assets."""
        if status == "Completed":
            self._register(name)
        self.set(name, status, error=error, end=resource.now())
        self._runs.end_run(name, MLFLOW_STATUS[status])

    def change(self, name: str, **properties) -> None:
        """Write these properties of a job over those that it has."""
        with self._context.state.locked():
            if document := self.get(name):
                changed = {**document["properties"], **properties}
                self._context.state.merge(document["id"], properties=changed)

    def _register(self, name: str) -> None:
        asked = self.get(name)["properties"].get("outputs") or {}
        if (found := named_outputs.register(self._context, asked)) != asked:
            self.change(name, outputs=found)


def job_id(name: str) -> str:
    """Return a job's resource id."""
    return f"{identifiers.JOBS}/{name}"


def error(code: str, message: str) -> dict:
    """Return a job's error as run history keeps it."""
    return {"code": code, "message": message}
