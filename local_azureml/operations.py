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


@router.get(f"{PATH}/{{operation}}")
def status(request: Request, operation: str) -> JSONResponse:
    """Return how far an operation is: InProgress, Succeeded, or Failed with its error."""
    local = cloud.current(request)
    found = local.state.get(f"{HERE}/{operation}")
    if found is None:
        raise not_found("operation", operation, [])
    headers = _headers(local, f"{HERE}/{operation}") if found["status"] == "InProgress" else {}
    return JSONResponse(found, headers=headers)
