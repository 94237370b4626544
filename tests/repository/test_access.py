"""First who, then what: nothing is read of somebody unknown, nothing too long taken, nothing waited for."""

import re
import socket
import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPResponse
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
from clients import endpoint
from conftest import Emulator, client_of, point, raw_client

from local_azureml import access, app, middleware, timeouts
from local_azureml import storage as blobs
from local_azureml.data_plane import identity

LONGEST = 30.0  # seconds for what takes none on a machine that is not busy
MIB = 1024 * 1024
CONTAINER = "/store.blob.storage.local/azureml-blobstore"
ROUTES = [  # each with something in the places of its parameters
    (method, re.sub(r"\{\w+(:path)?\}", "x", route.path.replace("{kind:asset}", "models")))
    for route in app.ROUTES
    for method in sorted(route.methods)
]
DOORS = access.AccessMiddleware(None, app.RULES, identity.check_token)
RULES = [*app.RULES, *access.opened(app.AT_ENDPOINT)]
ASKING = [route for route in ROUTES if DOORS.find(*route)[0].check is not access.nothing]


def connect(environment: dict[str, str], address: str | None = None) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=environment["REQUESTS_CA_BUNDLE"])
    port = urlsplit(address or environment["HF_ENDPOINT"]).port
    plain = socket.create_connection(("127.0.0.1", port), LONGEST)
    return context.wrap_socket(plain, server_hostname="localhost")


def head(method: str, path: str, *lines: str) -> bytes:
    """Return a request's first line and headers."""
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *lines, "", ""]).encode()


def test_every_route_asks_who_it_is_before_it_reads(environment):
    assert len(ASKING) > 40
    for method, path in ASKING:
        with connect(environment) as connection:
            connection.sendall(head(method, path, "Content-Type: application/json", "Content-Length: 1000"))
            assert re.match(rb"HTTP/1.1 40[013] ", connection.recv(1000)), (method, path)


def test_whatever_opens_without_a_token_has_a_reason():
    short = [opened.path.pattern for opened in RULES if len(opened.rule.reason.split()) <= 5]
    assert short == []


def test_what_is_open_to_everybody_is_listed_here():
    open_to_all = {path for method, path in ROUTES if DOORS.find(method, path)[0].check is access.nothing}
    assert sorted(path for path in open_to_all if not path.startswith(middleware.HUB)) == [
        "/api/datasets",
        "/discovery/workspaces/x",
        "/metadata/endpoints",
    ]


@pytest.mark.parametrize("scheme", ["Foo ", "", "Basic "])
def test_a_token_counts_as_a_bearers_only(http, anonymous, arm, scheme):
    token = http.headers["Authorization"].removeprefix("Bearer ")
    answer = anonymous.get(arm.workspace, headers={"Authorization": f"{scheme}{token}"})
    assert answer.status_code == 401


def test_nobody_can_have_clients_sent_to_plain_http(anonymous):
    headers = {"X-Forwarded-Proto": "http", "X-Forwarded-For": "192.0.2.1"}
    answer = anonymous.get("/metadata/endpoints/", headers=headers)
    assert not answer.headers.get("location", "").startswith("http:")


@pytest.fixture(scope="module")
def discreet(client) -> str:
    """The address of an endpoint."""
    return client.online_endpoints.begin_create_or_update(endpoint("discreet")).result().scoring_uri


@pytest.mark.parametrize("key", [(), ("Authorization: Bearer guess",)])
@pytest.mark.parametrize(("method", "path"), [("POST", "/score"), ("GET", "/swagger.json"), ("PUT", "/x")])
def test_an_endpoint_asks_for_its_key_before_it_reads_and_does_not_tell_its_name(
    environment, discreet, method, path, key
):
    with connect(environment, discreet) as connection:
        connection.sendall(head(method, path, *key, "Content-Length: 1000"))
        said = connection.recv(10_000)
    assert said.startswith(b"HTTP/1.1 401 ") and b"discreet" not in said


def test_a_json_body_is_at_most_four_mebibytes(http, arm):
    content = b'{"tags": {"a": "' + bytes(4 * MIB).replace(b"\0", b"x") + b'"}}'
    answer = http.put(f"{arm.workspace}/computes/large", content=content)
    assert answer.status_code == 413


def test_a_json_body_without_a_length_is_cut_off_too(http, arm):
    answer = http.put(f"{arm.workspace}/computes/large", content=iter([b"[" * MIB] * 5))
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "RequestBodyTooLarge")


@pytest.fixture(scope="module")
def sas(client):
    def of(store: str) -> str:
        return client.datastores.get(store, include_secrets=True).credentials.sas_token

    return of


@pytest.mark.parametrize(
    ("store", "other"), [("workspaceblobstore", "azureml"), ("workspaceartifactstore", "azureml-blobstore")]
)
def test_a_signature_opens_one_container(anonymous, sas, store, other):
    own = blobs.CONTAINERS[store]
    address = "/store.blob.storage.local/{}?restype=container&comp=list&" + sas(store)
    assert anonymous.get(address.format(own)).status_code == 200
    assert anonymous.get(address.format(other)).status_code == 403


