"""Compute clusters."""

import re

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from local_azureml import identifiers, resource
from local_azureml.context import Context, current
from local_azureml.control_plane import operations, queries, quota, shapes
from local_azureml.errors import AzureError, not_found, not_played, user_error

router = APIRouter()
PATH = f"{identifiers.WORKSPACE_PATH}/computes"
BASE = f"{identifiers.WORKSPACE_ID}/computes"
NAME = re.compile(r"[a-zA-Z](?!.*--)[a-zA-Z0-9-]{0,30}[a-zA-Z0-9]")  # 2 to 32 characters


@router.get(PATH)
def list_all(request: Request) -> JSONResponse:
    """Return the workspace's clusters."""
    context = current(request)
    return queries.answer(request, "computes", BASE, lambda found: _shown(context, found))


def _shown(context: Context, document: dict) -> dict:
    """Return a cluster's document with its nodes as they are counted now."""
    kept = [
        entry
        for entry in context.meter.open_intervals()
        if entry["resource"] == f"cluster {document['name']}"
    ]
    running = sum(entry["nodes"] for entry in kept if not entry["spare"])
    nodes = max(running, sum(entry["nodes"] for entry in kept if entry["spare"]))
    states = dict.fromkeys(("preparing", "unusable", "leaving", "preempted"), 0)
    states |= {"idle": nodes - running, "running": running}
    counts = {f"{state}NodeCount": number for state, number in states.items()}
    counted = {"currentNodeCount": nodes, "targetNodeCount": nodes, "nodeStateCounts": counts}
    return resource.merged(document, {"properties": {"properties": counted}})


@router.get(f"{PATH}/{{name}}")
def show(request: Request, name: str) -> dict:
    """Return one cluster."""
    context = current(request)
    return _shown(context, find(context, name))


def find(context: Context, name: str) -> dict:
    """Return the cluster's document, or refuse with the names that there are."""
    found = context.state.get(f"{BASE}/{name}")
    if found is None:
        raise not_found("compute", name, context.state.names(BASE))
    return found


@router.post(f"{PATH}/{{name}}/listNodes")
def list_nodes(request: Request, name: str) -> dict:
    """Return the nodes that work now; idle ones are billed to their end and not shown."""
    context = current(request)
    resource = f"cluster {find(context, name)['name']}"
    busy = [entry for entry in context.meter.open_intervals() if entry["resource"] == resource]
    count = sum(entry["nodes"] for entry in busy)
    return {"nodes": [{"nodeId": f"tvm_{number}", "nodeState": "running"} for number in range(count)]}


@router.put(f"{PATH}/{{name}}")
@router.patch(f"{PATH}/{{name}}")
def create(request: Request, name: str, body: shapes.Compute) -> JSONResponse:
    """Create or change a cluster; a size that is not here or quota that is short ends it as Failed."""
    context = current(request)
    with context.state.locked():
        before = context.state.get(f"{BASE}/{name}")
        if before is None and request.method == "PATCH":
            find(context, name)
        name = before["name"] if before else name
        if request.method == "PATCH":
            body = resource.merged(before, body)
        document = _document(context, f"{BASE}/{name}", name, body, before)
        context.state.put(document["id"], document)
    context.preload()
    answer = _shown(context, document)
    return operations.start(context, 200 if before else 201, answer, lambda: _provision(context, document))


def _document(context: Context, identifier: str, name: str, body: dict, before: dict | None) -> dict:
    asked = body.get("properties") or {}
    if not NAME.fullmatch(name):
        raise user_error(f"compute name {name!r}: 2 to 32 letters, digits and single dashes, a letter first")
    if asked.get("computeType", "AmlCompute") != "AmlCompute":
        raise not_played(f"computeType {asked['computeType']}")
    properties = asked.get("properties") or {}
    if before:
        properties = {**before["properties"]["properties"], **properties}
    system_data = resource.system_data(before)
    size = quota.size_named(context, properties.get("vmSize") or "")
    scale = {"minNodeCount": 0, "maxNodeCount": 1, "nodeIdleTimeBeforeScaleDown": "PT2M"}
    properties = {
        "osType": "Linux",
        "remoteLoginPortPublicAccess": "NotSpecified",
        "vmPriority": "Dedicated",
        "isolatedNetwork": False,
        "enableNodePublicIp": True,
        **properties,
        "vmSize": size["name"].upper(),  # the real service gives the size back in capitals
        "scaleSettings": {**scale, **(properties.get("scaleSettings") or {})},
        "allocationState": "Steady",
        "allocationStateTransitionTime": system_data["lastModifiedAt"],
        "errors": None,
    }
    if credentials := properties.get("userAccountCredentials"):
        properties["userAccountCredentials"] = {**credentials, "adminUserPassword": None}  # told to nobody
    return {
        **{key: body[key] for key in ("sku",) if key in body},
        "id": identifier,
        "name": name,
        "type": f"{identifiers.PROVIDER}/workspaces/computes",
        "location": body.get("location") or identifiers.LOCATION,
        "tags": body.get("tags") or (before or {}).get("tags") or {},
        "identity": resource.identity(body.get("identity")),
        "systemData": system_data,
        "properties": {
            "computeLocation": body.get("location") or identifiers.LOCATION,
            "description": None,
            "disableLocalAuth": True,
            **asked,
            "computeType": "AmlCompute",
            "createdOn": system_data["createdAt"],
            "modifiedOn": system_data["lastModifiedAt"],
            "provisioningState": "Creating",
            "provisioningErrors": None,
            "isAttachedCompute": False,
            "properties": properties,
        },
    }


def _provision(context: Context, document: dict) -> None:
    inner = document["properties"]["properties"]
    try:
        if "compute-failed" in context.faults:
            raise user_error(
                "the nodes could not be allocated: no capacity in the region", "AllocationFailed"
            )
        size, nodes = quota.size_named(context, inner["vmSize"]), inner["scaleSettings"]["maxNodeCount"]
        minimum, name = inner["scaleSettings"]["minNodeCount"], document["name"]
        resource, tier = f"cluster {name}", tier_of(inner)
        quota.check_quota(context, resource, size, nodes, tier=tier)
        context.meter.stop(f"{name}-minimum")
        if minimum:
            context.meter.start(f"{name}-minimum", resource, size["name"], minimum, tier, spare=True)
        _finish(context, document, "Succeeded", None)
    except AzureError as error:
        _finish(context, document, "Failed", [error.body()])
        raise


def tier_of(cluster: dict) -> str:
    """Return the tier whose quota a cluster's nodes use."""
    return quota.LOW_PRIORITY if cluster["vmPriority"].lower() == "lowpriority" else quota.DEDICATED


def _finish(context: Context, document: dict, state: str, errors: list | None) -> None:
    properties = {**document["properties"], "provisioningState": state, "provisioningErrors": errors}
    context.state.merge(document["id"], properties=properties)


@router.delete(f"{PATH}/{{name}}")
def delete(request: Request, name: str) -> Response:
    """Delete a cluster, whose nodes are no longer billed; one that is not there is no error."""
    context = current(request)
    document = context.state.get(f"{BASE}/{name}")
    if document is None:
        return Response(status_code=204)
    properties = {**document["properties"], "provisioningState": "Deleting"}
    context.state.merge(document["id"], properties=properties)

    def work():
        context.meter.stop(f"{document['name']}-minimum")
        context.state.delete(document["id"])

    return operations.start(context, 202, None, work)
