"""What keeps a run of finetune_phi3_ultrachat.ipynb from costing more than it should.

Checks before anything is billed (by the rules in settings.py), the reading of failures, and the watcher that
deletes the endpoint. Nothing in here is needed to learn the SDK: its calls stand in the notebook's cells.
"""

import ast
import atexit
import hashlib
import itertools
import logging
import math
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import date
from os import environ
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
from azure.ai.ml import MLClient
from azure.ai.ml.exceptions import JobException
from azure.core.exceptions import AzureError, ClientAuthenticationError, ResourceNotFoundError
from azure.identity import DefaultAzureCredential, InteractiveBrowserCredential
from IPython.core.error import StdinNotImplementedError

import explain
import show
from costs import CARDS, Training, of_name
from explain import delete_command, error_message, masked
from settings import Check, check_inputs, check_parameters

MADE_BY = "finetune_phi3_ultrachat"  # a tag of all that the notebook creates
RUN_ID = str(int(time.time()))  # one for each kernel
ENDED = ("Completed", "Failed", "Canceled")
RETIRED = {  # fine-tuning ended on; what to take instead. Source: Azure/azureml-assets, read 2026-07-23
    "Phi-3-mini-4k-instruct": ("2025-08-30", "Phi-4"),  # no public call tells it of version 15
}
ROOMY = 32  # GB of each GPU that are enough for most models
UNRESERVED = re.compile("a100|h100|nd40rs")  # to all other deployments Azure adds a fifth in reserve
logging.getLogger("azure.ai.ml").setLevel(logging.ERROR)  # hides which of its classes are experimental
told_failures: set[str] = set()  # jobs of which this kernel has said that they failed
watchers: dict[str, subprocess.Popen] = {}  # endpoint -> the process that deletes it when this kernel ends


def say_retry(request) -> None:
    """Say, once for each request, that the SDK tries it again."""
    if request.context.get("retry_count") == 1:
        print("Azure is busy or out of reach: trying again, for up to a minute.")


PATIENT = {
    "show_progress": False,
    "enable_telemetry": False,
    "retry_connect": 6,
    "raw_request_hook": say_retry,
}


def begin(notebook: dict) -> dict[str, str]:
    """Check the parameters, explain from now on what fails in any cell, and return the tags of this run."""
    import azureml.mlflow  # noqa: F401  lets mlflow read a workspace; missed in step 5, it would be too late

    check_parameters(notebook)
    explain.switch_on()
    return {"made_by": MADE_BY, "run_id": RUN_ID, "data": short_name(notebook["dataset_name"])}


def tag(thing, name: str) -> str | None:
    """Return a tag of something that may have none."""
    return (thing.tags or {}).get(name)


def place(*given: str) -> list[str]:
    """Return subscription, group and workspace as given, else of the environment, else of a config.json."""
    names = ("SUBSCRIPTION", "RESOURCEGROUP", "WORKSPACE_NAME")
    found = [one or environ.get(f"AZUREML_ARM_{name}") for one, name in zip(given, names, strict=True)]
    if all(found):
        return found
    there = MLClient.from_config(DefaultAzureCredential())
    return [there.subscription_id, there.resource_group_name, there.workspace_name]


def log_in(credential):
    """Return the credential if it gives a token, else one that asks somebody in a browser."""
    try:
        credential.get_token("https://management.azure.com/.default")
        return credential
    except ClientAuthenticationError:
        with suppress(StdinNotImplementedError):
            input("No Azure login was found. Press Enter to log in with a browser: ")
            return InteractiveBrowserCredential()
    advice = "run `az login`, or set AZURE_CLIENT_ID, AZURE_TENANT_ID and AZURE_CLIENT_SECRET"
    raise RuntimeError(f"no Azure login was found and nobody is here to log in: {advice}")


def get_or_none(get: Callable, *place: str):
    """Return what `get` finds, once it is made or changed; None where there is nothing, or it failed."""
    while True:
        try:
            found = get(*place)
        except ResourceNotFoundError:
            return None
        state = getattr(found, "provisioning_state", None)
        if state not in ("Creating", "Updating", "Deleting"):
            return None if state in ("Failed", "Canceled") else found
        time.sleep(2)


