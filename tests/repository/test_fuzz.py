"""Whatever is sent to whichever route, the answer comes, and is no failure of the emulator's own."""

import itertools
import json
import re
import time
from types import SimpleNamespace
from urllib.parse import parse_qsl, quote

import pytest
from conftest import API_VERSION
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from starlette.testclient import TestClient

from local_azureml import identifiers, storage
from local_azureml.app import AT_ENDPOINT, ROUTES, create_app
from local_azureml.context import Context
from local_azureml.data_plane import identity
from local_azureml.faults import Faults

LONGEST = 60.0  # seconds for one answer, however busy the machine is
WORDS = [
    *("AmlCompute", "Standard_NC24ads_A100_v4", "PT1M", "P", "Key", "Primary", "x", "demo", "gpu"),
    *("Pipeline", "Command", "Sweep", "${{parent.inputs.x}}", "${{parent.jobs.x.outputs.y}}", "latest"),
    *("azureml://registries/azureml/models/Phi-4/versions/8", "azureml://jobs/x/outputs/y", "..", ""),
    *("azureml://registries/azureml/components/chat_completion_pipeline/versions/0.0.82", "a" * 300),
    *("azureml://datastores/workspaceblobstore/paths/../../secrets.json", "azureml:x:1", "\ud800", "\0"),
    *("azureml-blobstore/" * 300, ".", "²"),
]
ATOMS = some.one_of(
    some.none(),
    some.booleans(),
    some.integers(-2, 200),
    some.sampled_from([1e308, float("nan"), float("inf"), 10**30, -1.5]),
    some.sampled_from(WORDS),
    some.text(max_size=5),
)
VALUES = some.recursive(
    ATOMS,
    lambda inner: some.lists(inner, max_size=2) | some.dictionaries(some.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
NAMES = some.sampled_from([word for word in WORDS if word and word != "\ud800"]) | some.text(
    some.characters(codec="utf-8"), min_size=1, max_size=5
)
KNOWN = {  # what is there, for each parameter of a path
    "subscription": some.just(identifiers.SUBSCRIPTION),
    "group": some.just(identifiers.GROUP),
    "workspace": some.just(identifiers.WORKSPACE),
    "registry": some.just("azureml"),
    "container": some.just("azureml-blobstore"),
    "kind": some.sampled_from(["models", "components", "data"]),
    "owner": some.just("HuggingFaceH4"),
    "name": some.sampled_from(["ultrachat_200k", "Phi-4"]) | NAMES,
    "revision": some.just("main"),
}
QUERIES = some.dictionaries(
    some.sampled_from(
        [
            "$top",
            "listViewType",
            "hash",
            "comp",
            "prefix",
            "delimiter",
            "blockid",
            "isDefault",
            "resource",
            "limit",
            "cursor",
            "recursive",
        ]
    ),
    some.sampled_from(
        ["list", "block", "blocklist", "metadata", "1", "-1", "²", "9" * 5000, "x", "/", "true"]
    ),
    max_size=3,
)
HEADERS = some.dictionaries(
    some.sampled_from(["range", "x-ms-range", "if-match", "if-none-match", "content-type", "x-ms-meta-a"]),
    some.sampled_from(["bytes=0-", "bytes=5-1", "bytes=-1", "*", "bytes=" + "9" * 5000 + "-", "x", "\xb2"]),
    max_size=2,
)


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    waiting = Faults(["stuck-preparing"])  # no job begins to work
    context = Context(tmp_path_factory.mktemp("fuzz"), 443, identifiers.SEEDS / "base_model", faults=waiting)
    made = create_app(context)
    context.endpoint_ports = SimpleNamespace(
        open=lambda name, wished=0: 8443, close=lambda name: None, endpoint=lambda port: "demo"
    )
    context.runs.load()  # takes seconds, once
    yield made
    context.jobs.stop()
    context.deployments.stop()


OPERATIONS = sorted(
    (method, f"{origin}{route.path}")
    for origin, routes in (("", ROUTES), ("https://localhost:8443", AT_ENDPOINT))
    for route in routes
    for method in route.methods
)


@pytest.fixture(scope="module")
def sender(app):
    token = identity.make_token(app.state.context, identifiers.AUDIENCE, int(time.time()) + 3600)
    with TestClient(app, "https://localhost") as opened:
        opened.params = API_VERSION
        opened.headers.update({"Authorization": f"Bearer {token}", "Content-Type": "application/json"})
        yield opened


def address(draw, path: str) -> str:
    """Return a path with names drawn in the places of its parameters, most of them known ones."""

    def name(found: re.Match) -> str:
        names = KNOWN.get(found[1], NAMES) if draw(some.integers(0, 9)) else NAMES
        return quote(draw(names), safe="")

    return re.sub(r"\{(\w+)(?::\w+)?\}", name, path)


def check(sender, method: str, path: str, **options) -> None:
    """Send a request, and hold the answer against what no request may bring about."""
    asked = time.monotonic()
    answer = sender.request(method, path, **options)
    assert answer.status_code < 500 or answer.status_code == 501, answer.text
    assert time.monotonic() - asked < LONGEST


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=some.data())
def test_no_request_makes_it_fail_or_hang(sender, app, data):
    method, path = data.draw(some.sampled_from(OPERATIONS))
    query, headers = data.draw(QUERIES), {k: v.encode("latin-1") for k, v in data.draw(HEADERS).items()}
    if "blob" in path:
        query |= parse_qsl(storage.signature(app.state.context, "azureml-blobstore"))
    body = json.dumps(data.draw(VALUES)).encode()
    check(sender, method, address(data.draw, path), params=query, content=body, headers=headers)


COMPONENT = "azureml://registries/azureml/components/chat_completion_pipeline/versions/0.0.82"
STORED = "azureml://datastores/workspaceblobstore/paths/x"
LITERAL = {"job_input_type": "literal", "value": "1"}
BODIES = {  # a body that is right, for each route that takes one
    "computes/gpu": {
        "location": "eastus",
        "tags": {"a": "b"},
        "properties": {
            "computeType": "AmlCompute",
            "properties": {
                "vmSize": "Standard_NC24ads_A100_v4",
                "vmPriority": "Dedicated",
                "userAccountCredentials": {"adminUserName": "a", "adminUserPassword": "b"},
                "scaleSettings": {
                    "minNodeCount": 0,
                    "maxNodeCount": 1,
                    "nodeIdleTimeBeforeScaleDown": "PT2M",
                },
            },
        },
    },
    "jobs/command": {
        "properties": {
            "jobType": "Command",
            "command": "true",
            "environmentId": "azureml://registries/azureml/environments/e/versions/1",
            "computeId": "gpu",
            "codeId": "azureml:x:1",
            "experimentName": "e",
            "displayName": "d",
            "tags": {},
            "properties": {},
            "inputs": {"a": {"jobInputType": "literal", "value": "1"}},
            "outputs": {"b": {"jobOutputType": "uri_folder", "uri": STORED}},
            "services": {"Studio": {"jobServiceType": "Studio"}},
            "resources": {"instanceCount": 1, "instanceType": "x"},
            "environmentVariables": {},
        }
    },
    "jobs/pipeline": {
        "properties": {
            "jobType": "Pipeline",
            "jobs": {"tune": {"componentId": COMPONENT, "inputs": {"learning_rate": LITERAL}, "outputs": {}}},
            "inputs": {"a": {"jobInputType": "literal", "value": "1"}},
            "outputs": {"trained_model": {"jobOutputType": "mlflow_model"}},
            "settings": {"default_compute": "gpu"},
        }
    },
    "onlineEndpoints/one": {
        "location": "eastus",
        "tags": {},
        "properties": {"authMode": "Key", "traffic": {}, "mirrorTraffic": {}, "properties": {}},
    },
    "onlineEndpoints/kept/deployments/demo": {
        "location": "eastus",
        "sku": {"name": "Default", "capacity": 1},
        "properties": {
            "environmentId": "azureml://registries/azureml/environments/e/versions/1",
            "model": "azureml:nothing:1",
            "instanceType": "Standard_NC24ads_A100_v4",
            "requestSettings": {"requestTimeout": "PT5S", "maxConcurrentRequestsPerInstance": 1},
            "livenessProbe": {"initialDelay": "PT10S", "period": "PT10S", "failureThreshold": 30},
            "environmentVariables": {},
        },
    },
    "models/m": {"properties": {"description": "d", "isArchived": True, "tags": {}, "properties": {}}},
    "models/m/versions/1": {
        "properties": {"modelUri": STORED, "modelType": "custom_model", "tags": {}, "flavors": {}}
    },
    "data/d/versions/1": {"properties": {"dataUri": STORED, "dataType": "uri_file", "isArchived": False}},
    "environments/e/versions/1": {"properties": {"image": "python:3.11"}},
    "components/c/versions/1": {
        "properties": {"componentSpec": {"name": "c", "version": "1", "command": "true", "inputs": {}}}
    },
    "onlineEndpoints/kept/regenerateKeys": {"keyType": "Primary", "keyValue": "k"},
    "onlineEndpoints/kept/deployments/demo/getLogs": {"containerType": "StorageInitializer", "tail": 5},
}


NUMBERS = itertools.count()


def changed(draw, value):
    """Return a value with some of its parts left out or replaced by anything."""
    if draw(some.integers(0, 5)) == 0:
        return draw(VALUES)
    if isinstance(value, dict):
        kept = {key: inner for key, inner in value.items() if draw(some.integers(0, 9))}
        return {key: changed(draw, inner) for key, inner in kept.items()}
    return value


@pytest.mark.parametrize("place", BODIES)
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=some.data())
def test_no_body_makes_it_fail_then_or_later(sender, place, data):
    path = f"{identifiers.WORKSPACE_ID}/{place}"
    if not place.endswith(("Keys", "Logs")):
        path += str(next(NUMBERS))  # a resource of its own
    sender.put(
        f"{identifiers.WORKSPACE_ID}/onlineEndpoints/kept",
        json={"location": "eastus", "properties": {"authMode": "Key"}},
    )
    method = "POST" if place.endswith(("Keys", "Logs")) else "PUT"
    check(sender, method, path, content=json.dumps(changed(data.draw, BODIES[place])).encode())
    for following in (path, path.rpartition("/")[0]):
        check(sender, "GET", following)


