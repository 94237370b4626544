"""What keeps a run of finetune_phi3_ultrachat.ipynb from costing more than it should.

Checks before anything is billed (by the rules in settings.py), the reading of failures, the watcher that
deletes the endpoint, and tables that read well. Nothing in here is needed to learn the SDK: its calls stand
in the notebook's cells.
"""

import ast
import atexit
import hashlib
import itertools
import json
import logging
import math
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from datetime import date
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
from azure.ai.ml import MLClient
from azure.ai.ml.exceptions import JobException, MlException
from azure.core.exceptions import AzureError, ClientAuthenticationError, ResourceNotFoundError
from azure.identity import DefaultAzureCredential, InteractiveBrowserCredential
from IPython.core.error import StdinNotImplementedError
from IPython.display import display

from costs import CARDS, Training, of_name
from settings import Check
from settings import check_inputs as check_inputs
from settings import check_parameters as check_parameters

MADE_BY = "finetune_phi3_ultrachat"  # a tag of all that the notebook creates
RESULTS = ("workspace", "component", "cluster", "files", "job", "registered", "address")  # of steps 1 to 7
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


QUIET = {"show_progress": False, "enable_telemetry": False, "retry_connect": 6, "raw_request_hook": say_retry}


def after_step(number: int, given: dict) -> None:
    """Raise RuntimeError with the first of the steps up to `number` whose result this kernel lacks."""
    missing = [step for step, name in enumerate(RESULTS[:number], 1) if given.get(name) is None]
    if missing:
        raise RuntimeError(f"run step {missing[0]} first; its result is missing in this kernel")


def tag(thing, name: str) -> str | None:
    """Return a tag of something that may have none."""
    return (thing.tags or {}).get(name)


def masked(text: str) -> str:
    """Return a text without the ids of subscriptions."""
    return re.sub(r"(?i)(subscriptions?\W{1,3})[0-9a-f]{8}-[0-9a-f-]{27}", r"\1...", text)


def why(error: Exception) -> str:
    """Return the first line of what Azure says, without colours, Python's classes and subscription ids."""
    said = re.sub(r"\x1b\[\d+m", "", getattr(error, "message", None) or str(error))
    if "Resolutions:" in said:  # of an upload: between two headings, over many lines
        said = " ".join(said.partition("Details:")[2].partition("Resol")[0].split()).rpartition("Met ")[2]
    said = re.sub(r"<class '[\w.]+'>:? ?", "", said).strip()
    return masked(said.splitlines()[0]) if said else type(error).__name__


def without(noise: str, stream) -> SimpleNamespace:
    """Return a stream that leaves out texts that are all noise, and the ids of subscriptions."""
    write = lambda text: None if re.fullmatch(noise, text) else stream.write(masked(text))  # noqa: E731
    return SimpleNamespace(write=write, flush=stream.flush)


@contextmanager
def calm() -> Iterator[None]:
    """Leave out what the SDK writes while it waits: lone dots, and bare colour codes, an empty box."""
    plain = without(r"(\x1b\[\d*m|\s)*", sys.stderr)
    with redirect_stdout(without(r"\.", sys.stdout)), redirect_stderr(plain):
        yield


@contextmanager
def explained(failure: str, advice: str) -> Iterator[None]:
    """Turn an error of Azure into one sentence: what failed, why, and what to do."""
    try:
        with calm():
            yield
    except (AzureError, MlException) as error:
        raise RuntimeError(f"{failure}: {why(error)}; {advice}") from None


def show_table(frame: pd.DataFrame) -> None:
    """Show a table with its texts on the left and their line breaks; nothing where it has no rows."""
    if frame.empty:
        return
    style = "text-align: left; white-space: pre-wrap; vertical-align: top"
    heads = [name for name in frame.index.names if name]
    frame = frame.rename_axis(index=[None] * frame.index.nlevels, columns=", ".join(heads) or None)
    styler = frame.map(str).style.format(escape="html").format_index(escape="html").set_uuid("table")
    styler = styler.set_table_styles([{"selector": "th, td", "props": style}])
    html = styler.set_table_attributes('class="dataframe"').to_html().replace("&nbsp;", "")
    with pd.option_context("display.max_colwidth", None, "display.width", 250):
        display({"text/html": html, "text/plain": str(frame)}, raw=True)


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


