"""What jobs write: where an output of a job lies."""

import re

from local_azureml import cloud
from local_azureml.control_plane import datastores
from local_azureml.errors import AzureError, not_found, user_error


def placed(local: cloud.Cloud, job: str, asked: dict[str, dict]) -> dict[str, dict]:
    """Return a job's outputs, each with the address that it asks for or else has by default."""
    default = {name: datastores.uri(datastores.DEFAULT, f"azureml/{job}/{name}/") for name in asked}
    found = {name: {"uri": default[name], **output} for name, output in asked.items()}
    for name, output in found.items():
        if not datastores.ADDRESS.fullmatch(output["uri"]):
            message = f"the output {name!r} to {output['uri']!r}, no datastore's, is not part of the stand-in"
            raise AzureError(501, "NotImplemented", message)
        datastores.folder_at(local, output["uri"])
    return found


def lasting_uri(local: cloud.Cloud, uri: str) -> str:
    """Return the datastore address of a job's output; any other address as it is."""
    named = re.fullmatch(r"azureml://jobs/([^/]+)/outputs/([^/]+)(?:/paths)?(/.*)?", uri.rstrip("/"))
    if not named:
        return uri
    job, output, below = named.groups()
    return address(local, job, output) + (below or "")


def address(local: cloud.Cloud, job: str, output: str) -> str:
    """Return the datastore address of what a job wrote under `output`."""
    document = local.state.get(f"{cloud.WORKSPACE_ID}/jobs/{job}")
    if document is None:
        raise not_found("job", job, local.state.names(f"{cloud.WORKSPACE_ID}/jobs"))
    known = document["properties"].get("outputs") or {}
    if output not in known:
        raise user_error(f"the job {job!r} has no output {output!r}; it has: {', '.join(known) or 'none'}")
    uri = known[output]["uri"].rstrip("/")
    if not datastores.folder_at(local, uri).exists():
        state = document["properties"]["status"]
        raise user_error(f"the job {job!r} wrote nothing under {output!r}: it is {state}")
    return uri
