"""Compute clusters, the sizes that the region has, and the quota for them."""

import json
import math
import re
import secrets
from functools import cache

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response

from local_azureml import cloud
from local_azureml.control_plane import operations, shapes
from local_azureml.errors import AzureError, not_found, user_error

router = APIRouter()
PATH = f"{cloud.WORKSPACE_PATH}/computes"
LOCATION_PATH = f"/subscriptions/{{subscription}}/providers/{cloud.PROVIDER}/locations/{{location}}"
NAME = re.compile(r"[a-zA-Z](?!.*--)[a-zA-Z0-9-]{0,30}[a-zA-Z0-9]")  # 2 to 32 characters
DEDICATED, LOW_PRIORITY = "dedicated", "lowPriority"
TOTALS = {DEDICATED: "TotalDedicatedCores", LOW_PRIORITY: "TotalLowPriorityCores"}  # of the region, by tier
FAMILY_LIMIT, REGION_LIMIT = 200, 400  # cores


@cache
def _sizes() -> list[dict]:
    return json.loads((cloud.SEEDS / "sizes.json").read_text())


def sizes(local: cloud.Cloud) -> list[dict]:
    """Return the machine sizes of the region: name, family, cores, GPUs, memory in GB."""
    if "size-missing" not in local.faults:
        return _sizes()
    missing = local.faults.value("size-missing").lower()
    return [size for size in _sizes() if (size["name"].lower() != missing if missing else not size["gpus"])]


def size_named(local: cloud.Cloud, name: str) -> dict:
    """Return the size with that name, in any capitals, or refuse."""
    for size in sizes(local):
        if size["name"].lower() == name.lower():
            return size
    known = ", ".join(size["name"] for size in sizes(local))
    raise user_error(
        f"the size {name!r} is not available in {cloud.LOCATION}; there is: {known}", "InvalidVmSize"
    )


@router.get(f"{LOCATION_PATH}/vmSizes")
def list_sizes(request: Request) -> dict:
    """Return the sizes."""
    local = cloud.current(request)
    _check_role(local)
    return {"value": sizes(local)}


@router.get(f"{LOCATION_PATH}/usages")
def list_usages(request: Request, subscription: str, location: str) -> dict:
    """Return the cores in use and their limit, of each family and of the region, dedicated and low priority.

    The two rows of a family carry one name, as on Azure: only `type` tells them apart. -1 is no limit.
    """
    local = cloud.current(request)
    _check_role(local)
    base = LOCATION_PATH.format(subscription=subscription, location=location)
    families = sorted({size["family"] for size in _sizes()})
    return {
        "value": [
            {
                "id": f"{base}/usages/{name}",
                "type": f"{cloud.PROVIDER}/{'' if name == TOTALS[tier] else 'vmFamily/'}{tier}Cores/usages",
                "unit": "Count",
                "currentValue": cores_used(local, tier, name),
                "limit": core_limit(local, tier, name),
                "name": {"value": name, "localizedValue": _localized(name)},
            }
            for tier in TOTALS
            for name in [TOTALS[tier], *families]
        ]
    }


def _check_role(local: cloud.Cloud) -> None:
    if "quota-forbidden" in local.faults:
        raise AzureError(
            403, "AuthorizationFailed", "a role on the workspace does not reach the subscription's locations"
        )


def _localized(name: str) -> str:
    """Return the name of a family or of a region's total as Azure spells it in its list of quotas."""
    if name in TOTALS.values():
        return f"Total Cluster {name[len('Total') : -len('Cores')]} Regional vCPUs"
    name = name.replace(" ", "").removesuffix("Family")[len("standard") :]
    return f"Standard {name} Family Cluster Dedicated vCPUs"


def core_limit(local: cloud.Cloud, tier: str, name: str) -> int:
    """Return how many cores of a family, or of the region, the subscription may use; -1 for any number."""
    has_gpus = any(size["gpus"] for size in _sizes() if size["family"] == name)
    if tier == LOW_PRIORITY and name != TOTALS[tier]:
        return -1
    if "quota-short" in local.faults and (has_gpus or tier == LOW_PRIORITY):
        return 0
    return REGION_LIMIT if name == TOTALS[tier] else FAMILY_LIMIT


