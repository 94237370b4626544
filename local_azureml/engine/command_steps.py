"""Commands as steps: their inputs, code, variables and nodes."""

from pathlib import Path

from local_azureml import cloud
from local_azureml.control_plane import addresses, datastores
from local_azureml.engine.steps import Step


def of_job(local: cloud.Cloud, name: str, properties: dict) -> Step:
    """Return the step of a job that is one command."""
    values = input_values(properties.get("inputs") or {})
    outputs = {
        key: datastores.folder_at(local, output["uri"]) for key, output in properties["outputs"].items()
    }
    spec = {
        "command": properties["command"],
        "code": properties.get("codeId"),
        "inputs": {},
        "name": name,
    }
    kinds = {
        k: {"type": (v or {}).get("jobInputType", "literal")}
        for k, v in (properties.get("inputs") or {}).items()
    }
    return of_node(local, name, {**spec, "inputs": kinds}, properties, properties, values, outputs)


def of_node(
    local: cloud.Cloud,
    key: str,
    spec: dict,
    node: dict,
    job: dict,
    inputs: dict,
    outputs: dict[str, Path],
) -> Step:
    """Return the step that runs the command of `spec`, as `node` of `job` asks."""
    places = {}
    for name, value in inputs.items():
        kind = (spec["inputs"].get(name) or {}).get("type", "literal")
        is_file = kind.startswith(("uri_", "ml")) or kind == "custom_model"
        places[name] = str(addresses.resolve(local, str(value))) if is_file else value
    code = str(spec.get("code") or node.get("codeId") or "").removeprefix("azureml:")
    compute = str(node.get("computeId") or (job.get("settings") or {}).get("default_compute") or "serverless")
    resources = node.get("resources") or {}
    return Step(
        key,
        "local_azureml.engine.command:run",
        {
            "command": spec["command"],
            "code": str(addresses.resolve(local, code)) if code else None,
            "inputs": places,
            "outputs": {name: str(path) for name, path in outputs.items()},
            "variables": node.get("environmentVariables") or {},
        },
        compute.rpartition("/")[2].removeprefix("azureml:"),
        resources.get("instanceType") or "Standard_DS3_v2",
        int(resources.get("instanceCount") or 1),
    )


def input_values(inputs: dict) -> dict:
    """Return the values of a job's inputs: literals and addresses."""
    return {key: (given or {}).get("value", (given or {}).get("uri")) for key, given in inputs.items()}
