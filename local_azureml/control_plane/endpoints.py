"""Online endpoints and their deployments: names, keys, traffic, and the process behind each deployment."""

import math
import re
import secrets
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import httpx
from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response

from local_azureml import cloud
from local_azureml.control_plane import assets, computes, operations, shapes
from local_azureml.engine import processes
from local_azureml.errors import AzureError, not_found, user_error

router = APIRouter()
PATH = f"{cloud.WORKSPACE_PATH}/onlineEndpoints"
BASE = f"{cloud.WORKSPACE_ID}/onlineEndpoints"
NAME = re.compile(r"[a-zA-Z](?!.*--)[a-zA-Z0-9-]{1,30}[a-zA-Z0-9]")  # 3 to 32 characters
AUTH_MODES = ("key", "amltoken", "aadtoken")
LONGEST_TIMEOUT = 180.0  # seconds
RESERVE = 1.2  # Azure keeps a fifth more machines than asked, for upgrades of the deployment
LARGE = re.compile("a100|h100|nd40rs", re.IGNORECASE)  # sizes of which it keeps none
LIMITS = {"endpoints": 100, "deployments": 20}  # of a subscription and region; of an endpoint
HASTY = {  # what a deployment runs with so that it really refuses, as the fault scoring-status asks
    408: {"request_timeout": 0.001, "faults": {}},
    429: {"max_concurrent_requests": 0, "faults": {}},
}
PROBE = {
    "initialDelay": "PT10S",
    "period": "PT10S",
    "timeout": "PT2S",
    "successThreshold": 1,
    "failureThreshold": 30,
}


def _check_name(kind: str, name: str) -> None:
    if not NAME.fullmatch(name):
        raise user_error(
            f"the {kind} name {name!r} is not allowed: 3 to 32 characters, a letter first, "
            "then letters, digits and single dashes",
            "InvalidName",
        )


def find(local: cloud.Cloud, endpoint: str, deployment: str = "") -> dict:
    """Return the document of an endpoint or of one of its deployments, or refuse with what there is."""
    found = local.state.get(f"{BASE}/{endpoint}")
    if found is None:
        raise not_found("online endpoint", endpoint, [e["name"] for e in local.state.children(BASE)])
    if not deployment:
        return found
    here = local.state.get(f"{found['id']}/deployments/{deployment}")
    if here is None:
        raise not_found(f"deployment of {found['name']!r}", deployment, list(deployments_of(local, endpoint)))
    return here


def deployments_of(local: cloud.Cloud, endpoint: str) -> dict[str, dict]:
    """Return an endpoint's deployments by name."""
    return {found["name"]: found for found in local.state.children(f"{BASE}/{endpoint}/deployments")}


def label(deployment: dict) -> str:
    """Return a deployment's name behind that of its endpoint: "endpoint/deployment"."""
    return f"{deployment['id'].split('/')[-3]}/{deployment['name']}"


def _set(local: cloud.Cloud, document: dict, **changes) -> None:
    """Write changed properties over a document that is still there."""
    with local.state.locked():
        if found := local.state.get(document["id"]):
            local.state.merge(document["id"], properties={**found["properties"], **changes})


@router.get(PATH)
def list_all(request: Request, identifier: str = Depends(cloud.workspace_id)) -> dict:
    """Return the endpoints."""
    local = cloud.current(request)
    return {"value": [_shown(found) for found in [*local.state.children(BASE), *_of_others(local)]]}


def _of_others(local: cloud.Cloud) -> list[dict]:
    """Return the endpoint that the fault endpoint-taken lets somebody else have."""
    name = local.faults.value("endpoint-taken")
    return [_endpoint(local, name, {}, {"keys": {}})] if name else []


@router.get(f"{PATH}/{{endpoint}}")
def show(request: Request, endpoint: str, identifier: str = Depends(cloud.workspace_id)) -> dict:
    """Return one endpoint."""
    return _shown(find(cloud.current(request), endpoint))


def _shown(document: dict) -> dict:
    return {key: value for key, value in document.items() if key != "keys"}