def cores_used(local: cloud.Cloud, tier: str, name: str, but: str = "") -> int:
    """Return how many cores of a family, or of the region, are kept for all resources `but` that one."""
    cores = {
        size["name"].lower(): size["vCPUs"] for size in _sizes() if name in (size["family"], TOTALS[tier])
    }
    return sum(
        entry["held"] * cores.get(entry["size"].lower(), 0)
        for entry in local.meter.open_intervals()
        if entry["tier"] == tier and entry["resource"] != but
    )


def check_quota(
    local: cloud.Cloud, resource: str, size: dict, nodes: int, reserve: float = 1.0, tier: str = DEDICATED
) -> None:
    """Refuse a resource more cores of its family or region than others leave; `reserve` multiplies nodes."""
    needed = size["vCPUs"] * math.ceil(nodes * reserve)
    for name in (size["family"], TOTALS[tier]):
        used, limit = cores_used(local, tier, name, resource), core_limit(local, tier, name)
        if 0 <= limit < used + needed:
            raise user_error(
                f"{nodes} x {size['name']} needs {needed} cores of {name}; "
                f"{limit - used} of {limit} are left: ask for more quota, or take a smaller size",
                "QuotaExceeded",
            )


@router.get(PATH)
def list_all(request: Request, identifier: str = Depends(cloud.workspace_id)) -> dict:
    """Return the workspace's clusters."""
    return {"value": cloud.current(request).state.children(f"{identifier}/computes")}


@router.get(f"{PATH}/{{name}}")
def show(request: Request, name: str, identifier: str = Depends(cloud.workspace_id)) -> dict:
    """Return one cluster."""
    return find(cloud.current(request), name)


def find(local: cloud.Cloud, name: str) -> dict:
    """Return the cluster's document, or refuse with the names that there are."""
    found = local.state.get(f"{cloud.WORKSPACE_ID}/computes/{name}")
    if found is None:
        raise not_found(
            "compute", name, [c["name"] for c in local.state.children(f"{cloud.WORKSPACE_ID}/computes")]
        )
    return found


@router.post(f"{PATH}/{{name}}/listNodes")
def list_nodes(request: Request, name: str, identifier: str = Depends(cloud.workspace_id)) -> dict:
    """Return the nodes that work now; idle ones are billed to their end and not shown."""
    local = cloud.current(request)
    resource = f"cluster {find(local, name)['name']}"
    busy = [entry for entry in local.meter.open_intervals() if entry["resource"] == resource]
    count = sum(entry["nodes"] for entry in busy)
    return {"nodes": [{"nodeId": f"tvm_{number}", "nodeState": "running"} for number in range(count)]}


@router.put(f"{PATH}/{{name}}")
@router.patch(f"{PATH}/{{name}}")
def create(
    request: Request, name: str, body: shapes.Compute, identifier: str = Depends(cloud.workspace_id)
) -> JSONResponse:
    """Create or change a cluster; a size that is not here or quota that is short ends it as Failed."""
    local = cloud.current(request)
    before = local.state.get(f"{identifier}/computes/{name}")
    if before is None and request.method == "PATCH":
        find(local, name)
    name = before["name"] if before else name
    document = _document(local, f"{identifier}/computes/{name}", name, body, before)
    local.state.put(document["id"], document)
    return operations.start(local, 200 if before else 201, document, lambda: _provision(local, document))


def _document(local: cloud.Cloud, identifier: str, name: str, body: dict, before: dict | None) -> dict:
    asked = body.get("properties") or {}
    if not NAME.fullmatch(name):
        raise user_error(f"compute name {name!r}: 2 to 32 letters, digits and single dashes, a letter first")
    if asked.get("computeType", "AmlCompute") != "AmlCompute":
        raise AzureError(
            501, "NotImplemented", f"computeType {asked['computeType']} is not part of the stand-in"
        )
    properties = asked.get("properties") or {}
    if before:
        properties = {**before["properties"]["properties"], **properties}
    size = size_named(local, properties.get("vmSize") or "")
    scale = {"minNodeCount": 0, "maxNodeCount": 1, "nodeIdleTimeBeforeScaleDown": "PT2M"}
    properties = {
        "osType": "Linux",
        "vmPriority": "Dedicated",
        "isolatedNetwork": False,
        "enableNodePublicIp": True,
        **properties,
        "vmSize": size["name"].upper(),  # the real service gives the size back in capitals
        "scaleSettings": {**scale, **(properties.get("scaleSettings") or {})},
        "allocationState": "Steady",
        "currentNodeCount": 0,
        "targetNodeCount": 0,
        "errors": None,
    }
    return {
        "id": identifier,
        "name": name,
        "type": f"{cloud.PROVIDER}/workspaces/computes",
        "location": body.get("location") or cloud.LOCATION,
        "tags": body.get("tags") or (before or {}).get("tags") or {},
        "identity": body.get("identity"),
        "systemData": cloud.system_data((before or {}).get("systemData", {}).get("createdAt")),
        "properties": {
            "computeType": "AmlCompute",
            "computeLocation": body.get("location") or cloud.LOCATION,
            "description": asked.get("description"),
            "provisioningState": "Creating",
            "provisioningErrors": None,
            "isAttachedCompute": False,
            "disableLocalAuth": asked.get("disableLocalAuth", True),
            "properties": properties,
        },
    }


