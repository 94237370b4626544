"""Pipelines: the order of their nodes, what is bound to what, the steps of the fine-tuning component."""

import re
import secrets

from local_azureml.context import Context
from local_azureml.control_plane import addresses, assets, datastores, outputs, registry
from local_azureml.engine.chat_completion import STEPS, check_installed
from local_azureml.engine.chat_completion import inputs as component_inputs
from local_azureml.engine.jobs import command_steps, records, sweep_nodes, sweeps
from local_azureml.engine.jobs.journal import Journal
from local_azureml.engine.jobs.steps import (
    PIPELINE_LOG,
    REASON,
    STEP_LOG,
    TRAINING,
    CancelledError,
    Step,
    StepError,
    Steps,
)
from local_azureml.errors import not_implemented, not_played, user_error

SWEEP = "sweep"
PLAYED = ("command", "pipeline", SWEEP)  # the types of nodes that may be
FINE_TUNING = "chat_completion_pipeline"
BINDING = re.compile(r"\$\{\{\s*parent\.(inputs|outputs)\.([\w.]+)\s*\}\}")  # an input of a group has a dot
NODE_BINDING = re.compile(r"\$\{\{\s*parent\.jobs\.(\w+)\.outputs\.(\w+)\s*\}\}")


class Pipelines:
    """Runs pipelines, each node after those whose outputs it reads."""

    def __init__(self, context: Context, documents: records.Records, steps: Steps, swept: sweeps.Sweeps):
        self._context, self._records, self._steps, self._sweeps = context, documents, steps, swept

    def run(self, name: str, properties: dict) -> None:
        """Run a pipeline's nodes, each after those whose outputs it reads."""
        journal = Journal(self._context, name, PIPELINE_LOG)
        values = command_steps.input_values(properties.get("inputs") or {})
        self._run_nodes(name, properties["jobs"], values, properties["outputs"], properties, journal)
        journal.say("The pipeline run completed")

    def _run_nodes(
        self, parent: str, nodes: dict, values: dict, promoted: dict, job: dict, journal: Journal
    ) -> None:
        """Run the nodes of a pipeline or of a component that is one; `values` are its inputs."""
        made: dict[str, dict] = {}  # by node, its outputs
        failed: dict[str, StepError] = {}
        needs = {  # by node, those that it reads from
            key: {found[1] for found in NODE_BINDING.finditer(str(node.get("inputs")))}
            for key, node in nodes.items()
        }
        goes_on = (job.get("settings") or {}).get("continue_on_step_failure", True)
        for key in _in_order(needs):
            if not needs[key] <= made.keys():
                journal.say(f"Node {key} is left out: it reads from a node that failed or was left out")
                continue
            try:
                made[key] = self._run_node(parent, key, nodes[key], values, made, promoted, job, journal)
            except (StepError, CancelledError) as error:
                self._steps.check(self._records.root(parent))
                is_late = isinstance(error, CancelledError)
                failed[key] = StepError("UserError", f"{key} ran out of time") if is_late else error
                if not goes_on:
                    break
        if failed:
            reasons = "; ".join(dict.fromkeys(error.message for error in failed.values()))
            raise StepError(
                next(iter(failed.values())).code,
                f"Pipeline has failed child jobs. Failed nodes: /{', /'.join(failed)}. {reasons} "
                "For more details and logs, please check the child jobs.",
            )

    def _run_node(
        self,
        parent: str,
        key: str,
        node: dict,
        values: dict,
        made: dict[str, dict],
        promoted: dict,
        job: dict,
        journal: Journal,
    ) -> dict[str, dict]:
        """Run one node of a pipeline, `made` being what those before it wrote, and return its outputs."""
        root = self._records.root(parent)
        node = {**node, "computeId": _bound(node.get("computeId"), values)}
        child = f"{root}_{secrets.token_hex(4)}"
        spec = component(self._context, node)
        writes = self._outputs(child, promoted, spec, node, job)
        shown = {"displayName": key, "experimentName": job.get("experimentName"), "outputs": writes}
        swept = node.get("type") == SWEEP
        if swept:
            shown = sweeps.check(self._context, sweep_nodes.read(node, spec, job)) | shown
            del shown["inputs"]  # whose values are not known yet
        elif "command" in spec:
            shown |= {"command": spec["command"], "environmentId": spec.get("environment")}
        kind = "Sweep" if swept else "Command" if "command" in spec else "Pipeline"
        self._records.open(child, {"jobType": kind, **shown}, parent, root)
        self._records.set(child, "Running")
        journal.say(f"Submitting node {key} as run {child}")
        with self._steps.ending(child, key, REASON, journal):
            asked = (node.get("inputs") or {}).items()
            inputs = {name: _value(self._context, given, values, made) for name, given in asked}
            given = {name: value for name, value in inputs.items() if value is not None}
            inputs = _defaults(spec) | given
            if spec["name"] == FINE_TUNING:
                self._fine_tune(root, child, given, spec, writes, journal)
            elif swept:
                self._sweeps.run(child, {**shown, "inputs": sweep_nodes.inputs_of(node, spec, inputs)})
            elif "command" in spec:
                step = command_steps.of_node(self._context, key, spec, node, job, inputs, writes)
                self._steps.run(root, child, step, journal, quiet=False)
            else:
                self._run_nodes(child, spec["jobs"], inputs, writes, job, journal)
        return writes

    def _outputs(self, child: str, promoted: dict, spec: dict, node: dict, job: dict) -> dict[str, dict]:
        """Return a node's outputs with their addresses: the pipeline's where it promotes one."""
        asked = {}
        for name, declared in (spec.get("outputs") or {}).items():
            given = (node.get("outputs") or {}).get(name) or {}
            asked[name] = outputs.of_node(given, declared)
            bound = BINDING.fullmatch(str(given.get("value")))
            if bound and bound[2] in promoted:
                asked[name]["uri"] = promoted[bound[2]]["uri"]
        return outputs.placed(self._context, child, asked, job)

    def _fine_tune(
        self, root: str, parent: str, given: dict, spec: dict, made: dict[str, dict], journal: Journal
    ) -> None:
        """Run the component's five steps, one after another."""
        values, web = _defaults(spec) | given, {}
        for key, declared in spec["inputs"].items():
            if key in given and declared["type"] in component_inputs.FILES:
                values[key] = str(addresses.resolve(self._context, str(given[key])))
                web |= addresses.to_fetch(self._context, str(given[key]))
        places = {
            name: str(datastores.folder_at(self._context, output["uri"])) for name, output in made.items()
        }
        upstream: dict[str, str] = {}
        for key, job in spec["jobs"].items():
            child = f"{parent}_{secrets.token_hex(4)}"
            experiment = self._records.get(parent)["properties"]["experimentName"]
            self._records.open(
                child, {"jobType": "Command", "displayName": key, "experimentName": experiment}, parent, root
            )
            folder = self._context.folder / "runs" / child
            upstream[key] = str(folder / "output")
            resources = job.get("resources") or {}
            specification = {
                "inputs": values,
                "web": {} if len(upstream) > 1 else web,  # the first fetches it for all
                "upstream": {k: v for k, v in upstream.items() if k != key},
                "output": str(folder / "output"),
                "outputs": places,
                "faults": self._context.faults.active(),
            }
            compute = _bound(job["compute"], values)
            step = Step(
                key,
                STEPS[key],
                specification,
                compute,
                _bound(resources.get("instance_type"), values),
                int(_bound(resources.get("instance_count") or "1", values)),
            )
            journal.say(f"Submitting {key} as run {child}")
            with self._steps.ending(child, key, f"{key}: {REASON} (run {child}, {STEP_LOG})", journal):
                self._steps.run(root, child, step, journal, quiet=key != TRAINING)


