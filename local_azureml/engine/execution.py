"""Runs jobs: a thread for each job, a child process for each of its steps, states and logs on the way."""

import logging
import re
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from local_azureml import cloud
from local_azureml.control_plane import assets, datastores, registry
from local_azureml.control_plane.computes import Nodes
from local_azureml.data_plane import blobs, identity, tracking
from local_azureml.engine import processes
from local_azureml.engine.chat_completion import STEPS
from local_azureml.errors import AzureError, user_error

log = logging.getLogger(__name__)
FINAL = ("Completed", "Failed", "Canceled")
MLFLOW_STATUS = {"Completed": "FINISHED", "Failed": "FAILED", "Canceled": "KILLED"}
FINE_TUNING = "chat_completion_pipeline"
TRAINING = "chat_completion_finetune"
BINDING = re.compile(r"\$\{\{\s*parent\.(inputs|outputs)\.(\w+)\s*\}\}")
NODE_BINDING = re.compile(r"\$\{\{\s*parent\.jobs\.(\w+)\.outputs\.(\w+)\s*\}\}")
REASON = "{reason}"
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


class Jobs:
    """The jobs that run, and the documents of all jobs."""

    def __init__(self, local: cloud.Cloud, runs: tracking.Tracking):
        self._local, self._runs = local, runs
        self._threads: dict[str, threading.Thread] = {}
        self._processes: dict[str, processes.Process] = {}
        self._cancelled: set[str] = set()
        self._recover()

    def _recover(self) -> None:
        """End the jobs that ran when the stand-in was killed."""
        for document in self._local.state.children(f"{cloud.WORKSPACE_ID}/jobs"):
            if document["properties"]["status"] not in FINAL:
                self._end(
                    document["name"],
                    "Failed",
                    _error("SystemError", "the stand-in stopped while the job ran"),
                )

    def submit(self, name: str, properties: dict) -> dict:
        """Return the document of a new job, and start it."""
        run = {"pipeline": self._pipeline, "command": self._command}.get(
            properties.get("jobType", "").lower()
        )
        if run is None:
            kind = properties.get("jobType")
            raise AzureError(501, "NotImplemented", f"jobs of the type {kind} are not part of the stand-in")
        if properties["jobType"].lower() == "pipeline":
            check_pipeline(self._local, properties)
        if self._runs.has_run(name):
            raise AzureError(
                409, "Conflict", f"{name!r} was the name of a job that is deleted: choose another"
            )
        outputs = {
            key: {**(value or {}), "uri": datastores.uri(datastores.DEFAULT, f"azureml/{name}/{key}/")}
            for key, value in (properties.get("outputs") or {}).items()
        }
        document = self._open(name, {**properties, "outputs": outputs}, parent=None, root=None)
        thread = threading.Thread(target=self._supervise, args=(name, run), daemon=True)
        self._threads[name] = thread
        thread.start()
        return document

    def cancel(self, name: str) -> None:
        """Kill what a submitted job runs."""
        self._cancelled.add(name)
        self._set(name, "CancelRequested")
        if process := self._processes.get(name):
            process.kill()

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
        """Return a line for each submitted job that has not ended."""
        return [f"job {name}" for name in self._alive()]

    def _alive(self) -> list[str]:
        return [name for name, thread in list(self._threads.items()) if thread.is_alive()]

    # documents

    def _id(self, name: str) -> str:
        return f"{cloud.WORKSPACE_ID}/jobs/{name}"

    def _open(self, name: str, properties: dict, parent: str | None, root: str | None) -> dict:
        """Write the document of a job or child job, and open its run in MLflow."""
        experiment = properties.get("experimentName") or "Default"
        title = properties.get("displayName") or name
        tags = {"mlflow.rootRunId": root or name}
        if parent:
            tags["mlflow.parentRunId"] = parent
        tags |= {key: value or "" for key, value in (properties.get("tags") or {}).items()}
        self._runs.start_run(name, experiment, title, tags)
        page = f"{self._local.origin}/runs/{name}?wsid={cloud.WORKSPACE}"  # the SDK appends &tid=…
        services = {
            "Tracking": {
                "jobServiceType": "Tracking",
                "endpoint": f"azureml://{tracking.uri(self._local)[8:]}?",
            },
            "Studio": {"jobServiceType": "Studio", "endpoint": page},
        }
        shown = {**properties, "experimentName": experiment, "displayName": title}
        shown |= {"status": "NotStarted", "services": services}
        shown["tags"], shown["properties"] = properties.get("tags") or {}, properties.get("properties") or {}
        document = {
            "id": self._id(name),
            "name": name,
            "type": f"{cloud.PROVIDER}/workspaces/jobs",
            "properties": shown,
            "systemData": cloud.system_data(),
            "run": {
                "parent": parent,
                "root": root,
                "error": None,
                "warnings": [],
                "start": cloud.now(),
                "end": None,
            },
        }
        return self._local.state.put(document["id"], document)

    def _set(self, name: str, status: str, **run) -> None:
        with self._local.state.locked():
            document = self._local.state.get(self._id(name))
            if document is None or document["properties"]["status"] in FINAL:
                return
            properties = {**document["properties"], "status": status}
            self._local.state.merge(self._id(name), properties=properties, run={**document["run"], **run})

    def _end(self, name: str, status: str, error: dict | None = None) -> None:
        self._set(name, status, error=error, end=cloud.now())
        self._runs.end_run(name, MLFLOW_STATUS[status])

    # running

    def _supervise(self, name: str, run) -> None:
        document = self._local.state.get(self._id(name))
        try:
            self._set(name, "Preparing")
            self._prepare(name)
            self._set(name, "Running")
            run(name, document["properties"])
            self._end(name, "Completed")
        except CancelledError:
            time.sleep(self._local.polling_seconds)  # on Azure too, CancelRequested lasts a while
            self._end(name, "Canceled")
        except StepError as error:
            self._end(name, "Failed", _error(error.code, error.message))
        except AzureError as error:
            self._end(name, "Failed", _error("UserError", error.message))
        except Exception as error:
            log.exception("job %s", name)
            self._end(name, "Failed", _error("SystemError", f"{type(error).__name__}: {error}"))

    def _prepare(self, name: str) -> None:
        until = time.time() + (self._local.faults.value("stuck-preparing") or 0)
        while time.time() < until:
            self._check(name)
            time.sleep(0.1)

    def _check(self, name: str) -> None:
        if name in self._cancelled:
            raise CancelledError

    def _pipeline(self, name: str, properties: dict) -> None:
        """Run a pipeline's nodes, each after those whose outputs it reads."""
        journal = Journal(self._local, name, PIPELINE_LOG)
        values = _input_values(properties.get("inputs") or {})
        for key in _in_order(properties["jobs"]):
            node = properties["jobs"][key]
            child = f"{name}_{secrets.token_hex(4)}"
            spec = component(self._local, node)
            shown = {"jobType": "Pipeline" if spec["name"] == FINE_TUNING else "Command", "displayName": key}
            self._open(child, {**shown, "experimentName": properties.get("experimentName")}, name, name)
            self._set(child, "Running")
            journal.say(f"Submitting node {key} as run {child}")
            words = (
                f"Pipeline has failed child jobs. Failed nodes: /{key}. {REASON} "
                "For more details and logs, please check the child jobs."
            )
            with self._ending(child, key, words, journal):
                inputs = {k: self._value(v, values, name) for k, v in (node.get("inputs") or {}).items()}
                outputs = self._outputs(name, child, spec, node)
                if spec["name"] == FINE_TUNING:
                    self._fine_tune(name, child, inputs, spec, outputs, journal)
                else:
                    step = self._command_step(key, spec, node, properties, inputs, outputs)
                    self._run_step(name, child, step, journal, quiet=False)
        journal.say("The pipeline run completed")

    def _value(self, given: dict | str, values: dict, root: str):
        """Return a node's input: a literal, or the pipeline's input or other node's output that it names."""
        text = given.get("value", given.get("uri")) if isinstance(given, dict) else given
        if bound := BINDING.fullmatch(str(text)):
            return values.get(bound[2])
        if bound := NODE_BINDING.fullmatch(str(text)):
            return datastores.uri(datastores.DEFAULT, f"azureml/{root}/{bound[1]}/{bound[2]}")
        return text

    def _outputs(self, root: str, child: str, spec: dict, node: dict) -> dict[str, Path]:
        """Return the folder of each of a node's outputs: the pipeline's where it is bound to one."""
        folders = {}
        for output in spec.get("outputs") or {}:
            bound = BINDING.fullmatch(str(((node.get("outputs") or {}).get(output) or {}).get("value")))
            path = f"azureml/{root}/{bound[2]}" if bound else f"azureml/{root}/{node['name']}/{output}"
            folders[output] = datastores.folder_of(self._local, datastores.DEFAULT, path)
        return folders

    def _fine_tune(
        self, root: str, parent: str, inputs: dict, spec: dict, outputs: dict[str, Path], journal: "Journal"
    ) -> None:
        """Run the component's five steps, one after another."""
        given = {key: value for key, value in inputs.items() if value is not None}
        defaults = {key: value["default"] for key, value in spec["inputs"].items() if "default" in value}
        values = {**defaults, **given}
        for key, kind in ((key, value["type"]) for key, value in spec["inputs"].items()):
            if key in given and kind in ("uri_file", "mlflow_model", "custom_model", "mltable", "uri_folder"):
                values[key] = str(assets.resolve(self._local, str(given[key])))
        upstream: dict[str, str] = {}
        for key, job in spec["jobs"].items():
            child = f"{parent}_{secrets.token_hex(4)}"
            experiment = self._local.state.get(self._id(parent))["properties"]["experimentName"]
            self._open(
                child, {"jobType": "Command", "displayName": key, "experimentName": experiment}, parent, root
            )
            folder = self._local.folder / "runs" / child
            upstream[key] = str(folder / "output")
            resources = job.get("resources") or {}
            specification = {
                "inputs": values,
                "upstream": {k: v for k, v in upstream.items() if k != key},
                "output": str(folder / "output"),
                "outputs": {name: str(path) for name, path in outputs.items()},
                "faults": {name: v for name, v in self._local.faults.active().items() if name != "preempted"},
            }
            compute = _bound(job["compute"], values)
            step = Step(
                key,
                STEPS[key],
                specification,
                compute,
                _bound(resources.get("instance_type"), values),
                int(_bound(resources.get("instance_count") or "1", values)),
            )
            journal.say(f"Submitting {key} as run {child}")
            with self._ending(child, key, f"{key}: {REASON} (run {child}, {STEP_LOG})", journal):
                self._run_step(root, child, step, journal, quiet=key != TRAINING)

    @contextmanager
    def _ending(self, child: str, key: str, words: str, journal: "Journal") -> Iterator[None]:
        """End a child job as what it runs ends; `words` tell the parent of a failure and its REASON."""
        try:
            yield
        except CancelledError:
            self._end(child, "Canceled")
            raise
        except (StepError, AzureError) as error:
            self._end(child, "Failed", _error(error.code, error.message))
            journal.say(f"{key} failed: {error.message}")
            raise StepError(error.code, words.replace(REASON, error.message)) from error
        self._end(child, "Completed")

    def _run_step(self, root: str, child: str, step: Step, journal: "Journal", quiet: bool) -> None:
        """Run one child process on its nodes; raise StepError where it fails."""
        self._check(root)
        self._set(child, "Queued")
        nodes = Nodes(self._local, child, step.compute, step.nodes, step.instance_type)
        preempted = step.name == TRAINING and nodes.low_priority and self._preempts()
        with nodes:
            process = self._run_process(root, child, step, journal, quiet, preempted)
        self._check(root)
        if preempted:
            journal.say(f"The nodes of {step.name} were preempted: it waits for others and starts over")
            return self._run_step(root, child, step, journal, quiet)
        if process.wait() != 0:
            error = process.error()
            raise StepError(error["code"], error["message"])

    def _run_process(
        self, root: str, child: str, step: Step, journal: "Journal", quiet: bool, preempted: bool
    ) -> processes.Process:
        """Return a step's process when it has ended, or been killed since its nodes are taken away."""
        step_log = log_file(self._local, child, STEP_LOG)
        folder = self._local.folder / "runs" / child
        self._set(child, "Running")
        process = processes.start(
            step.entry, step.specification, folder, step_log, self._environment(root, child)
        )
        self._processes[root] = process
        self._check_or_kill(root, process)
        while process.wait(0.2) is None:
            if not quiet:
                journal.follow(step_log)
            if preempted and step_log.stat().st_size:
                process.kill()
        if not quiet:
            journal.follow(step_log)
        del self._processes[root]
        return process

    def _preempts(self) -> bool:
        """Say whether the nodes that are about to train will be taken away."""
        return 0 < self._local.faults.count("preempted") <= self._local.faults.value("preempted")

    def _check_or_kill(self, root: str, process: processes.Process) -> None:
        if root in self._cancelled:
            process.kill()

    def _environment(self, root: str, child: str) -> dict[str, str]:
        return {
            "MLFLOW_TRACKING_URI": tracking.uri(self._local),
            "MLFLOW_TRACKING_TOKEN": identity.job_token(self._local),
            "REQUESTS_CA_BUNDLE": str(self._local.certificates.bundle),
            "MLFLOW_RUN_ID": child,
            "AZUREML_RUN_ID": child,
            "AZUREML_ROOT_RUN_ID": root,
        }

    def _command(self, name: str, properties: dict) -> None:
        """Run a job that is one command."""
        values = _input_values(properties.get("inputs") or {})
        outputs = {
            key: datastores.folder_of(self._local, datastores.DEFAULT, f"azureml/{name}/{key}")
            for key in properties.get("outputs") or {}
        }
        spec = {
            "command": properties["command"],
            "code": properties.get("codeId"),
            "inputs": {},
            "name": name,
        }
        kinds = {
            k: {"type": (v or {}).get("jobInputType", "literal")}
            for k, v in (properties.get("inputs") or {}).items()
        }
        step = self._command_step(name, {**spec, "inputs": kinds}, properties, properties, values, outputs)
        self._run_step(name, name, step, Journal(self._local, name, STEP_LOG), quiet=True)

    def _command_step(
        self, key: str, spec: dict, node: dict, job: dict, inputs: dict, outputs: dict[str, Path]
    ) -> Step:
        places = {}
        for name, value in inputs.items():
            kind = (spec["inputs"].get(name) or {}).get("type", "literal")
            is_file = kind.startswith(("uri_", "ml")) or kind == "custom_model"
            places[name] = str(assets.resolve(self._local, str(value))) if is_file else value
        code = str(spec.get("code") or node.get("codeId") or "").removeprefix("azureml:")
        compute = str(
            node.get("computeId") or (job.get("settings") or {}).get("default_compute") or "serverless"
        )
        resources = node.get("resources") or {}
        return Step(
            key,
            "local_azureml.engine.command:run",
            {
                "command": spec["command"],
                "code": str(assets.resolve(self._local, code)) if code else None,
                "inputs": places,
                "outputs": {name: str(path) for name, path in outputs.items()},
                "variables": node.get("environmentVariables") or {},
            },
            compute.rpartition("/")[2].removeprefix("azureml:"),
            resources.get("instanceType") or "Standard_DS3_v2",
            int(resources.get("instanceCount") or 1),
        )


