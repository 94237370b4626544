"""Fine-tuning jobs: a model, data and hyperparameters, with no pipeline written around them."""

from local_azureml.context import Context
from local_azureml.control_plane import addresses, computes, jobs, quota, registry
from local_azureml.engine.chat_completion import check_installed, inputs
from local_azureml.engine.jobs.pipelines import FINE_TUNING
from local_azureml.engine.processes import UserError
from local_azureml.errors import not_implemented, not_played, user_error

NODE = "chat_completion"  # the one node of the pipeline that such a job is
OUTPUT = "registered_model"  # what the SDK calls the job's output
DATA = {
    "mlflow_model_path": "model",
    "train_file_path": "trainingData",
    "validation_file_path": "validationData",
}
OWN = (
    "task_name",
    *DATA,
    *(name for name in inputs.interface() if name.startswith(("compute_", "instance_"))),
)


def check(context: Context, properties: dict) -> None:
    """Refuse a fine-tuning job that the emulator can't run, by the name of what it can't."""
    check_installed()
    details = properties.get("fineTuningDetails")
    if not details:
        raise user_error("a fine-tuning job needs properties.fineTuningDetails")
    for name, played in (("modelProvider", "Custom"), ("taskType", "ChatCompletion")):
        if details[name] != played:
            raise not_played(f"fine-tuning with the {name} {details[name]}", f"{played} is")
    outputs = properties.get("outputs") or {}
    if list(outputs) != [OUTPUT] or not outputs[OUTPUT].get("assetName"):
        raise user_error(
            f"a fine-tuning job has one output, {OUTPUT}, with the name of the model to register"
        )
    for file in filter(None, map(details.get, DATA.values())):
        addresses.check(context, str(file.get("uri")))
    settable = [
        name
        for name, spec in inputs.interface().items()
        if name not in OWN and spec["type"] not in inputs.FILES
    ]
    given = details.get("hyperParameters") or {}
    if unknown := sorted(given.keys() - settable):
        raise user_error(f"there is no hyperparameter {unknown[0]!r}; there is: {', '.join(settable)}")
    if sentence := inputs.not_played(given):
        raise not_implemented(sentence)
    try:
        sentence = inputs.broken(inputs.typed(given))
    except UserError as error:
        sentence = str(error)
    if sentence:
        raise user_error(sentence)
    _machines(context, properties)


def as_pipeline(context: Context, properties: dict) -> dict:
    """Return the pipeline job with one node that does what a fine-tuning job asks."""
    details = properties["fineTuningDetails"]
    files = {name: details[key]["uri"] for name, key in DATA.items() if details.get(key)}
    values = {**(details.get("hyperParameters") or {}), **_machines(context, properties), **files}
    component = registry.entries(context, "components", FINE_TUNING)[0]
    node = {
        "componentId": component["id"],
        "inputs": {name: {"value": value} for name, value in values.items()},
        "outputs": {"mlflow_model_folder": {"value": f"${{{{parent.outputs.{OUTPUT}}}}}"}},
    }
    return {**properties, "jobs": {NODE: node}}


def _machines(context: Context, properties: dict) -> dict:
    """Return where each step runs: on the job's cluster or, without one, on the sizes that it names."""
    compute = jobs.compute_named(properties.get("computeId"))
    names = (properties.get("resources") or {}).get("instanceTypes") or []
    if compute != jobs.SERVERLESS:
        computes.find(context, compute)
    elif not names:
        raise user_error(
            "a fine-tuning job needs a computeId, or the sizes of machines in resources.instanceTypes"
        )
    sizes = [quota.size_named(context, name) for name in names]
    chosen = {}
    for name in inputs.interface():
        if name.startswith("compute_"):
            chosen[name] = compute
        elif name.startswith("instance_type_") and sizes:
            wants_gpu = name.endswith(("finetune", "evaluation"))  # the others do without, if they can
            chosen[name] = next((one for one in sizes if bool(one["gpus"]) == wants_gpu), sizes[0])["name"]
    return chosen
