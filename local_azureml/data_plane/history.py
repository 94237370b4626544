"""Run history: the state, logs, errors and children of a run, as the SDK's stream and list read them."""

import re
from pathlib import Path

from fastapi import APIRouter, Body, Request
from fastapi.responses import JSONResponse, RedirectResponse

from local_azureml import identifiers, resource, storage
from local_azureml.access import opens
from local_azureml.context import Context, current
from local_azureml.control_plane import datastores, jobs, outputs, queries, shapes
from local_azureml.data_plane import browser_sessions, tracking
from local_azureml.errors import not_played
from local_azureml.state import equal

router = APIRouter()
public = APIRouter()  # read by browsers
CHANGEABLE = {"displayName", "description", "hidden", "tags", "properties"}
OF_RUN_ALONE = {"createdUtc", "displayName", "description", "experimentId", "hidden", "runType"}
LOGS = ("user_logs", "logs", "azureml-logs")  # the folders of a run's artifacts in which logs lie
PATH = f"/history/v1.0{identifiers.WORKSPACE_PATH}"
DATA_TYPES = ("uri_file", "uri_folder", "mltable")  # of outputs that are no models
OUTPUT_ID = (
    f"azureml://locations/{identifiers.LOCATION}/workspaces/{identifiers.WORKSPACE}"
    "/data/azureml_{job}_output_data_{output}/versions/1"
)
OUTPUT = re.compile(OUTPUT_ID.format(job="(.+)", output="(.+)"))


def _run(context: Context, document: dict) -> dict:
    properties, run = document["properties"], document["run"]
    number = int(context.state.created(document["id"]) * 1000)
    return {
        "runNumber": number,
        "rootRunId": run["root"] or document["name"],
        "parentRunId": run["parent"],
        "runId": document["name"],
        "experimentId": properties["experimentName"],
        "displayName": properties["displayName"],
        "description": properties.get("description"),
        "hidden": properties["isArchived"],
        "status": properties["status"],
        "runType": "azureml.scriptrun" if properties["jobType"] == "Command" else "azureml.PipelineRun",
        "createdUtc": run["start"],
        "startTimeUtc": run["start"],
        "endTimeUtc": run["end"],
        "tags": properties["tags"],
        "properties": {"azureml.runsource": "azureml.PipelineRun", **properties["properties"]},
        "error": _error(run),
        "warnings": run["warnings"],
    }


def _error(run: dict) -> dict | None:
    if run["error"] is None:
        return None
    return {"error": {**run["error"], "details": []}, "environment": identifiers.LOCATION, "time": run["end"]}


def _logs(context: Context, name: str) -> dict[str, str]:
    """Return the logs of a run: their names, and the addresses to read them at."""
    folder: Path = datastores.run_log(context, name, "")
    container = storage.CONTAINERS[storage.ARTIFACT_STORE]
    files = (file for place in LOGS for file in (folder / place).rglob("*.txt"))
    found = sorted(file.relative_to(folder).as_posix() for file in files)
    return {log: storage.address(context, container, storage.run_folder(name, log)) for log in found}


@router.get(f"{PATH}/runs/{{name}}")
def show(request: Request, name: str) -> dict:
    """Return a run."""
    context = current(request)
    return _run(context, jobs.find(context, name))


@router.get(f"{PATH}/runs/{{name}}/details")
def details(request: Request, name: str) -> dict:
    """Return a run with its logs."""
    context = current(request)
    run = _run(context, jobs.find(context, name))
    shown = {key: value for key, value in run.items() if key not in OF_RUN_ALONE}
    created = {"createdTimeUtc": run["createdUtc"]}
    return {**shown, **created, "target": "local", "logFiles": _logs(context, run["runId"])}


@router.patch(f"{PATH}/runs/{{name}}")
@router.patch(f"{PATH}/experiments/{{experiment}}/runs/{{name}}")
@router.patch(f"{PATH}/experimentids/{{experiment}}/runs/{{name}}")
def change(request: Request, name: str, body: shapes.Run) -> dict:
    """Change a run's names and description, add to its tags and properties, archive or restore it."""
    context = current(request)
    with context.state.locked():
        document = jobs.find(context, name)
        if unknown := sorted(body.keys() - CHANGEABLE - {"runId"}):
            raise not_played(f"a change of a run's {', '.join(unknown)}")
        asked = {"isArchived" if key == "hidden" else key: body[key] for key in body.keys() & CHANGEABLE}
        properties = resource.merged(document["properties"], asked)
        return _run(context, context.state.merge(document["id"], properties=properties))


@router.post(f"{PATH}/rundata")
def data(request: Request, name: str = Body(alias="runId", embed=True)) -> dict:
    """Return a run that is named in the body, with what it wrote."""
    context = current(request)
    job = jobs.find(context, name)
    asked = (job["properties"].get("outputs") or {}).items()
    written = {
        output: {"assetId": OUTPUT_ID.format(job=job["name"], output=output), "type": _data_type(settings)}
        for output, settings in asked
        if datastores.folder_at(context, settings["uri"]).exists()
    }
    return {"runMetadata": {**_run(context, job), "outputs": written}}


@router.post(f"/data/v1.0{identifiers.WORKSPACE_PATH}/dataversion/batchGetResolvedUris")
def addresses(
    request: Request, assets: list[str] = Body(alias="values", embed=True, max_length=1000)
) -> dict:
    """Return where the data assets lie that runs wrote, by their ids."""
    context, found = current(request), {}
    for asset in assets:
        if not (named := OUTPUT.fullmatch(asset)):
            raise not_played(f"the address of {asset!r}", "that of a run's output is")
        found[asset] = {"uri": outputs.address(context, *named.groups()), "type": "UriFolder"}
    return {"values": found}


def _data_type(output: dict) -> str:
    """Return the type of an output; a model is told as a folder: the SDK 1.35 fails where it asks for one."""
    kind = output.get("jobOutputType")
    return kind if kind in DATA_TYPES else "uri_folder"


@router.get(f"{PATH}/runs/{{name}}/children")
def children(request: Request, name: str) -> JSONResponse:
    """Return the runs that a run started, oldest first."""
    context = current(request)
    children = equal("run.parent", jobs.find(context, name)["name"])
    below = identifiers.JOBS
    return queries.answer(
        request, "runs/children", below, lambda job: _run(context, job), (children,), descending=False
    )


@public.get("/runs/{name}")
@opens(browser_sessions.check_link, "a browser has no token; a job's link has a ticket")
def open_page(request: Request, name: str) -> RedirectResponse:
    """Lead a browser to a job's page in MLflow, with a cookie that reads it."""
    job = jobs.find(current(request), name)
    experiment = current(request).runs.experiment(job["properties"]["experimentName"])
    answer = RedirectResponse(
        f"{tracking.PREFIX}/#/experiments/{experiment}/runs/{job['name']}/model-metrics"
    )
    browser_sessions.exchange(request, answer)
    return answer