@router.put(f"{PATH}/{{endpoint}}")
def create(
    request: Request, endpoint: str, body: shapes.Endpoint, identifier: str = Depends(cloud.workspace_id)
) -> JSONResponse:
    """Create an endpoint, or change its traffic, tags and description."""
    local = cloud.current(request)
    with local.state.locked():
        before = local.state.get(f"{BASE}/{endpoint}")
        document = _endpoint(local, before["name"] if before else endpoint, body, before)
        local.state.put(document["id"], document)
    return operations.start(
        local,
        200 if before else 201,
        _shown(document),
        lambda: _set(local, document, provisioningState="Succeeded"),
    )


def _endpoint(local: cloud.Cloud, name: str, body: dict, before: dict | None) -> dict:
    asked = body.get("properties") or {}
    stored = {known.lower(): known for known in deployments_of(local, name)}
    given = (asked.get("traffic") or {}).items()  # the SDK writes the names in small letters
    traffic = {stored.get(key.lower(), key): share for key, share in given}
    auth_mode = asked.get("authMode") or "Key"
    _check_auth_mode(auth_mode)
    if before is None:
        _check_new_endpoint(local, name, traffic)
    _check_traffic(local, name, traffic)
    keys = {"primaryKey": secrets.token_urlsafe(32), "secondaryKey": secrets.token_urlsafe(32)}
    return {
        "id": f"{BASE}/{name}",
        "name": name,
        "type": f"{cloud.PROVIDER}/workspaces/onlineEndpoints",
        "location": body.get("location") or cloud.LOCATION,
        "tags": body.get("tags") or {},
        "kind": "Managed",
        "identity": body.get("identity") or {"type": "SystemAssigned"},
        "systemData": cloud.system_data((before or {}).get("systemData", {}).get("createdAt")),
        "properties": {
            "description": asked.get("description"),
            "properties": asked.get("properties") or {},
            "authMode": auth_mode,
            "traffic": traffic,
            "mirrorTraffic": asked.get("mirrorTraffic") or {},
            "publicNetworkAccess": asked.get("publicNetworkAccess") or "Enabled",
            "compute": None,
            "scoringUri": f"{local.origin}/endpoints/{name}/score",
            "swaggerUri": f"{local.origin}/endpoints/{name}/swagger.json",
            "provisioningState": "Updating" if before else "Creating",
        },
        "keys": before["keys"] if before else keys,
    }


def _check_new_endpoint(local: cloud.Cloud, name: str, traffic: dict) -> None:
    _check_name("endpoint", name)
    if local.faults.value("endpoint-taken") in ("", name):
        raise user_error(
            f"the endpoint name {name!r} is taken in {cloud.LOCATION}: choose another", "NameConflict"
        )
    if traffic:
        raise user_error("traffic cannot be set when an endpoint is created: it has no deployments yet")
    if len(local.state.children(BASE)) >= LIMITS["endpoints"]:
        raise user_error(
            f"the region has {LIMITS['endpoints']} endpoints already: delete one", "QuotaExceeded"
        )


def _check_auth_mode(mode: str) -> None:
    if mode.lower() not in AUTH_MODES:
        raise user_error(f"auth mode {mode!r} is not one of Key, AMLToken, AADToken")
    if mode.lower() != "key":
        raise AzureError(501, "NotImplemented", f"auth mode {mode} is not part of the stand-in; Key is")


def _check_traffic(local: cloud.Cloud, endpoint: str, traffic: dict[str, int]) -> None:
    known = deployments_of(local, endpoint)
    if unknown := sorted(set(traffic) - set(known)):
        raise user_error(
            f"traffic names {', '.join(unknown)}; the deployments are: {', '.join(known) or 'none'}"
        )
    if sum(traffic.values()) not in (0, 100) or min(traffic.values(), default=0) < 0:
        raise user_error(f"traffic must sum to 0 or 100; it sums to {sum(traffic.values())}")


@router.delete(f"{PATH}/{{endpoint}}")
def delete(request: Request, endpoint: str, identifier: str = Depends(cloud.workspace_id)) -> Response:
    """Delete an endpoint with its deployments; one that is not there is no error."""
    local, running = cloud.current(request), request.app.state.deployments
    document = local.state.get(f"{BASE}/{endpoint}")
    if document is None:
        return Response(status_code=204)
    if 0 < local.faults.count("delete-failed") <= local.faults.value("delete-failed"):
        raise AzureError(409, "Conflict", f"the endpoint {endpoint!r} is busy: try again")
    _set(local, document, provisioningState="Deleting")

    def work():
        with local.state.locked():
            deployments = deployments_of(local, endpoint)
            local.state.delete(document["id"])  # first, so that none is started after its end
        for deployment in deployments.values():
            running.end(deployment)

    return operations.start(local, 202, None, work)


