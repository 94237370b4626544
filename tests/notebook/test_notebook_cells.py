"""Single steps of the published notebook, run in this process: what they refuse before anything is made."""

import contextlib
import io
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from clients import cluster, make_job
from conftest import ROOT
from IPython.core.interactiveshell import InteractiveShell
from tiny_chats import chats, write_jsonl
from traitlets.config import Config

import explain
import safeguards

PHI_4 = "azureml://registries/azureml/models/Phi-4/versions/8"
SHORT = {"dataset_split_pc": 1, "score_samples": 1, "compute_cluster": "short", "compute_idle_seconds": 600}
NOTEBOOK = nbformat.read(ROOT / "finetune_phi3_ultrachat.ipynb", as_version=4)
CELLS = {cell.id: cell.source for cell in NOTEBOOK.cells if cell.cell_type == "code"}
WRONG = {
    "compute_size": "Standard_NC24",
    "instance_type": "Standard_DS3_v2",
    "finetune_parameters": {
        "num_nodes_finetune": 2,
        "number_of_gpu_to_use_finetuning": 2,
        "learning_rate": "fast",
        "precision": "8",
        "epochs": 3,
        "num_train_epochs": True,
        "weight_decay": float("nan"),
        "compute_finetune": "serverless",
        "auto_find_batch_size": "true",
        "apply_early_stopping": "true",
        "evaluation_strategy": "disable",
        "max_seq_length": 0,
    },
    "score_parameters": {"temperature": "hot", "max_tokens": 50},
}


RUNS = itertools.count(1_700_000_000)  # their ids


class Shell(InteractiveShell):
    """IPython as a kernel has it, without a window: what it would show of an error is raised."""

    def _showtraceback(self, kind, error, lines) -> None:
        self.shown = error


def again(variables: dict, *ids: str, **changed) -> dict:
    """Run steps in a session that has run others, with changed parameters, and return its variables."""
    main = sys.modules["__main__"]
    Shell.clear_instance()
    shell = Shell.instance(user_ns=variables, config=Config(HistoryManager={"enabled": False}))
    sys.modules["__main__"] = main  # IPython puts its own there
    if "setup" not in ids:
        explain.switch_on()
    variables.update(changed)
    for name in ids:
        if not shell.run_cell(CELLS[name]).success:
            raise shell.shown
    return variables


@pytest.fixture(scope="module")
def steps(environment, tmp_path_factory):
    """A function that runs steps in a session of its own, with changed parameters; gives its variables."""
    folder = tmp_path_factory.mktemp("cells")
    for file in ROOT.glob("*.py"):
        shutil.copy(file, folder)

    def run(*ids: str, **changed) -> dict:
        patch.setattr(safeguards, "RUN_ID", str(next(RUNS)))
        variables = {}
        exec(CELLS["parameters"], variables)
        return again(variables, *ids, **changed)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield run
    Shell.clear_instance()


@pytest.fixture(scope="module")
def compute(steps):
    """A function that runs steps 2 and 3 with changed parameters, after a step 1 of all."""
    begun = steps("setup")
    return lambda **changed: again(dict(begun), "model", "compute", **changed)


@pytest.fixture(scope="module")
def refused(compute) -> str:
    """What step 3 says of parameters that are all wrong."""
    with pytest.raises(RuntimeError) as raised:
        compute(**WRONG)
    return str(raised.value)


REFUSALS = [
    "compute_size: Standard_NC24, needed a GPU size for this model, in this region; choose one of",
    "instance_type: Standard_DS3_v2, needed a GPU size for this model, in this region; choose one of",
    "num_nodes_finetune on this cluster: 2, needed 1 to 1; lower it, or choose a larger cluster",
    "learning_rate: 'fast', needed a number above 0, below 1; mend finetune_parameters",
    "precision: '8', needed '32' or '16'",
    "epochs: 3, needed an input of the component",
    "num_train_epochs: True, needed a whole number, 1 or more",
    "weight_decay: nan, needed a number, 0 or more",
    "max_seq_length: 0, needed a whole number, -1, or 1 or more",
    "temperature: 'hot', needed a number, 0 or more, at most 10; mend score_parameters",
    "max_tokens: 50, needed one of temperature, top_p, do_sample, max_new_tokens",
    "compute_finetune: 'serverless', needed an input of the component, and not of this notebook",
    "auto_find_batch_size: 'true', needed 'false' where apply_deepspeed is 'true'",
    "apply_early_stopping: 'true', needed 'false' where evaluation_strategy is 'disable'",
]


