"""Clusters, sizes and quota, through the SDK."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from clients import A100, cluster, quotas
from conftest import client_of

from local_azureml.meter import LEDGER, Meter
from local_azureml.state import State

TOTAL_LOW = "TotalLowPriorityCores"


@pytest.fixture(scope="module")
def gpu(client):
    """A cluster that the tests only read."""
    wanted = cluster("gpu", idle_time_before_scale_down=120, tags={"run": "7"})
    return client.compute.begin_create_or_update(wanted).result()


def test_a_new_cluster_ends_in_succeeded_with_what_was_asked_and_no_nodes(client, gpu):
    asked = (gpu.provisioning_state, gpu.min_instances, gpu.max_instances, gpu.idle_time_before_scale_down)
    assert (asked, gpu.tier, gpu.tags) == (("Succeeded", 0, 1, 120), "dedicated", {"run": "7"})
    assert (client.compute.get("GPU").name, list(client.compute.list_nodes("gpu"))) == ("gpu", [])


def test_a_size_is_taken_in_any_capitals_and_given_back_in_upper_case(client):
    asked = cluster("capitals", size="standard_nc24ads_A100_v4")
    assert client.compute.begin_create_or_update(asked).result().size == A100


def test_a_cluster_that_is_not_there_is_answered_with_those_that_are(client, gpu):
    from azure.core.exceptions import ResourceNotFoundError

    with pytest.raises(ResourceNotFoundError, match=r"no compute named 'nope'; there is: .*gpu"):
        client.compute.get("nope")


def test_a_second_put_changes_the_scale_and_keeps_the_rest(client):
    client.compute.begin_create_or_update(cluster("scaled", tags={"run": "7"})).result()
    client.compute.begin_update(cluster("scaled", max_instances=2)).result()
    changed = client.compute.get("scaled")
    assert (changed.max_instances, changed.size, changed.tags) == (2, A100, {"run": "7"})


def test_a_deleted_cluster_is_gone(client):
    client.compute.begin_create_or_update(cluster("doomed")).result()
    client.compute.begin_delete("doomed").result()
    assert "doomed" not in [found.name for found in client.compute.list()]


def test_a_size_that_the_region_does_not_have_is_refused_with_those_that_it_has(client):
    from azure.core.exceptions import HttpResponseError

    with pytest.raises(HttpResponseError, match=r"size 'Standard_X' is not available.*Standard_NC24ads_A100"):
        client.compute.begin_create_or_update(cluster("odd", size="Standard_X"))


def test_a_priority_that_azure_does_not_have_is_refused(client):
    from azure.core.exceptions import HttpResponseError

    with pytest.raises(HttpResponseError, match="vmPriority") as raised:
        client.compute.begin_create_or_update(cluster("cheap", tier="cheap"))
    assert raised.value.status_code == 400


@pytest.mark.parametrize("name", ["a", "1abc", "a--b", "under_score", "ends-", "a" * 33])
def test_an_illegal_name_is_refused(http, arm, name):
    body = {"properties": {"computeType": "AmlCompute", "properties": {"vmSize": A100}}}
    answer = http.put(f"{arm.workspace}/computes/{name}", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "UserError")


def test_other_kinds_of_compute_are_not_played(client):
    from azure.ai.ml.entities import ComputeInstance
    from azure.core.exceptions import HttpResponseError

    with pytest.raises(HttpResponseError, match="ComputeInstance is not part of the emulator") as raised:
        client.compute.begin_create_or_update(ComputeInstance(name="desk", size="Standard_DS3_v2"))
    assert raised.value.status_code == 501


def test_the_sizes_tell_their_gpus(client):
    gpus = {size.name: size.gpus for size in client.compute.list_sizes()}
    assert (gpus["Standard_NC24ads_A100_v4"], gpus["Standard_ND96asr_v4"]) == (1, 8)


def test_more_nodes_than_the_quota_end_the_creation_as_failed(client):
    from azure.core.exceptions import HttpResponseError

    creation = client.compute.begin_create_or_update(cluster("huge", max_instances=100))
    with pytest.raises(HttpResponseError, match="100 x Standard_NC24ads_A100_v4 needs 2400 cores"):
        creation.result()
    assert client.compute.get("huge").provisioning_state == "Failed"


def test_nodes_that_are_kept_count_against_the_quota(client):
    def used() -> int:
        return quotas(client)["dedicated", "StandardNCADSA100v4Family"].currentValue

    before = used()
    client.compute.begin_create_or_update(cluster("kept", min_instances=1)).result()
    during = used()
    client.compute.begin_delete("kept").result()
    assert (during - before, used() - before) == (24, 0)


def test_low_priority_has_one_limit_for_the_region_and_none_for_a_family(client):
    limits = {name: usage.limit for name, usage in quotas(client).items()}
    assert (limits["lowPriority", "StandardNCADSA100v4Family"], limits["lowPriority", TOTAL_LOW]) == (-1, 400)


def test_a_cluster_deleted_in_other_capitals_is_no_longer_billed(client, emulator):
    client.compute.begin_create_or_update(cluster("Spelled", min_instances=1)).result()
    client.compute.begin_delete("spelled").result()
    with closing(State(emulator.folder)) as state:
        assert "cluster Spelled" not in [bill.resource for bill in Meter(state).bills() if bill.running]


def test_a_low_priority_node_takes_no_dedicated_cores(client):
    def used() -> tuple[int, ...]:
        rows = quotas(client)
        pools = (("dedicated", "TotalDedicatedCores"), ("lowPriority", TOTAL_LOW))
        return tuple(rows[pool].currentValue for pool in pools)

    before = used()
    client.compute.begin_create_or_update(cluster("spot", min_instances=1, tier="low_priority")).result()
    during = used()
    client.compute.begin_delete("spot").result()
    assert (during[0] - before[0], during[1] - before[1]) == (0, 24)


def test_a_cluster_that_is_scaled_to_zero_keeps_no_cores(client):
    client.compute.begin_create_or_update(cluster("shrunk", min_instances=1)).result()
    client.compute.begin_update(cluster("shrunk", min_instances=0)).result()
    assert list(client.compute.list_nodes("shrunk")) == []


def test_a_cluster_that_is_made_again_under_its_name_keeps_its_earlier_bill(client, emulator):
    def billed() -> float:
        with closing(State(emulator.folder)) as state:
            return {bill.resource: bill.node_seconds for bill in Meter(state).bills()}["cluster again"]

    client.compute.begin_create_or_update(cluster("again", min_instances=1)).result()
    client.compute.begin_delete("again").result()
    first = billed()
    client.compute.begin_create_or_update(cluster("again", min_instances=1)).result()
    client.compute.begin_delete("again").result()
    assert billed() > first > 0


def test_the_fault_size_missing_takes_a_size_out_of_the_region(emulator_with):
    emulator_with("size-missing=Standard_NC24ads_A100_v4")
    assert "Standard_NC24ads_A100_v4" not in [size.name for size in client_of().compute.list_sizes()]


def test_the_fault_quota_short_leaves_no_cores_in_gpu_families(emulator_with):
    emulator_with("quota-short")
    limits = {name: usage.limit for name, usage in quotas(client_of()).items()}
    assert limits["dedicated", "StandardNCADSA100v4Family"] == limits["lowPriority", TOTAL_LOW] == 0


def test_the_fault_compute_failed_leaves_the_reason_on_the_cluster(emulator_with):
    from azure.core.exceptions import HttpResponseError

    emulator_with("compute-failed")
    creation = client_of().compute.begin_create_or_update(cluster("gpu"))
    with pytest.raises(HttpResponseError, match="no capacity in the region"):
        creation.result()


def test_a_cluster_that_is_asked_for_twice_does_not_count_against_itself(client):
    for _ in range(2):
        made = client.compute.begin_create_or_update(
            cluster("twice", min_instances=3, max_instances=6)
        ).result()
    client.compute.begin_delete("twice").result()
    assert made.provisioning_state == "Succeeded"


@pytest.mark.parametrize(
    ("stretches", "node_seconds"),
    [
        ([(0, 100, 1, 0)], 100),
        ([(0, 100, 1, 20), (50, 150, 1, 20)], 240),
        ([(0, 100, 1, 20), (110, 200, 1, 20)], 220),
        ([(0, 100, 1, 20), (130, 200, 1, 20)], 210),
        ([(0, 10, 1, 120), (10, 100, 4, 120)], 4 * 210 + 10),
        ([(0, 10, 4, 120), (10, 100, 1, 120)], 3 * 130 + 220),
    ],
)
def test_a_node_is_billed_once_while_it_works_and_while_it_waits(tmp_path, stretches, node_seconds):
    with closing(State(tmp_path)) as state:
        for number, (start, ended, nodes, idle) in enumerate(stretches):
            entry = {"interval": str(number), "resource": "cluster gpu", "size": A100, "nodes": nodes}
            entry |= {"tier": "dedicated", "spare": False}
            state.put(f"{LEDGER}/{number}", entry | {"start": start, "ended": ended, "stop": ended + idle})
        assert [bill.node_seconds for bill in Meter(state).bills()] == [node_seconds]


def test_many_requests_for_one_new_cluster_create_it_once(http, arm):
    properties = {"computeType": "AmlCompute", "properties": {"vmSize": "Standard_DS3_v2"}}
    path = f"{arm.workspace}/computes/raced"
    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda _: http.put(path, json={"properties": properties}), range(50)))
    assert sorted(answer.status_code for answer in answers) == [*[200] * 49, 201]
