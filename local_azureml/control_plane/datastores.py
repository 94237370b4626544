"""The workspace's datastores and the credential for their storage."""

import re
from pathlib import Path
from urllib.parse import unquote

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse

from local_azureml import cloud, storage
from local_azureml.control_plane import lists
from local_azureml.errors import not_found

router = APIRouter()
PATH = f"{cloud.WORKSPACE_PATH}/datastores"
DEFAULT = "workspaceblobstore"
ADDRESS = re.compile(r"azureml://(?:.*/)?datastores/([^/]+)/paths/(.*)", re.IGNORECASE)
CONTAINERS = storage.CONTAINERS


def _document(local: cloud.Cloud, name: str) -> dict:
    if name not in CONTAINERS:
        raise not_found("datastore", name, list(CONTAINERS))
    host = local.origin.removeprefix("https://")
    return {
        "id": f"{cloud.WORKSPACE_ID}/datastores/{name}",
        "name": name,
        "type": f"{cloud.PROVIDER}/workspaces/datastores",
        "systemData": local.state.get(cloud.WORKSPACE_ID)["systemData"],
        "properties": {
            "datastoreType": "AzureBlob",
            "accountName": f"{host}/{storage.ACCOUNT}",  # makes the SDK's blob addresses path-style
            "containerName": CONTAINERS[name],
            "endpoint": cloud.STORAGE_SUFFIX,
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
def list_all(request: Request, identifier: str = Depends(cloud.workspace_id)) -> JSONResponse:
    """Return the datastores."""
    local = cloud.current(request)
    return lists.answer(request, "datastores", [_document(local, name) for name in CONTAINERS])


@router.get(f"{PATH}/{{name}}")
def show(request: Request, name: str, identifier: str = Depends(cloud.workspace_id)) -> dict:
    """Return one datastore."""
    return _document(cloud.current(request), name)


@router.post(f"{PATH}/{{name}}/listSecrets")
def list_secrets(request: Request, name: str, identifier: str = Depends(cloud.workspace_id)) -> dict:
    """Return the signature that opens the datastore's container."""
    _document(cloud.current(request), name)
    return {"secretsType": "Sas", "sasToken": storage.signature(cloud.current(request), CONTAINERS[name])}


@router.get(f"/datastore/v1.0{PATH}/{{name}}")
def show_to_readers(request: Request, name: str, identifier: str = Depends(cloud.workspace_id)) -> dict:
    """Return one datastore in the words of azureml-fsspec and mltable, with the signature that opens it."""
    local = cloud.current(request)
    known = _document(local, name)["properties"]
    signature = storage.signature(local, CONTAINERS[name])
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


def folder_of(local: cloud.Cloud, name: str, path: str = "") -> Path:
    """Return the folder or file behind `path` of a datastore."""
    _document(local, name)
    return storage.place(local, CONTAINERS[name], path.rstrip("/"))


def folder_at(local: cloud.Cloud, address: str) -> Path:
    """Return the folder or file at a datastore's address."""
    return folder_of(local, *map(unquote, ADDRESS.fullmatch(address).groups()))


def uri(name: str, path: str) -> str:
    """Return the address of `path` in a datastore as jobs and models write it."""
    workspace = (
        f"subscriptions/{cloud.SUBSCRIPTION}/resourcegroups/{cloud.GROUP}/workspaces/{cloud.WORKSPACE}"
    )
    return f"azureml://{workspace}/datastores/{name}/paths/{path}"


def full(address: str) -> str:
    """Return an address with its workspace where it names only a datastore; any other as it is."""
    named = ADDRESS.fullmatch(address) if address.lower().startswith("azureml://datastores/") else None
    return uri(*named.groups()) if named else address


def run_log(local: cloud.Cloud, run: str, name: str) -> Path:
    """Return the file of a run's log, which is a blob of the artifact store."""
    return folder_of(local, "workspaceartifactstore", f"ExperimentRun/dcid.{run}/{name}")
