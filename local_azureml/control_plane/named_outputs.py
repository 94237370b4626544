"""Outputs of jobs that have a name: assets, once the job has completed."""

from local_azureml import identifiers
from local_azureml.context import Context
from local_azureml.control_plane import assets, outputs
from local_azureml.errors import user_error


def check(context: Context, asked: dict[str, dict]) -> None:
    """Refuse outputs with names that no asset can have, or with versions that are there."""
    for output in asked.values():
        name, version = output.get("assetName"), output.get("assetVersion")
        if name and not assets.NAME.fullmatch(name):
            raise user_error(f"the name of an output, {name!r}: {assets.NAME_RULE}")
        kind = "models" if output["jobOutputType"] in outputs.MODELS else "data"
        if (
            name
            and version
            and context.state.get(f"{identifiers.WORKSPACE_ID}/{kind}/{name}/versions/{version}")
        ):
            raise user_error(f"version {version!r} of {name!r} is there already: name another, or none")


def register(context: Context, asked: dict[str, dict]) -> dict[str, dict]:
    """Register those outputs of a job that have a name, and return all, with the versions that they got."""
    found = {}
    for output, properties in asked.items():
        found[output] = properties
        if name := properties.get("assetName"):
            kind, uri = properties["jobOutputType"], properties["uri"]
            is_model = kind in outputs.MODELS
            place = {"modelType": kind, "modelUri": uri} if is_model else {"dataType": kind, "dataUri": uri}
            with context.state.locked():
                where = "models" if is_model else "data"
                version = properties.get("assetVersion") or assets.next_version(context, where, name)
                assets.register(context, where, name, version, place)
            found[output] = {**properties, "assetVersion": version}
    return found