def test_step_3_names_each_parameter_that_would_stop_the_run_later(refused):
    assert [words for words in REFUSALS if words not in refused] == []


def test_step_3_creates_nothing_where_it_refuses(client, refused):
    assert refused.startswith("nothing was created. ")
    assert "gpu-cluster" not in [found.name for found in client.compute.list()]


def test_step_3_refuses_more_gpus_than_a_node_has(compute):
    with pytest.raises(
        RuntimeError, match="number_of_gpu_to_use_finetuning on this cluster: 2, needed 1 to 1;"
    ):
        compute(finetune_parameters={"number_of_gpu_to_use_finetuning": 2})


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"compute_nodes": 8}, r"quota of StandardNCADSA100v4Family: \d+ cores, needed 216 cores"),
        (
            {"compute_nodes": 4, "compute_size": "Standard_ND96asr_v4"},
            r"quota of TotalDedicatedCores: \d+ cores, needed 408 cores",
        ),
        (
            {"compute_nodes": 17, "compute_tier": "low_priority"},
            r"nothing was created. quota of TotalLowPriorityCores: \d+ cores, needed 408 cores",
        ),
    ],
)
def test_step_3_sums_what_draws_on_a_quota(compute, changed, words):
    with pytest.raises(RuntimeError, match=words):
        compute(**changed)


def test_step_3_asks_for_the_quota_of_the_tier_that_a_cluster_has(compute, client):
    spot = cluster("spot", max_instances=16, tier="low_priority")
    client.compute.begin_create_or_update(spot).result()
    changed = {"compute_cluster": "spot", "finetune_parameters": {"num_nodes_finetune": 17}}
    with pytest.raises(RuntimeError, match=r"TotalLowPriorityCores: \d+ cores, needed 408 cores"):
        compute(**changed)


def test_step_3_refuses_a_deployment_without_a_size(compute):
    with pytest.raises(RuntimeError, match="instance_type: none, needed a GPU size for this model"):
        compute(instance_type="")


def test_step_4_refuses_too_few_rows(steps):
    with pytest.raises(RuntimeError, match=r"nothing was billed\. .*dataset_split_pc"):
        steps("setup", "model", "compute", "data", **SHORT | {"dataset_split_pc": 0.1})


def test_step_4_says_why_the_data_cannot_be_had(steps):
    with pytest.raises(RuntimeError, match=r"nothing was billed. download-dataset.py: .*nobody/nothing"):
        steps("setup", "model", "compute", "data", **SHORT | {"dataset_name": "nobody/nothing"})


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("instance_count", 1.5, "a whole number, 1 or more"),
        ("compute_nodes", 0, "a whole number, 1 or more"),
        ("dataset_split_pc", "5", "a number above 0"),
        ("dataset_split_pc", 101, "a number above 0, at most 100"),
        ("job_limit_minutes", float("nan"), "a number above 0"),
        ("workspace_name", 123, "text, by -r of papermill"),
        ("score_seed", True, "a whole number"),
        ("keep_endpoint", "false", "True or False"),
        ("score_parameters", [1], "a dictionary"),
        ("compute_tier", "cheap", "'dedicated' or 'low_priority'"),
        ("compute_cluster", "my gpu cluster!", "2 to 32 letters"),
        ("endpoint_name", "two--dashes", "3 to 32 letters"),
    ],
)
def test_step_1_refuses_a_parameter_that_is_nothing_of_its_kind(steps, name, value, words):
    with pytest.raises(ValueError, match=re.escape(f"parameter {name} is {value!r}: it takes {words}")):
        steps("setup", **{name: value})


def test_a_step_without_those_before_it_says_to_run_them(steps):
    for step in CELLS.keys() - {"parameters", "setup"}:
        with pytest.raises(NameError, match="is not defined: run the steps above first"):
            steps(step)


