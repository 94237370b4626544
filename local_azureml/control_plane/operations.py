"""Long-running operations: an answer at once, the work in a thread, the end told at an address."""

import logging
import sqlite3
import threading
import uuid
from collections.abc import Callable
from contextlib import suppress

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from local_azureml import cloud
from local_azureml.control_plane import shapes
from local_azureml.errors import AzureError, not_found
from local_azureml.state import before, equal

router = APIRouter()
PATH = (
    f"/subscriptions/{{subscription}}/providers/{cloud.PROVIDER}/locations/{{location}}/mfeOperationsStatus"
)
RESULTS_PATH = PATH.replace("mfeOperationsStatus", "mfeOperationResults")
HERE = PATH.format(subscription=cloud.SUBSCRIPTION, location=cloud.LOCATION)
RESULTS = RESULTS_PATH.format(subscription=cloud.SUBSCRIPTION, location=cloud.LOCATION)
VERSION = "2023-04-01"  # of the API, in the addresses that clients poll
LONGEST = "PT1H"  # how long Azure lets a client wait for an operation
KEPT = shapes.seconds(LONGEST)  # how long one is remembered after its end
log = logging.getLogger(__name__)


def start(local: cloud.Cloud, status: int, body: dict | None, work: Callable[[], None]) -> Response:
    """Return the answer to a request whose `work` goes on in a thread; an AzureError there fails it."""
    name = str(uuid.uuid4())
    begun = {"id": f"{HERE}/{name}", "name": name, "status": "InProgress", "startTime": cloud.now()}
    local.state.put(begun["id"], {**begun, "percentComplete": 0.0})
    threading.Thread(target=_run, args=(local, begun["id"], work), daemon=True).start()
    headers = _headers(local, name)
    if status == 202:
        headers["Location"] = f"{local.origin}{RESULTS}/{name}?api-version={VERSION}"
    if body is None:
        return Response(status_code=status, headers=headers)
    return JSONResponse(body, status, headers)


def _headers(local: cloud.Cloud, name: str) -> dict[str, str]:
    return {
        "Azure-AsyncOperation": f"{local.origin}{HERE}/{name}?api-version={VERSION}",
        "Retry-After": str(max(1, round(local.polling_seconds))),
        "x-ms-retry-after-ms": str(round(local.polling_seconds * 1000)),
        "x-ms-async-operation-timeout": LONGEST,
    }


def _run(local: cloud.Cloud, operation: str, work: Callable[[], None]) -> None:
    try:
        work()
        _end(local, operation, status="Succeeded")
    except AzureError as error:
        _end(local, operation, status="Failed", **error.body())
    except Exception as error:
        log.exception("operation %s", operation)
        failure = AzureError(500, "InternalServerError", f"{type(error).__name__}: {error}")
        _end(local, operation, status="Failed", **failure.body())


def _end(local: cloud.Cloud, operation: str, **how) -> None:
    with suppress(sqlite3.ProgrammingError):  # closed: the stand-in has stopped, and its next start ends it
        local.state.merge(operation, endTime=cloud.now(), percentComplete=100.0, **how)
        _forget(local)


def _forget(local: cloud.Cloud) -> None:
    """Remove the operations that ended longer ago than any client waits for one."""
    local.state.delete_children(HERE, before("endTime", cloud.now(-KEPT)))


def stopped() -> AzureError:
    """Return the error of an operation that the stand-in's end cut off."""
    message = "the stand-in stopped before this was done: look at how the resource stands, and ask again"
    return AzureError(500, "InternalServerError", message, "Stopped")


def recover(local: cloud.Cloud) -> None:
    """Settle what went on when the stand-in stopped: deletions are done, all else has failed.

    Nothing is billed on but the nodes that a cluster keeps at least; `Deployments` starts its own again.
    """
    error = stopped().body()
    _forget(local)
    for operation in local.state.children(HERE, equal("status", "InProgress")):
        _end(local, operation["id"], status="Failed", **error)
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
    found = _find(local, operation)
    headers = _headers(local, operation) if found["status"] == "InProgress" else {}
    return JSONResponse(found, headers=headers)


@router.get(f"{RESULTS_PATH}/{{operation}}")
def result(request: Request, operation: str) -> Response:
    """Return 202 until an operation has ended, then 204, or its error."""
    local = cloud.current(request)
    found = _find(local, operation)
    if found["status"] == "InProgress":
        location = f"{local.origin}{request.url.path}?api-version={VERSION}"
        return Response(status_code=202, headers={**_headers(local, operation), "Location": location})
    if found["status"] == "Failed":
        raise AzureError(400, found["error"]["code"], found["error"]["message"])
    return Response(status_code=204)


def _find(local: cloud.Cloud, operation: str) -> dict:
    found = local.state.get(f"{HERE}/{operation}")
    if found is None:
        raise not_found("operation", operation, [])
    return found