class Journal:
    """The log that a job's stream shows: what starts and ends, and the lines of the step worth watching."""

    def __init__(self, local: cloud.Cloud, run: str, name: str):
        self._file = log_file(local, run, name)
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._read: dict[Path, int] = {}  # bytes of each followed log that are copied already

    def say(self, text: str) -> None:
        """Append a line with the time."""
        with self._file.open("a") as stream:
            stream.write(f"[{time.strftime('%Y-%m-%d %H:%M:%SZ', time.gmtime())}] {text}\n")

    def follow(self, source: Path) -> None:
        """Append the whole lines that `source` got since the last call."""
        if not source.exists():
            return
        with source.open("rb") as stream:
            stream.seek(self._read.get(source, 0))
            fresh = stream.read()
        whole = fresh[: fresh.rfind(b"\n") + 1]
        self._read[source] = self._read.get(source, 0) + len(whole)
        with self._file.open("ab") as stream:
            stream.write(whole)


def log_file(local: cloud.Cloud, run: str, name: str) -> Path:
    """Return the file of a run's log, which is a blob of the artifact store."""
    return blobs.place(
        local, datastores.CONTAINERS["workspaceartifactstore"], f"ExperimentRun/dcid.{run}/{name}"
    )


def component(local: cloud.Cloud, node: dict) -> dict:
    """Return the specification of the component that a pipeline's node names."""
    identifier = str(node.get("componentId") or "")
    if named := re.fullmatch(r"azureml://registries/[^/]+/components/([^/]+)/versions/([^/]+)", identifier):
        return registry.entry(local, "components", *named.groups())["properties"]["componentSpec"]
    if named := re.fullmatch(r"(?:.*/components/|azureml:)?([^/:]+)(?:/versions/|:)([^/]+)", identifier):
        return assets.find(local, "components", *named.groups())["properties"]["componentSpec"]
    raise user_error(f"the node {node.get('name')!r} names no component: {identifier!r}")