def what_runs(workspace: MLClient, cluster: str) -> pd.DataFrame:
    """Return what is billed of the notebook's runs: unfinished jobs, endpoints, machines of the cluster."""
    rows = []
    for job in workspace.jobs.list(tag="made_by"):  # None stands for one that the SDK can't read
        if job and tag(job, "made_by") == MADE_BY and job.status not in ENDED:
            rows.append((job.name, f"job, {job.status}", f'to watch it: resume_job_name = "{job.name}"'))
    endpoints = {found.name: found for found in workspace.online_endpoints.list()}
    for gone in watchers.keys() - endpoints.keys():
        keep_endpoint(gone)  # nothing is left to delete
    for found in endpoints.values():
        if tag(found, "made_by") == MADE_BY:
            meter = f"billed until: {delete_command(workspace, found.name)}"
            rows.append((found.name, f"endpoint of run {tag(found, 'run_id')}", meter))
    if there := get_or_none(workspace.compute.get, cluster):
        leaves = f"gone after {there.idle_time_before_scale_down} s without work"
        nodes = workspace.compute.list_nodes(cluster)
        rows += [(cluster, f"machine, {node.node_state}", leaves) for node in nodes]
    return pd.DataFrame(rows, columns=["name", "what", "meter"]).set_index("name")


def told(model) -> tuple[list[str], list[str], str]:
    """Return the sizes that a model trains and answers on, and the day of its retirement, where told.

    Tags told it until 2026. The block `system_metadata`, which took their place, has no public name in the
    SDK, and is None there as of azure-ai-ml 1.35.
    """
    metadata = getattr(model, "_system_metadata", None) or {}
    computes, days = metadata.get("supportedComputes") or {}, metadata.get("deprecation") or {}
    sizes = []
    for what in ("finetune", "inference"):
        names = tag(model, f"{what}_compute_allow_list") or computes.get(f"{what}Computes") or []
        names = ast.literal_eval(names) if isinstance(names, str) else names
        sizes.append([name.lower() for name in names])
    return *sizes, (tag(model, "FinetuneRetirementDate") or days.get("finetuneRetirementDate") or "")[:10]


def check_model(workspace: MLClient, model, resume_job_name: str) -> None:
    """Say where a model is retired, and what is not told of it; raise where a job to resume had another."""
    training, answering, retired = told(model)
    known, successor = RETIRED.get(model.name, ("", ""))
    retired = retired or known
    if "" < retired < date.today().isoformat():
        choose = f"its successor is {successor}" if successor else "see https://ml.azure.com/models"
        state = f"still works, but was retired on {retired} and is unsupported"
        print(f"Warning: fine-tuning of {model.name} {state}; {choose}.")
    untold = [] if training and answering else ["which machine sizes it fits (GPU memory and region decide)"]
    untold += [] if retired else ["whether its fine-tuning is retired"]
    if untold:
        print(f"The registry doesn't say of {model.name} {model.version} {', or '.join(untold)}.")
    if resume_job_name:
        trained = tag(workspace.jobs.get(resume_job_name), "base_model") or model.id
        if trained != model.id:
            advice = f"set model_name and model_version to what it trained: {trained}"
            raise RuntimeError(f"job {resume_job_name} did not train {model.id}: {advice}")


def accepted(component, recommended: dict) -> dict:
    """Return the recommended inputs that the component has; name the others in a warning."""
    for name in sorted(recommended.keys() - component.inputs.keys()):
        print(f"Warning: the component has no input {name}; the recommended {recommended[name]} is dropped.")
    return {name: value for name, value in recommended.items() if name in component.inputs}