def test_a_body_nested_deeply_is_refused_or_taken(sender):
    for depth in (100, 300, 900, 3000, 100_000):
        body = '{"properties": {"flavors": {"x": ' + "[" * depth + "]" * depth + "}}}"
        check(sender, "PUT", f"{identifiers.WORKSPACE_ID}/models/deep/versions/1", content=body.encode())
        check(sender, "GET", f"{identifiers.WORKSPACE_ID}/models/deep/versions")


LINES = some.sampled_from(
    [
        *("dependencies:", "- pandas==1.5.3,<2", "- scipy=1.*|2", "- pip:", "  - a==1; python_version<'3'"),
        *("- &a [1]", "- *a", "? [", "- 2024-99-99", "- !!python/object:x y", "  - {a: [", "\t", "- numpy="),
        *("- []", "- scikit-learn==x.y", "- =1", "- ~", "- 1.0", "- x[", "- python=3.x", "[" * 2000),
    ]
)


@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(lines=some.lists(LINES | some.text(max_size=8), max_size=6))
def test_no_conda_file_makes_it_fail(sender, lines):
    environment = f"{identifiers.WORKSPACE_ID}/environments/conda{next(NUMBERS)}/versions/1"
    check(sender, "PUT", environment, json={"properties": {"condaFile": "\n".join(lines)}})
    job = {"jobType": "Command", "command": "true", "environmentId": environment, "computeId": "serverless"}
    check(sender, "PUT", f"{identifiers.WORKSPACE_ID}/jobs/conda{next(NUMBERS)}", json={"properties": job})
