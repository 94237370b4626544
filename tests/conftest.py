"""The stand-in that the tests talk to, and clients of it."""

import os
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

ROOT = Path(__file__).parents[1]
QUICK = {"AZUREML_RUN_POLLING_INTERVAL_MIN": "0"}  # the SDK's stream then looks every 10 ms at first


def pytest_configure(config: pytest.Config) -> None:
    """Leave to the SDK its own deprecations, and its connections, which it offers no way to close."""
    config.addinivalue_line("filterwarnings", "ignore:unclosed:ResourceWarning")
    for module in ("azure", "marshmallow", "msrest", "pkg_resources"):
        config.addinivalue_line("filterwarnings", f"ignore:::{module}")


class StandIn:
    """A stand-in started by its command line; `environment` is what it tells clients to set."""

    def __init__(self, *options: str | Path):
        command = [sys.executable, "-m", "local_azureml", "serve", "--poll", "0.1", *map(str, options)]
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.environment = dict(self._exports()) | QUICK
        if "HF_ENDPOINT" not in self.environment:
            raise RuntimeError(self.process.communicate()[1])

    def _exports(self) -> Iterator[tuple[str, str]]:
        for line in self.process.stdout:
            if line.startswith("# ready"):
                return
            name, _, value = line.strip().removeprefix("export ").partition("=")
            yield name, value.strip("'")

    def end(self, number: signal.Signals = signal.SIGTERM) -> str:
        """Send a signal and return what the stand-in wrote to stderr by its end."""
        self.process.send_signal(number)
        return self.process.communicate(timeout=60)[1]


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory) -> Iterator[StandIn]:
    """One stand-in for all tests that need no fault."""
    served = StandIn("--data-dir", tmp_path_factory.mktemp("stand_in"))
    yield served
    served.end()


def point(patch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    """Point this process's clients at the stand-in whose variables these are."""
    for name in [name for name in os.environ if name.startswith(("AZURE_", "HF_", "MLFLOW_"))]:
        patch.delenv(name)
    for name, value in variables.items():
        patch.setenv(name, value)


@pytest.fixture(scope="module")
def environment(stand_in: StandIn) -> Iterator[dict[str, str]]:
    """The variables of the stand-in, set for a module's tests."""
    with pytest.MonkeyPatch.context() as patch:
        point(patch, stand_in.environment)
        yield stand_in.environment


@pytest.fixture
def stand_in_with(tmp_path: Path, monkeypatch) -> Iterator:
    """A function that serves a stand-in with faults and points this process's clients at it."""
    from local_azureml.__main__ import Server, parse

    running = []

    def start(*faults: str) -> Server:
        options = parse(["serve", "--poll", "0.1", *[f"--fault={fault}" for fault in faults]])
        running.append(Server(options, tmp_path / f"stand_in_{len(running)}").__enter__())
        point(monkeypatch, running[-1].cloud.environment() | QUICK)
        return running[-1]

    yield start
    for server in running:
        server.__exit__()


def client_of(workspace_name: str | None = None, registry_name: str | None = None):
    """Return an SDK client of a workspace, or of a registry, of the stand-in that the environment names."""
    from azure.ai.ml import MLClient
    from azure.identity import ManagedIdentityCredential

    if registry_name:
        return MLClient(ManagedIdentityCredential(), registry_name=registry_name)
    names = [
        os.environ[f"AZUREML_ARM_{name}"] for name in ("SUBSCRIPTION", "RESOURCEGROUP", "WORKSPACE_NAME")
    ]
    return MLClient(ManagedIdentityCredential(), *names[:2], workspace_name or names[2])


@pytest.fixture(scope="module")
def client(environment):
    return client_of()


@pytest.fixture(scope="module")
def registry_client(environment):
    return client_of(registry_name="azureml")


@pytest.fixture(scope="session")
def arm() -> SimpleNamespace:
    """The paths below which the workspace and the registry live."""
    from local_azureml import cloud, registry

    names = {"subscription": cloud.SUBSCRIPTION, "group": cloud.GROUP, "registry": "azureml"}
    return SimpleNamespace(workspace=cloud.WORKSPACE_ID, registry=registry.RESOURCE.format(**names))


def token_of(variables: dict[str, str], resource: str = "https://ml.azure.local") -> str:
    """Return a token as App Service's managed identity gives it."""
    headers = {"X-IDENTITY-HEADER": variables["IDENTITY_HEADER"]}
    context = ssl.create_default_context(cafile=variables["REQUESTS_CA_BUNDLE"])
    answer = httpx.get(
        variables["IDENTITY_ENDPOINT"], params={"resource": resource}, headers=headers, verify=context
    )
    return answer.raise_for_status().json()["access_token"]


def raw_client(variables: dict[str, str], token: bool = True) -> httpx.Client:
    """Return an HTTP client of a stand-in, with a token or without."""
    context = ssl.create_default_context(cafile=variables["REQUESTS_CA_BUNDLE"])
    headers = {"Authorization": f"Bearer {token_of(variables)}"} if token else {}
    return httpx.Client(base_url=variables["HF_ENDPOINT"], verify=context, headers=headers, timeout=60)


@pytest.fixture(scope="session")
def http(stand_in: StandIn) -> Iterator[httpx.Client]:
    with raw_client(stand_in.environment) as opened:
        yield opened


@pytest.fixture(scope="session")
def anonymous(stand_in: StandIn) -> Iterator[httpx.Client]:
    with raw_client(stand_in.environment, token=False) as opened:
        yield opened
