"""The machine sizes that the region has, and the quota of cores for them."""

import json
import math
from functools import cache

from fastapi import APIRouter, Request

from local_azureml import identifiers
from local_azureml.context import Context, current
from local_azureml.errors import user_error

router = APIRouter()
LOCATION_PATH = f"/subscriptions/{{subscription}}/providers/{identifiers.PROVIDER}/locations/{{location}}"
DEDICATED, LOW_PRIORITY = "dedicated", "lowPriority"
TOTALS = {DEDICATED: "TotalDedicatedCores", LOW_PRIORITY: "TotalLowPriorityCores"}  # of the region, by tier
FAMILY_LIMIT, REGION_LIMIT = 200, 400  # cores
CLUSTER_LIMIT = 200  # of the region


@cache
def _sizes() -> list[dict]:
    return json.loads((identifiers.SEEDS / "sizes.json").read_text(encoding="utf-8"))


def sizes(context: Context) -> list[dict]:
    """Return the machine sizes of the region: name, family, cores, GPUs, memory in GB."""
    if "size-missing" not in context.faults:
        return _sizes()
    missing = context.faults.value("size-missing").lower()
    return [size for size in _sizes() if (size["name"].lower() != missing if missing else not size["gpus"])]


def size_named(context: Context, name: str) -> dict:
    """Return the size with that name, in any capitals, or refuse."""
    for size in sizes(context):
        if size["name"].lower() == name.lower():
            return size
    known = ", ".join(size["name"] for size in sizes(context))
    raise user_error(
        f"the size {name!r} is not available in {identifiers.LOCATION}; there is: {known}", "InvalidVmSize"
    )


@router.get(f"{LOCATION_PATH}/vmSizes")
def list_sizes(request: Request) -> dict:
    """Return the sizes."""
    return {"value": sizes(current(request))}


@router.get(f"{LOCATION_PATH}/usages")
def list_usages(request: Request, subscription: str, location: str) -> dict:
    """Return the cores in use and their limit, of each family and of the region, dedicated and low priority.

    The two rows of a family carry one name, as on Azure: only `type` tells them apart. -1 is no limit.
    """
    context = current(request)
    base = LOCATION_PATH.format(subscription=subscription, location=location)
    clusters = len(context.state.children(f"{identifiers.WORKSPACE_ID}/computes"))
    families = sorted({size["family"] for size in _sizes()})
    rows = [("totalClusters", "TotalClusters", "Clusters", clusters, CLUSTER_LIMIT)]
    rows += [
        (
            f"{'' if name == TOTALS[tier] else 'vmFamily/'}{tier}Cores",
            name,
            _localized(name),
            cores_used(context, tier, name),
            core_limit(context, tier, name),
        )
        for tier in TOTALS
        for name in [TOTALS[tier], *families]
    ]
    return {
        "value": [
            {
                "id": f"{base}/usages/{name}",
                "type": f"{identifiers.PROVIDER}/{kind}/usages",
                "unit": "Count",
                "currentValue": used,
                "limit": limit,
                "name": {"value": name, "localizedValue": localized},
            }
            for kind, name, localized, used, limit in rows
        ]
    }


def _localized(name: str) -> str:
    """Return the name of a family or of a region's total as Azure spells it in its list of quotas."""
    if name in TOTALS.values():
        return f"Total Cluster {name[len('Total') : -len('Cores')]} Regional vCPUs"
    name = name.replace(" ", "").removesuffix("Family")[len("standard") :]
    return f"Standard {name} Family Cluster Dedicated vCPUs"


def core_limit(context: Context, tier: str, name: str) -> int:
    """Return how many cores of a family, or of the region, the subscription may use; -1 for any number."""
    has_gpus = any(size["gpus"] for size in _sizes() if size["family"] == name)
    if tier == LOW_PRIORITY and name != TOTALS[tier]:
        return -1
    if "quota-short" in context.faults and (has_gpus or tier == LOW_PRIORITY):
        return 0
    return REGION_LIMIT if name == TOTALS[tier] else FAMILY_LIMIT


def cores_used(context: Context, tier: str, name: str, but: str = "") -> int:
    """Return how many cores of a family, or of the region, are kept for all resources `but` that one."""
    cores = {
        size["name"].lower(): size["vCPUs"] for size in _sizes() if name in (size["family"], TOTALS[tier])
    }
    return sum(
        entry["held"] * cores.get(entry["size"].lower(), 0)
        for entry in context.meter.open_intervals()
        if entry["tier"] == tier and entry["resource"] != but
    )


def check_quota(
    context: Context, resource: str, size: dict, nodes: int, reserve: float = 1.0, tier: str = DEDICATED
) -> None:
    """Refuse a resource more cores of its family or region than others leave; `reserve` multiplies nodes."""
    needed = size["vCPUs"] * math.ceil(nodes * reserve)
    for name in (size["family"], TOTALS[tier]):
        used, limit = cores_used(context, tier, name, resource), core_limit(context, tier, name)
        if 0 <= limit < used + needed:
            raise user_error(
                f"{nodes} x {size['name']} needs {needed} cores of {name}; "
                f"{limit - used} of {limit} are left: ask for more quota, or take a smaller size",
                "QuotaExceeded",
            )
