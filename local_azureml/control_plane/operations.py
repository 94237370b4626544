"""Long-running operations: an answer at once, the work in a thread, the end told at an address."""

import logging
import threading
import uuid
from collections.abc import Callable

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from local_azureml import cloud
from local_azureml.errors import AzureError, not_found

router = APIRouter()
PATH = (
    f"/subscriptions/{{subscription}}/providers/{cloud.PROVIDER}/locations/{{location}}/mfeOperationsStatus"
)
HERE = PATH.format(subscription=cloud.SUBSCRIPTION, location=cloud.LOCATION)
log = logging.getLogger(__name__)


def start(local: cloud.Cloud, status: int, body: dict | None, work: Callable[[], None]) -> JSONResponse:
    """Return the answer to a request whose `work` goes on in a thread; an AzureError there fails it."""
    operation = f"{HERE}/{uuid.uuid4()}"
    local.state.put(operation, {"id": operation, "status": "InProgress"})
    threading.Thread(target=_run, args=(local, operation, work), daemon=True).start()
    return JSONResponse(body, status, headers=_headers(local, operation))


def _headers(local: cloud.Cloud, operation: str) -> dict[str, str]:
    address = f"{local.origin}{operation}?api-version=2023-04-01"
    retry_after = str(max(1, round(local.polling_seconds)))
    return {
        "Azure-AsyncOperation": address,
        "Location": address,
        "Retry-After": retry_after,
        "x-ms-retry-after-ms": str(round(local.polling_seconds * 1000)),
    }


def _run(local: cloud.Cloud, operation: str, work: Callable[[], None]) -> None:
    try:
        work()
        local.state.merge(operation, status="Succeeded")
    except AzureError as error:
        local.state.merge(operation, status="Failed", error=error.body()["error"])
    except Exception as error:
        log.exception("operation %s", operation)
        failure = AzureError(500, "InternalServerError", f"{type(error).__name__}: {error}")
        local.state.merge(operation, status="Failed", error=failure.body()["error"])


def stopped() -> AzureError:
    """Return the error of an operation that the stand-in's end cut off."""
    message = "the stand-in stopped before this was done: look at how the resource stands, and ask again"
    return AzureError(500, "InternalServerError", message, "Stopped")


def recover(local: cloud.Cloud) -> None:
    """Settle what went on when the stand-in stopped: deletions are done, all else has failed.

    Nothing is billed on but the nodes that a cluster keeps at least; `Deployments` starts its own again.
    """
    error = stopped().body()
    for operation in local.state.children(HERE):
        if operation["status"] == "InProgress":
            local.state.merge(operation["id"], status="Failed", error=error["error"])
    failed = {"provisioningState": "Failed"}
    _settle(local, "computes", {**failed, "provisioningErrors": [error]})
    _settle(local, "onlineEndpoints", failed)
    clusters = local.state.children(f"{cloud.WORKSPACE_ID}/computes")
    kept = {f"{cluster['name']}-minimum" for cluster in clusters}
    for entry in local.meter.open_intervals():
        if entry["interval"] not in kept:
            local.meter.stop(entry["interval"])


def _settle(local: cloud.Cloud, kind: str, failed: dict) -> None:
    for document in local.state.children(f"{cloud.WORKSPACE_ID}/{kind}"):
        properties = document["properties"]
        if properties["provisioningState"] == "Deleting":
            local.state.delete(document["id"])
        elif properties["provisioningState"] in ("Creating", "Updating"):
            local.state.merge(document["id"], properties={**properties, **failed})


@router.get(f"{PATH}/{{operation}}")
def status(request: Request, operation: str) -> JSONResponse:
    """Return how far an operation is: InProgress, Succeeded, or Failed with its error."""
    local = cloud.current(request)
    found = local.state.get(f"{HERE}/{operation}")
    if found is None:
        raise not_found("operation", operation, [])
    headers = _headers(local, f"{HERE}/{operation}") if found["status"] == "InProgress" else {}
    return JSONResponse(found, headers=headers)
