"""Online endpoints: names, keys, traffic."""

import re
import secrets
from urllib.parse import urlsplit

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from local_azureml import identifiers, resource
from local_azureml.context import Context, current
from local_azureml.control_plane import operations, queries, shapes
from local_azureml.errors import not_found, not_played, user_error

router = APIRouter()
PATH = f"{identifiers.WORKSPACE_PATH}/onlineEndpoints"
BASE = f"{identifiers.WORKSPACE_ID}/onlineEndpoints"
NAME = re.compile(r"[a-zA-Z](?!.*--)[a-zA-Z0-9-]{1,30}[a-zA-Z0-9]")  # 3 to 32 characters
AUTH_MODES = ("key", "amltoken", "aadtoken")
LIMIT = 100  # of a subscription and region
MOST_MIRRORED = 50  # percent


def check_name(kind: str, name: str) -> None:
    """Refuse a name that Azure does not take for an endpoint or a deployment."""
    if not NAME.fullmatch(name):
        raise user_error(
            f"the {kind} name {name!r} is not allowed: 3 to 32 characters, a letter first, "
            "then letters, digits and single dashes",
            "InvalidName",
        )


def find(context: Context, endpoint: str, deployment: str = "") -> dict:
    """Return the document of an endpoint or of one of its deployments, or refuse with what there is."""
    found = context.state.get(f"{BASE}/{endpoint}")
    if found is None:
        raise not_found("online endpoint", endpoint, context.state.names(BASE))
    if not deployment:
        return found
    here = context.state.get(f"{found['id']}/deployments/{deployment}")
    if here is None:
        raise not_found(
            f"deployment of {found['name']!r}", deployment, list(deployments_of(context, endpoint))
        )
    return here


def deployments_of(context: Context, endpoint: str) -> dict[str, dict]:
    """Return an endpoint's deployments by name."""
    return {found["name"]: found for found in context.state.children(f"{BASE}/{endpoint}/deployments")}


def label(deployment: dict) -> str:
    """Return a deployment's name behind that of its endpoint: "endpoint/deployment"."""
    return f"{deployment['id'].split('/')[-3]}/{deployment['name']}"


def set_properties(context: Context, document: dict, **changes) -> None:
    """Write changed properties over a document that is still there."""
    with context.state.locked():
        if found := context.state.get(document["id"]):
            context.state.merge(document["id"], properties={**found["properties"], **changes})


@router.get(PATH)
def list_all(request: Request) -> JSONResponse:
    """Return the endpoints."""
    context = current(request)
    others = _of_others(context)
    there = [*context.state.children(BASE), *others] if others else BASE
    return queries.answer(request, "onlineEndpoints", there, _shown)


def _of_others(context: Context) -> list[dict]:
    """Return the endpoint that the fault endpoint-taken lets somebody else have."""
    name = context.faults.value("endpoint-taken")
    unlike_ours = {"keys": {}, "properties": {"scoringUri": None, "swaggerUri": None}}
    unlike_ours["systemData"] = resource.system_data()
    return [_endpoint(context, name, {}, unlike_ours)] if name else []


@router.get(f"{PATH}/{{endpoint}}")
def show(request: Request, endpoint: str) -> dict:
    """Return one endpoint."""
    return _shown(find(current(request), endpoint))


def _shown(document: dict) -> dict:
    return {key: value for key, value in document.items() if key != "keys"}


@router.put(f"{PATH}/{{endpoint}}")
def create(request: Request, endpoint: str, body: shapes.Endpoint) -> JSONResponse:
    """Create an endpoint, or change its traffic, tags and description."""
    context = current(request)
    with context.state.locked():
        before = context.state.get(f"{BASE}/{endpoint}")
        return _write(context, before["name"] if before else endpoint, body, before)


@router.patch(f"{PATH}/{{endpoint}}")
def change(request: Request, endpoint: str, body: shapes.EndpointChange) -> JSONResponse:
    """Change the traffic, tags or description of an endpoint; what is not named stays."""
    context = current(request)
    with context.state.locked():
        before = find(context, endpoint)
        properties = {**before["properties"], **body.get("properties", {})}
        return _write(context, before["name"], {**before, **body, "properties": properties}, before)


def _write(context: Context, name: str, body: dict, before: dict | None) -> JSONResponse:
    document = _endpoint(context, name, body, before)
    context.state.put(document["id"], document)

    def work():
        with context.state.locked():
            if context.state.get(document["id"]):  # not deleted meanwhile
                _open(context, document, provisioningState="Succeeded")

    return operations.start(context, 200 if before else 201, _shown(document), work)


def _open(context: Context, document: dict, preferred: int = 0, **changes) -> None:
    """Open an endpoint's port, and write its addresses and what else has changed."""
    port = context.endpoint_ports.open(document["name"], preferred)
    if port != preferred or changes:
        here = f"https://localhost:{port}"
        uris = {"scoringUri": f"{here}/score", "swaggerUri": f"{here}/swagger.json"}
        set_properties(context, document, **uris, **changes)


def reopen(context: Context) -> None:
    """Open the ports that endpoints had before a restart."""
    for document in context.state.children(BASE):
        if address := document["properties"]["scoringUri"]:
            _open(context, document, urlsplit(address).port)