def check_pipeline(local: cloud.Cloud, properties: dict) -> None:
    """Refuse a pipeline with nodes that are not played, or inputs that a component does not have."""
    if not properties.get("jobs"):
        raise user_error("the pipeline has no nodes")
    for key, node in properties["jobs"].items():
        spec = component(local, node)
        if spec["name"] != FINE_TUNING and "command" not in spec:
            kind = spec.get("type")
            raise AzureError(
                501, "NotImplemented", f"the node {key!r} of the type {kind} is not part of the stand-in"
            )
        unknown = sorted(set(node.get("inputs") or {}) - set(spec.get("inputs") or {}))
        if unknown:
            raise user_error(f"the component {spec['name']} has no input {', '.join(unknown)}")
        node.setdefault("name", key)


def _in_order(nodes: dict) -> list[str]:
    """Return the nodes' names, each after those that it reads from."""
    ordered: list[str] = []
    needs = {
        key: {found[1] for found in NODE_BINDING.finditer(str(node.get("inputs")))}
        for key, node in nodes.items()
    }
    while len(ordered) < len(nodes):
        ready = [key for key in nodes if key not in ordered and needs[key] <= set(ordered)]
        if not ready:
            raise StepError("UserError", f"the nodes {sorted(set(nodes) - set(ordered))} wait for each other")
        ordered += ready
    return ordered


def _input_values(inputs: dict) -> dict:
    return {key: (given or {}).get("value", (given or {}).get("uri")) for key, given in inputs.items()}


def _bound(text, values: dict):
    """Return the value that `${{parent.inputs.x}}` stands for; any other text as it is."""
    found = BINDING.fullmatch(str(text))
    return values.get(found[2]) if found else text


def _error(code: str, message: str) -> dict:
    return {"code": code, "message": message}
