"""The processes behind the deployments: started, watched until healthy, billed, stopped."""

import math
import secrets
import threading
import time
from contextlib import suppress
from pathlib import Path

from local_azureml import process_environment
from local_azureml.context import Context
from local_azureml.control_plane import addresses, deployments, endpoints, environments, operations, shapes
from local_azureml.engine import processes
from local_azureml.engine.chat_completion import check_installed, checkpoint
from local_azureml.engine.serving.container import Container
from local_azureml.errors import AzureError, user_error

PAUSES = (1, 2, 4, 8, 16)  # seconds before a process that ended starts again; Azure's grow to 5 minutes
STEADY = 60.0  # seconds that a process runs until the pauses begin anew
HASTY = {  # what a deployment runs with so that it really refuses, as the fault scoring-status asks
    408: {"request_timeout": 0.001, "faults": {}},
    429: {"max_concurrent_requests": 0, "faults": {}},
}


def _interval(deployment: dict) -> str:
    return f"deployment-{deployment['id'].replace('/', '-')}"


class Deployments:
    """The processes behind the deployments; each is started again when the emulator is."""

    def __init__(self, context: Context):
        self._context = context
        self._lock = threading.Lock()  # makes a look at a document and what follows for its process one act
        self._stopped = False
        self._containers: dict[str, Container] = {}  # by the id of the deployment
        again = []
        for document in self._documents():
            state = document["properties"]["provisioningState"]
            if state == "Deleting":
                context.state.delete(document["id"])
                continue
            self._bill(document)
            if state != "Failed":
                endpoints.set_properties(context, document, provisioningState="Updating")
                again.append(document)
        for document in again:
            threading.Thread(target=self._recover, args=(document,), daemon=True).start()

    def _documents(self) -> list[dict]:
        there = self._context.state.children(endpoints.BASE)
        return [
            found
            for each in there
            for found in endpoints.deployments_of(self._context, each["name"]).values()
        ]

    def _recover(self, document: dict) -> None:
        with suppress(AzureError):  # the deployment's own state says Failed
            self.begin(document)

    def begin(self, document: dict) -> None:
        """Start the process of a deployment and return when it is healthy; it is billed from now on."""
        try:
            specification = self._specification(document)  # before the lock: it reads what others made
            container = self._launch(document, specification)
            if reason := container.wait_for_health():
                message = f"the container of {endpoints.label(document)} {reason}; its log says why"
                raise user_error(message, "ResourceNotReady")
        except AzureError:
            self._settle(document, "Failed")
            raise
        self._settle(document, "Succeeded")
        threading.Thread(target=self._keep, args=(document["id"], container), daemon=True).start()

    def _keep(self, identifier: str, container: Container) -> None:
        """Start a deployment's process again whenever it ends, until it has ended too often in a row."""
        pauses = iter(PAUSES)
        while True:
            began = time.monotonic()
            reason = container.wait_for_end()
            if time.monotonic() - began > STEADY:
                pauses = iter(PAUSES)
            pause = next(pauses, None)
            with self._lock:
                document = self._context.state.get(identifier)
                if document is None or self._containers.get(identifier) is not container:
                    return  # deleted, replaced or stopped
                then = "it has failed for good" if pause is None else f"it starts again in {pause} s"
                with deployments.log_of(self._context, document).open("a", encoding="utf-8") as log:
                    log.write(f"the container {reason}; {then}\n")
                if pause is None:
                    endpoints.set_properties(self._context, document, provisioningState="Failed")
                    return
            time.sleep(pause)
            try:
                container = self._launch(document, self._specification(document))
            except AzureError:
                with suppress(AzureError):  # replaced or deleted meanwhile
                    self._settle(document, "Failed")
                return
            container.wait_for_health()

    def _launch(self, document: dict, specification: dict) -> Container:
        """Return a new process for a deployment, in place of the one that it has."""
        with self._lock:
            self._check(document)
            self._kill(document["id"])
            self._bill(document)
            container = self._containers[document["id"]] = self._start(document, specification)
        return container

    def _settle(self, document: dict, state: str) -> None:
        with self._lock:
            self._check(document)
            endpoints.set_properties(self._context, document, provisioningState=state)

    def _check(self, document: dict) -> None:
        """Refuse a deployment that was replaced or deleted since, and any once the emulator stops."""
        if self._stopped:
            raise operations.stopped()
        there = self._context.state.get(document["id"])
        if there is None or there["systemData"] != document["systemData"]:
            raise AzureError(
                409, "Conflict", f"{endpoints.label(document)} was replaced or deleted meanwhile"
            )

    def _bill(self, document: dict) -> None:
        size, instances = document["properties"]["instanceType"], document["sku"]["capacity"]
        held = math.ceil(instances * deployments.reserve(size))
        self._context.meter.start(
            _interval(document), f"deployment {endpoints.label(document)}", size, instances, held=held
        )

    def _start(self, document: dict, specification: dict) -> Container:
        log, socket = deployments.log_of(self._context, document), Path(specification["socket"])
        variables = process_environment.of_child(
            self._context, **document["properties"]["environmentVariables"]
        )
        entry = f"local_azureml.engine.serving.{specification['server']}:run"
        process = processes.start(entry, specification, log.parent, log, variables)
        return Container(process, socket, document["properties"]["livenessProbe"])

    def _specification(self, document: dict) -> dict:
        settings = document["properties"]["requestSettings"]
        per_instance = settings["maxConcurrentRequestsPerInstance"]
        specification = {
            **self._asked(document["properties"]),
            "socket": str(self._context.temporary / secrets.token_hex(4)),
            "max_concurrent_requests": per_instance * document["sku"]["capacity"],
            "request_timeout": shapes.seconds(settings["requestTimeout"]),
            "faults": self._context.faults.active(),
        }
        model = Path(specification["model"] or "")
        any_model = (model / "MLmodel").is_file() and not checkpoint.is_chat_model(model)
        specification["server"] = "script" if specification["script"] or any_model else "chat"
        if specification["server"] == "chat":
            check_installed()
        return specification | HASTY.get(self._context.faults.value("scoring-status"), {})

    def _asked(self, properties: dict) -> dict:
        """Return what a deployment's process needs of its model, its scoring script and its environment."""
        model, configuration = properties.get("model"), properties.get("codeConfiguration") or {}
        identifier, code = properties.get("environmentId"), configuration.get("codeId")
        is_made = identifier and configuration and not self._context.one_python
        return {
            "model": str(addresses.resolve(self._context, model)) if model else None,
            "script": configuration.get("scoringScript"),
            "code": str(addresses.resolve(self._context, code)) if code else None,
            "web": addresses.to_fetch(self._context, *filter(None, (model, code))),
            "environment": environments.check(self._context, identifier) if is_made else None,
            "environments": str(self._context.folder / "environments"),
            "one_python": self._context.one_python,
            "variables": properties["environmentVariables"],
        }

    def socket(self, document: dict) -> Path | None:
        """Return the socket of a deployment's process, or None where it does not run."""
        container = self._containers.get(document["id"])
        return container.socket if container and container.process.alive else None

    def _kill(self, identifier: str) -> None:
        if container := self._containers.pop(identifier, None):
            container.process.kill()
            container.process.wait()

    def end(self, document: dict) -> None:
        """Stop a deployment's process and its meter."""
        with self._lock:
            self._kill(document["id"])
            self._context.meter.stop(_interval(document))

    def stop(self) -> None:
        """Stop all processes and meters; the deployments stay, to be started when the emulator is again."""
        with self._lock:
            self._stopped = True
            for identifier in list(self._containers):
                self._kill(identifier)
            for document in self._documents():
                self._context.meter.stop(_interval(document))

    def running(self) -> list[str]:
        """Return a line for each endpoint that is there, with its deployments."""
        names = [endpoint["name"] for endpoint in self._context.state.children(endpoints.BASE)]
        deployed = {
            name: ", ".join(endpoints.deployments_of(self._context, name)) or "no deployment"
            for name in names
        }
        return [f"endpoint {name} ({deployed[name]})" for name in names]
