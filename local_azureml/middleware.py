"""What each request passes before a service sees it: the access log, capitals, the network's faults."""

import asyncio
import logging
import re
import socket
import struct
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from local_azureml import errors, storage
from local_azureml.context import Context
from local_azureml.faults import Faults
from local_azureml.identifiers import PROVIDER

log = logging.getLogger(__name__)
CORRELATION = "x-ms-correlation-request-id"
HUB = ("/api/datasets/", "/datasets/")
METADATA = "/metadata/"  # nobody asks for it in the public cloud, and the SDK asks only once
BLOBS = f"/{storage.ACCOUNT}.blob."
SEGMENTS = (
    "subscriptions",
    "resourceGroups",
    "providers",
    PROVIDER,
    "workspaces",
    "onlineEndpoints",
    "registries",
)
ID_PARTS = 8  # of an id, from the subscription's name to the kind of what lies in the workspace
FILES = (BLOBS, *HUB)  # a path below these is a file's name
CANONICAL = {segment.lower(): segment for segment in SEGMENTS}


class AccessLog:
    """Logs each answer: port, method, path without its query, which may hold a signature, and status.

    The answer carries the request's correlation id, or a new one, as all of Azure's do.
    """

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        correlation = Headers(scope=scope).get(CORRELATION) or str(uuid.uuid4())

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[CORRELATION] = correlation
                port, path = scope["server"][1], scope["raw_path"].decode("latin-1")
                log.info("%d %s %s %d", port, scope["method"], path, message["status"])
            await send(message)

        await self.app(scope, receive, noted)


class CaseInsensitivePaths:
    """Writes the words of a workspace's or endpoint's id as the routes know them; keeps names and files.

    Clients capitalise these words in several ways, and Azure takes any.
    """

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not scope["path"].startswith(FILES):
            before, subscriptions, after = scope["path"].partition("/subscriptions/")
            parts = after.split("/")
            words = [CANONICAL.get(part.lower(), part) for part in parts[:ID_PARTS]]
            scope = {**scope, "path": before + subscriptions + "/".join(words + parts[ID_PARTS:])}
        await self.app(scope, receive, send)


IN_WORKSPACE = rf".*/{PROVIDER}/workspaces"
REFUSALS = {  # a fault, with =VALUE where it is one of several: requests; status, code, detail; message
    "no-credential": (
        "GET /identity/token",
        "400 invalid_request",
        "no managed identity matches this X-IDENTITY-HEADER",
    ),
    "workspace-missing": (
        rf"\w+ {IN_WORKSPACE}/(?P<name>[^/]+).*",
        "404 ResourceNotFound",
        "The workspace {name!r} could not be found; there is: none",
    ),
    "registry-forbidden": (
        "GET /(registrymanagement|mferp)/.*/registries/(?P<name>[^/]+)/.*",
        "403 Forbidden",
        "you may not read the registry {name!r}: ask for the role AzureML Registry User",
    ),
    "model-missing": (
        "GET /mferp/.*/registries/(?P<of>[^/]+)/models/(?P<name>[^/]+).*",
        "404 UserError ModelNotFound",
        "no model named {name!r} in the registry {of!r}; there is: none",
    ),
    "quota-forbidden": (
        rf"GET /subscriptions/[^/]+/providers/{PROVIDER}/locations/[^/]+/(vmSizes|usages)",
        "403 AuthorizationFailed",
        "a role on the workspace does not reach the subscription's locations",
    ),
    "register-refused": (
        rf"PUT {IN_WORKSPACE}/[^/]+/models/.*",
        "403 Forbidden",
        "you may not register models in this workspace: ask for the role AzureML Data Scientist",
    ),
    "delete-failed": (
        rf"DELETE {IN_WORKSPACE}/[^/]+/onlineEndpoints/(?P<name>[^/]+)",
        "409 Conflict",
        "the endpoint {name!r} is busy: try again",
    ),
    "scoring-status=500": (
        "POST /score",
        "500 InternalServerError",
        "the service failed (the fault scoring-status is on)",
    ),
}


def refusal(faults: Faults, request: str) -> errors.AzureError | None:
    """Return what a fault answers to a request in place of its service; one with a number, so many times."""
    for fault, (requests, answer, message) in REFUSALS.items():
        name, _, value = fault.partition("=")
        if name not in faults or not (found := re.fullmatch(requests, request)):
            continue
        if str(faults.value(name)) == value if value else faults.value(name) is None or faults.first(name):
            status, code, *detail = answer.split()
            return errors.AzureError(int(status), code, message.format(**found.groupdict()), *detail)
    return None


class FaultMiddleware:
    """Answers that a fault asks for; slow answers, throttling, connections that break."""

    def __init__(self, app: ASGIApp, context: Context):
        self.app, self.faults = app, context.faults

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(METADATA):
            return await self.app(scope, receive, send)
        if "slow" in self.faults:
            await asyncio.sleep(self.faults.value("slow"))
        if self.faults.every("throttled"):
            of_blobs = scope["path"].startswith(BLOBS)
            status, code = (503, "ServerBusy") if of_blobs else (429, "TooManyRequests")
            error = errors.AzureError(status, code, "too many requests", headers={"Retry-After": "1"})
            return await errors.answer(error)(scope, receive, send)
        if error := refusal(self.faults, f"{scope['method']} {scope['path']}"):
            return await errors.answer(error)(scope, receive, send)
        if self._breaks(scope):
            await receive()  # a part of the body, where there is one
            return await _reset(receive)
        await self.app(scope, receive, send)

    def _breaks(self, scope: Scope) -> bool:
        if "hub-unreachable" in self.faults and scope["path"].startswith(HUB):
            return True
        if scope["method"] == "PUT" and scope["path"].startswith(BLOBS) and "upload-broken" in self.faults:
            return self.faults.first("upload-broken")
        return self.faults.every("reset")


async def _reset(receive: Receive) -> None:
    """Break the connection that a request came by, without an answer."""
    cycle = receive.__self__  # ASGI has no word for this; `receive` is uvicorn's own
    at_once = struct.pack("ii", 1, 0)
    cycle.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
    cycle.transport.abort()
    while not cycle.disconnected:
        await asyncio.sleep(0)
