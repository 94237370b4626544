"""The registry `azureml`: models and components, served from files shaped like its answers; environments."""

import copy
import json
import re
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from local_azureml import identifiers, resource
from local_azureml.context import Context, current
from local_azureml.control_plane import queries
from local_azureml.errors import AzureError, not_found

router = APIRouter()
NAME = "azureml"
FOLDER = identifiers.SEEDS / "registry"
RESOURCE = f"{identifiers.GROUP_PATH}/providers/{identifiers.PROVIDER}/registries/{{registry}}"
LISTS = f"/mferp/managementfrontend{RESOURCE}/{{kind}}"
PATH = f"{LISTS}/{{name}}"
KINDS = {"models": "Model", "components": "Component", "environments": "Environment"}
ENVIRONMENTS = {file.stem: file for file in (FOLDER / "environments").glob("*.yaml")}  # their conda files
MACHINERY = re.compile(r"^azureml-|-(ubuntu|py|cuda)\d.*", re.IGNORECASE)  # in an environment's name


@router.get("/registrymanagement/v1.0/registries/{registry}/discovery")
def discovery(request: Request, registry: str) -> dict:
    """Return where a registry's services are."""
    _check(registry)
    origin = current(request).origin
    return {
        "registryName": NAME,
        "primaryRegion": identifiers.LOCATION,
        "regions": [identifiers.LOCATION],
        "primaryRegionResourceProviderUri": f"{origin}/",
        "resourceGroup": identifiers.GROUP,
        "subscriptionId": identifiers.SUBSCRIPTION,
    }


def _check(registry: str) -> None:
    if registry.lower() != NAME:
        raise not_found("registry", registry, [NAME])


def entries(context: Context, kind: str, name: str) -> list[dict]:
    """Return the versions of a registry asset, newest first, or refuse with the names that there are."""
    known = _names(kind)
    if name not in known:
        message = f"no {kind.rstrip('s')} named {name!r} in the registry {NAME!r}; there is: "
        raise AzureError(
            404, "UserError", message + (", ".join(known) or "none"), f"{KINDS.get(kind, 'Asset')}NotFound"
        )
    if kind == "environments":
        return [_environment(name, "1")]
    found = [json.loads(file.read_text(encoding="utf-8")) for file in (FOLDER / kind / name).glob("*.json")]
    if kind == "models" and context.base_model.samefile(identifiers.SMALL_MODEL):
        found = [_small(entry) for entry in found]
    return sorted(found, key=lambda entry: entry["systemData"]["createdAt"], reverse=True)


def _names(kind: str) -> list[str]:
    if kind not in KINDS:
        return []
    if kind == "environments":
        return sorted(ENVIRONMENTS)
    return sorted(found.name for found in (FOLDER / kind).glob("*"))


def specification_of(environment: str) -> Path | None:
    """Return the conda file of an environment whose name may also tell of another system, Python or CUDA."""
    known = {MACHINERY.sub("", name).lower(): file for name, file in ENVIRONMENTS.items()}
    return ENVIRONMENTS.get(environment) or known.get(MACHINERY.sub("", environment).lower())


def _environment(name: str, version: str) -> dict:
    """Return a version of an environment; they differ by their dates only, so any number is one."""
    return {
        "id": f"azureml://registries/{NAME}/environments/{name}/versions/{version}",
        "name": version,
        "type": "environments",
        "properties": {
            "description": "A local emulator: a virtual environment of its public specification.",
            "tags": {},
            "properties": {},
            "isArchived": False,
            "isAnonymous": False,
            "environmentType": "Curated",
            "osType": "Linux",
            "image": f"mcr.microsoft.com/azureml/curated/{name.lower()}:{version}",
            "condaFile": ENVIRONMENTS[name].read_text(encoding="utf-8"),
            "provisioningState": "Succeeded",
        },
        "systemData": resource.system_data(),
    }


def _small(entry: dict) -> dict:
    """Return a model's entry with what is said of the small model, and suits it, in place of its own."""
    own = json.loads(identifiers.SMALL_MODEL.with_suffix(".json").read_text(encoding="utf-8"))
    properties = copy.deepcopy(entry["properties"])
    properties["description"] = f"{properties['description'].partition(':')[0]}: {own['description']}"
    defaults = json.loads(properties["tags"]["model_specific_defaults"]) | own["model_specific_defaults"]
    properties["tags"] |= {"emulator": own["emulator"], "model_specific_defaults": json.dumps(defaults)}
    return {**entry, "properties": properties}


def entry(context: Context, kind: str, name: str, version: str) -> dict:
    """Return one version of a registry asset."""
    found = entries(context, kind, name)
    if kind == "environments" and version.isdecimal():
        return _environment(name, version)
    for candidate in found:
        if candidate["name"] == version:
            return candidate
    known = ", ".join(candidate["name"] for candidate in found)
    message = f"no version {version!r} of {name!r} in the registry {NAME!r}; there is: {known}"
    raise AzureError(404, "UserError", message, f"{KINDS[kind]}NotFound")


@router.get(f"{PATH}/versions")
def versions(request: Request, registry: str, kind: str, name: str) -> JSONResponse:
    """Return the versions, newest first."""
    _check(registry)
    context = current(request)
    view = "All" if "model-archived" in context.faults else "ActiveOnly"
    return queries.answer(request, f"registries/{kind}/versions", entries(context, kind, name), view=view)


@router.get(f"{PATH}/versions/{{version}}")
def version(request: Request, registry: str, kind: str, name: str, version: str) -> dict:
    """Return one version."""
    _check(registry)
    return entry(current(request), kind, name, version)


@router.get(LISTS)
def list_all(request: Request, registry: str, kind: str) -> JSONResponse:
    """Return the assets of a kind, without their versions."""
    _check(registry)
    context = current(request)
    return queries.answer(request, kind, [_container(context, kind, name) for name in _names(kind)])


@router.get(PATH)
def show(request: Request, registry: str, kind: str, name: str) -> dict:
    """Return what all versions share, and which is the newest."""
    _check(registry)
    return _container(current(request), kind, name)


def _container(context: Context, kind: str, name: str) -> dict:
    newest = next(e for e in entries(context, kind, name) if not e["properties"]["isArchived"])
    identifier = newest["id"].partition("/versions/")[0]
    properties = {"latestVersion": newest["name"], "isArchived": False, "tags": {}, "properties": {}}
    shared = {"type": kind, "properties": properties, "systemData": newest["systemData"]}
    return {"id": identifier, "name": name, **shared}
