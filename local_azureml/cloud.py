"""The cloud: its names, addresses, folders and secrets, and the variables that point clients at it."""

import hmac
import json
import secrets
import uuid
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path

from starlette.requests import Request  # FastAPI's own, whose import takes each child a third of a second

from local_azureml.certificates import Certificates, write_private
from local_azureml.errors import AzureError, not_found
from local_azureml.faults import Faults
from local_azureml.meter import Meter
from local_azureml.state import State

NAME = "LocalAzureML"
PORTAL = "https://portal.azure.local/"
AUDIENCE = "https://ml.azure.local"  # what the SDK derives from the portal's address
STORAGE_SUFFIX = "storage.local"
SUBSCRIPTION = "00000000-0000-0000-0000-000000000000"
GROUP = "local"
WORKSPACE = "local"
LOCATION = "eastus"
LIFETIME = 24 * 3600  # seconds that a token and a storage signature are valid
TENANT = "00000000-0000-0000-0000-000000000001"
PROVIDER = "Microsoft.MachineLearningServices"
SEEDS = Path(__file__).parent / "seeds"
SMALL_MODEL = SEEDS / "base_model"  # what stands in for the registry's models unless a checkpoint is given

GROUP_PATH = "/subscriptions/{subscription}/resourceGroups/{group}"
WORKSPACE_PATH = f"{GROUP_PATH}/providers/{PROVIDER}/workspaces/{{workspace}}"
WORKSPACE_ID = WORKSPACE_PATH.format(subscription=SUBSCRIPTION, group=GROUP, workspace=WORKSPACE)


@dataclass
class Cloud:
    """Everything that a service needs besides its request; one for each running stand-in."""

    folder: Path  # the data folder: state, blobs, runs, certificates, secrets
    port: int
    base_model: Path
    polling_seconds: float = 1.0  # what Retry-After says
    faults: Faults = field(default_factory=Faults)
    one_python: bool = False  # jobs and deployments run in the stand-in's own, whatever environment they name

    def __post_init__(self):
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.state = State(self.folder)
        if self.state.get(WORKSPACE_ID) is None:
            self.state.put(WORKSPACE_ID, {"systemData": system_data()})
        self.meter = Meter(self.state)
        self.certificates = Certificates(self.folder / "tls")
        self._secrets_file = self.folder / "secrets.json"
        if not self._secrets_file.exists():
            names = ("identity_header", "token_key", "sas_signature")
            made = {name: secrets.token_urlsafe(32) for name in names}
            write_private(self._secrets_file, json.dumps(made).encode())

    def secret(self, name: str) -> str:
        """Return a secret of this data folder: random when the folder was made, kept through a restart."""
        return json.loads(self._secrets_file.read_text(encoding="utf-8"))[name]

    def sign(self, *words: str) -> str:
        """Return what nobody else can make of `words`, in hexadecimal; the first says what it is for."""
        key = self.secret("sas_signature").encode()
        return hmac.new(key, json.dumps(words).encode(), "sha256").hexdigest()

    @property
    def origin(self) -> str:
        """Return the address that clients use."""
        return f"https://localhost:{self.port}"

    @property
    def blobs(self) -> Path:
        """Return the folder whose folders are the blob containers."""
        return self.folder / "blobs"

    def environment(self) -> dict[str, str]:
        """Return the variables that point an unmodified SDK here; the README says why each."""
        return {
            "ARM_CLOUD_METADATA_URL": f"{self.origin}/metadata/endpoints?api-version=2019-05-01",
            "AZUREML_CURRENT_CLOUD": NAME,
            "REGISTRY_DISCOVERY_ENDPOINT_URL": f"{self.origin}/",
            "IDENTITY_ENDPOINT": f"{self.origin}/identity/token",
            "IDENTITY_HEADER": self.secret("identity_header"),
            "REQUESTS_CA_BUNDLE": str(self.certificates.bundle),
            "SSL_CERT_FILE": str(self.certificates.bundle),
            "AZUREML_RUN_POLLING_INTERVAL_MIN": "1",
            "AZUREML_RUN_POLLING_INTERVAL_MAX": "1",
            "HF_ENDPOINT": self.origin,
            "HF_HOME": str(self.folder / "huggingface"),
            "AZUREML_ARM_SUBSCRIPTION": SUBSCRIPTION,
            "AZUREML_ARM_RESOURCEGROUP": GROUP,
            "AZUREML_ARM_WORKSPACE_NAME": WORKSPACE,
            "NO_PROXY": "localhost,127.0.0.1",
            "no_proxy": "localhost,127.0.0.1",
        }


def current(request: Request) -> Cloud:
    """Return the cloud that answers `request`."""
    return request.app.state.cloud


async def body(request: Request, most: int) -> bytes:
    """Return the body of a request, or refuse it as soon as it exceeds `most` bytes."""
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > most:
            raise AzureError(413, "RequestBodyTooLarge", f"at most {most} bytes in one request")
    return bytes(content)


def check_group(request: Request) -> None:
    """Refuse a path that names another subscription or resource group than the one there is."""
    subscription = request.path_params.get("subscription", SUBSCRIPTION)
    group = request.path_params.get("group", GROUP)
    if subscription.lower() != SUBSCRIPTION:
        message = f"The subscription {subscription!r} could not be found; there is: {SUBSCRIPTION}"
        raise AzureError(404, "SubscriptionNotFound", message)
    if group.lower() != GROUP:
        message = f"Resource group {group!r} could not be found; there is: {GROUP}"
        raise AzureError(404, "ResourceGroupNotFound", message)


def workspace_id(request: Request, subscription: str, group: str, workspace: str) -> str:
    """Return the id of the workspace that the request's path names, which must be there."""
    check_group(request)
    asked = WORKSPACE_PATH.format(subscription=subscription, group=group, workspace=workspace)
    missing = "workspace-missing" in current(request).faults
    if missing or asked.lower() != WORKSPACE_ID.lower():
        known = [] if missing else [f"{GROUP}/{WORKSPACE}"]
        raise not_found("workspace", f"{group}/{workspace}", known)
    return WORKSPACE_ID


def now(later: float = 0) -> str:
    """Return the time, or that so many seconds later, as Azure writes it."""
    return (datetime.now(timezone.utc) + timedelta(seconds=later)).isoformat(timespec="microseconds")


def identity(asked: dict | None) -> dict | None:
    """Return the identity of a resource with the ids that Azure gives it."""
    if asked is None:
        return None
    system = {"principalId": "00000000-0000-0000-0000-000000000004", "tenantId": TENANT}
    given = {**asked, **(system if "SystemAssigned" in asked["type"] else {})}
    if users := asked.get("userAssignedIdentities"):
        given["userAssignedIdentities"] = {user: _ids_of_user(user) for user in users}
    return given


def _ids_of_user(identity: str) -> dict:
    """Return the ids of an identity that a user assigns: the same wherever it is named."""
    names = ("principalId", "clientId")
    return {name: str(uuid.uuid5(uuid.NAMESPACE_URL, f"{name} of {identity.lower()}")) for name in names}


def system_data(created: str | None = None) -> dict:
    """Return who made and changed a resource, and when."""
    return {
        "createdAt": created or now(),
        "createdBy": "you",
        "createdByType": "User",
        "lastModifiedAt": now(),
        "lastModifiedBy": "you",
        "lastModifiedByType": "User",
    }
