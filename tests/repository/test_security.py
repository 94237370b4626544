"""Who gets in, what leaks out, and what a job may read."""

import contextlib
import json
import resource
import socket
import ssl
import stat
import subprocess
import sys
import textwrap
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
from conftest import Emulator, client_of, point, raw_client

from local_azureml import identifiers
from local_azureml.cli import main
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
def test_a_request_that_names_another_host_is_refused(anonymous, client, host):
    from clients import endpoint

    made = client.online_endpoints.begin_create_or_update(endpoint("rebound")).result()
    for address in ("/metadata/endpoints", made.scoring_uri):
        assert anonymous.get(address, headers={"Host": host}).status_code == 400


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


def started_and_ended(folder: Path) -> int:
    """Return the status of the program's `run` on a data folder, with a command that does nothing."""
    return main(["run", "--data-dir", str(folder), "--", "true"])


def test_a_data_folder_that_was_open_to_others_is_closed(tmp_path, variables_kept):
    for _ in ("empty", "an emulator's"):
        tmp_path.chmod(0o755)
        assert started_and_ended(tmp_path) == 0
        assert stat.filemode(tmp_path.stat().st_mode) == "drwx------"


def test_an_open_folder_with_other_things_in_it_is_refused_and_stays_as_it_is(
    tmp_path, capsys, variables_kept
):
    tmp_path.chmod(0o755)
    (tmp_path / "thesis.txt").touch()
    assert started_and_ended(tmp_path) == 2 and "is open to other users" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]
    assert stat.filemode(tmp_path.stat().st_mode) == "drwxr-xr-x"


@pytest.mark.parametrize("name", ["secrets.json", "bundle.pem"])
def test_a_first_start_that_is_killed_while_it_writes_does_not_spoil_the_next(tmp_path, variables_kept, name):
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
    assert started_and_ended(tmp_path / "data") == 0


def test_another_subscription_or_group_is_not_found(http, arm):
    group, _, _ = arm.workspace.partition("/providers")
    workspaces = f"/providers/{identifiers.PROVIDER}/workspaces"
    others = [
        (identifiers.SUBSCRIPTION, "another", "SubscriptionNotFound"),
        (f"Groups/{identifiers.GROUP}", "Groups/nope", "ResourceGroupNotFound"),
    ]
    subscription = f"/subscriptions/{identifiers.SUBSCRIPTION}"
    for path in (group, f"{group}{workspaces}", f"{arm.workspace}/models", f"{subscription}{workspaces}"):
        assert http.get(path).status_code == 200
        for ours, other, code in (one for one in others if one[0] in path):
            answer = http.get(path.replace(ours, other))
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, code)


def test_a_browser_page_of_another_origin_may_read_nothing(http, arm):
    answer = http.get(arm.workspace, headers={"Origin": "https://example.com"})
    assert "access-control-allow-origin" not in answer.headers


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
