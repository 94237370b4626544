"""What outlives the emulator: the store itself, and a data folder after kill -9."""

import json
import signal
import threading
import time
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
from conftest import Emulator, client_of, point, processes_in, raw_client
from hypothesis import given, settings
from hypothesis import strategies as some

from local_azureml.context import Context
from local_azureml.control_plane import operations
from local_azureml.identifiers import SMALL_MODEL, WORKSPACE_ID
from local_azureml.meter import Meter
from local_azureml.state import State

MODEL = "azureml://registries/azureml/models/Phi-3-mini-4k-instruct/versions/14"
SIZE = "Standard_NC24ads_A100_v4"
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


def test_merging_into_a_document_that_is_gone_writes_nothing(state):
    assert (state.merge("/a/1", x=1), state.children("/a")) == (None, [])


@settings(max_examples=30, deadline=None)
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


def test_a_clock_that_is_set_back_bills_nothing_less(state, monkeypatch):
    meter, now = Meter(state), time.time()
    for resource in ("ended", "open"):
        meter.start(resource, resource, "size", 1)
    monkeypatch.setattr(time, "time", lambda: now - 3600)
    meter.stop("ended")
    assert [bill.node_seconds for bill in meter.bills()] == [0, 0]


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
    """An emulator that was killed while a job ran and a deployment was up, and then started again."""
    from clients import cluster, deployment, endpoint, make_job

    folder = tmp_path_factory.mktemp("killed")
    first = Emulator(folder)
    with pytest.MonkeyPatch.context() as patch:
        point(patch, first.environment)
        client = client_of()
        client.compute.begin_create_or_update(cluster("gpu", idle_time_before_scale_down=1)).result()
        job = client.jobs.create_or_update(make_job("gpu", "sleep 600"))
        sweep = client.jobs.create_or_update(make_sweep("sleep 600"))
        client.online_endpoints.begin_create_or_update(endpoint("lasting")).result()
        client.online_deployments.begin_create_or_update(deployment("lasting", "demo")).result()
        keys = client.online_endpoints.get_keys("lasting")
        wait_for(lambda: client.jobs.get(job.name).status == "Running")
        wait_for(lambda: [trial.status for trial in trials_of(client, sweep.name)] == ["Running"])
        half_made = being_made(first, "lasting", "half-made")
        first.end(signal.SIGKILL)
        wait_for(lambda: not processes_in(folder))
        leave_unfinished(folder)
        port = first.environment["HF_ENDPOINT"].rpartition(":")[2]
        second = Emulator(folder, "--port", port)
        yield SimpleNamespace(
            first=first,
            second=second,
            client=client_of(),
            job=job.name,
            sweep=sweep.name,
            keys=keys,
            half_made=half_made,
        )
        second.end()


def make_sweep(command: str):
    """Return a sweep of one trial."""
    from azure.ai.ml.sweep import Choice
    from clients import SHORT, make_job

    sweep = make_job(SHORT, command, inputs={"a": 0})(a=Choice([1])).sweep(
        primary_metric="loss", goal="minimize", sampling_algorithm="grid", compute=SHORT
    )
    sweep.set_limits(max_total_trials=1)
    return sweep


def trials_of(client, sweep: str) -> list:
    return list(client.jobs.list(parent_job_name=sweep))


def being_made(emulator: Emulator, endpoint: str, name: str) -> str:
    """Return the address of the operation that makes a deployment and has not ended."""
    body = {"location": "eastus", "properties": {"model": MODEL, "instanceType": SIZE}}
    with raw_client(emulator.environment) as http:
        answer = http.put(f"{WORKSPACE_ID}/onlineEndpoints/{endpoint}/deployments/{name}", json=body)
    return answer.headers["Azure-AsyncOperation"]


def leave_unfinished(folder: Path) -> None:
    """Write into a data folder what a kill leaves that comes in the few milliseconds of these operations."""
    with closing(State(folder)) as state:
        for kind, like in (("computes", "gpu"), ("onlineEndpoints", "lasting")):
            template = state.get(f"{WORKSPACE_ID}/{kind}/{like}")
            for name, doing in (("unmade", "Creating"), ("doomed", "Deleting")):
                identifier = f"{WORKSPACE_ID}/{kind}/{name}"
                properties = {**template["properties"], "provisioningState": doing}
                state.put(identifier, {**template, "id": identifier, "name": name, "properties": properties})
        Meter(state).start("doomed-minimum", "cluster doomed", SIZE, 1)


