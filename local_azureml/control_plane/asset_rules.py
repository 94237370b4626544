"""What Azure makes of an asset that is registered, and what it lets nobody change in a version.

The answers recorded in the SDK's own tests tell it: sdk/ml/azure-ai-ml/tests/recordings, in the history of
https://github.com/Azure/azure-sdk-for-python. Of environments, its pull request 38590 does, and
issue 5440 of https://github.com/Azure/azure-cli-extensions.
"""

import json
import re
import uuid
from urllib.parse import urlparse

from local_azureml.errors import AzureError, not_played, user_error

PLACES = ("modelUri", "dataUri", "codeUri")  # where an asset's files are; fixed once a version exists
FOLDERS = ("uri_folder", "mltable")  # the types of data whose addresses end with a slash
AS_TEXT = ("is_deterministic", "inputs", "resources", "distribution")  # of a component
CURATED = re.compile(r"azureml:(AzureML-[^:@/]+)(?::([^:@/]+)|@latest)", re.IGNORECASE)


def kept(name: str, version: str, properties: dict) -> dict:
    """Return the properties of a version as Azure keeps them."""
    if properties.get("dataType") in FOLDERS and properties.get("dataUri", "").startswith("azureml:"):
        properties = {**properties, "dataUri": properties["dataUri"].rstrip("/") + "/"}
    if spec := properties.get("componentSpec"):
        properties = {**properties, "componentSpec": _component(name, version, spec)}
    return properties


def _component(name: str, version: str, given: dict) -> dict:
    """Return a component's specification with its name and version, its defaults, and its numbers as text."""
    if given.get("sourceJobId") and not given.get("jobs"):
        raise not_played("a pipeline component made of a job", "name its nodes in place of the job's id")
    spec = {"name": name, "version": version, **given}
    if "inputs" in spec:
        spec["inputs"] = {key: _input(declared) for key, declared in spec["inputs"].items()}
    if "command" in spec:
        spec["resources"] = {"instance_count": 1, **spec.get("resources", {})}
    if curated := CURATED.fullmatch(spec.get("environment", "")):
        address = f"azureml://registries/azureml/environments/{curated[1]}/versions/{curated[2] or 1}"
        spec["environment"] = address
    return spec | {key: _text(spec[key]) for key in AS_TEXT if key in spec}


def _input(declared: dict) -> dict:
    declared = {"optional": False, **declared}
    if declared.get("type") == "string" and isinstance(declared.get("default"), str):
        declared["default"] = declared["default"].removeprefix("azureml:")  # of a compute
    return declared


def _text(value):
    if isinstance(value, dict):
        return {key: _text(inner) for key, inner in value.items()}
    return [_text(inner) for inner in value] if isinstance(value, list) else str(value)


def anonymous_version(properties: dict) -> str:
    """Return the version of a component that has no name of its own: one and the same for each content."""
    content = {key: value for key, value in properties.get("componentSpec", {}).items() if key != "version"}
    return str(uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(content, sort_keys=True)))


def check_fixed(name: str, version: str, before: dict, after: dict) -> None:
    """Refuse to change what Azure lets nobody change of a version that is there."""
    if any(before.get(key) != after.get(key) for key in PLACES):
        raise user_error("Asset paths cannot be updated.")
    if _code(before) != _code(after):
        message = f"the field 'code' of the component {name}:{version} is immutable: give it a new version"
        raise user_error(message, "UpdateComponentFailed")
    if _contents(before) != _contents(after):
        message = f"the environment {name} is registered with version {version} and cannot be changed"
        raise AzureError(409, "UserError", message)


def _code(component: dict) -> str | None:
    return component.get("componentSpec", {}).get("code")


def _contents(environment: dict) -> tuple:
    """Return what an environment is made of; its context's address has a port, which a restart changes."""
    build = environment.get("build") or {}
    context = urlparse(build.get("contextUri") or "").path
    return environment.get("image"), environment.get("condaFile"), context, build.get("dockerfilePath")