def _endpoint(context: Context, name: str, body: dict, before: dict | None) -> dict:
    asked = body.get("properties") or {}
    if asked.get("compute"):
        raise not_played("an online endpoint on Kubernetes")
    stored = {known.lower(): known for known in deployments_of(context, name)}
    traffic, mirrored = (  # the SDK writes the names in small letters
        {stored.get(key.lower(), key): share for key, share in (asked.get(kind) or {}).items()}
        for kind in ("traffic", "mirrorTraffic")
    )
    auth_mode = asked.get("authMode") or "Key"
    _check_auth_mode(auth_mode)
    if before is None:
        _check_new_endpoint(context, name, traffic)
    _check_traffic(context, name, traffic, mirrored)
    keys = {"primaryKey": secrets.token_urlsafe(32), "secondaryKey": secrets.token_urlsafe(32)}
    return {
        "id": f"{BASE}/{name}",
        "name": name,
        "type": f"{identifiers.PROVIDER}/workspaces/onlineEndpoints",
        "location": body.get("location") or identifiers.LOCATION,
        "tags": body.get("tags") or {},
        "kind": body.get("kind") or "Managed",
        "identity": resource.identity(body.get("identity") or {"type": "SystemAssigned"}),
        **{key: body[key] for key in ("sku",) if key in body},
        "systemData": resource.system_data(before),
        "properties": {
            "description": asked.get("description"),
            "properties": asked.get("properties") or {},
            "authMode": auth_mode,
            "traffic": traffic,
            "mirrorTraffic": mirrored,
            "publicNetworkAccess": asked.get("publicNetworkAccess") or "Enabled",
            "compute": None,
            **{key: before and before["properties"][key] for key in ("scoringUri", "swaggerUri")},
            "provisioningState": "Updating" if before else "Creating",
        },
        "keys": before["keys"] if before else keys,
    }


def _check_new_endpoint(context: Context, name: str, traffic: dict) -> None:
    check_name("endpoint", name)
    if context.faults.value("endpoint-taken") in ("", name):
        raise user_error(
            f"the endpoint name {name!r} is taken in {identifiers.LOCATION}: choose another", "NameConflict"
        )
    if traffic:
        raise user_error("traffic cannot be set when an endpoint is created: it has no deployments yet")
    if len(context.state.names(BASE)) >= LIMIT:
        raise user_error(f"the region has {LIMIT} endpoints already: delete one", "QuotaExceeded")


def _check_auth_mode(mode: str) -> None:
    if mode.lower() not in AUTH_MODES:
        raise user_error(f"auth mode {mode!r} is not one of Key, AMLToken, AADToken")


def _check_traffic(context: Context, endpoint: str, traffic: dict, mirrored: dict[str, int]) -> None:
    known = deployments_of(context, endpoint)
    if unknown := sorted({*traffic, *mirrored} - set(known)):
        raise user_error(
            f"traffic names {', '.join(unknown)}; the deployments are: {', '.join(known) or 'none'}"
        )
    if sum(traffic.values()) not in (0, 100) or min(traffic.values(), default=0) < 0:
        raise user_error(f"traffic must sum to 0 or 100; it sums to {sum(traffic.values())}")
    if sum(mirrored.values()) > MOST_MIRRORED or min(mirrored.values(), default=0) < 0:
        raise user_error(f"mirrored traffic is at most {MOST_MIRRORED}; it sums to {sum(mirrored.values())}")


@router.delete(f"{PATH}/{{endpoint}}")
def delete(request: Request, endpoint: str) -> Response:
    """Delete an endpoint with its deployments; one that is not there is no error."""
    context = current(request)
    document = context.state.get(f"{BASE}/{endpoint}")
    if document is None:
        return Response(status_code=204)
    set_properties(context, document, provisioningState="Deleting")

    def work():
        with context.state.locked():
            deployments = deployments_of(context, endpoint)
            context.state.delete(document["id"])  # first, so that none is started after its end
            context.endpoint_ports.close(document["name"])
        for deployment in deployments.values():
            context.deployments.end(deployment)

    return operations.start(context, 202, None, work)


@router.post(f"{PATH}/{{endpoint}}/listKeys")
def list_keys(request: Request, endpoint: str) -> dict:
    """Return the two keys of an endpoint with key authentication."""
    context = current(request)
    document = find(context, endpoint)
    if (mode := document["properties"]["authMode"]).lower() != "key":
        raise user_error(f"the endpoint {endpoint!r} takes no keys: its auth mode is {mode}")
    if context.faults.value("scoring-status") == 401:  # somebody regenerates the keys at this very moment
        return {name: secrets.token_urlsafe(32) for name in document["keys"]}
    return document["keys"]


@router.post(f"{PATH}/{{endpoint}}/regenerateKeys")
def regenerate_keys(request: Request, endpoint: str, body: shapes.NewKey) -> JSONResponse:
    """Replace one key of an endpoint by a new or a given one."""
    context = current(request)
    document = find(context, endpoint)
    which = f"{body.get('keyType', '').lower()}Key"
    if which not in document["keys"]:
        raise user_error(f"keyType {body.get('keyType')!r} is not Primary or Secondary")
    given = body.get("keyValue")
    if not given or given == document["keys"][which]:  # the SDK sends the key that is to be replaced
        given = secrets.token_urlsafe(32)

    def work():
        with context.state.locked():
            if found := context.state.get(document["id"]):
                context.state.merge(document["id"], keys={**found["keys"], which: given})

    return operations.start(context, 202, None, work)