def test_a_signature_that_claims_a_later_end_is_none(anonymous, sas):
    later = re.sub(r"(?<=se=)\d{4}", "2999", sas("workspaceblobstore"))
    assert later != sas("workspaceblobstore")
    assert anonymous.get(f"{CONTAINER}?restype=container&{later}").status_code == 403


def test_a_signature_has_an_end(emulator_with):
    server = emulator_with()
    with raw_client(server.context.environment(), token=False) as opened:
        ends = {"before": time.time() - 1, "after": time.time() + 60}
        answers = {
            name: opened.get(f"{CONTAINER}?{blobs.signature(server.context, 'azureml-blobstore', end)}")
            for name, end in ends.items()
        }
    assert {name: answer.status_code for name, answer in answers.items()} == {"before": 403, "after": 200}


def test_a_block_is_listed_once(anonymous, sas):
    address = f"{CONTAINER}/bomb?{sas('workspaceblobstore')}&comp="
    anonymous.put(f"{address}block&blockid=YQ==", content=b"x")
    entries = "<Latest>YQ==</Latest>" * 2
    answer = anonymous.put(f"{address}blocklist", content=f"<BlockList>{entries}</BlockList>")
    assert answer.status_code == 501


class Gauge:
    """How far a process's memory rises above what it is at the beginning."""

    def __init__(self, process: int):
        self._process, self.rise, self._done = psutil.Process(process), 0.0, threading.Event()

    def __enter__(self) -> "Gauge":
        self._before = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.005):
            self.rise = max(self.rise, (self._process.memory_info().rss - self._before) / MIB)

    def __exit__(self, *_) -> None:
        self._done.set()
        self._thread.join()


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """An emulator whose memory and log are of interest."""
    served = Emulator(tmp_path_factory.mktemp("doors"))
    try:
        yield served
    finally:
        log = served.end()
    assert "Traceback" not in log


@pytest.fixture(scope="module")
def store(own):
    """The address of a blob of that emulator, with a signature."""
    with pytest.MonkeyPatch.context() as patch:
        point(patch, own.environment)
        token = client_of().datastores.get_default(include_secrets=True).credentials.sas_token
    return lambda name: f"{CONTAINER}/{name}?{token}"


def test_a_large_body_without_a_token_costs_no_memory(own, arm):
    with raw_client(own.environment, token=False) as opened, Gauge(own.process.pid) as gauge:
        pieces = (b"[]," * 300_000 for _ in range(60))
        answer = opened.put(f"{arm.workspace}/computes/x", content=pieces)
    assert answer.status_code == 401
    assert gauge.rise < 32


def test_uploads_side_by_side_stream_to_the_disk(own, store):
    def upload(number: int) -> int:
        with raw_client(own.environment, token=False) as opened:
            pieces = (bytes(MIB) for _ in range(12))
            return opened.put(store(f"large/{number}"), content=pieces).status_code

    with Gauge(own.process.pid) as gauge, ThreadPoolExecutor(8) as threads:
        assert set(threads.map(upload, range(8))) == {201}
    assert gauge.rise < 64


def test_an_upload_that_is_broken_off_leaves_nothing(own, store):
    """Neither a blob, nor a part of one, nor a traceback in the log, which the fixture looks at."""
    with connect(own.environment) as connection:
        connection.sendall(head("PUT", store("broken"), "Content-Length: 1000000") + bytes(1000))
        time.sleep(0.3)
    parts = Path(own.folder, "blob-parts")
    deadline = time.monotonic() + LONGEST
    while any(parts.glob("*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(parts.glob("*")) and not (own.folder / "blobs" / "azureml-blobstore" / "broken").exists()


WAITING = [  # what is sent before nothing more comes
    b"",
    b"GET /metadata/endpoints HTTP/1.1\r\nHost: local",
    head("POST", "/api/datasets/a/b/paths-info/main", "Content-Length: 10") + b"x",
    head("PUT", "/subscriptions/x", "Content-Length: 10"),  # refused
]


def test_a_request_that_does_not_come_or_trickles_is_given_up(emulator_with, monkeypatch):
    monkeypatch.setattr(timeouts, "HEAD_SECONDS", 0.5)
    monkeypatch.setattr(timeouts, "BODY_SECONDS", 0.5)
    variables = emulator_with().context.environment()
    for sent in WAITING:
        with connect(variables) as connection:
            connection.sendall(sent)
            while connection.recv(10_000):  # raises where nobody closes the connection
                pass
    begun = time.monotonic()
    with connect(variables) as connection, pytest.raises(OSError):
        connection.sendall(b"GET / HTTP/1.1\r\nX: ")
        while time.monotonic() - begun < LONGEST:
            connection.sendall(b"x")
            time.sleep(0.1)
    assert time.monotonic() - begun < LONGEST


def test_a_connection_may_wait_long_for_its_next_request(emulator_with, monkeypatch):
    """Clients keep connections open between two requests."""
    monkeypatch.setattr(timeouts, "HEAD_SECONDS", 0.3)
    monkeypatch.setattr(timeouts, "BODY_SECONDS", 0.3)
    with connect(emulator_with().context.environment()) as connection:
        for _ in range(2):
            connection.sendall(head("GET", "/discovery/workspaces/x"))
            answer = HTTPResponse(connection)
            answer.begin()
            assert (answer.status, bool(answer.read())) == (200, True)
            time.sleep(1)