def component(context: Context, node: dict) -> dict:
    """Return the specification of the component that a pipeline's node names."""
    trial = node.get("trial") if isinstance(node.get("trial"), dict) else {}  # of a sweep
    identifier = str(node.get("componentId") or trial.get("componentId") or "")
    if named := re.fullmatch(r"azureml://registries/[^/]+/components/([^/]+)/versions/([^/]+)", identifier):
        return registry.entry(context, "components", *named.groups())["properties"]["componentSpec"]
    identifier = identifier.replace("/labels/default", f"/versions/{assets.DEFAULT_VERSION}")
    if named := re.fullmatch(r"(?:.*/components/|azureml:)?([^/:]+)(?:/versions/|:)([^/]+)", identifier):
        return assets.find(context, "components", *named.groups())["properties"]["componentSpec"]
    raise user_error(f"the node {node.get('name')!r} names no component: {identifier!r}")


def check_pipeline(context: Context, nodes: dict, within: tuple[dict, ...] = ()) -> None:
    """Refuse a pipeline with nodes that are not played, or inputs that a component does not have.

    `within` are the components that the nodes lie in, the outermost first.
    """
    if not nodes:
        raise user_error("the pipeline has no nodes")
    for key, node in nodes.items():
        kind = str(node.get("type") or "command")
        spec = component(context, node) if kind in PLAYED else {"name": "", "type": kind}
        if kind == SWEEP and "command" not in spec:
            raise not_played(f"the node {key!r}, a sweep over a component that is no command,")
        if spec["name"] != FINE_TUNING and "command" not in spec and spec.get("type") != "pipeline":
            raise not_played(f"the node {key!r} of the type {spec.get('type')}")
        if spec["name"] == FINE_TUNING:
            check_installed()
        command_steps.check_inputs(context, node.get("inputs"))
        unknown = sorted(set(node.get("inputs") or {}) - set(spec.get("inputs") or {}))
        if unknown:
            raise user_error(f"the component {spec['name']} has no input {', '.join(unknown)}")
        if spec["name"] == FINE_TUNING and (sentence := component_inputs.not_played(_literals(node))):
            raise not_implemented(sentence)
        if spec["name"] != FINE_TUNING and spec.get("type") == "pipeline":
            if spec in within:
                raise user_error(f"the component {spec['name']} contains itself (node {key!r})")
            check_pipeline(context, spec.get("jobs"), (*within, spec))
        elif kind == SWEEP:
            sweeps.check(context, sweep_nodes.read(node, spec, {}))
        else:
            command_steps.check(context, spec, node)


