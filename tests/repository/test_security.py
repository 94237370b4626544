"""Who gets in, what leaks out, and what a job may read."""

import contextlib
import hashlib
import json
import re
import resource
import socket
import ssl
import stat
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
from conftest import PLAIN_JOB, Emulator, client_of, point, raw_client

from local_azureml import identifiers
from local_azureml.app import CONTROL_PLANE, PUBLIC
from scenarios.notebook_runs import ROOT


@pytest.fixture(scope="module")
def folder(environment) -> Path:
    """The data folder of the emulator."""
    return Path(environment["HF_HOME"]).parent


@pytest.fixture(scope="module")
def secrets(folder) -> dict[str, str]:
    return json.loads((folder / "secrets.json").read_text())


def test_one_port_of_loopback_is_listened_on_one_more_for_each_endpoint_and_none_by_a_deployment(
    emulator, client
):
    from clients import deployment, endpoint

    client.online_endpoints.begin_create_or_update(endpoint("quiet")).result()
    client.online_deployments.begin_create_or_update(deployment("quiet", "demo")).result()
    process = psutil.Process(emulator.process.pid)
    family = [process, *process.children(recursive=True)]
    listening = [c for p in family for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN]
    addresses = [each.scoring_uri for each in client.online_endpoints.list()]
    client.online_endpoints.begin_delete("quiet").result()
    ports = sorted(urlsplit(address).port for address in (emulator.environment["HF_ENDPOINT"], *addresses))
    assert sorted(c.laddr for c in listening) == [("127.0.0.1", port) for port in ports]


@pytest.mark.parametrize("host", ["example.com", "localhost.example.com", "169.254.169.254", ""])
def test_a_request_that_names_another_host_is_refused(anonymous, host):
    answer = anonymous.get("/metadata/endpoints", headers={"Host": host})
    assert answer.status_code == 400


def test_plain_http_gets_no_answer(environment):
    with pytest.raises(httpx.HTTPError):
        httpx.get(environment["HF_ENDPOINT"].replace("https", "http"))


def test_secrets_are_long_and_all_different(secrets):
    assert len(set(secrets.values())) == 3
    assert min(len(secret) for secret in secrets.values()) >= 43  # 32 bytes


def test_each_data_folder_has_secrets_of_its_own(secrets, emulator_with):
    other = json.loads((emulator_with().context.folder / "secrets.json").read_text())
    assert not set(secrets.values()) & set(other.values())


def test_secrets_and_keys_can_be_read_by_their_owner_only(folder):
    files = [folder / "secrets.json", folder / "tls" / "server.pem", folder / "state.sqlite"]
    modes = {file.name: stat.filemode(file.stat().st_mode) for file in files}
    assert modes == dict.fromkeys(modes, "-rw-------")


@pytest.mark.parametrize("was", ["empty", "an emulator's"])
def test_a_data_folder_that_was_open_to_others_is_closed(tmp_path, was):
    place = tmp_path / "open"
    place.mkdir()
    if was != "empty":
        Emulator(place).end()
    place.chmod(0o755)
    started = Emulator(place)
    mode = stat.filemode(place.stat().st_mode)
    started.end()
    assert mode == "drwx------"


def test_an_open_folder_with_other_things_in_it_is_refused_and_stays_as_it_is(tmp_path):
    place = tmp_path / "shared"
    place.mkdir()
    place.chmod(0o755)
    (place / "thesis.txt").touch()
    command = [sys.executable, "-m", "local_azureml", "serve", "--data-dir", place]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2 and "is open to other users" in ended.stderr
    assert [file.name for file in place.iterdir()] == ["thesis.txt"]
    assert stat.filemode(place.stat().st_mode) == "drwxr-xr-x"


@pytest.mark.parametrize("name", ["secrets.json", "bundle.pem"])
def test_a_first_start_that_is_killed_while_it_writes_does_not_spoil_the_next(tmp_path, name):
    """The write breaks off after ten bytes."""
    killed = f"""
        import os, runpy
        from pathlib import Path

        write = Path.write_bytes

        def cut_off(self, content):
            if {name!r} not in self.name:
                return write(self, content)
            write(self, content[:10])
            os._exit(9)

        Path.write_bytes = cut_off
        runpy.run_module("local_azureml", run_name="__main__")
    """
    command = [sys.executable, "-c", textwrap.dedent(killed), "serve", "--data-dir", tmp_path / "data"]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, timeout=60).returncode == 9
    started = Emulator(tmp_path / "data")
    try:
        with raw_client(started.environment) as opened:
            assert opened.get(identifiers.WORKSPACE_ID).status_code == 200
    finally:
        started.end()


def test_the_control_plane_is_closed_to_those_without_a_token(anonymous):
    """Every route of it, with every method."""
    routes = [route for service in CONTROL_PLANE for route in service.router.routes]
    assert len(routes) > 40
    for route in routes:
        for method in route.methods:
            path = re.sub(r"\{\w+\}", "x", route.path)
            assert anonymous.request(method, path, json={}).status_code == 401, (method, path)


def test_what_is_open_is_listed_here():
    routes = [route for service in PUBLIC for route in service.public.routes]
    opened = [(sorted(route.methods), route.path) for route in routes]
    assert opened == [(["GET"], "/discovery/workspaces/{workspace}"), (["GET"], "/runs/{name}")]


@pytest.mark.parametrize("below", ["", f"/providers/{identifiers.PROVIDER}/workspaces", "/models"])
@pytest.mark.parametrize(
    ("ours", "other", "code"),
    [
        (identifiers.SUBSCRIPTION, "another", "SubscriptionNotFound"),
        (f"Groups/{identifiers.GROUP}", "Groups/nope", "ResourceGroupNotFound"),
    ],
)
def test_another_subscription_or_group_is_not_found(http, arm, below, ours, other, code):
    group, _, _ = arm.workspace.partition("/providers")
    path = (arm.workspace if below == "/models" else group) + below
    assert http.get(path).status_code == 200
    answer = http.get(path.replace(ours, other))
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, code)


