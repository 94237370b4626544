"""Artifacts of MLflow's: files of the artifact store, at addresses that any client of MLflow can read.

MLflow's own form, mlflow-artifacts:/, is read only where the tracking server is named by https, and that of
Azure's plugin not by every MLflow. So clients are told https addresses with a signature of the container in
them, as a blob has; stored is MLflow's own form.
"""

import base64
import re
import time
from urllib.parse import quote, unquote

from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from local_azureml import identifiers, storage
from local_azureml.context import Context, current
from local_azureml.control_plane import datastores
from local_azureml.errors import AzureError

STORED = "mlflow-artifacts:/"
ROOT = f"{STORED}{storage.CONTAINERS[storage.ARTIFACT_STORE]}"
UPLOADED = "azureml://artifacts/"  # begins the address that Azure's plugin gives to a folder it uploads
SERVED = "/api/2.0/mlflow-artifacts/artifacts"
HOLDING = re.compile(r"/api/\d\.\d/(mlflow/|.*/MLmodel$)")  # what holds addresses of artifacts
LONGEST_MODEL = 16 * 1024 * 1024  # bytes of an MLmodel file, which is held to be read
TOLD = re.compile(rf"(?<![^\s\"']){STORED}({'|'.join(storage.CONTAINERS.values())})(?=[/\"])")


def of_run(run: str) -> str:
    """Return the address, as it is stored, of a run's artifacts: where its job's logs and outputs are."""
    return f"{ROOT}/{storage.run_folder(run)}"


def datastore_uri(address: str) -> str:
    """Return the datastore's address of what lies at an address of MLflow's; any other as it is."""
    if address.startswith(UPLOADED):
        return datastores.uri(storage.ARTIFACT_STORE, address.removeprefix(UPLOADED))
    container, _, path = address.removeprefix(STORED).lstrip("/").partition("/")
    names = {held: name for name, held in storage.CONTAINERS.items()}
    known = address.startswith(STORED) and container in names
    return datastores.uri(names[container], path) if known else address


def stored(address: str) -> str:
    """Return the address in MLflow's form of what lies at a datastore's address; any other as it is."""
    named = datastores.ADDRESS.fullmatch(address)
    container = named and storage.CONTAINERS.get(named[1])
    return f"{STORED}{container}/{named[2].rstrip('/')}" if container else address


def check_signature(request: Request, below: str) -> None:
    """Refuse a request, at `below` MLflow's prefix, whose user and password don't sign for its container."""
    if below != SERVED and not below.startswith(f"{SERVED}/"):
        raise AzureError(401, "AuthenticationFailed", "a signature opens artifacts only")
    path = below.removeprefix(SERVED)
    asked = [path] if path else request.query_params.getlist("path")  # of two, MLflow would take the first
    container = asked[0].strip("/").partition("/")[0] if len(asked) == 1 else ""
    storage.check(current(request), container, *_given(request.headers["authorization"]))


def is_signature(authorization: str) -> bool:
    """Return whether a request comes with a signature, not with a token."""
    return authorization.lower().startswith("basic ")


def again(content: bytes, receive: Receive) -> Receive:
    """Return what receives a body that was read already, and then what follows it."""
    pending: list[Message] = [{"type": "http.request", "body": content}]

    async def received() -> Message:
        return pending.pop() if pending else await receive()

    return received


def _given(authorization: str) -> tuple[str, str]:
    """Return the end and the signature that a request's user and password are."""
    try:
        expires, _, signature = base64.b64decode(authorization.partition(" ")[2]).decode().rpartition(":")
    except ValueError:
        return "", ""
    return unquote(expires), signature


class Addresses:
    """Rewrites artifact URIs: signed https on the way out, mlflow-artifacts on the way in.

    Who comes with a signature is told addresses with that one, so that none opens more, or for longer.
    """

    def __init__(self, app: ASGIApp, context: Context, prefix: str):
        self.app, self._context = app, context
        self._prefix = prefix
        served = re.escape(f"{prefix}{SERVED}/")
        self._signed = re.compile(
            rf"https://[^\s\"@/]+@(?:localhost|127\.0\.0\.1):\d+{served}", re.IGNORECASE
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        below = scope["path"].partition(self._prefix)[2]
        if "authorization" not in Headers(scope=scope) or not HOLDING.match(below):
            return await self.app(scope, receive, send)
        authorization, is_model = Headers(scope=scope)["authorization"], below.endswith("/MLmodel")
        asked = (await Request(scope, receive).body()).decode("utf-8", "surrogateescape")
        asked = self._signed.sub(STORED, asked).encode("utf-8", "surrogateescape")
        headers = MutableHeaders(raw=list(scope["headers"]))
        headers["content-length"] = str(len(asked))
        start, told, is_long = {}, bytearray(), False

        def address(found: re.Match) -> str:
            return self._address(found, authorization)

        async def signed(message: Message) -> None:
            nonlocal is_long
            if message["type"] == "http.response.start":
                length = int(Headers(raw=message["headers"]).get("content-length", 0))
                is_long = is_model and length > LONGEST_MODEL
                start.update(message)
            if is_long:
                return await send(message)
            if message["type"] == "http.response.start":
                return
            told.extend(message.get("body", b""))
            if not message.get("more_body"):
                body = TOLD.sub(address, told.decode("utf-8", "surrogateescape"))
                body = body.encode("utf-8", "surrogateescape")
                MutableHeaders(scope=start)["content-length"] = str(len(body))
                await send(start)
                await send({"type": "http.response.body", "body": body})

        await self.app({**scope, "headers": headers.raw}, again(asked, receive), signed)

    def _address(self, found: re.Match, authorization: str) -> str:
        if is_signature(authorization):
            expires, signature = _given(authorization)
            try:
                storage.check(self._context, found[1], expires, signature)
            except AzureError:
                return found[0]
        else:
            expires, signature = storage.signed(self._context, found[1], time.time() + identifiers.LIFETIME)
        host = self._context.origin.removeprefix("https://")
        return f"https://{quote(expires, safe='')}:{signature}@{host}{self._prefix}{SERVED}/{found[1]}"