@router.post(f"{PATH}/{{endpoint}}/listKeys")
def list_keys(request: Request, endpoint: str, identifier: str = Depends(cloud.workspace_id)) -> dict:
    """Return the two keys of an endpoint with key authentication."""
    local = cloud.current(request)
    document = find(local, endpoint)
    if local.faults.value("scoring-status") == 401:  # somebody regenerates the keys at this very moment
        return {name: secrets.token_urlsafe(32) for name in document["keys"]}
    return document["keys"]


@router.post(f"{PATH}/{{endpoint}}/regenerateKeys")
def regenerate_keys(
    request: Request, endpoint: str, body: shapes.NewKey, identifier: str = Depends(cloud.workspace_id)
) -> JSONResponse:
    """Replace one key of an endpoint by a new or a given one."""
    local = cloud.current(request)
    document = find(local, endpoint)
    which = f"{body.get('keyType', '').lower()}Key"
    if which not in document["keys"]:
        raise user_error(f"keyType {body.get('keyType')!r} is not Primary or Secondary")
    given = body.get("keyValue")
    if not given or given == document["keys"][which]:  # the SDK sends the key that is to be replaced
        given = secrets.token_urlsafe(32)

    def work():
        with local.state.locked():
            if found := local.state.get(document["id"]):
                local.state.merge(document["id"], keys={**found["keys"], which: given})

    return operations.start(local, 202, None, work)


@router.get(f"{PATH}/{{endpoint}}/deployments")
def list_deployments(request: Request, endpoint: str, identifier: str = Depends(cloud.workspace_id)) -> dict:
    """Return an endpoint's deployments."""
    local = cloud.current(request)
    find(local, endpoint)
    return {"value": list(deployments_of(local, endpoint).values())}


@router.get(f"{PATH}/{{endpoint}}/deployments/{{deployment}}")
def show_deployment(
    request: Request, endpoint: str, deployment: str, identifier: str = Depends(cloud.workspace_id)
) -> dict:
    """Return one deployment."""
    return find(cloud.current(request), endpoint, deployment)


@router.put(f"{PATH}/{{endpoint}}/deployments/{{deployment}}")
def deploy(
    request: Request,
    endpoint: str,
    deployment: str,
    body: shapes.Deployment,
    identifier: str = Depends(cloud.workspace_id),
) -> JSONResponse:
    """Start a deployment, or replace the one with that name."""
    local, running = cloud.current(request), request.app.state.deployments
    with local.state.locked():
        parent = find(local, endpoint)["name"]
        before = local.state.get(f"{BASE}/{parent}/deployments/{deployment}")
        document = _deployment(local, parent, before["name"] if before else deployment, body, before)
        local.state.put(document["id"], document)
    return operations.start(local, 200 if before else 201, document, lambda: running.begin(document))


def _reserve(size: str) -> float:
    return 1.0 if LARGE.search(size) else RESERVE


