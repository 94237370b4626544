"""Compute clusters, the sizes that the region has, and the quota for them."""

import json
import math
import re
import secrets
from functools import cache

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse

from local_azureml import cloud, operations, shapes
from local_azureml.errors import AzureError, not_found, user_error

router = APIRouter()
PATH = f"{cloud.WORKSPACE_PATH}/computes"
LOCATION_PATH = f"/subscriptions/{{subscription}}/providers/{cloud.PROVIDER}/locations/{{location}}"
NAME = re.compile(r"[a-zA-Z](?!.*--)[a-zA-Z0-9-]{0,30}[a-zA-Z0-9]")  # 2 to 32 characters


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
    return {"value": sizes(cloud.current(request))}


@router.get(f"{LOCATION_PATH}/usages")
def list_usages(request: Request, subscription: str, location: str) -> dict:
    """Return cores in use and the limit for each family of sizes."""
    local = cloud.current(request)
    base = LOCATION_PATH.format(subscription=subscription, location=location)
    families = sorted({size["family"] for size in _sizes()})
    return {
        "value": [
            {
                "id": f"{base}/usages/{family}",
                "type": f"{cloud.PROVIDER}/usages",
                "unit": "Count",
                "currentValue": cores_used(local, family),
                "limit": core_limit(local, family),
                "name": {"value": family, "localizedValue": _localized(family)},
            }
            for family in families
        ]
    }


def _localized(family: str) -> str:
    """Return a family's name as Azure spells it in its list of quotas."""
    name = family.replace(" ", "").removesuffix("Family")[len("standard") :]
    return f"Standard {name} Family Cluster Dedicated vCPUs"


def core_limit(local: cloud.Cloud, family: str) -> int:
    """Return how many cores of a family the subscription may use."""
    has_gpus = any(size["gpus"] for size in _sizes() if size["family"] == family)
    return 0 if has_gpus and "quota-short" in local.faults else 200


def cores_used(local: cloud.Cloud, family: str) -> int:
    """Return how many cores of a family are kept for jobs and deployments."""
    cores = {size["name"].lower(): size["vCPUs"] for size in _sizes() if size["family"] == family}
    return sum(entry["nodes"] * cores.get(entry["size"].lower(), 0) for entry in local.meter.open_intervals())


def check_quota(local: cloud.Cloud, size: dict, nodes: int, reserve: float = 1.0) -> None:
    """Refuse what would take more cores of a family than are left; `reserve` multiplies the nodes."""
    needed = size["vCPUs"] * math.ceil(nodes * reserve)
    used, limit = cores_used(local, size["family"]), core_limit(local, size["family"])
    if used + needed > limit:
        raise user_error(
            f"{nodes} x {size['name']} needs {needed} cores of {size['family']}; "
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
    find(local, name)
    busy = [entry for entry in local.meter.open_intervals() if entry["resource"] == f"cluster {name}"]
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
        check_quota(local, size, nodes)
        minimum, name = inner["scaleSettings"]["minNodeCount"], document["name"]
        local.meter.stop(f"{name}-minimum")
        if minimum:
            local.meter.start(f"{name}-minimum", f"cluster {name}", size["name"], minimum)
        _finish(local, document, "Succeeded", None)
    except AzureError as error:
        _finish(local, document, "Failed", [error.body()])
        raise


def _finish(local: cloud.Cloud, document: dict, state: str, errors: list | None) -> None:
    properties = {**document["properties"], "provisioningState": state, "provisioningErrors": errors}
    local.state.merge(document["id"], properties=properties)


@router.delete(f"{PATH}/{{name}}")
def delete(request: Request, name: str, identifier: str = Depends(cloud.workspace_id)) -> JSONResponse:
    """Delete a cluster; the nodes it kept are no longer billed."""
    local = cloud.current(request)
    document = find(local, name)
    properties = {**document["properties"], "provisioningState": "Deleting"}
    local.state.merge(document["id"], properties=properties)

    def work():
        local.meter.stop(f"{name}-minimum")
        local.state.delete(document["id"])

    return operations.start(local, 202, None, work)


class Nodes:
    """The nodes that a job keeps, from the first step to the idle time after the last."""

    def __init__(self, local: cloud.Cloud, job: str, compute: str, nodes: int, instance_type: str):
        self._local, self._interval = local, f"job-{job}-{secrets.token_hex(4)}"
        self._idle, self.low_priority = 0.0, False
        if compute == "serverless":
            resource, size = "serverless", size_named(local, instance_type)
        else:
            cluster = find(local, compute)["properties"]["properties"]
            scale = cluster["scaleSettings"]
            resource, size = f"cluster {compute}", size_named(local, cluster["vmSize"])
            if nodes > scale["maxNodeCount"]:
                raise user_error(
                    f"{nodes} nodes asked for; cluster {compute!r} has at most {scale['maxNodeCount']}"
                )
            self._idle = seconds(scale["nodeIdleTimeBeforeScaleDown"])
            self.low_priority = cluster["vmPriority"].lower() == "lowpriority"
        self.size = size
        self._start = lambda: local.meter.start(self._interval, resource, size["name"], nodes)

    def __enter__(self) -> "Nodes":
        self._start()
        return self

    def __exit__(self, *_) -> None:
        self._local.meter.stop(self._interval, self._idle)


def seconds(duration: str) -> float:
    """Return the seconds of an ISO 8601 duration such as PT2M or P0DT0H2M0S."""
    units = {"D": 86400, "H": 3600, "M": 60, "S": 1}
    return sum(float(number) * units[unit] for number, unit in re.findall(r"([\d.]+)([DHMS])", duration))