def existing(get: Callable, *place: str):
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
    with explained("what still runs can't be listed", "look at Jobs, Endpoints and Compute in Studio"):
        for job in workspace.jobs.list(tag="made_by"):  # None stands for one that the SDK can't read
            if job and tag(job, "made_by") == MADE_BY and job.status not in ENDED:
                rows.append((job.name, f"job, {job.status}", f'to watch it: resume_job_name = "{job.name}"'))
        for found in workspace.online_endpoints.list():
            if tag(found, "made_by") == MADE_BY:
                meter = f"billed until: {by_hand(workspace, found.name)}"
                rows.append((found.name, f"endpoint of run {tag(found, 'run_id')}", meter))
        if there := existing(workspace.compute.get, cluster):
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
        with explained(f"no job {resume_job_name!r} in {workspace.workspace_name}", "see Jobs in Studio"):
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
    left, unread = {}, "nothing was created. sizes and quota can't be read"
    with explained(unread, "ask for the role Reader on the subscription"):
        sizes = {size.name.lower(): size for size in workspace.compute.list_sizes()}
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
    advice = f"choose another endpoint_name, or delete this one: {by_hand(workspace, endpoint)}"
    return Check("endpoint", endpoint, "a free name, or this run's own", fine, advice)


def stop_unless_fine(*checks: Check) -> None:
    """Show the checks as a table; raise RuntimeError with those that are not fine."""
    lines = [(*check[:3], "ok" if check.fine else check.advice) for check in checks]
    show_table(pd.DataFrame(lines, columns=["what", "found", "needed", "verdict"]).set_index("what"))
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


def check_rows(files: dict[str, Path]) -> None:
    """Raise RuntimeError where the files hold too few conversations to train on and to evaluate with."""
    for split, least in (("train_sft", 13), ("test_sft", 1)):  # of 13, three are held out, and 10 trained on
        with files[split].open("rb") as lines:
            rows = sum(1 for _ in lines)
        if rows < least:
            needed = f"rows of {split}: {rows}, needed {least} or more; raise dataset_split_pc"
            raise RuntimeError(f"nothing was billed. {needed}")


def forecast(given: dict) -> None:
    """Say what the run costs at most; raise RuntimeError where its training is bound to fail or of no use.

    `given`: the kernel's variables after step 4.
    """
    now = SimpleNamespace(**given)
    sizes, _ = region(now.workspace)
    training = Training.of(
        now.model,
        now.component,
        now.settings,
        now.cluster,
        sizes[now.cluster.size.lower()].name,
        now.gpus_per_node,
        now.job_limit_minutes,
        now.files["train_sft"],
    )
    fitting = [sizes[name] for name in usable(sizes, told(now.model)[0])]
    stops = [one for one in training.checks(fitting) if not one.fine]
    if stops:
        raise RuntimeError(f"nothing was billed. {listed(stops)}")
    instances = now.instance_count * (1 + now.compare_with_base)
    print(training.at_most(now.about.location, now.instance_type, instances))


def next_try(name: str) -> str:
    """Return a job's name or, where this kernel has told of its failure, the name of another try."""
    tries = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(one for one in tries if one not in told_failures)


def fingerprint(*order: object) -> str:
    """Return eight characters that differ where anything in the order of a job differs."""
    return hashlib.sha256(json.dumps(order, sort_keys=True, default=str).encode()).hexdigest()[:8]


def insist(action: Callable, tries: int, pause: float) -> str:
    """Do something, again while Azure refuses; return why it still did at the last try, or ""."""
    for _ in range(tries):
        try:
            action()
            return ""
        except AzureError as error:
            refused = why(error)
            time.sleep(pause)
    return refused


@contextmanager
def watched(workspace: MLClient, job, minutes: float) -> Iterator[None]:
    """Cancel the job after so long; at the end raise RuntimeError with the step that failed, and why."""
    cancel = [lambda: workspace.jobs.begin_cancel(job.name), 180, 10]  # for half an hour
    limit = threading.Timer(60 * minutes, insist, cancel)
    limit.daemon = True
    limit.start()
    goes_on = f"job {job.name} goes on, but nobody watches it: run this cell again to do so"
    try:
        with calm(), suppress(JobException):  # of a failure or an interrupt, told below
            yield
        while (job := workspace.jobs.get(job.name)).status in ("CancelRequested", "Finalizing"):
            time.sleep(1)  # the stream does not wait for these
    except AzureError as error:
        raise RuntimeError(f"{goes_on} ({why(error)})") from None
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


