"""What jobs and deployments name on the web is fetched, and nobody waits for it who need not."""

import asyncio
import time

import pytest
from clients import ended, log_of, make_command, reason
from conftest import served
from starlette.applications import Starlette
from starlette.responses import RedirectResponse, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles


async def trickle(request) -> StreamingResponse:
    """Answer with a byte now and then, and never end."""

    async def bytes_of():
        while True:
            yield b"x"
            await asyncio.sleep(0.1)

    return StreamingResponse(bytes_of())


async def elsewhere(request) -> RedirectResponse:
    """Lead to what the query names."""
    return RedirectResponse(request.query_params["to"])


@pytest.fixture
def web(tmp_path):
    """The address of a server of a folder with one file."""
    (tmp_path / "two words.csv").write_text("a,b")
    files = Mount("/", StaticFiles(directory=tmp_path))
    with served(
        Starlette(routes=[Route("/trickle", trickle), Route("/elsewhere", elsewhere), files])
    ) as port:
        yield f"http://127.0.0.1:{port}"


def given(address: str) -> dict:
    from azure.ai.ml import Input

    return {"rows": Input(type="uri_file", path=address)}


def test_an_input_at_a_web_address_is_downloaded_for_the_job(client, tmp_path, web):
    text = "cat ${{inputs.rows}}; basename ${{inputs.rows}}"
    job = ended(client, make_command(text, inputs=given(f"{web}/two%20words.csv")))
    assert log_of(client, job, tmp_path / "logs").endswith("a,btwo words.csv\n")


def test_a_web_address_that_has_nothing_is_named(client, web):
    for address, words in ((f"{web}/x.csv", "is answered with 404"), ("http://127.0.0.1:9/x", "downloaded:")):
        job = make_command("cat ${{inputs.rows}}", inputs=given(address))
        assert (said := reason(client, job)) and f"{address} " in said and words in said


def test_a_web_address_leads_to_no_other_server_of_this_machine_or_its_network(client, web):
    for other in ("http://127.0.0.1:1/x", "http://169.254.169.254/metadata", "http://[::1]:1/x"):
        job = make_command("cat ${{inputs.rows}}", inputs=given(f"{web}/elsewhere?to={other}"))
        assert f"it leads to {other}, which is not on the web" in reason(client, job)


def test_a_job_whose_input_never_ends_is_cancelled(client, web):
    job = client.jobs.create_or_update(make_command("true", inputs=given(f"{web}/trickle")))
    while client.jobs.get(job.name).status != "Running":
        time.sleep(0.1)
    client.jobs.begin_cancel(job.name)
    until = time.monotonic() + 60
    while client.jobs.get(job.name).status != "Canceled" and time.monotonic() < until:
        time.sleep(0.1)
    assert client.jobs.get(job.name).status == "Canceled"


def test_nobody_waits_for_a_deployment_whose_model_never_ends(http, arm, emulator, web):
    code = emulator.folder / "blobs/azureml-blobstore/slow"
    code.mkdir(parents=True)
    (code / "score.py").touch()
    assets = {
        "codes": {"codeUri": "azureml://datastores/workspaceblobstore/paths/slow"},
        "environments": {"image": "python:3.11"},
        "models": {"modelUri": f"{web}/trickle", "modelType": "custom_model"},
    }
    named = {kind: f"{arm.workspace}/{kind}/slow/versions/1" for kind in assets}
    for kind, properties in assets.items():
        http.put(named[kind], json={"properties": properties}).raise_for_status()
    endpoint = f"{arm.workspace}/onlineEndpoints/waits"
    http.put(endpoint, json={"location": "eastus", "properties": {"authMode": "Key"}}).raise_for_status()
    asked = {"codeConfiguration": {"codeId": named["codes"], "scoringScript": "score.py"}}
    asked |= {"environmentId": named["environments"], "model": named["models"]}
    body = {"location": "eastus", "properties": asked | {"instanceType": "Standard_DS3_v2"}}
    told = http.put(f"{endpoint}/deployments/blue", json=body, timeout=30)
    assert (told.status_code, http.get(f"{endpoint}/deployments/blue", timeout=30).status_code) == (201, 200)
    http.delete(endpoint, timeout=30).raise_for_status()
    until = time.monotonic() + 60
    while (there := http.get(endpoint, timeout=30)).status_code != 404 and time.monotonic() < until:
        time.sleep(0.1)
    assert there.status_code == 404