def _deployment(local: cloud.Cloud, endpoint: str, name: str, body: dict, before: dict | None) -> dict:
    _check_name("deployment", name)
    asked = {key: value for key, value in (body.get("properties") or {}).items() if value is not None}
    if before is None and len(deployments_of(local, endpoint)) >= LIMITS["deployments"]:
        raise user_error(
            f"the endpoint {endpoint!r} has {LIMITS['deployments']} deployments already: delete one"
        )
    if asked.get("codeConfiguration"):
        raise AzureError(501, "NotImplemented", "a scoring script of one's own is not part of the stand-in")
    size = computes.size_named(local, asked.get("instanceType") or "")
    instances = int((body.get("sku") or {}).get("capacity") or 1)
    computes.check_quota(local, f"deployment {endpoint}/{name}", size, instances, _reserve(size["name"]))
    settings = {"requestTimeout": "PT5S", "maxConcurrentRequestsPerInstance": 1, "maxQueueWait": "PT0.5S"}
    settings |= {
        key: value for key, value in (asked.get("requestSettings") or {}).items() if value is not None
    }
    if computes.seconds(settings["requestTimeout"]) > LONGEST_TIMEOUT:
        raise user_error(f"the request timeout is at most {LONGEST_TIMEOUT * 1000:.0f} ms")
    assets.resolve(local, asked.get("model") or "")
    return {
        "id": f"{BASE}/{endpoint}/deployments/{name}",
        "name": name,
        "type": f"{cloud.PROVIDER}/workspaces/onlineEndpoints/deployments",
        "location": body.get("location") or cloud.LOCATION,
        "tags": body.get("tags") or {},
        "kind": "Managed",
        "identity": body.get("identity"),
        "sku": {"name": "Default", **(body.get("sku") or {}), "capacity": instances},
        "systemData": cloud.system_data((before or {}).get("systemData", {}).get("createdAt")),
        "properties": {
            "scaleSettings": {"scaleType": "Default"},
            "appInsightsEnabled": False,
            "environmentVariables": {},
            "properties": {},
            **asked,
            "endpointComputeType": "Managed",
            "instanceType": size["name"],
            "requestSettings": settings,
            "livenessProbe": {**PROBE, **(asked.get("livenessProbe") or {})},
            "readinessProbe": {**PROBE, **(asked.get("readinessProbe") or {})},
            "provisioningState": "Updating" if before else "Creating",
        },
    }


@router.delete(f"{PATH}/{{endpoint}}/deployments/{{deployment}}")
def delete_deployment(
    request: Request, endpoint: str, deployment: str, identifier: str = Depends(cloud.workspace_id)
) -> Response:
    """Delete a deployment that gets no traffic; one that is not there is no error."""
    local, running = cloud.current(request), request.app.state.deployments
    document = local.state.get(f"{BASE}/{endpoint}/deployments/{deployment}")
    if document is None:
        return Response(status_code=204)
    if share := find(local, endpoint)["properties"]["traffic"].get(document["name"]):
        raise user_error(
            f"the deployment {document['name']!r} gets {share} % of the traffic: set it to 0 first"
        )
    _set(local, document, provisioningState="Deleting")

    def work():
        local.state.delete(document["id"])  # first, so that it is not started after its end
        running.end(document)

    return operations.start(local, 202, None, work)


@router.post(f"{PATH}/{{endpoint}}/deployments/{{deployment}}/getLogs")
def logs(
    request: Request,
    endpoint: str,
    deployment: str,
    body: shapes.LogRequest,
    identifier: str = Depends(cloud.workspace_id),
) -> dict:
    """Return the last lines of a deployment's log."""
    local = cloud.current(request)
    document = find(local, endpoint, deployment)
    lines = _log(local, document).read_text(errors="replace").splitlines()
    return {"content": "\n".join(lines[-int(body.get("tail") or 100) :])}


def _log(local: cloud.Cloud, document: dict) -> Path:
    file = local.folder / "deployments" / label(document).lower() / "log.txt"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    return file


class Container(NamedTuple):
    """What serves a deployment: a process, and the port it listens at."""

    process: processes.Process
    port: int


def _interval(deployment: dict) -> str:
    return f"deployment-{deployment['id'].replace('/', '-')}"


