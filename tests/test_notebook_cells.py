"""Single steps of the published notebook, run in this process: what they refuse before anything is made."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pandas
import pytest
from conftest import ROOT
from test_computes import cluster
from test_jobs import make_job
from tiny_chats import write_jsonl

PHI_4 = "azureml://registries/azureml/models/Phi-4/versions/8"

CELLS = {
    cell.id: cell.source
    for cell in nbformat.read(ROOT / "finetune_phi3_ultrachat.ipynb", as_version=4).cells
    if cell.cell_type == "code"
}
WRONG = {
    "compute_tier": "cheap",
    "compute_size": "Standard_NC24",
    "instance_type": "Standard_DS3_v2",
    "endpoint_name": "two--dashes",
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
    },
}


@pytest.fixture(scope="module")
def steps(environment, tmp_path_factory):
    """A function that runs steps by their ids, with changed parameters, and returns their variables."""
    folder = tmp_path_factory.mktemp("cells")
    shutil.copy(ROOT / "download-dataset.py", folder)

    def run(*ids: str, **changed) -> dict:
        variables = {"display": lambda *_: None}
        exec(CELLS["parameters"], variables)
        variables.update(changed)
        for name in ids:
            exec(compile(CELLS[name], name, "exec"), variables)
        return variables

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield run


@pytest.fixture(scope="module")
def refused(steps) -> str:
    """What step 3 says of parameters that are all wrong."""
    with pytest.raises(RuntimeError) as raised:
        steps("setup", "model", "compute", **WRONG)
    return str(raised.value)


@pytest.mark.parametrize(
    "words",
    [
        "compute_size: Standard_NC24, needed a GPU size for this model, in this region; choose one of",
        "instance_type: Standard_DS3_v2, needed a GPU size for this model, in this region; choose one of",
        "endpoint: two--dashes, needed a free name: a letter, then letters, digits, single dashes",
        "compute_tier: cheap, needed dedicated or low_priority; choose one",
        "num_nodes_finetune here: 2, needed 1 to 1; lower it, or choose a larger cluster",
        "learning_rate: 'fast', needed number",
        "precision: '8', needed ['32', '16']",
        "epochs: 3, needed an input of the component",
        "num_train_epochs: True, needed integer",
        "weight_decay: nan, needed number",
        "compute_finetune: 'serverless', needed an input of the component, and not of this notebook",
        "auto_find_batch_size: 'true', needed 'false' where apply_deepspeed is 'true'",
        "apply_early_stopping: 'true', needed 'false' where evaluation_strategy is 'disable'",
    ],
)
def test_step_3_names_each_parameter_that_would_stop_the_run_later(refused, words):
    assert words in refused


def test_step_3_creates_nothing_where_it_refuses(client, refused):
    assert refused.startswith("nothing was created. ")
    assert "gpu-cluster" not in [found.name for found in client.compute.list()]


def test_step_3_refuses_more_gpus_than_a_node_has(steps):
    with pytest.raises(RuntimeError, match="number_of_gpu_to_use_finetuning here: 2, needed 1 to 1;"):
        steps("setup", "model", "compute", finetune_parameters={"number_of_gpu_to_use_finetuning": 2})


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
def test_step_3_sums_what_draws_on_a_quota(steps, changed, words):
    with pytest.raises(RuntimeError, match=words):
        steps("setup", "model", "compute", **changed)


def test_step_3_asks_for_the_quota_of_the_tier_that_a_cluster_has(steps, client):
    spot = cluster("spot", max_instances=16, tier="low_priority")
    client.compute.begin_create_or_update(spot).result()
    changed = {"compute_cluster": "spot", "finetune_parameters": {"num_nodes_finetune": 17}}
    with pytest.raises(RuntimeError, match=r"TotalLowPriorityCores: \d+ cores, needed 408 cores"):
        steps("setup", "model", "compute", **changed)


def test_step_3_refuses_a_deployment_without_a_size(steps):
    with pytest.raises(RuntimeError, match="instance_type: none, needed a GPU size for this model"):
        steps("setup", "model", "compute", instance_type="")


def test_step_3_refuses_too_few_rows_to_hold_a_fifth_out_and_train_on_ten(steps):
    with pytest.raises(
        RuntimeError, match=r"rows of train_sft: \d+, needed 13 or more; raise dataset_split_pc"
    ):
        steps("setup", "model", "compute", dataset_split_pc=0.1)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"instance_count": 1.5}, "parameter instance_count is 1.5: it takes a whole number above 0"),
        ({"compute_nodes": 0}, "parameter compute_nodes is 0: it takes a whole number above 0"),
        ({"dataset_split_pc": "5"}, "parameter dataset_split_pc is '5': it takes a number above 0"),
        (
            {"job_limit_minutes": float("nan")},
            "parameter job_limit_minutes is nan: it takes a number above 0",
        ),
        (
            {"endpoint_name": 123},
            "parameter endpoint_name is 123: it takes text, which papermill takes by -r",
        ),
        ({"score_seed": "x"}, "parameter score_seed is 'x': it takes a whole number"),
        ({"keep_endpoint": "false"}, "parameter keep_endpoint is 'false': it takes True or False"),
        ({"score_parameters": [1]}, r"parameter score_parameters is \[1\]: it takes a dictionary"),
    ],
)
def test_step_1_refuses_a_parameter_that_is_no_number_of_its_kind(steps, changed, words):
    with pytest.raises(ValueError, match=words):
        steps("setup", **changed)


def test_step_1_names_a_job_to_resume_that_is_not_there(steps):
    with pytest.raises(RuntimeError, match="no job 'mistyped' in local: see Jobs in Studio"):
        steps("setup", resume_job_name="mistyped")


def test_step_4_shows_conversations_that_have_nothing_but_messages(steps, tmp_path):
    talk = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hello!"}]
    variables = {"download": [sys.executable, "-c", ""], "download_dir": tmp_path, "splits": ["train_sft"]}
    variables |= {"Path": Path, "subprocess": subprocess, "pd": pandas, "display": lambda *_: None}
    write_jsonl(tmp_path / "train_sft.jsonl", [{"messages": talk}, {"messages": talk}])
    *above, shown = CELLS["data"].splitlines()
    exec("\n".join(above), variables)
    assert eval(shown, variables)["content"].to_list() == ["Hello?", "Hello!"] * 2


@pytest.fixture(scope="module")
def paid(client):
    """A job of an earlier run, with a model, which trained something else."""
    from azure.ai.ml import Output

    client.compute.begin_create_or_update(cluster("gpu")).result()
    job = make_job(
        "gpu",
        "touch ${{outputs.trained_model}}/MLmodel",
        outputs={"trained_model": Output(type="mlflow_model")},
        tags={"run_id": "7", "data": "their/chats, 20 %", "base_model": PHI_4},
    )
    job = client.jobs.create_or_update(job)
    client.jobs.stream(job.name)
    return job


def test_step_1_gives_a_resumed_run_an_endpoint_that_no_earlier_kernel_deletes(steps, paid):
    variables = steps("setup", resume_job_name=paid.name)
    assert (variables["run_id"], "-7" in variables["endpoint"]) == ("7", False)


def test_step_2_names_the_model_that_a_resumed_job_trained(steps, paid):
    with pytest.raises(RuntimeError, match=f"set model_name and model_version to what it trained: {PHI_4}"):
        steps("setup", "model", resume_job_name=paid.name)


def test_step_6_tags_a_resumed_jobs_model_with_the_jobs_own_data(steps, client, paid):
    variables = steps("setup", "model", resume_job_name=paid.name, model_name="Phi-4")
    variables |= {"job": client.jobs.get(paid.name), "origin": {"data": "my/chats, 5 %"}}
    exec(CELLS["register"], variables)
    registered = variables["registered"]
    assert (registered.version, registered.tags["data"]) == ("7", "their/chats, 20 %")


def test_step_8_asks_in_the_flat_form_where_the_nested_one_is_refused_in_plain_text(tmp_path, monkeypatch):
    from azure.ai.ml.exceptions import MlException

    def invoke(*_, request_file: str, **__) -> str:
        form = json.loads(Path(request_file).read_text())["input_data"]["input_string"]
        if isinstance(form[0], list):
            raise MlException("An unexpected error occurred", "")  # as the SDK does where the body is no JSON
        return json.dumps({"output": form[0]["content"]})

    monkeypatch.chdir(tmp_path)
    variables = {"workspace": SimpleNamespace(online_endpoints=SimpleNamespace(invoke=invoke))}
    variables |= {"json": json, "Path": Path, "endpoint": "e", "score_parameters": {}}
    exec(CELLS["score"].partition("\nfor split in")[0], variables)
    assert variables["ask"]("demo", [{"role": "user", "content": "Hello?"}]) == "Hello?"