def region(workspace: MLClient) -> tuple[dict, dict]:
    """Return the region's sizes by name in small letters, and the cores left by tier and family."""
    left, sizes = {}, {size.name.lower(): size for size in workspace.compute.list_sizes()}
    for size in sizes.values():
        size.cores = vars(size).get("vCPUs", size.v_cp_us)  # newer answers of the service have the first
    for usage in workspace.compute.list_usage():
        tier = "low_priority" if "lowpriority" in f"{usage.type} {usage.name}".lower() else "dedicated"
        if usage.limit != -1 and "/workspaces/" not in usage.id:  # no limit; a workspace's share of one
            used = vars(usage).get("currentValue", usage.current_value) or 0
            left[tier, usage.name["value"].lower()] = usage.limit - used
    return sizes, left


def usable(sizes: dict, allowed: list[str]) -> list[str]:
    """Return the region's sizes that fit: those of the model's list or, without one, of enough memory."""
    if not allowed:
        roomy = [name for name in sizes if (of_name(CARDS, name) or (0,))[0] >= ROOMY]
        allowed = sorted(roomy, key=lambda name: sizes[name].cores)
    return [name for name in allowed if name in sizes and sizes[name].gpus]


def first_fit(workspace: MLClient, model) -> str:
    """Return the first size of the model's list, or the smallest that fits; "none" where none does."""
    sizes, _ = region(workspace)
    return next((sizes[name].name for name in usable(sizes, told(model)[0])), "none")


def check_machines(
    workspace: MLClient, model, cluster, settings: dict, answering: tuple[str, int, int]
) -> list[Check]:
    """Check sizes, quota, nodes and GPUs; `answering`: a size, how many of it, for how many deployments."""
    sizes, left = region(workspace)
    train_list, answer_list, _ = told(model)
    there = cluster.provisioning_state is not None
    held = len(list(workspace.compute.list_nodes(cluster.name))) if there else 0  # by a job that goes on
    nodes = settings.get("num_nodes_finetune", 1)
    grown = nodes if there and isinstance(nodes, int) else cluster.max_instances
    instance_type, instances, deployments = answering
    reserve = 1 if UNRESERVED.search(instance_type.lower()) else 1.2
    deployed = deployments * math.ceil(instances * reserve)
    checks, asked = [], Counter()
    for what, size, tier, machines, allowed in [
        ("instance_type", instance_type, "dedicated", deployed, answer_list),
        ("compute_size", cluster.size, cluster.tier.lower(), max(grown - held, 0), train_list),
    ]:
        fitting = usable(sizes, allowed)
        others = ", ".join(sizes[name].name for name in fitting) or "another region: here is none"
        chosen = sizes[size.lower()] if size.lower() in fitting else None
        needed = "a GPU size for this model, in this region"
        checks.append(Check(what, size or "none", needed, chosen is not None, f"choose one of {others}"))
        if chosen:  # training and answering draw on the same quotas: of the family, and of the region
            for family in (chosen.family, f"Total{tier.title().replace('_', '')}Cores"):
                asked[tier, family] += machines * chosen.cores
    for (tier, family), cores in asked.items():
        free = left.get((tier, family.lower()), math.inf)
        more = f"ask in Studio, Quota, for more of {family}, or choose a smaller size"
        checks.append(Check(f"quota of {family}", f"{free} cores", f"{cores} cores", free >= cores, more))
    most = {
        "num_nodes_finetune": cluster.max_instances,
        "number_of_gpu_to_use_finetuning": chosen.gpus if chosen else 1,
    }
    for what in sorted(most.keys() & settings.keys()):  # by default one node, and all its GPUs
        fine, lower = settings[what] in range(1, most[what] + 1), "lower it, or choose a larger cluster"
        checks.append(Check(f"{what} on this cluster", settings[what], f"1 to {most[what]}", fine, lower))
    return checks


def is_ours(workspace: MLClient, endpoint: str, run_id: str) -> bool:
    """Say whether there is an endpoint of that name, and whether this run made it."""
    try:
        return tag(workspace.online_endpoints.get(endpoint), "run_id") == run_id
    except ResourceNotFoundError:
        return False


