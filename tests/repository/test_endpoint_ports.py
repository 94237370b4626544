"""The addresses of endpoints: each is a port of its own, which stays through a restart."""

import re
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import httpx
import pytest
from clients import endpoint
from conftest import client_of, point, raw_client

from local_azureml.cli import parse
from local_azureml.server import Server


def make(name: str) -> str:
    """Return the address of a new endpoint."""
    return client_of().online_endpoints.begin_create_or_update(endpoint(name)).result().scoring_uri


@pytest.fixture(scope="module")
def address(environment) -> str:
    return make("addressed-here")


@pytest.fixture
def start(tmp_path, monkeypatch):
    """A function that starts an emulator, always on the same folder."""

    def started(*options: str) -> Server:
        server = Server(parse(["serve", "--poll", "0.1", *options]), tmp_path / "data")
        point(monkeypatch, server.context.environment())
        return server

    return started


def test_an_endpoints_address_is_one_on_this_machine_with_azures_path(client, address):
    found = client.online_endpoints.get("addressed-here")
    assert re.fullmatch(r"https://localhost:\d+/score", found.scoring_uri)
    assert found.openapi_uri == found.scoring_uri.replace("/score", "/swagger.json")


def test_endpoints_that_are_made_at_once_have_different_addresses(client):
    with ThreadPoolExecutor(8) as threads:
        addresses = set(threads.map(make, [f"at-once-{number}" for number in range(8)]))
    assert len(addresses) == 8


def test_a_change_of_an_endpoint_leaves_its_address(client, address):
    changed = endpoint("addressed-here", tags={"a": "b"})
    assert client.online_endpoints.begin_create_or_update(changed).result().scoring_uri == address


@pytest.mark.parametrize("path", ["/score", "/swagger.json", "/endpoints/addressed-here/score"])
def test_what_an_endpoint_answers_is_an_unknown_address_elsewhere(http, address, path):
    assert [http.request(method, path).status_code for method in ("GET", "POST")] == [501, 501]


@pytest.mark.parametrize("path", ["WORKSPACE", "/metadata/endpoints", "/", "//score", "/x/../score"])
def test_an_endpoints_port_leads_to_nothing_but_the_endpoint(client, http, anonymous, arm, address, path):
    path = path.replace("WORKSPACE", arm.workspace)
    key = client.online_endpoints.get_keys("addressed-here").primary_key
    asked = httpx.URL(address).copy_with(raw_path=path.encode())
    answers = http.get(asked), anonymous.get(asked, headers={"Authorization": f"Bearer {key}"})
    assert [answer.status_code for answer in answers] == [401, 501]


def test_a_deleted_endpoints_port_is_closed_for_those_too_who_are_connected(client, environment):
    address = make("left-behind")
    with raw_client(environment) as connected:
        assert connected.post(address).status_code == 401
        client.online_endpoints.begin_delete("left-behind").result()
        with pytest.raises(httpx.TransportError):
            connected.post(address)


def test_an_endpoints_address_outlives_a_restart(start):
    with start():
        address = make("lasting")
        key = client_of().online_endpoints.get_keys("lasting").primary_key
    with start() as second, raw_client(second.context.environment(), token=False) as anonymous:
        assert client_of().online_endpoints.get("lasting").scoring_uri == address
        answer = anonymous.post(address, headers={"Authorization": f"Bearer {key}"})
        assert answer.json()["error"]["code"] == "NoTraffic"


def test_an_endpoint_whose_port_is_taken_at_a_restart_gets_another(start, caplog):
    with start():
        port = urlsplit(make("displaced")).port
    with start("--port", str(port)) as second, raw_client(second.context.environment()) as http:
        address = client_of().online_endpoints.get("displaced").scoring_uri
        assert urlsplit(address).port != port
        assert http.post(address).status_code == 401
    words = "port {}, which endpoint displaced had, is taken: its address is at port {} from now on"
    assert words.format(port, urlsplit(address).port) in caplog.text
