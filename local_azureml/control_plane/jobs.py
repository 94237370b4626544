"""Jobs: submitted, listed, cancelled; the engine runs them."""

import re

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from local_azureml import identifiers
from local_azureml.context import Context, current
from local_azureml.control_plane import environments, operations, queries, shapes
from local_azureml.errors import AzureError, not_found, not_played, there_is, user_error
from local_azureml.state import equal

router = APIRouter()
CHANGEABLE = ("tags", "displayName", "description", "isArchived")  # of a job that is there
SERVERLESS = "serverless"  # a compute that nobody has to make
SERVICES = ("Tracking", "Studio")  # that every job has
FINAL = ("Completed", "Failed", "Canceled")
SUBMITTED = equal("run.parent", None)  # not started by another job
PATH = f"{identifiers.WORKSPACE_PATH}/jobs"
BASE = identifiers.JOBS
NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_-]{0,254}")
LONGEST = 255 - len("dcid.") - 2 * len("_01234567")  # a folder is named after it, and after its children


def find(context: Context, name: str) -> dict:
    """Return a job's document, or refuse with the names that there are."""
    found = context.state.get(f"{BASE}/{name}")
    if found is None:
        raise not_found("job", name, context.state.names(BASE, SUBMITTED))
    return found


def _shown(document: dict) -> dict:
    return {key: value for key, value in document.items() if key != "run"}


@router.put(f"{PATH}/{{name}}")
def submit(request: Request, name: str, body: shapes.Job) -> JSONResponse:
    """Submit a job; a job that is there already keeps running, and only its tags and names change."""
    context = current(request)
    if not NAME.fullmatch(name):
        raise user_error(f"job name {name!r}: letters, digits, dashes and underscores, at most 255")
    if len(name) > LONGEST:
        raise not_played(f"a job name of more than {LONGEST} characters")
    properties = body["properties"]
    with context.state.locked():
        before = context.state.get(f"{BASE}/{name}")
        if before:
            return JSONResponse(_shown(_rename(context, before, properties)), 200)
        _check(context, properties)
        document = context.jobs.submit(name, properties)
    return JSONResponse(_shown(document), 201)


def _check(context: Context, properties: dict) -> None:
    """Refuse a new job that lacks what its kind needs, or that asks for what is not played."""
    if properties["jobType"] == "Command":
        if missing := [name for name in ("command", "environmentId") if not properties.get(name)]:
            raise user_error(f"a command job needs properties.{' and properties.'.join(missing)}")
        environments.check(context, properties["environmentId"])
    if properties["jobType"] in ("Command", "Sweep"):
        compute = compute_named(properties.get("computeId"))
        computes = f"{identifiers.WORKSPACE_ID}/computes"
        if compute != SERVERLESS and context.state.get(f"{computes}/{compute}") is None:
            raise user_error(f"Unknown compute target {compute!r}; {there_is(context.state.names(computes))}")
    check_services(properties)


def compute_named(identifier: str | None) -> str:
    """Return the name of the compute that an id or a short address names, by default serverless."""
    return str(identifier or SERVERLESS).rpartition("/")[2].removeprefix("azureml:")


def check_services(properties: dict) -> None:
    """Refuse a job, or a node of one, that asks for a service which is not played."""
    if asked := sorted(set(properties.get("services") or {}) - set(SERVICES)):
        raise not_played(f"the job service {asked[0]}", f"there is: {', '.join(SERVICES)}")


def _rename(context: Context, document: dict, properties: dict) -> dict:
    changed = {key: properties[key] for key in CHANGEABLE if key in properties}
    return context.state.merge(document["id"], properties={**document["properties"], **changed})


@router.get(PATH)
def list_all(request: Request) -> JSONResponse:
    """Return the jobs that were submitted, newest first, without their children."""
    return queries.answer(request, "jobs", BASE, _shown, (SUBMITTED,))


@router.get(f"{PATH}/{{name}}")
def show(request: Request, name: str) -> dict:
    """Return one job."""
    return _shown(find(current(request), name))


@router.post(f"{PATH}/{{name}}/cancel")
def cancel(request: Request, name: str) -> Response:
    """Ask a job to stop; its processes are killed."""
    context = current(request)
    document = find(context, name)
    if document["properties"]["status"] in FINAL:
        return Response(status_code=200)
    root = document["run"]["root"] or document["name"]
    context.jobs.cancel(root)
    return operations.start(context, 202, None, lambda: context.jobs.wait(root))


@router.delete(f"{PATH}/{{name}}")
def delete(request: Request, name: str) -> Response:
    """Forget a job that has ended; its outputs stay in the datastore."""
    context = current(request)
    document = context.state.get(f"{BASE}/{name}")
    if document is None:
        return Response(status_code=204)
    if document["properties"]["status"] not in FINAL:
        raise AzureError(
            409, "Conflict", f"the job {name!r} is {document['properties']['status']}: cancel it first"
        )
    return operations.start(context, 202, None, lambda: context.state.delete(document["id"]))