def check_endpoint(workspace: MLClient, endpoint: str, run_id: str) -> Check:
    """Check that the endpoint's name is free, or this run's own."""
    runs = {found.name: tag(found, "run_id") for found in workspace.online_endpoints.list()}
    fine = runs.get(endpoint, run_id) == run_id
    advice = f"choose another endpoint_name, or delete this one: {delete_command(workspace, endpoint)}"
    return Check("endpoint", endpoint, "a free name, or this run's own", fine, advice)


def short_name(dataset: str) -> str:
    """Return what a dataset, or a file of one's own, is called in names of Azure: "ultrachat-200k"."""
    words = re.findall("[A-Za-z0-9]+", re.split(r"[\\/]", dataset)[-1].partition(".")[0])
    return "-".join(words).lower() or "chats"


def check_before_paying(notebook: dict) -> None:
    """Show what could fail later as a table; raise RuntimeError with what would."""
    given = SimpleNamespace(**notebook)
    to_deploy = 0 if is_ours(given.workspace, given.address, RUN_ID) else 1 + given.compare_with_base
    answering = (given.instance_type, given.instance_count, to_deploy)
    stop_unless_fine(
        *check_machines(given.workspace, given.model, given.wanted, given.settings, answering),
        *check_inputs(given.component, given.settings, given.finetune_parameters, given.score_parameters),
        check_endpoint(given.workspace, given.address, RUN_ID),
    )


def stop_unless_fine(*checks: Check) -> None:
    """Show the checks as a table; raise RuntimeError with those that are not fine."""
    lines = [(*check[:3], "ok" if check.fine else check.advice) for check in checks]
    show.table(pd.DataFrame(lines, columns=["what", "found", "needed", "verdict"]).set_index("what"))
    if stops := [one for one in checks if not one.fine]:
        raise RuntimeError(f"nothing was created. {listed(stops)}")


def listed(checks: list[Check]) -> str:
    return " / ".join(f"{one.what}: {one.found}, needed {one.needed}; {one.advice}" for one in checks)


def run_script(*words: str) -> str:
    """Return what a Python script printed; raise RuntimeError with its last line where it fails."""
    ended = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    if ended.returncode:
        raise RuntimeError(f"nothing was billed. {ended.stderr.strip().splitlines()[-1]}")
    return ended.stdout.rstrip()


def forecast(given: dict) -> None:
    """Say what the run costs at most; raise RuntimeError where its training is bound to fail or of no use.

    `given`: the kernel's variables after step 4.
    """
    now = SimpleNamespace(**given)
    sizes, _ = region(now.workspace)
    training = Training.of(now, sizes[now.cluster.size.lower()].name)
    fitting = [sizes[name] for name in usable(sizes, told(now.model)[0])]
    if stops := [one for one in training.checks(fitting) if not one.fine]:
        raise RuntimeError(f"nothing was billed. {listed(stops)}")
    instances = now.instance_count * (1 + now.compare_with_base)
    print(training.at_most(now.about.location, now.instance_type, instances))


def next_try(name: str) -> str:
    """Return a job's name or, where this kernel has told of its failure, the name of another try."""
    tries = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(one for one in tries if one not in told_failures)


def fingerprint(*order: object) -> str:
    """Return eight characters that differ where anything in the order of a job differs."""
    return hashlib.sha256(repr([str(part) for part in order]).encode()).hexdigest()[:8]


def retry(action: Callable, tries: int, pause: float) -> str:
    """Do something, again while Azure refuses; return why it still did at the last try, or ""."""
    for _ in range(tries):
        try:
            action()
            return ""
        except AzureError as error:
            refused = error_message(error)
            time.sleep(pause)
    return refused


