"""Deployments of online endpoints: what they ask for, and their logs."""

import posixpath
import re
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from local_azureml import identifiers, resource
from local_azureml.context import Context, current
from local_azureml.control_plane import addresses, endpoints, environments, operations, queries, quota, shapes
from local_azureml.errors import not_played, user_error
from local_azureml.paths import OutsideError, inside

router = APIRouter()
PATH = f"{endpoints.PATH}/{{endpoint}}/deployments"
LONGEST_TIMEOUT = 180.0  # seconds
RESERVE = 1.2  # Azure keeps a fifth more machines than asked, for upgrades of the deployment
LARGE = re.compile("a100|h100|nd40rs", re.IGNORECASE)  # sizes of which it keeps none
LIMIT = 20  # of an endpoint
SIZE = "Standard_F4s_v2"  # what Azure takes where none is named
PROBE = {
    "initialDelay": "PT10S",
    "period": "PT10S",
    "timeout": "PT2S",
    "successThreshold": 1,
    "failureThreshold": 30,
}


@router.get(PATH)
def list_all(request: Request, endpoint: str) -> JSONResponse:
    """Return an endpoint's deployments."""
    parent = endpoints.find(current(request), endpoint)
    return queries.answer(request, "deployments", f"{parent['id']}/deployments")


@router.get(f"{PATH}/{{deployment}}")
def show(request: Request, endpoint: str, deployment: str) -> dict:
    """Return one deployment."""
    return endpoints.find(current(request), endpoint, deployment)


@router.put(f"{PATH}/{{deployment}}")
def create(request: Request, endpoint: str, deployment: str, body: shapes.Deployment) -> JSONResponse:
    """Start a deployment, or replace the one with that name."""
    context = current(request)
    endpoints.find(context, endpoint)
    asked = _asked(context, body)  # before the lock: it reads what others made
    with context.state.locked():
        parent = endpoints.find(context, endpoint)["name"]
        before = context.state.get(f"{endpoints.BASE}/{parent}/deployments/{deployment}")
        name = before["name"] if before else deployment
        document = _deployment(context, parent, name, body, asked, before)
        context.state.put(document["id"], document)
    return operations.start(
        context, 200 if before else 201, document, lambda: context.deployments.begin(document)
    )


def reserve(size: str) -> float:
    """Return how many machines Azure keeps for each one asked."""
    return 1.0 if LARGE.search(size) else RESERVE


def _is_there(code: Path, script: str) -> bool:
    """Return whether a scoring script lies in the code that it is said to be in."""
    try:
        return inside(code, posixpath.normpath(script)).is_file()
    except OutsideError:
        return False


def _check_server(context: Context, asked: dict) -> None:
    """Refuse by name what Azure serves by another server than MLflow's or the one of scoring scripts."""
    if (compute := asked.get("endpointComputeType", "Managed")) != "Managed":
        raise not_played(f"the endpointComputeType {compute} of a deployment")
    if asked.get("codeConfiguration"):
        return
    if asked.get("environmentId"):
        raise not_played("a deployment of a custom container: of an environment without a scoring script,")
    kind = addresses.model_type(context, asked.get("model") or "")
    if kind == "triton_model":
        raise not_played("a deployment of a model of the type triton_model")
    if kind == "custom_model":
        raise user_error("a model of the type custom_model needs a scoring script and an environment")


def _asked(context: Context, body: dict) -> dict:
    """Return the properties that a deployment asks for, whose model, code and environment are there."""
    asked = {key: value for key, value in (body.get("properties") or {}).items() if value is not None}
    code = asked.get("codeConfiguration") or {}
    script = code.get("scoringScript")
    if code and not (script and code.get("codeId") and asked.get("environmentId")):
        raise user_error("a deployment with code names its code, the scoring script in it and an environment")
    if script and not _is_there(addresses.resolve(context, code["codeId"]), script):
        raise user_error(f"there is no scoring script {script!r} in the code of the deployment")
    if asked.get("environmentId"):
        environments.check(context, asked["environmentId"])
    _check_server(context, asked)
    if asked.get("model") or not script:
        addresses.resolve(context, asked.get("model") or "")
    return asked


def _deployment(
    context: Context, endpoint: str, name: str, body: dict, asked: dict, before: dict | None
) -> dict:
    endpoints.check_name("deployment", name)
    if before is None and len(endpoints.deployments_of(context, endpoint)) >= LIMIT:
        raise user_error(f"the endpoint {endpoint!r} has {LIMIT} deployments already: delete one")
    size = quota.size_named(context, asked.get("instanceType") or SIZE)
    instances = int((body.get("sku") or {}).get("capacity") or 1)
    quota.check_quota(context, f"deployment {endpoint}/{name}", size, instances, reserve(size["name"]))
    settings = {"requestTimeout": "PT5S", "maxConcurrentRequestsPerInstance": 1, "maxQueueWait": "PT0.5S"}
    settings |= {
        key: value for key, value in (asked.get("requestSettings") or {}).items() if value is not None
    }
    if shapes.seconds(settings["requestTimeout"]) > LONGEST_TIMEOUT:
        raise user_error(f"the request timeout is at most {LONGEST_TIMEOUT * 1000:.0f} ms")
    return {
        "id": f"{endpoints.BASE}/{endpoint}/deployments/{name}",
        "name": name,
        "type": f"{identifiers.PROVIDER}/workspaces/onlineEndpoints/deployments",
        "location": body.get("location") or identifiers.LOCATION,
        "tags": body.get("tags") or {},
        "kind": body.get("kind") or "Managed",
        "identity": resource.identity(body.get("identity")),
        "sku": {"name": "Default", **(body.get("sku") or {}), "capacity": instances},
        "systemData": resource.system_data(before),
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


@router.delete(f"{PATH}/{{deployment}}")
def delete(request: Request, endpoint: str, deployment: str) -> Response:
    """Delete a deployment that gets no traffic; one that is not there is no error."""
    context = current(request)
    document = context.state.get(f"{endpoints.BASE}/{endpoint}/deployments/{deployment}")
    if document is None:
        return Response(status_code=204)
    if share := endpoints.find(context, endpoint)["properties"]["traffic"].get(document["name"]):
        raise user_error(
            f"the deployment {document['name']!r} gets {share} % of the traffic: set it to 0 first"
        )
    endpoints.set_properties(context, document, provisioningState="Deleting")

    def work():
        context.state.delete(document["id"])  # first, so that it is not started after its end
        context.deployments.end(document)

    return operations.start(context, 202, None, work)


@router.post(f"{PATH}/{{deployment}}/getLogs")
def logs(request: Request, endpoint: str, deployment: str, body: shapes.LogRequest) -> dict:
    """Return the last lines of a deployment's log."""
    context = current(request)
    document = endpoints.find(context, endpoint, deployment)
    lines = log_of(context, document).read_text(encoding="utf-8", errors="replace").splitlines()
    return {"content": "\n".join(lines[-int(body.get("tail") or 100) :])}


def log_of(context: Context, document: dict) -> Path:
    """Return the file of a deployment's log."""
    file = context.folder / "deployments" / endpoints.label(document).lower() / "log.txt"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    return file
