"""Environments as jobs and deployments name them, and what their specifications ask for."""

import re

from local_azureml import conda
from local_azureml.context import Context
from local_azureml.control_plane import assets, registry
from local_azureml.errors import not_found, user_error

IN_WORKSPACE = re.compile(
    r"(?:azureml:)?/subscriptions/.*/environments/([^/]+)/versions/([^/]+)", re.IGNORECASE
)
IN_REGISTRY = re.compile(
    r"azureml://registries/([^/]+)/environments/([^/]+)/(?:versions|labels)/([^/]+)", re.IGNORECASE
)
CURATED = re.compile(r"azureml:(AzureML-[^:@]+)[:@](.+)", re.IGNORECASE)  # as the SDK leaves it


def check(context: Context, identifier: str) -> dict:
    """Return an environment's name, Python, requirements and what is left out; refuse one that is nowhere.

    `requirements` are pip's; None says that there is no specification, and `instead` why.
    """
    if named := IN_WORKSPACE.fullmatch(identifier):
        properties = assets.find(context, "environments", *named.groups())["properties"]
        name = ":".join(named.groups())
        if specification := properties.get("condaFile"):
            return {"name": name, **conda.read(name, specification)}
        source = properties.get("image") or "a Dockerfile"
        if source == assets.CURATED:
            return _curated(named[1])
        return {"name": name, "requirements": None, "instead": f"{source}, which has no conda file,"}
    if named := IN_REGISTRY.fullmatch(identifier):
        if named[1].lower() != registry.NAME:
            raise not_found("registry", named[1], [registry.NAME])
        return _curated(named[2])
    if named := CURATED.fullmatch(identifier):
        return _curated(named[1])
    raise user_error(f"{identifier!r} is not the id of an environment", "InvalidEnvironmentId")


def _curated(name: str) -> dict:
    """Return what the public specification of an environment of Azure's asks for, where it is known."""
    if file := registry.specification_of(name):
        return {"name": name, **conda.read(name, file.read_text(encoding="utf-8"))}
    return {"name": name, "requirements": None, "instead": assets.CURATED}
