"""Environments as jobs and deployments name them."""

import re

from local_azureml import cloud
from local_azureml.control_plane import assets, registry
from local_azureml.errors import not_found, user_error

IN_WORKSPACE = re.compile(
    r"(?:azureml:)?/subscriptions/.*/environments/([^/]+)/versions/([^/]+)", re.IGNORECASE
)
IN_REGISTRY = re.compile(
    r"azureml://registries/([^/]+)/environments/[^/]+/(?:versions|labels)/[^/]+", re.IGNORECASE
)


def check(local: cloud.Cloud, identifier: str) -> None:
    """Refuse an environment that is nowhere; those of the registry are not looked at, since none is built."""
    if named := IN_WORKSPACE.fullmatch(identifier):
        assets.find(local, "environments", *named.groups())
    elif named := IN_REGISTRY.fullmatch(identifier):
        if named[1].lower() != registry.NAME:
            raise not_found("registry", named[1], [registry.NAME])
    else:
        raise user_error(f"{identifier!r} is not the id of an environment", "InvalidEnvironmentId")
