"""What jobs wrote: where in the default datastore an output of a job lies."""

import re

from local_azureml import cloud
from local_azureml.control_plane import datastores
from local_azureml.errors import not_found, user_error


def lasting_uri(local: cloud.Cloud, uri: str) -> str:
    """Return the datastore address of a job's output; any other address as it is."""
    named = re.fullmatch(r"azureml://jobs/([^/]+)/outputs/([^/]+)(?:/paths)?(/.*)?", uri.rstrip("/"))
    if not named:
        return uri
    job, output, below = named.groups()
    return datastores.uri(datastores.DEFAULT, path(local, job, output) + (below or ""))


def path(local: cloud.Cloud, job: str, output: str) -> str:
    """Return the path in the default datastore of what a job wrote under `output`."""
    document = local.state.get(f"{cloud.WORKSPACE_ID}/jobs/{job}")
    if document is None:
        raise not_found("job", job, [j["name"] for j in local.state.children(f"{cloud.WORKSPACE_ID}/jobs")])
    known = list(document["properties"].get("outputs") or {})
    place = f"azureml/{job}/{output}"
    if output not in known:
        raise user_error(f"the job {job!r} has no output {output!r}; it has: {', '.join(known) or 'none'}")
    if not datastores.folder_of(local, datastores.DEFAULT, place).exists():
        state = document["properties"]["status"]
        raise user_error(f"the job {job!r} wrote nothing under {output!r}: it is {state}")
    return place
