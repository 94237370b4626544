"""Scoring: checks the key, picks a deployment by traffic, and passes the request on."""

import hmac
import random
import time
import uuid
from contextlib import suppress

import httpx
from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.background import BackgroundTask
from starlette.types import ASGIApp, Receive, Scope, Send

from local_azureml import identifiers
from local_azureml.access import MIB, opens
from local_azureml.context import Context, current
from local_azureml.control_plane import endpoints, shapes
from local_azureml.data_plane import identity
from local_azureml.errors import AzureError, not_played, user_error

router = APIRouter()
at_endpoint = APIRouter()  # at the port that each endpoint has for itself
GRACE = 10.0  # seconds; a process that is well keeps its request timeout by itself
OURS = ("host", "authorization", "connection", "content-length", "content-encoding", "transfer-encoding")
OURS += ("date", "server")  # headers that each of the two requests, and of their answers, has of its own


def check_key(request: Request) -> None:
    """Refuse a request without its endpoint's key or a token; as without a key where there is no endpoint."""
    endpoint = request.path_params["endpoint"]
    document = current(request).state.get(f"{endpoints.BASE}/{endpoint}")
    if document and document["properties"]["authMode"].lower() != "key":
        same = [_has_token(request, document)]
    else:
        keys = document["keys"].values() if document else ()
        given = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
        same = [hmac.compare_digest(given, key.encode()) for key in keys]
    if not any(same):
        message = "the key or token is not one of this endpoint's: read it with get_keys"
        raise AzureError(401, "Unauthorized", message)


def _token_key(context: Context, document: dict) -> str:
    """Return what signs an endpoint's tokens: who once had its key can't make any, and a new key ends all."""
    return context.sign("endpoint's tokens", document["id"], document["keys"]["primaryKey"])


def _has_token(request: Request, document: dict) -> bool:
    """Return whether a request has a token: one of the endpoint's own, which opens nothing else, or any."""
    for key in (_token_key(current(request), document), None):
        try:
            identity.check_token(request, key)
            return True
        except AzureError as error:
            if error.code == "ExpiredAuthenticationToken":
                raise
    return False


KEY = "a client of an endpoint has its key"


class EndpointPortsMiddleware:
    """Hands what comes in at an endpoint's port to the application of endpoints, and nothing else."""

    def __init__(self, app: ASGIApp, context: Context, at_endpoint: ASGIApp):
        self.app, self.context, self.at_endpoint = app, context, at_endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or (port := scope["server"][1]) == self.context.port:
            return await self.app(scope, receive, send)
        endpoint = self.context.endpoint_ports.endpoint(port) or ""  # where it has been deleted
        await self.at_endpoint({**scope, "path_params": {"endpoint": endpoint}}, receive, send)


@at_endpoint.post("/score")
@opens(check_key, KEY, 16 * MIB)
async def score(request: Request) -> Response:
    """Return the deployment's answer, with the headers that say which one it was and how long it took."""
    context = current(request)
    document = endpoints.find(context, request.path_params["endpoint"])
    deployment = _pick(context, document, request.headers.get("azureml-model-deployment"))
    started = time.perf_counter()
    answer = await _ask(request, deployment, "/score")
    shown = _passed_on(answer.headers.raw) | {
        "azureml-model-deployment": deployment["name"],
        "x-ms-run-fn-exec-ms": f"{(time.perf_counter() - started) * 1000:.3f}",
        "x-request-id": request.headers.get("x-request-id") or str(uuid.uuid4()),
    }
    later = BackgroundTask(_mirror, request, document)
    return Response(answer.content, answer.status_code, shown, background=later)


async def _mirror(request: Request, document: dict) -> None:
    """Send a share of the requests that name no deployment to another too, whose answers nobody gets."""
    if "azureml-model-deployment" in request.headers:
        return
    for name, share in document["properties"]["mirrorTraffic"].items():
        with suppress(AzureError):  # the deployment may be gone meanwhile
            if random.randrange(100) < share:
                mirrored = endpoints.find(current(request), document["name"], name)
                await _ask(request, mirrored, "/score")