def test_the_workspaces_of_another_subscription_are_not_found(http):
    below = f"providers/{identifiers.PROVIDER}/workspaces"
    assert http.get(f"/subscriptions/{identifiers.SUBSCRIPTION}/{below}").status_code == 200
    answer = http.get(f"/subscriptions/another/{below}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "SubscriptionNotFound")


def test_no_log_holds_a_token_a_key_or_a_signature(client, folder, secrets, fine_tuning, http, arm):
    from clients import endpoint

    address = client.online_endpoints.begin_create_or_update(endpoint("secretive")).result().scoring_uri
    key = client.online_endpoints.get_keys("secretive").primary_key
    http.post(address, json={}, headers={"Authorization": f"Bearer {key}"})
    token = http.headers["Authorization"].removeprefix("Bearer ")
    logs = [file.read_text(errors="replace") for file in folder.rglob("*") if file.suffix in (".txt", ".log")]
    logs += [folder.with_name(f"{folder.name}.log").read_text(), fine_tuning[1]]
    known = [*secrets.values(), key, token, token.rpartition(".")[2]]
    assert len(logs) > 5
    assert not [secret for secret in known if any(secret in log for log in logs)]


outside = pytest.mark.parametrize(
    "address",
    [
        "azureml://datastores/workspaceblobstore/paths/../../secrets.json",
        "azureml://datastores/workspaceblobstore/paths/%2e%2e/%2e%2e/secrets.json",
        "azureml://jobs/x/outputs/y/../../../secrets.json",
        "file:///etc/passwd",
        "/etc/passwd",
        "https://localhost:1/store.blob.storage.local/azureml-blobstore/..%2F..%2Fsecrets.json",
        "https://localhost:1/store.blob.storage.local/../secrets.json",
    ],
)


@outside
def test_a_deployment_serves_no_model_from_outside_the_storage(http, arm, address):
    body = {"location": "eastus", "properties": {"model": address, "instanceType": "Standard_DS3_v2"}}
    http.put(
        f"{arm.workspace}/onlineEndpoints/curious",
        json={"location": "eastus", "properties": {"authMode": "Key"}},
    )
    answer = http.put(f"{arm.workspace}/onlineEndpoints/curious/deployments/demo", json=body)
    assert answer.status_code in (400, 404)


@outside
def test_a_job_reads_no_input_from_outside_the_storage(http, arm, address):
    path = f"{arm.workspace}/jobs/curious-{hashlib.sha256(address.encode()).hexdigest()[:8]}"
    inputs = {"secret": {"jobInputType": "uri_file", "uri": address}}
    body = PLAIN_JOB | {"command": "cat ${{inputs.secret}}"}
    answer = http.put(path, json={"properties": body | {"inputs": inputs}})
    error = answer.json().get("error")
    if answer.status_code == 201:
        while http.get(path).json()["properties"]["status"] not in ("Completed", "Failed"):
            time.sleep(0.1)
        error = http.get(f"/history/v1.0{path.replace('/jobs/', '/runs/')}").json()["error"]["error"]
    assert re.search(
        "is not the name of a blob|is not an address|no job named|no container", error["message"]
    )


def test_a_browser_page_of_another_origin_may_read_nothing(http, arm):
    answer = http.get(arm.workspace, headers={"Origin": "https://example.com"})
    assert "access-control-allow-origin" not in answer.headers


def test_a_body_in_many_pieces_without_an_end_is_cut_off(anonymous, client):
    """The largest block is the most that is taken in one request."""
    signature = client.datastores.get_default(include_secrets=True).credentials.sas_token
    piece = bytes(8 * 1024 * 1024)

    def pieces():
        for _ in range(40):
            yield piece

    path = f"/store.blob.storage.local/azureml-blobstore/endless?{signature}"
    assert anonymous.put(path, content=pieces()).status_code == 413


def with_endpoint(emulator: Emulator) -> str:
    """Return the address of an endpoint that is made there."""
    from clients import endpoint

    with pytest.MonkeyPatch.context() as patch:
        point(patch, emulator.environment)
        return client_of().online_endpoints.begin_create_or_update(endpoint("silenced")).result().scoring_uri


@pytest.mark.parametrize("place", ["everything", "an endpoint"])
def test_silent_connections_take_neither_the_next_clients_place_nor_the_terminal(tmp_path, place):
    """More than the emulator has descriptors: of those that say nothing, some do so before they greet."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, limits[1]))
    started = Emulator(tmp_path / "data")
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    endpoint = with_endpoint(started)
    silenced = started.environment["HF_ENDPOINT"] if place == "everything" else endpoint
    address = "127.0.0.1", urlsplit(silenced).port
    context = ssl.create_default_context(cafile=started.environment["REQUESTS_CA_BUNDLE"])
    with raw_client(started.environment) as early, contextlib.ExitStack() as silent:
        assert early.get("/metadata/endpoints").status_code == 200
        for number in range(400):
            opened = silent.enter_context(socket.create_connection(address, timeout=60))
            if number % 3 == 0:
                silent.enter_context(context.wrap_socket(opened, server_hostname="localhost"))
        for client in (early, silent.enter_context(raw_client(started.environment))):
            assert client.get(identifiers.WORKSPACE_ID).status_code == 200
            assert client.post(endpoint).status_code == 401
    left = "left running, stopped now: endpoint silenced (no deployment)"
    assert started.end().splitlines() == ["Azure would have billed: nothing", left]
