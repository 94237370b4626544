"""What outlives the stand-in: the store itself, and a data folder after kill -9."""

import json
import signal
import time
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import StandIn, client_of, point, processes_in
from hypothesis import given
from hypothesis import strategies as some

from local_azureml.meter import Meter
from local_azureml.state import State

NAMES = some.text("ab_%\\A", min_size=1, max_size=3)


@pytest.fixture
def state(tmp_path: Path):
    opened = State(tmp_path)
    yield opened
    opened.close()


def test_a_document_is_found_by_its_id_in_any_capitals(state):
    state.put("/Group/Name", {"x": 1})
    assert state.get("/group/NAME/") == {"x": 1}


def test_children_are_the_documents_directly_below_oldest_first(state):
    for name in ("/a/2", "/a/1", "/a/1/x", "/ab/3"):
        state.put(name, {"name": name})
    assert [child["name"] for child in state.children("/a")] == ["/a/2", "/a/1"]


def test_a_document_written_again_keeps_its_place(state):
    for name in ("/a/1", "/a/2", "/a/1"):
        state.put(name, {"name": name})
    assert [child["name"] for child in state.children("/a")] == ["/a/1", "/a/2"]


def test_merging_changes_the_top_level_only(state):
    state.put("/a", {"x": {"y": 1}, "z": 2})
    assert state.merge("/a", x={"w": 3}) == {"x": {"w": 3}, "z": 2}


@given(names=some.lists(NAMES, min_size=1, max_size=6, unique_by=str.lower), below=NAMES)
def test_deleting_takes_all_below_and_nothing_beside(tmp_path_factory, names, below):
    store = State(tmp_path_factory.mktemp("state"))
    for name in names:
        store.put(f"/{name}", {})
        store.put(f"/{name}/{below}", {})
    store.delete(f"/{names[0]}")
    left = [name for name in names if store.get(f"/{name}") is not None]
    children = [name for name in names if store.children(f"/{name}")]
    store.close()
    assert (left, children) == (names[1:], names[1:])


def test_a_store_opened_again_holds_what_was_put(tmp_path):
    for _ in range(2):
        store = State(tmp_path)
        before = store.get("/a")
        store.put("/a", {"x": 1})
        store.close()
    assert before == {"x": 1}


# kill -9


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A stand-in that was killed while a job ran and a deployment was up, and then started again."""
    from test_computes import cluster
    from test_endpoints import deployment, endpoint
    from test_jobs import make_job

    folder = tmp_path_factory.mktemp("killed")
    first = StandIn(folder)
    with pytest.MonkeyPatch.context() as patch:
        point(patch, first.environment)
        client = client_of()
        client.compute.begin_create_or_update(cluster("gpu", idle_time_before_scale_down=1)).result()
        job = client.jobs.create_or_update(make_job("gpu", "sleep 600"))
        client.online_endpoints.begin_create_or_update(endpoint("lasting")).result()
        client.online_deployments.begin_create_or_update(deployment("lasting", "demo")).result()
        keys = client.online_endpoints.get_keys("lasting")
        wait_for(lambda: client.jobs.get(job.name).status == "Running")
        first.end(signal.SIGKILL)
        wait_for(lambda: not processes_in(folder))
        port = first.environment["HF_ENDPOINT"].rpartition(":")[2]
        second = StandIn(folder, "--port", port)
        yield SimpleNamespace(first=first, second=second, client=client_of(), job=job.name, keys=keys)
        second.end()


def wait_for(condition, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.1)


def test_a_job_that_ran_then_has_failed_with_the_reason(killed):
    from azure.ai.ml.exceptions import JobException

    with pytest.raises(JobException, match="the stand-in stopped while the job ran"):
        killed.client.jobs.stream(killed.job)


def test_the_addresses_and_secrets_are_the_same(killed):
    assert killed.second.environment == killed.first.environment


def test_clusters_are_still_there(killed):
    assert killed.client.compute.get("gpu").provisioning_state == "Succeeded"


def test_an_endpoint_keeps_its_keys(killed):
    assert killed.client.online_endpoints.get_keys("lasting").primary_key == killed.keys.primary_key


def test_a_deployment_answers_again(killed, tmp_path):
    from test_endpoints import QUESTION

    file = tmp_path / "question.json"
    file.write_text(json.dumps(QUESTION))

    def answers() -> bool:
        return killed.client.online_deployments.get("demo", "lasting").provisioning_state == "Succeeded"

    wait_for(answers)
    endpoints = killed.client.online_endpoints
    assert json.loads(endpoints.invoke("lasting", request_file=file, deployment_name="demo"))


def test_the_killed_job_is_not_billed_on(killed):
    with closing(State(killed.first.folder)) as state:
        bills = {bill.resource: bill.running for bill in Meter(state).bills()}
    assert bills["cluster gpu"] is False
