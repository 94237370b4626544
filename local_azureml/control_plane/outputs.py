"""What jobs write: where an output of a job lies."""

import re

from local_azureml import identifiers, storage
from local_azureml.context import Context
from local_azureml.control_plane import datastores
from local_azureml.errors import not_found, not_played, user_error

PLACEHOLDER = re.compile(r"\$\{\{\s*(\w+)\s*\}\}")
ARTIFACTS = ("artifacts", "default")  # the outputs by which every job's logs, outputs and artifacts are named
SHORT = re.compile(r"azureml://datastores/([^/]+)/paths/(.*)", re.IGNORECASE)
MODELS = ("mlflow_model", "custom_model", "triton_model")  # the types of outputs that are models
VALUES = ("string", "integer", "number", "boolean")  # of those that are a value, which is written into a file
FILES = ("uri_file", *VALUES)


def placed(context: Context, job: str, asked: dict[str, dict], submitted: dict) -> dict[str, dict]:
    """Return a job's outputs, each with the address that it asks for or else has by default.

    `submitted` are the properties of the job that was submitted, be it this one or a pipeline around it.
    """
    named = (submitted.get("settings") or {}).get("default_datastore") or datastores.DEFAULT
    datastore = str(named).rpartition("/")[2].removeprefix("azureml:")
    default = datastores.uri(datastore, "azureml/${{name}}/${{output_name}}/")
    found = {
        name: {"uri": default, "jobOutputType": "uri_folder", **output} for name, output in asked.items()
    }
    for name, output in found.items():
        words = {"name": job, "output_name": name, "default_datastore": datastore}
        output["uri"] = PLACEHOLDER.sub(lambda word: words.get(word[1], word[0]), output["uri"])  # noqa: B023
        if not datastores.ADDRESS.fullmatch(output["uri"]):
            raise not_played(f"the output {name!r} to {output['uri']!r}, no datastore's,")
        datastores.folder_at(context, output["uri"])
    return found


def of_node(asked: dict, declared: dict) -> dict:
    """Return an output of a pipeline's node, as the node asks for it, in the words of a command job's."""
    words = {"uri": "uri", "name": "assetName", "version": "assetVersion", "mode": "mode"}
    kept = {word: str(asked[name]) for name, word in words.items() if asked.get(name)}
    return {"jobOutputType": asked.get("job_output_type") or declared.get("type") or "uri_folder", **kept}


def lasting_uri(context: Context, uri: str) -> str:
    """Return the whole datastore address of a job's output or of a short one; any other address as it is."""
    if short := SHORT.fullmatch(uri):
        return datastores.uri(*short.groups())
    if run := re.fullmatch(r"runs:/([^/]+)/(.+)", uri):
        return datastores.uri(storage.ARTIFACT_STORE, storage.run_folder(*run.groups()))
    named = re.fullmatch(r"azureml://jobs/([^/]+)/outputs/([^/]+)(?:/paths)?(/.*)?", uri.rstrip("/"))
    if not named:
        return uri
    job, output, below = named.groups()
    return address(context, job, output) + (below or "")


def address(context: Context, job: str, output: str) -> str:
    """Return the datastore address of what a job wrote under `output`."""
    document = context.state.get(f"{identifiers.JOBS}/{job}")
    if document is None:
        raise not_found("job", job, context.state.names(identifiers.JOBS))
    known = document["properties"].get("outputs") or {}
    if output in ARTIFACTS and output not in known:
        own = datastores.uri(storage.ARTIFACT_STORE, storage.run_folder(document["name"]))
        known = {**known, output: {"uri": own}}
    if output not in known:
        raise user_error(f"the job {job!r} has no output {output!r}; it has: {', '.join(known) or 'none'}")
    uri = known[output]["uri"].rstrip("/")
    if not datastores.folder_at(context, uri).exists():
        state = document["properties"]["status"]
        raise user_error(f"the job {job!r} wrote nothing under {output!r}: it is {state}")
    return uri
