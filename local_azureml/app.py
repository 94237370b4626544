"""The ASGI application: every service at its address, and 501 for all others."""

import asyncio
import logging
import socket
import sqlite3
import struct
import uuid

from fastapi import Depends, FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from local_azureml import errors, storage
from local_azureml.access import Doors
from local_azureml.cloud import PROVIDER, SEEDS, Cloud
from local_azureml.control_plane import (
    api_versions,
    assets,
    computes,
    datastores,
    deployments,
    endpoints,
    jobs,
    operations,
    quota,
    registry,
    workspace,
)
from local_azureml.data_plane import artifacts, blobs, history, hub, identity, scoring, tracking, uploads
from local_azureml.engine.jobs.supervisor import Jobs
from local_azureml.engine.serving.supervisor import Deployments

log = logging.getLogger(__name__)
CONTROL_PLANE = (
    workspace,
    quota,
    computes,
    datastores,
    jobs,
    endpoints,
    deployments,
    assets,
    operations,
    registry,
    history,
    uploads,
)
OWN_KEYS = (identity, blobs, scoring, hub)  # services whose requests carry another credential, or none
PUBLIC = (workspace, history)  # services of the control plane that answer some requests without a token
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


def create_app(local: Cloud) -> FastAPI:
    """Return the application that plays `local`."""
    app = FastAPI(title="local_azureml", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.cloud = local
    operations.recover(local)
    app.state.hub = hub.Hub(SEEDS / "hub")
    app.state.tracking = tracking.Tracking(local)
    app.state.jobs = Jobs(local, app.state.tracking)
    app.state.deployments = Deployments(local)
    app.state.warm = lambda: None  # called when a compute is made
    for service in CONTROL_PLANE:
        app.include_router(service.router, dependencies=[Depends(api_versions.check)])
    for service in PUBLIC:
        app.include_router(service.public)
    for service in OWN_KEYS:
        app.include_router(service.router)
    served = artifacts.Addresses(tracking.Page(app.state.tracking), local, tracking.PREFIX)
    app.mount(tracking.PREFIX, served)
    app.add_exception_handler(errors.AzureError, errors.on_azure_error)
    for storing in (OSError, sqlite3.Error):
        app.add_exception_handler(storing, errors.on_any_error)
    app.add_exception_handler(RequestValidationError, on_bad_request)
    app.add_exception_handler(HTTPException, errors.on_http_exception)
    app.add_middleware(Doors)
    app.add_middleware(Weather, local=local)
    app.add_middleware(Capitals)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=["localhost", "127.0.0.1"])
    app.add_middleware(AccessLog)
    return app


def on_bad_request(request: Request, error: RequestValidationError) -> Response:
    """Turn a body or query that does not fit the operation into a 400 that names the field."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    return errors.answer(errors.user_error(f"{place}: {first['msg']}"))


class AccessLog:
    """Logs each answer: method, path without its query, which may hold a signature, and status.

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
                log.info("%s %s %d", scope["method"], scope["raw_path"].decode("latin-1"), message["status"])
            await send(message)

        await self.app(scope, receive, noted)


class Capitals:
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


class Weather:
    """The network's faults: slow answers, throttling, connections that break."""

    def __init__(self, app: ASGIApp, local: Cloud):
        self.app, self.faults = app, local.faults

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(METADATA):
            return await self.app(scope, receive, send)
        if "slow" in self.faults:
            await asyncio.sleep(self.faults.value("slow"))
        if (count := self.faults.count("throttled")) and count % self.faults.value("throttled") == 0:
            of_blobs = scope["path"].startswith(BLOBS)
            status, code = (503, "ServerBusy") if of_blobs else (429, "TooManyRequests")
            error = errors.AzureError(status, code, "too many requests", headers={"Retry-After": "1"})
            return await errors.answer(error)(scope, receive, send)
        if self._breaks(scope):
            await receive()  # a part of the body, where there is one
            return await _reset(receive)
        await self.app(scope, receive, send)

    def _breaks(self, scope: Scope) -> bool:
        if "hub-unreachable" in self.faults and scope["path"].startswith(HUB):
            return True
        if scope["method"] == "PUT" and scope["path"].startswith(BLOBS) and "upload-broken" in self.faults:
            return self.faults.count("upload-broken") <= self.faults.value("upload-broken")
        count = self.faults.count("reset")
        return bool(count) and count % self.faults.value("reset") == 0


async def _reset(receive: Receive) -> None:
    """Break the connection that a request came by, without an answer."""
    cycle = receive.__self__  # ASGI has no word for this; `receive` is uvicorn's own
    at_once = struct.pack("ii", 1, 0)
    cycle.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
    cycle.transport.abort()
    while not cycle.disconnected:
        await asyncio.sleep(0)
