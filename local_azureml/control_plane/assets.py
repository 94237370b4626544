"""Versioned assets: models, data, environments, code, components."""

import re
import uuid
from datetime import datetime, timezone

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from starlette.convertors import StringConvertor, register_url_convertor

from local_azureml import identifiers, resource, storage
from local_azureml.context import Context, current
from local_azureml.control_plane import asset_rules, datastores, outputs, queries, shapes
from local_azureml.errors import AzureError, there_is, user_error
from local_azureml.state import Query, equal

KINDS = {
    "models": "Model",
    "data": "Data",
    "environments": "Environment",
    "codes": "Code",
    "components": "Component",
}


class AssetKind(StringConvertor):
    """Lets a path's `{kind:asset}` be one of these, so that it takes no other service's addresses."""

    regex = "|".join(KINDS)


register_url_convertor("asset", AssetKind())
router = APIRouter()
CURATED = "Azure's curated image"
DEFAULT_VERSION = "azureml_default"  # which of a component's versions the SDK means that names none
AZURE_SUFFIX = "core.windows.net"  # the SDK downloads code from addresses with it, and asks the datastore's
SHARED = ("description", "isArchived", "tags", "properties")  # by all versions of an asset
PATH = f"{identifiers.WORKSPACE_PATH}/{{kind:asset}}"
NAME = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,254}")
NAME_RULE = "letters, digits, dashes, dots, underscores; at most 255"


def _base(kind: str, name: str = "") -> str:
    return f"{identifiers.WORKSPACE_ID}/{kind}" + (f"/{name}" if name else "")


@router.get(PATH)
def list_containers(request: Request, kind: str) -> JSONResponse:
    """Return the assets of a kind, without their versions."""
    context = current(request)
    return queries.answer(request, kind, _base(kind), lambda found: _counted(context, kind, found))


@router.get(f"{PATH}/{{name}}")
def container(request: Request, kind: str, name: str) -> dict:
    """Return what all versions of an asset share."""
    return find_container(current(request), kind, name)


def find_container(context: Context, kind: str, name: str) -> dict:
    with context.state.locked():
        found = context.state.get(_base(kind, name))
        if found:
            return _counted(context, kind, found)
        if _is_curated(kind, name):
            container = _new_container(kind, name)
            return resource.merged(container, {"properties": {"latestVersion": "1"}})
        known = there_is(context.state.names(_base(kind)))
        message = f"no {KINDS[kind].lower()} named {name!r} in the workspace; {known}"
        raise AzureError(404, "UserError", message, f"{KINDS[kind]}NotFound")


def _is_curated(kind: str, name: str) -> bool:
    """Return whether a name is that of an environment that Azure keeps in every workspace; all are alike."""
    return kind == "environments" and name.lower().startswith("azureml-")


def _counted(context: Context, kind: str, document: dict) -> dict:
    """Return the document of an asset with its newest version and the one to follow its highest."""
    below = f"{document['id']}/versions"
    counted = {"nextVersion": str(context.state.highest(below) + 1)}
    if kind == "components":  # told by test_command_component_create_autoincrement of the SDK's tests
        counted["nextVersion"] = datetime.now(timezone.utc).strftime("%Y-%m-%d-%H-%M-%S-%f0")
    for newest in context.state.page(below, Query(most=1))[0]:  # MLflow makes models without versions
        counted["latestVersion"] = newest["name"]
        if data_type := newest["properties"].get("dataType"):
            counted["dataType"] = data_type
    whole = resource.merged(_new_container(kind, document["name"]), document)  # of an older data folder too
    return resource.merged(whole, {"properties": counted})


@router.put(f"{PATH}/{{name}}")
def change_container(request: Request, kind: str, name: str, body: shapes.Asset) -> dict:
    """Archive or restore an asset with all its versions, or change its tags and description."""
    context = current(request)
    with context.state.locked():
        document = find_container(context, kind, name)
        asked = {key: value for key, value in body["properties"].items() if key in SHARED}
        document["properties"] = {**document["properties"], **asked}
        document["systemData"] = resource.system_data(document)
        return context.state.put(document["id"], document)


@router.get(f"{PATH}/{{name}}/versions")
def versions(request: Request, kind: str, name: str) -> JSONResponse:
    """Return the versions of an asset, newest first; none where there is no asset."""
    context = current(request)
    if kind == "models" and context.state.get(_base(kind, name)) is None:
        find_container(context, kind, name)
    of = f"{_base(kind, name)}/versions"
    if kind == "codes" and (digest := request.query_params.get("hash")):  # looked for under every name
        same = equal("properties.properties.hash_sha256", digest)
        of = [
            found
            for code in context.state.names(_base(kind))
            for found in context.state.children(f"{_base(kind, code)}/versions", same)
        ]
    return queries.answer(request, f"{kind}/versions", of)


@router.get(f"{PATH}/{{name}}/versions/{{version}}")
def show(request: Request, kind: str, name: str, version: str) -> dict:
    """Return one version."""
    return find(current(request), kind, name, version)