def test_the_error_of_a_step_that_azure_refuses_is_one_sentence_without_a_traceback(steps):
    words = "^no such model: .*'Nobody'.*; pick one from https://ml.azure.com/models$"
    with pytest.raises(RuntimeError, match=words) as raised:
        steps("setup", "model", model_name="Nobody")
    assert {entry.path for entry in raised.traceback} == {Path(__file__)}


def test_step_2_names_a_job_to_resume_that_is_not_there(steps):
    with pytest.raises(RuntimeError, match=r"no such job: .*mistyped.*see Jobs in Studio"):
        steps("setup", "model", resume_job_name="mistyped")


@pytest.fixture(scope="module")
def paid(client):
    """A job of an earlier run, with a model, which trained something else."""
    from azure.ai.ml import Output

    client.compute.begin_create_or_update(cluster("gpu")).result()
    job = make_job(
        "gpu",
        "touch ${{outputs.trained_model}}/MLmodel",
        outputs={"trained_model": Output(type="mlflow_model")},
        tags={"run_id": "7", "data": "chats", "base_model": PHI_4},
    )
    job = client.jobs.create_or_update(job)
    client.jobs.stream(job.name)
    return job


def test_a_resumed_run_has_an_id_and_an_endpoint_of_its_own(steps, paid):
    variables = steps("setup", "model", "compute", resume_job_name=paid.name, model_name="Phi-4")
    assert variables["run_id"] != "7" and variables["run_id"] in variables["address"]


def test_step_1_run_again_stays_the_same_run(steps):
    variables = steps("setup")
    assert again(dict(variables), "setup")["tags"] == variables["tags"]


def test_step_2_names_the_model_that_a_resumed_job_trained(steps, paid):
    with pytest.raises(RuntimeError, match=f"set model_name and model_version to what it trained: {PHI_4}"):
        steps("setup", "model", resume_job_name=paid.name)


def test_step_6_registers_a_resumed_jobs_model_by_the_jobs_own_data(steps, client, paid):
    variables = steps("setup", "model", resume_job_name=paid.name, model_name="Phi-4")
    variables |= {"job": client.jobs.get(paid.name), "data": {}}
    registered = again(variables, "register")["registered"]
    seconds = str(int(paid.creation_context.created_at.timestamp()))
    assert (registered.name, registered.version) == ("Phi-4-chats", seconds)
    assert (registered.tags["data"], registered.tags["run_id"]) == ("chats", "7")


def test_step_1_lists_an_endpoint_that_an_earlier_run_left(steps, client, capsys):
    from azure.ai.ml.entities import ManagedOnlineEndpoint

    left = ManagedOnlineEndpoint(name="left", tags={"made_by": safeguards.MADE_BY, "run_id": "6"})
    client.online_endpoints.begin_create_or_update(left).result()
    capsys.readouterr()
    steps("setup")
    client.online_endpoints.begin_delete("left").result()
    assert "billed until: az ml online-endpoint delete --yes -g local -w local --name left" in (
        capsys.readouterr().out
    )


@pytest.fixture(scope="module")
def changed_order(steps, tmp_path_factory):
    """A session: steps 1 to 7, 2 to 7 for another order, 4 and 5 as they were, and for other rows."""
    every = ("model", "compute", "data", "finetune", "register", "deploy")
    file = tmp_path_factory.mktemp("rows") / "mine.jsonl"
    changed = SHORT | {"dataset_name": str(file)}
    with contextlib.redirect_stdout(io.StringIO()):
        write_jsonl(file, chats(20))
        variables = steps("setup", *every, **changed, finetune_parameters={"max_steps": 1})
        found = [dict(variables)]
        again(variables, *every, finetune_parameters={"max_steps": 2})
        found.append(dict(variables))
        write_jsonl(file, chats(20))
        found.append(dict(again(variables, "data", "finetune")))
        write_jsonl(file, chats(20, seed=1))
        again(variables, "data")
        with pytest.raises(RuntimeError, match="did not complete"):
            again(variables, "finetune", job_limit_minutes=1e-6)
        found.append(dict(variables))
        yield found
        again(variables | found[1], "delete")


