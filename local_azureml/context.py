"""Everything that a service needs besides its request."""

import hmac
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from starlette.requests import Request  # FastAPI's own, whose import takes each child a third of a second

from local_azureml import identifiers, ports
from local_azureml.certificates import Certificates, write_private
from local_azureml.faults import Faults
from local_azureml.meter import Meter
from local_azureml.resource import system_data
from local_azureml.state import State

SECRETS = ("identity_header", "token_key", "signing_key")  # the last signs addresses, cookies and tokens
LONGEST = 62  # bytes of a folder, for the path of a socket two folders below, which may have 103


@dataclass
class Context:
    """Everything that a service needs besides its request; one for each running emulator."""

    folder: Path  # the data folder: state, blobs, runs, certificates, secrets
    port: int
    base_model: Path
    polling_seconds: float = 1.0  # what Retry-After says
    faults: Faults = field(default_factory=Faults)
    one_python: bool = False  # jobs and deployments run in the emulator's own, whatever environment they name
    full_mlflow: bool = False  # programs find MLflow's whole server, not what Azure's has of it
    hub: str | None = None  # the address of another dataset hub, for which the caller's own cache serves
    runs: ports.Runs = field(init=False)
    jobs: ports.Jobs = field(init=False)
    deployments: ports.Deployments = field(init=False)
    endpoint_ports: ports.EndpointPorts = field(init=False)
    preload: Callable[[], None] = lambda: None  # called when a compute is made: jobs follow

    def __post_init__(self):
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.state = State(self.folder)
        if self.state.get(identifiers.WORKSPACE_ID) is None:
            self.state.put(identifiers.WORKSPACE_ID, {"systemData": system_data()})
        self.meter = Meter(self.state)
        self.certificates = Certificates(self.folder / "tls")
        file = self.folder / "secrets.json"
        self._secrets = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        if missing := [name for name in SECRETS if name not in self._secrets]:
            self._secrets |= {name: secrets.token_urlsafe(32) for name in missing}
            write_private(file, json.dumps(self._secrets).encode())

    def secret(self, name: str) -> str:
        """Return a secret of this data folder: random when the folder was made, kept through a restart."""
        return self._secrets[name]

    def sign(self, *words: str) -> str:
        """Return what nobody else can make of `words`, in hexadecimal; the first says what it is for."""
        key = self.secret("signing_key").encode()
        return hmac.new(key, json.dumps(words).encode(), "sha256").hexdigest()

    @property
    def origin(self) -> str:
        """Return the address that clients use."""
        return f"https://localhost:{self.port}"

    @property
    def blobs(self) -> Path:
        """Return the folder whose folders are the blob containers."""
        return self.folder / "blobs"

    @cached_property
    def temporary(self) -> Path:
        """Return the folder of sockets and of children's temporary files, where no other user can put any.

        It lies in the data folder; where that has a long path, it has a short name too.
        """
        place = self.folder / "tmp"
        remove_temporary(self.folder)  # what a start left that was killed
        place.mkdir(mode=0o700)
        if len(os.fsencode(place)) <= LONGEST:
            return place
        link = Path(tempfile.mkdtemp(prefix="local_azureml-", dir="/tmp"), "tmp")
        link.symlink_to(place)
        return link

    def close(self) -> None:
        """Close the state, and remove what is temporary."""
        self.state.close()
        remove_temporary(self.folder)

    def environment(self) -> dict[str, str]:
        """Return the variables that point an unmodified SDK here; the README says why each."""
        return {
            "ARM_CLOUD_METADATA_URL": f"{self.origin}/metadata/endpoints?api-version=2019-05-01",
            "AZUREML_CURRENT_CLOUD": identifiers.NAME,
            "REGISTRY_DISCOVERY_ENDPOINT_URL": f"{self.origin}/",
            "IDENTITY_ENDPOINT": f"{self.origin}/identity/token",
            "IDENTITY_HEADER": self.secret("identity_header"),
            "REQUESTS_CA_BUNDLE": str(self.certificates.bundle),
            "SSL_CERT_FILE": str(self.certificates.bundle),
            "AZUREML_RUN_POLLING_INTERVAL_MIN": "1",
            "AZUREML_RUN_POLLING_INTERVAL_MAX": "1",
            "HF_ENDPOINT": self.hub or self.origin,
            **({} if self.hub else {"HF_HOME": str(self.folder / "huggingface")}),
            "AZUREML_ARM_SUBSCRIPTION": identifiers.SUBSCRIPTION,
            "AZUREML_ARM_RESOURCEGROUP": identifiers.GROUP,
            "AZUREML_ARM_WORKSPACE_NAME": identifiers.WORKSPACE,
            "NO_PROXY": "localhost,127.0.0.1",
            "no_proxy": "localhost,127.0.0.1",
        }


def current(request: Request) -> Context:
    """Return the context that answers `request`."""
    return request.app.state.context


def remove_temporary(folder: Path) -> None:
    """Remove what is temporary of a data folder, and its short name."""
    place = folder / "tmp"
    for link in Path("/tmp").glob("local_azureml-*/tmp"):
        if link.is_symlink() and link.readlink() == place:
            shutil.rmtree(link.parent, ignore_errors=True)
    shutil.rmtree(place, ignore_errors=True)