def find(context: Context, kind: str, name: str, version: str) -> dict:
    """Return the document of a version, or refuse with the versions that there are."""
    if kind == "components" and version == DEFAULT_VERSION:
        newest = find_container(context, kind, name)["properties"].get("latestVersion", "")
        return {**find(context, kind, name, newest), "id": f"{_base(kind, name)}/labels/default"}
    found = context.state.get(f"{_base(kind, name)}/versions/{version}")
    if found is None and _is_curated(kind, name):
        return _document(kind, name, version, {"image": CURATED, "environmentType": "Curated"}, None)
    if found is None:
        find_container(context, kind, name)
        known = there_is(context.state.names(f"{_base(kind, name)}/versions"))
        message = f"no version {version!r} of the {KINDS[kind].lower()} {name!r}; {known}"
        raise AzureError(404, "UserError", message, f"{KINDS[kind]}NotFound")
    return found


@router.put(f"{PATH}/{{name}}/versions/{{version}}")
def create(request: Request, kind: str, name: str, version: str, body: shapes.Asset) -> JSONResponse:
    """Register a version; its files are fixed from then on, its tags are not."""
    document, is_new = register(current(request), kind, name, version, body["properties"])
    return JSONResponse(document, 201 if is_new else 200)


def register(context: Context, kind: str, name: str, version: str, properties: dict) -> tuple[dict, bool]:
    """Return the document of a version that is registered now, and whether it is new."""
    if not NAME.fullmatch(name):
        raise user_error(f"{KINDS[kind]} name {name!r}: {NAME_RULE}")
    if not NAME.fullmatch(version):
        raise user_error(f"{KINDS[kind]} version {version!r}: {NAME_RULE}")
    properties |= {
        key: outputs.lasting_uri(context, properties[key])
        for key in asset_rules.PLACES
        if properties.get(key)
    }
    properties = asset_rules.kept(name, version, properties)
    is_anonymous = kind == "components" and properties.get("isAnonymous", False)
    if is_anonymous:
        version = asset_rules.anonymous_version(properties)
    with context.state.locked():
        before = context.state.get(f"{_base(kind, name)}/versions/{version}")
        if before and is_anonymous:
            return before, False
        if before:
            asset_rules.check_fixed(name, version, before["properties"], properties)
        document = _document(kind, name, version, properties, before)
        context.state.put(document["id"], document)
        if context.state.get(_base(kind, name)) is None:
            context.state.put(_base(kind, name), _new_container(kind, name))
    return document, before is None


def create_container(context: Context, kind: str, name: str) -> dict:
    """Return a new asset without versions; refuse one that is there."""
    if not NAME.fullmatch(name):
        raise user_error(f"{KINDS[kind]} name {name!r}: {NAME_RULE}")
    if context.state.get(_base(kind, name)):
        raise AzureError(409, "Conflict", f"there is a {KINDS[kind].lower()} named {name!r} already")
    return context.state.put(_base(kind, name), _new_container(kind, name))


def next_version(context: Context, kind: str, name: str) -> str:
    """Return the version to follow the highest of an asset, which need not be there."""
    there = context.state.get(_base(kind, name))
    return _counted(context, kind, there)["properties"]["nextVersion"] if there else "1"


def _new_container(kind: str, name: str) -> dict:
    return {
        "id": _base(kind, name),
        "name": name,
        "type": f"{identifiers.PROVIDER}/workspaces/{kind}",
        "systemData": resource.system_data(),
        "properties": {"description": None, "isArchived": False, "tags": {}, "properties": {}},
    }


def _document(kind: str, name: str, version: str, properties: dict, before: dict | None) -> dict:
    defaults = {"description": None, "tags": {}, "properties": {}, "isAnonymous": False, "isArchived": False}
    if kind == "models":
        defaults |= {
            "flavors": {},
            "modelType": "custom_model",
            "stage": None,
        }  # the SDK wants flavors to be there
    if kind == "environments":
        defaults |= {"environmentType": "UserCreated", "osType": "Linux"}
    if kind != "data":
        properties = {**properties, "provisioningState": "Succeeded"}
    return {
        "id": f"{_base(kind, name)}/versions/{version}",
        "name": version,
        "type": f"{identifiers.PROVIDER}/workspaces/{kind}/versions",
        "properties": {**defaults, **properties},
        "systemData": resource.system_data(before),
    }


@router.delete(f"{PATH}/{{name}}/versions/{{version}}")
def delete(request: Request, kind: str, name: str, version: str) -> Response:
    """Forget a version, and the asset with its last one; its files stay, and one not there is no error."""
    context = current(request)
    with context.state.locked():
        if not context.state.delete(f"{_base(kind, name)}/versions/{version}"):
            return Response(status_code=204)
        if not context.state.names(f"{_base(kind, name)}/versions"):
            context.state.delete(_base(kind, name))
    return Response(status_code=200)


@router.post(f"{PATH}/{{name}}/versions/{{version}}/startPendingUpload")
def start_upload(request: Request, kind: str, name: str, version: str) -> dict:
    """Return where the files of a version that is being made may be written: each time another place."""
    context = current(request)
    container = datastores.CONTAINERS[datastores.DEFAULT]
    uri = storage.address(context, container, f"{kind}/{uuid.uuid4()}")
    blob = uri.partition("?")[0].replace(identifiers.STORAGE_SUFFIX, AZURE_SUFFIX)
    reference = {"blobUri": blob, "credential": {"credentialType": "SAS", "sasUri": uri}}
    return {"pendingUploadType": "TemporaryBlobReference", "blobReferenceForConsumption": reference}
