"""Commands as steps: their inputs, code, variables, nodes and processes."""

from local_azureml.context import Context
from local_azureml.control_plane import addresses, datastores, environments, jobs, shapes
from local_azureml.control_plane.outputs import FILES
from local_azureml.engine.jobs.steps import Step
from local_azureml.errors import not_played


def of_job(context: Context, name: str, properties: dict) -> Step:
    """Return the step of a job that is one command."""
    given = properties.get("inputs") or {}
    kinds = {k: {"type": (v or {}).get("jobInputType", "literal")} for k, v in given.items()}
    spec = {"command": properties["command"], "code": properties.get("codeId"), "inputs": kinds}
    return of_node(context, name, spec, properties, properties, input_values(given), properties["outputs"])


def of_node(
    context: Context,
    key: str,
    spec: dict,
    node: dict,
    job: dict,
    inputs: dict,
    outputs: dict[str, dict],
) -> Step:
    """Return the step that runs the command of `spec`, as `node` of `job` asks."""
    paths, literals = {}, {}
    for name, value in inputs.items():
        kind = (spec["inputs"].get(name) or {}).get("type", "literal")
        mode = ((node.get("inputs") or {}).get(name) or {}) if kind != "literal" else {}
        is_direct = isinstance(mode, dict) and str(mode.get("mode")).lower() == "direct"
        if is_file(kind) and not is_direct:
            paths[name] = str(addresses.resolve(context, str(value)))
        else:
            literals[name] = value
    code = str(spec.get("code") or node.get("codeId") or "").removeprefix("azureml:")
    read = [str(inputs[name]) for name in paths] + ([code] if code else [])
    compute = jobs.compute_named(compute_of(node, job))
    resources = asked(spec, node, "resources")
    nodes = int(asked_in(resources, "instance_count") or 1)
    timeout = asked_in(asked(spec, node, "limits"), "timeout")
    return Step(
        key,
        "local_azureml.engine.jobs.command:run",
        {
            "command": spec["command"],
            "code": str(addresses.resolve(context, code)) if code else None,
            "paths": paths,
            "web": addresses.to_fetch(context, *read),
            "literals": literals,
            "outputs": {
                name: str(datastores.folder_at(context, output["uri"])) for name, output in outputs.items()
            },
            "files": [name for name, output in outputs.items() if output["jobOutputType"] in FILES],
            "environment": None if context.one_python else _specification(context, spec, node),
            "environments": str(context.folder / "environments"),
            "variables": asked(spec, node, "environment_variables"),
            "nodes": nodes,
            "processes": _processes(asked(spec, node, "distribution")),
            "timeout": shapes.seconds(timeout) if isinstance(timeout, str) else timeout,
        },
        compute,
        asked_in(resources, "instance_type") or "Standard_DS3_v2",
        nodes,
    )


def compute_of(node: dict, job: dict) -> str | None:
    """Return the id of the compute that a node runs on, or else its job."""
    default = (job.get("settings") or {}).get("default_compute") or job.get("computeId")
    return node.get("computeId") or default


def is_file(kind: str) -> bool:
    """Say whether inputs of a type are files, folders or models."""
    return kind.startswith(("uri_", "ml")) or kind == "custom_model"


def input_values(inputs: dict) -> dict:
    """Return the values of a job's inputs: literals and addresses."""
    return {key: (given or {}).get("value", (given or {}).get("uri")) for key, given in inputs.items()}


def check_inputs(context: Context, inputs: dict | None) -> None:
    """Refuse inputs that lie where nothing is read here."""
    for given in (inputs or {}).values():
        if isinstance(given, dict) and given.get("uri") and str(given.get("mode")).lower() != "direct":
            addresses.check(context, str(given["uri"]))


def check(context: Context, spec: dict, node: dict) -> None:
    """Refuse a command whose environment is nowhere, or that asks for what is not played."""
    jobs.check_services(node)
    _specification(context, spec, node)
    _processes(asked(spec, node, "distribution"))


def _specification(context: Context, spec: dict, node: dict) -> dict | None:
    """Return what a command's environment consists of; None where it names none."""
    identifier = str(spec.get("environment") or node.get("environmentId") or "")
    return environments.check(context, identifier) if identifier else None


def _processes(distribution: dict) -> int | None:
    """Return how many processes of PyTorch's a node gets; None where no distribution is asked for."""
    kind = str(asked_in(distribution, "distribution_type") or distribution.get("type") or "")
    if kind.lower() not in ("", "pytorch"):
        raise not_played(f"the distribution {kind}", "PyTorch is")
    return int(asked_in(distribution, "process_count_per_instance") or 1) if kind else None


def asked(spec: dict, node: dict, name: str) -> dict:
    """Return what a job, or a node in place of its component, asks for under `name`."""
    return asked_in(node, name) or spec.get(name) or {}


def asked_in(table: dict, name: str):
    """Return what a table says under a name, which nodes write with underscores and jobs in camel case."""
    return table.get(name, table.get(camel(name)))


def camel(name: str) -> str:
    """Return a name with underscores as jobs write it."""
    first, *rest = name.split("_")
    return first + "".join(map(str.capitalize, rest))