def _provision(local: cloud.Cloud, document: dict) -> None:
    inner = document["properties"]["properties"]
    try:
        if "compute-failed" in local.faults:
            raise user_error(
                "the nodes could not be allocated: no capacity in the region", "AllocationFailed"
            )
        size, nodes = size_named(local, inner["vmSize"]), inner["scaleSettings"]["maxNodeCount"]
        minimum, name = inner["scaleSettings"]["minNodeCount"], document["name"]
        resource, tier = f"cluster {name}", _tier(inner)
        check_quota(local, resource, size, nodes, tier=tier)
        local.meter.stop(f"{name}-minimum")
        if minimum:
            local.meter.start(f"{name}-minimum", resource, size["name"], minimum, tier, spare=True)
        _finish(local, document, "Succeeded", None)
    except AzureError as error:
        _finish(local, document, "Failed", [error.body()])
        raise


def _tier(cluster: dict) -> str:
    return LOW_PRIORITY if cluster["vmPriority"].lower() == "lowpriority" else DEDICATED


def _finish(local: cloud.Cloud, document: dict, state: str, errors: list | None) -> None:
    properties = {**document["properties"], "provisioningState": state, "provisioningErrors": errors}
    local.state.merge(document["id"], properties=properties)


@router.delete(f"{PATH}/{{name}}")
def delete(request: Request, name: str, identifier: str = Depends(cloud.workspace_id)) -> Response:
    """Delete a cluster, whose nodes are no longer billed; one that is not there is no error."""
    local = cloud.current(request)
    document = local.state.get(f"{identifier}/computes/{name}")
    if document is None:
        return Response(status_code=204)
    properties = {**document["properties"], "provisioningState": "Deleting"}
    local.state.merge(document["id"], properties=properties)

    def work():
        local.meter.stop(f"{document['name']}-minimum")
        local.state.delete(document["id"])

    return operations.start(local, 202, None, work)


class Nodes:
    """The nodes that a job keeps, from the first step to the idle time after the last."""

    def __init__(self, local: cloud.Cloud, job: str, compute: str, nodes: int, instance_type: str):
        self._local, self._interval = local, f"job-{job}-{secrets.token_hex(4)}"
        self._idle, tier = 0.0, DEDICATED
        if compute == "serverless":
            resource, size = "serverless", size_named(local, instance_type)
        else:
            document = find(local, compute)
            cluster = document["properties"]["properties"]
            scale = cluster["scaleSettings"]
            resource, size = f"cluster {document['name']}", size_named(local, cluster["vmSize"])
            if nodes > scale["maxNodeCount"]:
                raise user_error(
                    f"{nodes} nodes asked for; cluster {compute!r} has at most {scale['maxNodeCount']}"
                )
            self._idle = seconds(scale["nodeIdleTimeBeforeScaleDown"])
            tier = _tier(cluster)
        self.low_priority = tier == LOW_PRIORITY
        self._start = lambda: local.meter.start(self._interval, resource, size["name"], nodes, tier)

    def __enter__(self) -> "Nodes":
        self._start()
        return self

    def __exit__(self, *_) -> None:
        self._local.meter.stop(self._interval, self._idle)


def seconds(duration: str) -> float:
    """Return the seconds of an ISO 8601 duration such as PT2M or P0DT0H2M0S."""
    units = {"D": 86400, "H": 3600, "M": 60, "S": 1}
    return sum(float(number) * units[unit] for number, unit in re.findall(r"([\d.]+)([DHMS])", duration))