class Deployments:
    """The processes behind the deployments; each is started again when the stand-in is."""

    def __init__(self, local: cloud.Cloud):
        self._local = local
        self._lock = threading.Lock()  # makes a look at a document and what follows for its process one act
        self._stopped = False
        self._containers: dict[str, Container] = {}  # by the id of the deployment
        again = []
        for document in self._documents():
            state = document["properties"]["provisioningState"]
            if state == "Deleting":
                local.state.delete(document["id"])
                continue
            self._bill(document)
            if state != "Failed":
                _set(local, document, provisioningState="Updating")
                again.append(document)
        threading.Thread(target=self._recover, args=(again,), daemon=True).start()

    def _documents(self) -> list[dict]:
        endpoints = self._local.state.children(BASE)
        return [found for each in endpoints for found in deployments_of(self._local, each["name"]).values()]

    def _recover(self, documents: list[dict]) -> None:
        for document in documents:
            with suppress(AzureError):  # the deployment's own state says Failed
                self.begin(document)

    def begin(self, document: dict) -> None:
        """Start the process of a deployment and return when it is healthy; it is billed from now on."""
        try:
            _wait_for_health(self._launch(document), document)
        except AzureError:
            self._settle(document, "Failed")
            raise
        self._settle(document, "Succeeded")

    def _launch(self, document: dict) -> Container:
        """Return a new process for a deployment, in place of the one that it has."""
        with self._lock:
            self._check(document)
            self._kill(document["id"])
            self._bill(document)
            container = self._containers[document["id"]] = self._start(document)
        return container

    def _settle(self, document: dict, state: str) -> None:
        with self._lock:
            self._check(document)
            _set(self._local, document, provisioningState=state)

    def _check(self, document: dict) -> None:
        """Refuse a deployment that was replaced or deleted since, and any once the stand-in stops."""
        if self._stopped:
            raise operations.stopped()
        there = self._local.state.get(document["id"])
        if there is None or there["systemData"] != document["systemData"]:
            raise AzureError(409, "Conflict", f"{label(document)} was replaced or deleted meanwhile")

    def _bill(self, document: dict) -> None:
        size, instances = document["properties"]["instanceType"], document["sku"]["capacity"]
        held = math.ceil(instances * _reserve(size))
        self._local.meter.start(
            _interval(document), f"deployment {label(document)}", size, instances, held=held
        )

    def _start(self, document: dict) -> Container:
        settings = document["properties"]["requestSettings"]
        per_instance = settings["maxConcurrentRequestsPerInstance"]
        log = _log(self._local, document)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        specification = {
            "model": str(assets.resolve(self._local, document["properties"]["model"])),
            "port": port,
            "max_concurrent_requests": per_instance * document["sku"]["capacity"],
            "request_timeout": computes.seconds(settings["requestTimeout"]),
            "shape": self._local.faults.value("answer-shape") or "mlflow",
            "faults": self._local.faults.active(),
        }
        specification |= HASTY.get(self._local.faults.value("scoring-status"), {})
        variables = document["properties"]["environmentVariables"]
        entry = "local_azureml.engine.serving:run"
        return Container(processes.start(entry, specification, log.parent, log, variables), port)

    def port(self, document: dict) -> int | None:
        """Return the port of a deployment's process, or None where it does not run."""
        container = self._containers.get(document["id"])
        return container.port if container and container.process.alive else None

    def _kill(self, identifier: str) -> None:
        if container := self._containers.pop(identifier, None):
            container.process.kill()
            container.process.wait()

    def end(self, document: dict) -> None:
        """Stop a deployment's process and its meter."""
        with self._lock:
            self._kill(document["id"])
            self._local.meter.stop(_interval(document))

    def stop(self) -> None:
        """Stop all processes and meters; the deployments stay, to be started when the stand-in is again."""
        with self._lock:
            self._stopped = True
            for identifier in list(self._containers):
                self._kill(identifier)
            for document in self._documents():
                self._local.meter.stop(_interval(document))

    def running(self) -> list[str]:
        """Return a line for each endpoint that is there, with its deployments."""
        names = [endpoint["name"] for endpoint in self._local.state.children(BASE)]
        deployed = {name: ", ".join(deployments_of(self._local, name)) or "no deployment" for name in names}
        return [f"endpoint {name} ({deployed[name]})" for name in names]


def _wait_for_health(container: Container, document: dict) -> None:
    """Return when the process answers its probe; refuse when it ends or the probe's patience does."""
    process, probe = container.process, document["properties"]["livenessProbe"]
    allowed = computes.seconds(probe["initialDelay"]) + probe["failureThreshold"] * computes.seconds(
        probe["period"]
    )
    until = time.time() + max(allowed, 60.0)
    while time.time() < until and process.wait(0.1) is None:
        try:
            address = f"http://127.0.0.1:{container.port}/"
            if httpx.get(address, timeout=2, trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            continue  # not up yet
    reason = "ended" if not process.alive else "did not answer its probe"
    process.kill()
    raise user_error(f"the container of {label(document)} {reason}; its log says why", "ResourceNotReady")
