"""The command that removes what a run of the notebook left."""

import io
import os
import runpy
import sys
import time
from dataclasses import dataclass

import pytest
from clients import make_job
from conftest import ROOT

OLD, YOUNG = str(int(time.time()) - 100_000), str(int(time.time()) - 100)  # a run's id is its time


PLACE = ("AZUREML_ARM_SUBSCRIPTION", "AZUREML_ARM_RESOURCEGROUP", "AZUREML_ARM_WORKSPACE_NAME")


@dataclass
class Ended:
    """What a program came to."""

    status: int
    out: str
    err: str


@pytest.fixture
def clean(monkeypatch, capsys):
    """A function that runs the program in this process, with what is typed; it returns what that came to."""

    def run(*options: str, answer: str = "") -> Ended:
        monkeypatch.setattr(sys, "argv", ["clean_azure.py", *options])
        monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
        capsys.readouterr()
        status = runpy.run_path(str(ROOT / "tools" / "clean_azure.py"))["main"]()
        return Ended(status, *capsys.readouterr())

    return run


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


def test_nothing_goes_without_a_yes(cluttered, clean):
    before = names(cluttered)
    ended = clean("--run", YOUNG, answer="n\n")
    found = [
        f"run {YOUNG}: endpoint young-endpoint, billed, made by you",
        f"run {YOUNG}: cluster young-cluster, idle, made by you",
    ]
    assert (ended.status, ended.out.splitlines()[:2], names(cluttered)) == (1, found, before)
    assert ended.err == "clean_azure.py: nothing was removed\n"


def test_clusters_stay_while_a_job_waits_or_runs(cluttered, clean):
    tags = {"made_by": "finetune_phi3_ultrachat", "run_id": YOUNG}
    job = cluttered.jobs.create_or_update(make_job("theirs-cluster", "sleep 600", tags=tags))
    ended = clean(answer="n\n")
    cluttered.jobs.begin_cancel(job.name).result()
    assert "old-endpoint" in ended.out and "old-cluster" not in ended.out
    assert f"clusters stay while job {job.name} is not finished" in ended.err


def test_where_nobody_can_answer_it_names_the_option(cluttered, clean):
    ended = clean("--run", YOUNG)  # what is typed ends at once
    assert (ended.status, "nobody is here to answer: add --yes" in ended.out) == (1, True)


def test_what_a_colleague_made_is_shown_and_stays_unless_all_is_asked_for(cluttered, clean, monkeypatch):
    before = names(cluttered)
    monkeypatch.setattr("jwt.decode", lambda *_, **__: {"name": "a colleague of theirs"})
    ended = clean("--run", YOUNG, "--yes")
    assert (ended.status, names(cluttered)) == (0, before)
    assert "endpoint young-endpoint, billed, made by you" in ended.out and "--all takes them too" in ended.err
    assert "Remove these 2?" in clean("--run", YOUNG, "--all", answer="n\n").out


def test_a_run_whose_tag_is_no_time_is_left_alone(cluttered, clean):
    from azure.ai.ml.entities import ManagedOnlineEndpoint

    for number, run in enumerate(["²", "1" * 5000, "-1", ""]):
        tags = {"made_by": "finetune_phi3_ultrachat", "run_id": run}
        endpoint = ManagedOnlineEndpoint(name=f"odd-{number}", auth_mode="key", tags=tags)
        cluttered.online_endpoints.begin_create_or_update(endpoint).result()
    ended = clean(answer="n\n")
    assert "old-endpoint" in ended.out and "odd-" not in ended.out


def test_what_azure_says_does_nothing_to_the_terminal(cluttered, clean, monkeypatch):
    from azure.ai.ml.operations import ComputeOperations
    from azure.core.exceptions import HttpResponseError

    def refuse(*_):
        raise HttpResponseError("no\x1b]0;title\x07 \x9b2J")

    monkeypatch.setattr(ComputeOperations, "list", refuse)
    assert "can't be listed: no 2J\n" in clean(answer="n\n").err


def test_without_a_run_it_removes_what_is_older_than_a_day_and_nobody_elses(cluttered, clean):
    ended = clean("--yes")
    assert ended.out.splitlines()[-2:] == ["removed: endpoint old-endpoint", "removed: cluster old-cluster"]
    assert names(cluttered) == {"young-endpoint", "young-cluster", "theirs-endpoint", "theirs-cluster"}


def test_a_run_of_which_only_an_ended_job_is_there_has_nothing_left(cluttered, clean):
    tags = {"made_by": "finetune_phi3_ultrachat", "run_id": "1600000000"}
    job = cluttered.jobs.create_or_update(make_job("theirs-cluster", "sleep 600", tags=tags))
    cluttered.jobs.begin_cancel(job.name).result()
    ended = clean("--run", "1600000000")
    assert (ended.status, ended.out) == (0, "run 1600000000: nothing is left\n"), ended.err


@pytest.mark.parametrize("run", ["abc", "1600000001"])
def test_a_run_that_nobody_made_is_an_error_and_not_a_clean_workspace(cluttered, clean, run):
    ended = clean("--run", run)
    said = f"clean_azure.py: no run {run} in local: give the number that step 1 printed\n"
    assert (ended.status, ended.out, ended.err) == (1, "", said)


def test_a_kind_that_cannot_be_listed_keeps_no_other_from_going(cluttered, clean, monkeypatch):
    from azure.ai.ml.operations import ComputeOperations
    from azure.core.exceptions import HttpResponseError

    def refuse(*_):
        raise HttpResponseError("you may not list computes")

    monkeypatch.setattr(ComputeOperations, "list", refuse)
    ended = clean("--run", YOUNG, "--yes")
    assert (ended.status, "young-endpoint" in [one.name for one in cluttered.online_endpoints.list()]) == (
        1,
        False,
    )
    assert "clusters can't be listed: you may not list computes" in ended.err


def test_the_workspace_can_be_named_by_an_option(cluttered, clean, monkeypatch):
    place = [os.environ[name] for name in PLACE]
    for name in PLACE:
        monkeypatch.delenv(name)
    assert clean("--workspace", *place).out == "runs older than a day: nothing is left\n"
