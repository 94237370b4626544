"""Long-running operations: an answer at once, the work in a thread, the end told at an address."""

import logging
import sqlite3
import threading
import uuid
from collections.abc import Callable
from contextlib import suppress

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from local_azureml import identifiers, resource
from local_azureml.context import Context, current
from local_azureml.control_plane import shapes
from local_azureml.errors import AzureError, not_found
from local_azureml.state import before, equal

router = APIRouter()
LOCATION = f"/subscriptions/{{subscription}}/providers/{identifiers.PROVIDER}/locations/{{location}}"
PATH = f"{LOCATION}/mfeOperationsStatus"
RESULTS_PATH = PATH.replace("mfeOperationsStatus", "mfeOperationResults")
HERE = PATH.format(subscription=identifiers.SUBSCRIPTION, location=identifiers.LOCATION)
RESULTS = RESULTS_PATH.format(subscription=identifiers.SUBSCRIPTION, location=identifiers.LOCATION)
VERSION = "2023-04-01"  # of the API, in the addresses that clients poll
LONGEST = "PT1H"  # how long Azure lets a client wait for an operation
KEPT = shapes.seconds(LONGEST)  # how long one is remembered after its end
log = logging.getLogger(__name__)


def start(context: Context, status: int, body: dict | None, work: Callable[[], None]) -> Response:
    """Return the answer to a request whose `work` goes on in a thread; an AzureError there fails it."""
    name = str(uuid.uuid4())
    begun = {"id": f"{HERE}/{name}", "name": name, "status": "InProgress", "startTime": resource.now()}
    context.state.put(begun["id"], {**begun, "percentComplete": 0.0})
    threading.Thread(target=_run, args=(context, begun["id"], work), daemon=True).start()
    headers = _headers(context, name)
    if status == 202:
        headers["Location"] = f"{context.origin}{RESULTS}/{name}?api-version={VERSION}"
    if body is None:
        return Response(status_code=status, headers=headers)
    return JSONResponse(body, status, headers)


def _headers(context: Context, name: str) -> dict[str, str]:
    return {
        "Azure-AsyncOperation": f"{context.origin}{HERE}/{name}?api-version={VERSION}",
        "Retry-After": str(max(1, round(context.polling_seconds))),
        "x-ms-retry-after-ms": str(round(context.polling_seconds * 1000)),
        "x-ms-async-operation-timeout": LONGEST,
    }


def _run(context: Context, operation: str, work: Callable[[], None]) -> None:
    try:
        work()
        _end(context, operation, status="Succeeded")
    except AzureError as error:
        _end(context, operation, status="Failed", **error.body())
    except Exception as error:
        log.exception("operation %s", operation)
        failure = AzureError(500, "InternalServerError", f"{type(error).__name__}: {error}")
        _end(context, operation, status="Failed", **failure.body())


def _end(context: Context, operation: str, **how) -> None:
    with suppress(sqlite3.ProgrammingError):  # closed: the emulator has stopped, and its next start ends it
        context.state.merge(operation, endTime=resource.now(), percentComplete=100.0, **how)
        _forget(context)


def _forget(context: Context) -> None:
    """Remove the operations that ended longer ago than any client waits for one."""
    context.state.delete_children(HERE, before("endTime", resource.now(-KEPT)))


def stopped() -> AzureError:
    """Return the error of an operation that the emulator's end cut off."""
    message = "the emulator stopped before this was done: look at how the resource stands, and ask again"
    return AzureError(500, "InternalServerError", message, "Stopped")


def recover(context: Context) -> None:
    """Settle what went on when the emulator stopped: deletions are done, all else has failed.

    Nothing is billed on but the nodes that a cluster keeps at least; `Deployments` starts its own again.
    """
    error = stopped().body()
    _forget(context)
    for operation in context.state.children(HERE, equal("status", "InProgress")):
        _end(context, operation["id"], status="Failed", **error)
    failed = {"provisioningState": "Failed"}
    _settle(context, "computes", {**failed, "provisioningErrors": [error]})
    _settle(context, "onlineEndpoints", failed)
    clusters = context.state.children(f"{identifiers.WORKSPACE_ID}/computes")
    kept = {f"{cluster['name']}-minimum" for cluster in clusters}
    for entry in context.meter.open_intervals():
        if entry["interval"] not in kept:
            context.meter.stop(entry["interval"])


def _settle(context: Context, kind: str, failed: dict) -> None:
    for document in context.state.children(f"{identifiers.WORKSPACE_ID}/{kind}"):
        properties = document["properties"]
        if properties["provisioningState"] == "Deleting":
            context.state.delete(document["id"])
        elif properties["provisioningState"] in ("Creating", "Updating"):
            context.state.merge(document["id"], properties={**properties, **failed})


@router.get(f"{PATH}/{{operation}}")
def status(request: Request, operation: str) -> JSONResponse:
    """Return how far an operation is: InProgress, Succeeded, or Failed with its error."""
    context = current(request)
    found = _find(context, operation)
    headers = _headers(context, operation) if found["status"] == "InProgress" else {}
    return JSONResponse(found, headers=headers)


@router.get(f"{RESULTS_PATH}/{{operation}}")
def result(request: Request, operation: str) -> Response:
    """Return 202 until an operation has ended, then 204, or its error."""
    context = current(request)
    found = _find(context, operation)
    if found["status"] == "InProgress":
        location = f"{context.origin}{request.url.path}?api-version={VERSION}"
        return Response(status_code=202, headers={**_headers(context, operation), "Location": location})
    if found["status"] == "Failed":
        raise AzureError(400, found["error"]["code"], found["error"]["message"])
    return Response(status_code=204)


def _find(context: Context, operation: str) -> dict:
    found = context.state.get(f"{HERE}/{operation}")
    if found is None:
        raise not_found("operation", operation, [])
    return found