def wait_for(condition, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.1)


def test_a_job_that_ran_then_has_failed_with_the_reason(killed):
    from azure.ai.ml.exceptions import JobException

    with pytest.raises(JobException, match="the emulator stopped while the job ran"):
        killed.client.jobs.stream(killed.job)


def test_a_sweep_that_ran_then_has_failed_with_its_trials(killed):
    states = [trial.status for trial in trials_of(killed.client, killed.sweep)]
    assert (killed.client.jobs.get(killed.sweep).status, states) == ("Failed", ["Failed"])


def test_the_addresses_and_secrets_are_the_same(killed):
    assert killed.second.environment == killed.first.environment


def test_an_endpoint_keeps_its_keys(killed):
    assert killed.client.online_endpoints.get_keys("lasting").primary_key == killed.keys.primary_key


def test_a_deployment_answers_again(killed, tmp_path):
    from clients import QUESTION

    file = tmp_path / "question.json"
    file.write_text(json.dumps(QUESTION))

    def answers() -> bool:
        return killed.client.online_deployments.get("demo", "lasting").provisioning_state == "Succeeded"

    wait_for(answers)
    endpoints = killed.client.online_endpoints
    assert json.loads(endpoints.invoke("lasting", request_file=file, deployment_name="demo"))


def test_an_operation_that_went_on_has_failed_with_the_reason(killed):
    with raw_client(killed.second.environment) as http:
        ended = http.get(killed.half_made).json()
    assert (ended["status"], ended["error"]["message"].split(":")[0]) == (
        "Failed",
        "the emulator stopped before this was done",
    )


def test_what_was_being_made_has_failed_and_what_was_being_deleted_is_gone(killed):
    clusters = {found.name: found.provisioning_state for found in killed.client.compute.list()}
    endpoints = {found.name: found.provisioning_state for found in killed.client.online_endpoints.list()}
    assert clusters == {"gpu": "Succeeded", "unmade": "Failed"}
    assert endpoints == {"lasting": "Succeeded", "unmade": "Failed"}


def test_neither_the_killed_job_nor_a_cluster_that_was_being_deleted_is_billed_on(killed):
    with closing(State(killed.first.folder)) as state:
        bills = {bill.resource: bill.running for bill in Meter(state).bills()}
    assert (bills["cluster gpu"], bills["cluster doomed"]) == (False, False)


def test_a_deployment_that_was_being_made_is_made(killed):
    def made() -> bool:
        state = killed.client.online_deployments.get("half-made", "lasting").provisioning_state
        return state == "Succeeded"

    wait_for(made)


# an orderly stop


def test_a_deployment_that_is_made_while_the_emulator_stops_neither_fails_nor_counts_on_and_is_made_then(
    tmp_path,
):
    first, path = Emulator(tmp_path), f"{WORKSPACE_ID}/onlineEndpoints/one"
    with raw_client(first.environment) as http:
        http.put(path, json={"location": "eastus", "properties": {"authMode": "Key"}})
    operation = being_made(first, "one", "demo")
    time.sleep(0.5)  # its process is being forked
    assert "Traceback" not in first.end()
    with closing(State(tmp_path)) as state:
        assert state.get(f"{path}/deployments/demo")["properties"]["provisioningState"] == "Creating"
        assert not any(bill.running for bill in Meter(state).bills())
    second = Emulator(tmp_path)
    with raw_client(second.environment) as http:

        def shown() -> str:
            return http.get(f"{path}/deployments/demo").json()["properties"]["provisioningState"]

        wait_for(lambda: shown() == "Succeeded")
        ended = http.get(urlsplit(operation).path).json()  # it has another port by now
    second.end()
    assert ended["status"] == "Failed"


def test_an_operation_that_ends_when_all_is_closed_is_left_to_the_next_start(tmp_path):
    context, closed = Context(tmp_path, 443, SMALL_MODEL), threading.Event()

    def work() -> None:
        closed.wait()
        raise operations.stopped()

    before = set(threading.enumerate())
    operations.start(context, 202, None, work)
    (thread,) = set(threading.enumerate()) - before
    context.state.close()
    closed.set()
    thread.join()  # an error in it would fail this test
    with closing(State(tmp_path)) as state:
        assert [found["status"] for found in state.children(operations.HERE)] == ["InProgress"]