def _defaults(spec: dict) -> dict:
    """Return the values that a component's inputs have where none is given."""
    return {key: value["default"] for key, value in (spec.get("inputs") or {}).items() if "default" in value}


def _in_order(needs: dict[str, set[str]]) -> list[str]:
    """Return the nodes' names, each after those that it needs."""
    ordered: list[str] = []
    while len(ordered) < len(needs):
        ready = [key for key in needs if key not in ordered and needs[key] <= set(ordered)]
        if not ready:
            raise StepError("UserError", f"the nodes {sorted(set(needs) - set(ordered))} form a cycle")
        ordered += ready
    return ordered


def _literals(node: dict) -> dict:
    """Return the inputs of a node that are neither a pipeline's nor another node's."""
    asked = (node.get("inputs") or {}).items()
    values = {
        key: given.get("value", given.get("uri")) if isinstance(given, dict) else given
        for key, given in asked
    }
    return {key: value for key, value in values.items() if value is not None and "${{" not in str(value)}


def _value(context: Context, given: dict | str, values: dict, made: dict[str, dict]):
    """Return a node's input: a literal, or the pipeline's input or other node's output that it names."""
    text = given.get("value", given.get("uri")) if isinstance(given, dict) else given
    if bound := BINDING.fullmatch(str(text)):
        return values.get(bound[2])
    if bound := NODE_BINDING.fullmatch(str(text)):
        output = made[bound[1]][bound[2]]
        if output["jobOutputType"] in outputs.VALUES:
            return addresses.resolve(context, output["uri"]).read_text("utf-8").strip()
        return output["uri"]
    return text


def _bound(text, values: dict):
    """Return the value that `${{parent.inputs.x}}` stands for; any other text as it is."""
    found = BINDING.fullmatch(str(text))
    return values.get(found[2]) if found else text