def note_parameters(tracking, job, settings_hash: str, inputs: dict) -> None:
    """Put a job's inputs on its page in MLflow; say so where it had others, or none are taken."""
    from mlflow.entities import Param  # takes seconds to import, which the watcher can save
    from mlflow.exceptions import MlflowException

    if tag(job, "settings_hash") != settings_hash:
        return print(f"Job {job.name} was submitted with other settings or data than those above.")
    try:
        tracking.log_batch(job.name, params=[Param(name, str(value)) for name, value in inputs.items()])
    except MlflowException as error:
        print(f"The inputs are not on the job's page in MLflow: {why(error)}")


def judge(training: list, evaluation: list) -> None:
    """Say what the last point of the loss means; warn where it is no number, or well above the first."""
    if training:
        first, last = training[0].value, (evaluation or training)[-1].value
        which = "evaluation" if evaluation else "training"
        print(f"The {which} loss ended at {last:.3f}: perplexity {math.exp(min(last, 700)):.2f}.")
        if not last < 1.1 * first:
            print(f"Warning: it began at {first:.3f}, so nothing was learned: lower learning_rate.")


def by_hand(workspace: MLClient, endpoint: str) -> str:
    """Return the command that deletes an endpoint."""
    place = f"-g {workspace.resource_group_name} -w {workspace.workspace_name}"
    return f"az ml online-endpoint delete --yes {place} --name {endpoint}"


def delete_ours(delete: Callable, workspace: MLClient, endpoint: str, run_id: str, tries=3, pause=0) -> None:
    """Delete the endpoint if this run made it; say how to do it by hand where Azure goes on to refuse."""

    def delete_if_ours() -> None:
        if is_ours(workspace, endpoint, run_id):
            with calm():
                delete()

    if refused := insist(delete_if_ours, tries, pause):  # as it does while a deployment is being made
        command = by_hand(workspace, endpoint)
        print(f"Still running and billed, because Azure refused to delete it ({refused}): {command}")
    else:
        keep(endpoint)


def keep(endpoint: str) -> None:
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
        keep(endpoint)
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


def delete_from_inside(workspace: MLClient, endpoint: str, run_id: str) -> None:
    """Delete this run's endpoint as its kernel ends, unless it is to be kept."""
    if endpoint in watchers:
        delete = workspace.online_endpoints.begin_delete
        delete_ours(lambda: delete(endpoint).result(), workspace, endpoint, run_id)


def delete_from_outside(endpoint: str, run_id: str, *place: str) -> None:
    """Delete a run's endpoint after its kernel, and try for half an hour."""
    ends = MLClient(DefaultAzureCredential(), *place)
    delete = ends.online_endpoints.begin_delete
    delete_ours(lambda: delete(endpoint).result(), ends, endpoint, run_id, tries=180, pause=10)


@contextmanager
def log_on_failure(workspace: MLClient, deployment) -> Iterator[None]:
    """Say what is being made; where it fails, print its container's log, and raise RuntimeError with why."""
    name, endpoint = deployment.name, deployment.endpoint_name
    print(f"Making deployment {name}, which takes Azure about ten minutes.")
    try:
        with calm():
            yield
    except (AzureError, MlException) as error:
        with suppress(AzureError):  # refused before there was anything to log
            print(workspace.online_deployments.get_logs(name, endpoint, lines=50))
        stays = "" if endpoint in watchers else f"; it is billed, until: {by_hand(workspace, endpoint)}"
        raise RuntimeError(f"the deployment failed: {why(error)}{stays}") from None


def answer(ask: Callable, deployment: str, messages: list[dict]) -> str:
    """Ask in the nested form, then in the flat one; return the text of any of the three forms of answers."""
    for conversation in ([messages], messages):
        try:
            reply = json.loads(ask(deployment, conversation))
            reply = reply[0] if isinstance(reply, list) else reply  # [{"0": ...}], or {"output": ...}
            return reply.get("output", reply.get("0"))
        except ResourceNotFoundError:
            raise RuntimeError("the endpoint is not there, or no longer: run step 7 first") from None
        except (AzureError, MlException) as error:  # the latter: a plain text, its status lost
            status = getattr(error, "status_code", None)
            if conversation is messages or status not in (None, 400, 422, 424):
                reason = f"{status} {error.reason}, {why(error)}" if status else why(error)
                log = f"the log of deployment {deployment} in Studio says more"
                raise RuntimeError(f"the endpoint refused: {reason}; {log}") from None
        except TypeError:  # the SDK trips over status 408
            raise RuntimeError("the endpoint took over 90 s (408): lower max_new_tokens") from None