def test_a_changed_order_and_rows_changed_under_the_same_name_are_new_jobs(changed_order):
    first, second, third, fourth = (variables["job"].name for variables in changed_order)
    assert second == third and len({first, second, fourth}) == 3


def test_a_job_that_is_resumed_is_watched_and_not_paid_again(steps, client, changed_order):
    def jobs() -> set[str]:
        return {job.name for job in client.jobs.list()}

    paid, before = changed_order[1], jobs()
    given = SHORT | {name: paid[name] for name in ("dataset_name", "finetune_parameters")}
    with contextlib.redirect_stdout(io.StringIO()):
        resumed = steps(
            "setup", "model", "compute", "data", "finetune", **given, resume_job_name=paid["job"].name
        )
    assert (resumed["job"].name, jobs()) == (paid["job"].name, before)


def test_a_changed_order_is_registered_and_deployed_as_a_version_of_its_own(changed_order, client):
    first, second, *_ = (variables["registered"] for variables in changed_order)
    assert (first.name, first.version) != (second.name, second.version)
    assert second.tags["job"] == changed_order[1]["job"].name
    deployment = client.online_deployments.get("demo", changed_order[1]["address"])
    assert deployment.model.endswith(f"models/{second.name}/versions/{second.version}")


def test_the_jobs_page_in_mlflow_has_its_inputs(changed_order):
    run = changed_order[1]["tracking"].get_run(changed_order[1]["job"].name)
    assert run.data.params["max_steps"] == "2" and len(run.data.params) > 10


@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
def test_the_curl_command_of_step_8_gets_an_answer(changed_order, environment):
    variables = again(changed_order[1], "score")
    [text] = [cell.source for cell in NOTEBOOK.cells if cell.id == "score-text"]
    command = re.search("^curl .*", text, re.M)[0].replace("ADDRESS", variables["endpoint"].scoring_uri)
    keys = variables["workspace"].online_endpoints.get_keys(variables["address"])
    known = {"KEY": keys.primary_key, "CURL_CA_BUNDLE": environment["REQUESTS_CA_BUNDLE"]}
    ended = subprocess.run(
        ["bash", "-c", command], env=os.environ | known, capture_output=True, text=True, check=True
    )
    assert list(json.loads(ended.stdout)[0]) == ["0"]


def test_step_8_without_its_endpoint_says_so(changed_order):
    from azure.ai.ml.entities import ManagedOnlineEndpoint

    gone = changed_order[1] | {"endpoint": ManagedOnlineEndpoint(name="not-there")}
    with pytest.raises(RuntimeError, match=r"the endpoint refused: .*not-there"):
        again(gone, "score")


def test_a_failed_job_that_was_resumed_is_tried_again_by_its_cell(steps, client):
    client.compute.begin_create_or_update(cluster("failing")).result()
    job = client.jobs.create_or_update(make_job("failing", "false"))
    with contextlib.redirect_stdout(io.StringIO()):
        variables = steps("setup", "model", "compute", "data", **SHORT, resume_job_name=job.name)
        with pytest.raises(RuntimeError, match=rf"job {job.name} did not complete\. .*again for another try"):
            again(variables, "finetune")
        with pytest.raises(RuntimeError, match=rf"job {job.name}-2 did not complete\. the job: canceled"):
            again(variables, "finetune", job_limit_minutes=1e-6)


def test_no_log_holds_a_token_a_key_or_a_signature(changed_order, client, environment, http):
    folder = Path(environment["HF_HOME"]).parent
    endpoint = changed_order[1]["endpoint"]
    key = client.online_endpoints.get_keys(endpoint.name).primary_key
    http.post(endpoint.scoring_uri, json={}, headers={"Authorization": f"Bearer {key}"})
    token = http.headers["Authorization"].removeprefix("Bearer ")
    secrets = json.loads((folder / "secrets.json").read_text()).values()
    logs = [file.read_text(errors="replace") for file in folder.rglob("*") if file.suffix in (".txt", ".log")]
    logs.append(folder.with_name(f"{folder.name}.log").read_text())
    known = [*secrets, key, token, token.rpartition(".")[2]]
    assert len(logs) > 5
    assert not [secret for secret in known if any(secret in log for log in logs)]