@contextmanager
def watched(workspace: MLClient, job, minutes: float) -> Iterator[None]:
    """Cancel the job after so long; at the end raise RuntimeError with the step that failed, and why."""
    cancel = [lambda: workspace.jobs.begin_cancel(job.name), 180, 10]  # for half an hour
    limit = threading.Timer(60 * minutes, retry, cancel)
    limit.daemon = True
    limit.start()
    goes_on = f"job {job.name} goes on, but nobody watches it: run this cell again to do so"
    try:
        with suppress(JobException):  # of a failure or an interrupt, told below
            yield
        while (job := workspace.jobs.get(job.name)).status in ("CancelRequested", "Finalizing"):
            time.sleep(1)  # the stream does not wait for these
    except AzureError as error:
        raise RuntimeError(f"{goes_on} ({error_message(error)})") from None
    finally:
        limit.cancel()
    if job.status not in ENDED:
        raise RuntimeError(goes_on)
    if job.status != "Completed":
        told_failures.add(job.name)
        raise RuntimeError(failure(workspace, job, minutes))


def failure(workspace: MLClient, job, minutes: float) -> str:
    """Return a sentence with the step of the job that failed, its reason, and where its log is."""
    step, name = job, "the job"
    while failed := [one for one in workspace.jobs.list(parent_job_name=step.name) if one.status == "Failed"]:
        step, name = failed[0], failed[0].display_name
    error = workspace.jobs._runs_operations.get_run_details(step.name).error  # no public call tells it
    reason = masked(error.error.message) if error else f"{job.status.lower()}, within {minutes} minutes"
    log = "its log is in Studio: Jobs, this name, the step, Outputs + logs"
    return f"job {job.name} did not complete. {name}: {reason} ({log}). Run this cell again for another try"


def delete_ours(workspace: MLClient, endpoint: str, run_id: str, tries=3, pause=0) -> None:
    """Delete the endpoint if this run made it; say how to do it by hand where Azure goes on to refuse."""

    def delete_if_ours() -> None:
        if is_ours(workspace, endpoint, run_id):
            workspace.online_endpoints.begin_delete(endpoint).result()

    if refused := retry(delete_if_ours, tries, pause):  # as it does while a deployment is being made
        command = delete_command(workspace, endpoint)
        print(f"Still running and billed, because Azure refused to delete it ({refused}): {command}")
    else:
        keep_endpoint(endpoint)


def keep_endpoint(endpoint: str) -> None:
    """Let nothing delete the endpoint when the kernel ends."""
    if endpoint in watchers:
        with watchers.pop(endpoint) as process:
            process.kill()


def delete_when_kernel_ends(workspace: MLClient, endpoint: str, run_id: str, unless: bool) -> None:
    """Start, once, what deletes this run's endpoint when the kernel ends, however it ends."""
    name = check_endpoint(workspace, endpoint, run_id)
    if not name.fine:
        raise RuntimeError(f"endpoint {endpoint} is another run's: {name.advice}")
    if unless:
        keep_endpoint(endpoint)
    elif endpoint not in watchers:
        program = "import sys; sys.stdin.read(); import safeguards as s; s.delete_from_outside(*sys.argv[1:])"
        place = [workspace.subscription_id, workspace.resource_group_name, workspace.workspace_name]
        watchers[endpoint] = subprocess.Popen(  # it reads for as long as the kernel lives
            [sys.executable, "-c", program, endpoint, run_id, *place],
            cwd=Path(__file__).parent,
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        atexit.register(delete_from_inside, workspace, endpoint, run_id)


def serving(workspace: MLClient, wanted):
    """Return a deployment that is there and serves the same model; else None."""
    there = get_or_none(workspace.online_deployments.get, wanted.name, wanted.endpoint_name)
    same = there and there.model.rpartition("/models/")[2] == wanted.model.rpartition("/models/")[2]
    return there if same else None


def delete_from_inside(workspace: MLClient, endpoint: str, run_id: str) -> None:
    """Delete this run's endpoint as its kernel ends, unless it is to be kept."""
    if endpoint in watchers:
        delete_ours(workspace, endpoint, run_id)


def delete_from_outside(endpoint: str, run_id: str, *place: str) -> None:
    """Delete a run's endpoint after its kernel, and try for half an hour."""
    delete_ours(MLClient(DefaultAzureCredential(), *place), endpoint, run_id, tries=180, pause=10)
