"""The workspace's datastores and the credential for their storage."""

import re
from pathlib import Path
from urllib.parse import unquote

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from local_azureml import identifiers, resource, storage
from local_azureml.context import Context, current
from local_azureml.control_plane import queries, shapes
from local_azureml.errors import not_found, not_played, user_error

router = APIRouter()
PATH = f"{identifiers.WORKSPACE_PATH}/datastores"
DEFAULT = "workspaceblobstore"
ADDRESS = re.compile(r"azureml://(?:.*/)?datastores/([^/]+)/paths/(.*)", re.IGNORECASE)
CONTAINERS = storage.CONTAINERS
NAME = re.compile(r"[a-zA-Z0-9_]{1,255}")
OTHERS = f"{identifiers.WORKSPACE_ID}/datastores"  # below it, those of other storage accounts


def find(context: Context, name: str) -> dict:
    """Return a datastore's document, or refuse with the names that there are."""
    if name in CONTAINERS:
        return _own(context, name)
    if found := context.state.get(f"{OTHERS}/{name}"):
        return found
    raise not_found("datastore", name, [*CONTAINERS, *context.state.names(OTHERS)])


def _container(context: Context, name: str) -> str:
    """Return the container of a datastore, or refuse one that lies elsewhere."""
    properties = find(context, name)["properties"]
    if name not in CONTAINERS:
        account = properties.get("accountName")
        raise not_played(f"the storage account {account!r} of the datastore {name!r}")
    return CONTAINERS[name]


def _shown(document: dict) -> dict:
    return {key: value for key, value in document.items() if key != "secrets"}


def _own(context: Context, name: str) -> dict:
    host = context.origin.removeprefix("https://")
    return {
        "id": f"{identifiers.WORKSPACE_ID}/datastores/{name}",
        "name": name,
        "type": f"{identifiers.PROVIDER}/workspaces/datastores",
        "systemData": context.state.get(identifiers.WORKSPACE_ID)["systemData"],
        "properties": {
            "datastoreType": "AzureBlob",
            "accountName": f"{host}/{storage.ACCOUNT}",  # makes the SDK's blob addresses path-style
            "containerName": CONTAINERS[name],
            "endpoint": identifiers.STORAGE_SUFFIX,
            "protocol": "https",
            "credentials": {"credentialsType": "Sas"},
            "isDefault": name == DEFAULT,
            "serviceDataAccessAuthIdentity": "None",
            "description": None,
            "properties": {},
            "tags": {},
        },
    }


@router.get(PATH)
def list_all(request: Request) -> JSONResponse:
    """Return the datastores."""
    context = current(request)
    there = [*(_own(context, name) for name in CONTAINERS), *context.state.children(OTHERS)]
    return queries.answer(request, "datastores", there, _shown)


@router.get(f"{PATH}/{{name}}")
def show(request: Request, name: str) -> dict:
    """Return one datastore."""
    return _shown(find(current(request), name))


@router.put(f"{PATH}/{{name}}")
def create(request: Request, name: str, body: shapes.Datastore) -> JSONResponse:
    """Keep a datastore of another storage account, of which nothing is read here."""
    context = current(request)
    _refuse_own(request, name)
    if not NAME.fullmatch(name):
        raise user_error(f"datastore name {name!r}: letters, digits and underscores; at most 255")
    credentials = dict(body["properties"]["credentials"])
    secrets = credentials.pop("secrets", None) or {"secretsType": credentials.get("credentialsType")}
    with context.state.locked():
        before = context.state.get(f"{OTHERS}/{name}")
        document = {
            "id": f"{OTHERS}/{name}",
            "name": name,
            "type": f"{identifiers.PROVIDER}/workspaces/datastores",
            "systemData": resource.system_data(before),
            "properties": {**body["properties"], "credentials": credentials, "isDefault": False},
            "secrets": secrets,
        }
        context.state.put(document["id"], document)
    return JSONResponse(_shown(document), 200 if before else 201)


@router.delete(f"{PATH}/{{name}}")
def delete(request: Request, name: str) -> Response:
    """Forget a datastore of another storage account; one that is not there is no error."""
    _refuse_own(request, name)
    there = current(request).state.delete(f"{OTHERS}/{name}")
    return Response(status_code=200 if there else 204)


def _refuse_own(request: Request, name: str) -> None:
    if name in CONTAINERS:
        raise not_played(f"{request.method} of the workspace's own datastore {name}")


@router.post(f"{PATH}/{{name}}/listSecrets")
def list_secrets(request: Request, name: str) -> dict:
    """Return the signature that opens the datastore's container, or the secrets of another account's."""
    context = current(request)
    if name not in CONTAINERS:
        return find(context, name)["secrets"]
    return {"secretsType": "Sas", "sasToken": storage.signature(context, CONTAINERS[name])}


@router.get(f"/datastore/v1.0{PATH}/{{name}}")
def show_to_readers(request: Request, name: str) -> dict:
    """Return one datastore in the words of azureml-fsspec and mltable, with the signature that opens it."""
    context = current(request)
    signature = storage.signature(context, _container(context, name))
    known = find(context, name)["properties"]
    return {
        "name": name,
        "dataStoreType": known["datastoreType"],
        "hasBeenValidated": True,
        "tags": {},
        "azureStorageSection": {
            **{key: known[key] for key in ("accountName", "containerName", "endpoint", "protocol")},
            "credentialType": "Sas",
            "credential": signature,
            "sasToken": signature,
            "isSas": True,
            "blobCacheTimeout": 300,
            "areWorkspaceManagedIdentitiesAllowed": False,
        },
    }


def folder_of(context: Context, name: str, path: str = "") -> Path:
    """Return the folder or file behind `path` of a datastore."""
    return storage.place(context, _container(context, name), path.rstrip("/"))


def folder_at(context: Context, address: str) -> Path:
    """Return the folder or file at a datastore's address: the SDK quotes no names in it, others do."""
    name, path = ADDRESS.fullmatch(address).groups()
    as_it_is = folder_of(context, name, path)
    return as_it_is if as_it_is.exists() else folder_of(context, name, unquote(path))


def uri(name: str, path: str) -> str:
    """Return the address of `path` in a datastore as jobs and models write it."""
    group = f"subscriptions/{identifiers.SUBSCRIPTION}/resourcegroups/{identifiers.GROUP}"
    workspace = f"{group}/workspaces/{identifiers.WORKSPACE}"
    return f"azureml://{workspace}/datastores/{name}/paths/{path}"


def run_log(context: Context, run: str, name: str) -> Path:
    """Return the file of a run's log, which is a blob of the artifact store."""
    return folder_of(context, storage.ARTIFACT_STORE, storage.run_folder(run, name))