def _passed_on(raw: list[tuple[bytes, bytes]]) -> dict[str, str]:
    """Return headers in small letters, read as Latin-1, in which any bytes can be written again."""
    headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in raw}
    return {name: value for name, value in headers.items() if name not in OURS}


async def _ask(request: Request, deployment: dict, path: str) -> httpx.Response:
    """Return what a deployment's process answers to a request."""
    socket = current(request).deployments.socket(deployment)
    if socket is None:
        raise _not_there(deployment, "does not run")
    body = await request.body()
    longest = shapes.seconds(deployment["properties"]["requestSettings"]["requestTimeout"]) + GRACE
    # with verify, httpx would read all the authorities' certificates for each request
    transport = httpx.AsyncHTTPTransport(uds=str(socket), verify=False)
    async with httpx.AsyncClient(transport=transport, timeout=longest) as client:
        headers = {"content-type": "application/json"} | _passed_on(request.headers.raw)
        sent = {name: value.encode("latin-1") for name, value in headers.items()}
        try:
            address = httpx.URL(f"http://deployment{path}", query=request.url.query.encode())
            return await client.request(request.method, address, content=body, headers=sent)
        except httpx.ReadTimeout:
            message = f"no answer of {endpoints.label(deployment)} within its request timeout"
            raise AzureError(408, "RequestTimeout", message) from None
        except httpx.TransportError as error:
            raise _not_there(deployment, f"does not answer: {error or type(error)}") from None


def _not_there(deployment: dict, why: str) -> AzureError:
    """Return Azure's answer while no process answers; a moment later another may have taken its place."""
    failed = {"ms-azureml-model-error-statuscode": "503"}
    failed["ms-azureml-model-error-reason"] = "Service Unavailable"
    message = f"the container of {endpoints.label(deployment)} {why}"
    return AzureError(424, "ModelFailed", message, headers=failed)


@at_endpoint.get("/swagger.json")
@opens(check_key, KEY)
async def describe(request: Request) -> Response:
    """Return the OpenAPI description of a deployment with a scoring script."""
    context = current(request)
    asked = request.headers.get("azureml-model-deployment")
    deployment = _pick(context, endpoints.find(context, request.path_params["endpoint"]), asked)
    answer = await _ask(request, deployment, "/swagger.json")
    if answer.status_code == 404:
        version = request.query_params.get("version", "2")
        asked = f"an OpenAPI description of {endpoints.label(deployment)} in version {version}"
        raise not_played(
            asked, "there is version 2 of a script, and 3 where a file swagger3.json lies beside it"
        )
    return Response(answer.content, answer.status_code, _passed_on(answer.headers.raw))


@router.post(f"{endpoints.PATH}/{{endpoint}}/token")
def token(request: Request, endpoint: str) -> dict:
    """Return a token for an endpoint whose auth mode is AMLToken."""
    context = current(request)
    document = endpoints.find(context, endpoint)
    mode = document["properties"]["authMode"]
    if mode.lower() != "amltoken":
        raise user_error(f"the endpoint {endpoint!r} gives no tokens: its auth mode is {mode}")
    expires = int(time.time()) + identifiers.LIFETIME
    return {
        "accessToken": identity.make_token(
            context, identifiers.AUDIENCE, expires, _token_key(context, document)
        ),
        "tokenType": "Bearer",
        "expiryTimeUtc": expires,
        "refreshAfterTimeUtc": expires - identifiers.LIFETIME // 2,
    }


def _pick(context: Context, document: dict, asked: str | None) -> dict:
    """Return the deployment that a request names, else one drawn by the shares of traffic."""
    shares = {name: share for name, share in document["properties"]["traffic"].items() if share}
    if not asked and not shares:
        raise AzureError(
            404, "NoTraffic", f"no deployment of {document['name']!r} gets traffic: set it on the endpoint"
        )
    name = asked or random.choices(list(shares), list(shares.values()))[0]
    return endpoints.find(context, document["name"], name)
