"""Sweeps as nodes of a pipeline: what such a node asks for, in the words of a sweep job."""

from typing import Any

from pydantic import TypeAdapter, ValidationError

from local_azureml.control_plane.shapes import Shape
from local_azureml.engine.jobs import command_steps, sampling
from local_azureml.engine.jobs.command_steps import asked, camel
from local_azureml.errors import unfit, user_error

TIMES = ("timeout", "trial_timeout")  # in a node, seconds


class SweepNode(Shape, total=False):
    search_space: dict[str, dict[str, Any]]
    sampling_algorithm: str | dict[str, Any]
    objective: dict[str, Any]
    limits: dict[str, Any]
    early_termination: dict[str, Any]


NODE = TypeAdapter(SweepNode)


def read(node: dict, spec: dict, job: dict) -> dict:
    """Return the properties of the sweep job that a node is, but for the values of its inputs."""
    try:
        node = NODE.validate_python(node)
    except ValidationError as error:
        raise unfit(error.errors(), "the sweep node's ") from error
    unknown = sorted(set(node.get("search_space") or {}) - set(spec.get("inputs") or {}))
    if unknown:
        raise user_error(f"the component {spec['name']} has no input {', '.join(unknown)} to search")
    algorithm, policy = node.get("sampling_algorithm") or {}, node.get("early_termination")
    if isinstance(algorithm, str):
        algorithm = {"type": algorithm}
    limits = {
        name: f"PT{value}S" if name in TIMES else value for name, value in (node.get("limits") or {}).items()
    }
    found = {
        "searchSpace": {name: _distribution(each) for name, each in (node.get("search_space") or {}).items()},
        "samplingAlgorithm": _renamed(algorithm, "samplingAlgorithmType"),
        "objective": _renamed(node.get("objective") or {}),
        "limits": _renamed(limits),
        "trial": _trial(node, spec),
        "inputs": inputs_of(node, spec, dict.fromkeys([*(spec.get("inputs") or {})], "")),
        "outputs": spec.get("outputs") or {},
        "computeId": command_steps.compute_of(node, job),
    }
    return {**found, "earlyTermination": _renamed(policy, "policyType")} if policy else found


def inputs_of(node: dict, spec: dict, values: dict) -> dict:
    """Return the inputs of the sweep job that a node is, with their values; what is searched is none."""
    searched = node.get("search_space") or {}
    return {name: _input(name, value, spec, node) for name, value in values.items() if name not in searched}


def _trial(node: dict, spec: dict) -> dict:
    code = str(spec.get("code") or "").removeprefix("azureml:")
    trial = {
        "command": spec["command"],
        "environmentId": str(spec.get("environment") or node.get("environmentId") or ""),
        "environmentVariables": asked(spec, node, "environment_variables"),
        "resources": _renamed(asked(spec, node, "resources")),
        "distribution": _renamed(asked(spec, node, "distribution"), "distributionType"),
        **({"codeId": code} if code else {}),
    }
    return {name: value for name, value in trial.items() if value != {}}


def _distribution(asked: dict) -> list:
    """Return a distribution as a sweep job has it: its name, and its parameters in order."""
    kind = str(asked.get("type"))
    names = sampling.PARAMETERS.get(kind, ())
    return [kind, [asked[name] for name in names if name in asked]]


def _input(name: str, value: object, spec: dict, node: dict) -> dict:
    kind = str((spec.get("inputs") or {}).get(name, {}).get("type", "literal"))
    if not command_steps.is_file(kind):
        return {"jobInputType": "literal", "value": str(value)}
    given = (node.get("inputs") or {}).get(name)
    direct = isinstance(given, dict) and str(given.get("mode")).lower() == "direct"
    return {"jobInputType": kind, "uri": str(value), **({"mode": "Direct"} if direct else {})}


def _renamed(table: dict, kind: str = "type") -> dict:
    """Return a table with names in camel case, and the word for what kind it is under another one."""
    return {kind if name == "type" else camel(name): value for name, value in table.items()}
