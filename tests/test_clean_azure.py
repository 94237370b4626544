"""The command that removes what a run of the notebook left."""

import os
import subprocess
import sys
import time

import pytest
from conftest import ROOT
from test_jobs import make_job

OLD, YOUNG = str(int(time.time()) - 100_000), str(int(time.time()) - 100)  # a run's id is its time


def clean(*options: str, answer: str = "") -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "tools" / "clean_azure.py", *options]
    return subprocess.run(command, input=answer, capture_output=True, text=True, env=os.environ)


@pytest.fixture(scope="module")
def cluttered(client):
    """A workspace with endpoints and a cluster of an old run, of a young one, and of somebody else."""
    from azure.ai.ml.entities import AmlCompute, ManagedOnlineEndpoint

    ours = {"made_by": "finetune_phi3_ultrachat"}
    owners = {"old": ours | {"run_id": OLD}, "young": ours | {"run_id": YOUNG}, "theirs": {"run_id": OLD}}
    for name, tags in owners.items():
        endpoint = ManagedOnlineEndpoint(name=f"{name}-endpoint", auth_mode="key", tags=tags)
        client.online_endpoints.begin_create_or_update(endpoint).result()
        cluster = AmlCompute(name=f"{name}-cluster", size="Standard_DS3_v2", tags=tags)
        client.compute.begin_create_or_update(cluster).result()
    return client


def names(client) -> set[str]:
    kept = {"old", "young", "theirs"}
    there = [*client.online_endpoints.list(), *client.compute.list()]
    return {one.name for one in there if one.name.partition("-")[0] in kept}


def test_nothing_goes_without_a_yes(cluttered):
    before = names(cluttered)
    ended = clean("--run", YOUNG, answer="n\n")
    found = [f"run {YOUNG}: endpoint young-endpoint, billed", f"run {YOUNG}: cluster young-cluster, idle"]
    assert (ended.returncode, ended.stdout.splitlines()[:2], names(cluttered)) == (1, found, before)
    assert ended.stderr == "clean_azure.py: nothing was removed\n"


def test_clusters_stay_while_a_job_waits_or_runs(cluttered):
    tags = {"made_by": "finetune_phi3_ultrachat", "run_id": YOUNG}
    job = cluttered.jobs.create_or_update(make_job("theirs-cluster", "sleep 600", tags=tags))
    ended = clean(answer="n\n")
    cluttered.jobs.begin_cancel(job.name).result()
    assert "old-endpoint" in ended.stdout and "old-cluster" not in ended.stdout
    assert f"clusters stay while job {job.name} is not finished" in ended.stderr


def test_where_nobody_can_answer_it_names_the_option(cluttered):
    assert "nobody is here to answer: add --yes" in clean("--run", YOUNG).stdout


def test_without_a_run_it_removes_what_is_older_than_a_day_and_nobody_elses(cluttered):
    ended = clean("--yes")
    assert ended.stdout.splitlines()[-2:] == [
        "removed: endpoint old-endpoint",
        "removed: cluster old-cluster",
    ]
    assert names(cluttered) == {"young-endpoint", "young-cluster", "theirs-endpoint", "theirs-cluster"}
    assert clean("--run", OLD).stdout == f"run {OLD}: nothing is left\n"
