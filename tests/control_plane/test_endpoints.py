"""Online endpoints, deployments, keys and scoring, through the SDK."""

import json
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from urllib.parse import urlsplit

import pytest
from clients import MODEL, QUESTION, SIZE, deployment, endpoint, quotas
from conftest import groups_in, processes_in

from local_azureml.meter import Meter
from local_azureml.state import State

T4 = "Standard_NC4as_T4_v3"
T4_FAMILY = "Standard NCASv3_T4 Family"


@pytest.fixture(scope="module")
def empty(client):
    """An endpoint without deployments."""
    return client.online_endpoints.begin_create_or_update(endpoint("empty-endpoint")).result()


@pytest.fixture(scope="module")
def live(client):
    """An endpoint whose deployment `demo` serves the base model and gets all traffic."""
    from azure.ai.ml.entities import OnlineRequestSettings

    settings = OnlineRequestSettings(request_timeout_ms=90000)
    client.online_endpoints.begin_create_or_update(endpoint("live-endpoint", tags={"run": "7"})).result()
    demo = deployment("live-endpoint", "demo", request_settings=settings)
    client.online_deployments.begin_create_or_update(demo).result()
    made = client.online_endpoints.get("live-endpoint")
    made.traffic = {"demo": 100}
    return client.online_endpoints.begin_create_or_update(made).result()


@pytest.fixture
def question(tmp_path):
    file = tmp_path / "question.json"
    file.write_text(json.dumps(QUESTION))
    return file


# endpoints


def test_a_new_endpoint_has_an_address_and_no_traffic(empty):
    assert (empty.provisioning_state, empty.traffic, empty.auth_mode) == ("Succeeded", {}, "key")
    paths = [urlsplit(address).path for address in (empty.scoring_uri, empty.openapi_uri)]
    assert paths == ["/score", "/swagger.json"]


def test_a_tag_that_is_no_text_is_kept_in_its_words(client):
    asked = endpoint("tagged-endpoint", tags={"on": True, "count": 1})
    assert client.online_endpoints.begin_create_or_update(asked).result().tags == {"on": "true", "count": "1"}


@pytest.mark.parametrize("name", ["ab", "a" * 33, "1abc", "a--b", "a_b", "abc-"])
def test_an_illegal_endpoint_name_is_refused(http, arm, name):
    answer = http.put(
        f"{arm.workspace}/onlineEndpoints/{name}",
        json={"location": "eastus", "properties": {"authMode": "Key"}},
    )
    assert (answer.status_code, answer.json()["error"]["details"][0]["code"]) == (400, "InvalidName")


@pytest.mark.parametrize("name", ["1st", "a--b", "ab"])
def test_an_illegal_deployment_name_is_refused(http, arm, empty, name):
    body = {"location": "eastus", "properties": {"model": MODEL, "instanceType": SIZE}}
    answer = http.put(f"{arm.workspace}/onlineEndpoints/empty-endpoint/deployments/{name}", json=body)
    assert (answer.status_code, answer.json()["error"]["details"][0]["code"]) == (400, "InvalidName")


def test_traffic_cannot_be_set_when_an_endpoint_is_created(http, arm):
    body = {"location": "eastus", "properties": {"authMode": "Key", "traffic": {"demo": 100}}}
    answer = http.put(f"{arm.workspace}/onlineEndpoints/too-early", json=body)
    assert answer.json()["error"]["message"].startswith("traffic cannot be set when an endpoint is created")


@pytest.mark.parametrize("traffic", [{"demo": 50}, {"demo": 101}, {"demo": -100}, {"other": 100}])
def test_traffic_sums_to_0_or_100_over_deployments_that_are_there(http, arm, live, traffic):
    body = {"location": "eastus", "properties": {"authMode": "Key", "traffic": traffic}}
    answer = http.put(f"{arm.workspace}/onlineEndpoints/live-endpoint", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "UserError")


@pytest.mark.parametrize("mirrored", [{"demo": 51}, {"demo": -1}, {"other": 10}])
def test_mirrored_traffic_sums_to_at_most_50_over_deployments_that_are_there(http, arm, live, mirrored):
    body = {"location": "eastus", "properties": {"authMode": "Key", "mirrorTraffic": mirrored}}
    answer = http.put(f"{arm.workspace}/onlineEndpoints/live-endpoint", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "UserError")


def test_an_unknown_auth_mode_is_refused(http, arm):
    body = {"location": "eastus", "properties": {"authMode": "Password"}}
    answer = http.put(f"{arm.workspace}/onlineEndpoints/with-password", json=body)
    assert "is not one of Key, AMLToken, AADToken" in answer.json()["error"]["message"]


def test_an_endpoint_that_is_not_there_is_answered_with_those_that_are(client, empty):
    from azure.core.exceptions import ResourceNotFoundError

    with pytest.raises(
        ResourceNotFoundError, match=r"no online endpoint named 'ghost'; there is: .*empty-endpoint"
    ):
        client.online_endpoints.get("ghost")


def test_an_update_in_other_capitals_keeps_the_name(http, arm, empty):
    body = {"location": "eastus", "properties": {"authMode": "Key", "description": "changed"}}
    answer = http.put(f"{arm.workspace}/onlineEndpoints/EMPTY-endpoint", json=body).json()
    assert (answer["name"], answer["properties"]["description"]) == ("empty-endpoint", "changed")


# keys


def test_the_deployments_client_of_mlflow_moves_traffic_and_nothing_else(client, live, tmp_path):
    from mlflow.deployments import get_deploy_client

    uri = client.workspaces.get(client.workspace_name).mlflow_tracking_uri
    deployments, config = get_deploy_client(uri), tmp_path / "traffic.json"

    def moved(traffic: dict[str, int]) -> dict[str, int]:
        config.write_text(json.dumps({"traffic": traffic}))
        changed = deployments.update_endpoint("live-endpoint", {"endpoint-config-file": str(config)})
        return changed["properties"]["traffic"]

    assert [moved({}), moved({"demo": 100})] == [{}, {"demo": 100}]
    found = client.online_endpoints.get("live-endpoint")
    assert (found.tags, found.auth_mode, found.scoring_uri) == ({"run": "7"}, "key", live.scoring_uri)


def test_an_endpoint_shows_the_ids_of_each_identity(http, arm):
    user = "/subscriptions/x/resourcegroups/y/providers/Microsoft.ManagedIdentity/userAssignedIdentities/u"
    both = {"type": "SystemAssigned,UserAssigned", "userAssignedIdentities": {user: {}}}
    path = f"{arm.workspace}/onlineEndpoints/with-identities"
    http.put(path, json={"location": "eastus", "identity": both, "properties": {"authMode": "Key"}})
    shown = http.get(path).json()["identity"]
    ids = [shown["principalId"], shown["tenantId"], *shown["userAssignedIdentities"][user].values()]
    assert len({str(uuid.UUID(each)) for each in ids}) == 4


def test_an_endpoint_on_kubernetes_is_refused_by_name(client):
    from azure.ai.ml.entities import KubernetesOnlineEndpoint

    asked = KubernetesOnlineEndpoint(name="on-kubernetes", compute="azureml:mine")
    with pytest.raises(Exception, match="an online endpoint on Kubernetes is not part of the emulator"):
        client.online_endpoints.begin_create_or_update(asked)


def test_an_endpoint_has_two_keys_of_which_one_is_regenerated(client, empty):
    before = client.online_endpoints.get_keys("empty-endpoint")
    client.online_endpoints.begin_regenerate_keys("empty-endpoint", key_type="primary").result()
    after = client.online_endpoints.get_keys("empty-endpoint")
    assert len({before.primary_key, before.secondary_key, after.primary_key}) == 3
    assert after.secondary_key == before.secondary_key


def test_both_keys_are_regenerated_at_once(client, http, arm, empty, at_once):
    path = f"{arm.workspace}/onlineEndpoints/empty-endpoint/regenerateKeys"
    for _ in range(8):
        before = client.online_endpoints.get_keys("empty-endpoint")
        at_once(*[("POST", path, {"keyType": kind}) for kind in ("Primary", "Secondary")])
        after = client.online_endpoints.get_keys("empty-endpoint")
        assert before.primary_key != after.primary_key and before.secondary_key != after.secondary_key


def test_the_keys_are_in_no_other_answer(client, http, arm, live):
    keys = client.online_endpoints.get_keys("live-endpoint")
    answers = [http.get(f"{arm.workspace}/onlineEndpoints{below}").text for below in ("", "/live-endpoint")]
    assert not any(keys.primary_key in answer or keys.secondary_key in answer for answer in answers)


# deployments


def test_a_deployment_is_shown_with_what_was_asked_and_azures_probes(client, live):
    demo = client.online_deployments.get("demo", "live-endpoint")
    shown = (demo.provisioning_state, demo.instance_type, demo.request_settings.request_timeout_ms)
    assert shown == ("Succeeded", SIZE, 90000)
    probe = demo.liveness_probe
    delays = (probe.initial_delay, probe.period, probe.timeout)
    assert (*delays, probe.success_threshold, probe.failure_threshold) == (10, 10, 2, 1, 30)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"instance_type": "Standard_X"}, "the size 'Standard_X' is not available"),
        ({"instance_count": 9}, "9 x Standard_NC24ads_A100_v4 needs 216 cores"),
        ({"instance_type": T4, "instance_count": 45}, f"45 x {T4} needs 216 cores"),  # a fifth in reserve
        ({"model": "azureml:nothing:1"}, "no model named 'nothing' in the workspace"),
        ({"instance_type": None, "instance_count": 99}, "99 x Standard_F4s_v2 needs"),
    ],
)
def test_a_deployment_that_cannot_work_is_refused_at_once(client, empty, options, message):
    asked = deployment("empty-endpoint", **{"name": "wrong", **options})
    with pytest.raises(Exception, match=message):
        client.online_deployments.begin_create_or_update(asked)


def test_what_azure_keeps_in_reserve_for_a_deployment_counts_against_the_quota(client):
    used = quotas(client)["dedicated", T4_FAMILY].currentValue
    client.online_endpoints.begin_create_or_update(endpoint("in-reserve")).result()
    client.online_deployments.begin_create_or_update(
        deployment("in-reserve", "demo", instance_type=T4)
    ).result()
    more = quotas(client)["dedicated", T4_FAMILY].currentValue - used
    client.online_endpoints.begin_delete("in-reserve").result()
    assert more == 8  # two machines of four cores, of which one answers


def test_a_deployment_is_not_scaled_beyond_the_quota(client, live):
    demo = client.online_deployments.get("demo", "live-endpoint")
    demo.instance_count = 10
    with pytest.raises(Exception, match="10 x Standard_NC24ads_A100_v4 needs 240 cores"):
        client.online_deployments.begin_create_or_update(demo)


def test_a_request_timeout_above_three_minutes_is_refused(client, empty):
    from azure.ai.ml.entities import OnlineRequestSettings

    settings = OnlineRequestSettings(request_timeout_ms=180001)
    asked = deployment("empty-endpoint", "patient", request_settings=settings)
    with pytest.raises(Exception, match="the request timeout is at most 180000 ms"):
        client.online_deployments.begin_create_or_update(asked)


def test_a_deployment_with_traffic_cannot_be_deleted(client, live):
    with pytest.raises(Exception, match="'demo' gets 100 % of the traffic"):
        client.online_deployments.begin_delete("demo", "live-endpoint")


def test_the_log_of_a_deployment_is_read(client, live):
    assert client.online_deployments.get_logs("demo", "live-endpoint", lines=5)


@pytest.fixture
def still_billed(emulator):
    """A function that returns the deployments of an endpoint whose meters count."""

    def billed(name: str) -> list[str]:
        with closing(State(emulator.folder)) as state:
            bills = Meter(state).bills()
        return [bill.resource for bill in bills if bill.running and f" {name}/" in bill.resource]

    return billed


def test_a_deleted_endpoint_leaves_nothing_running_whatever_the_capitals(
    client, http, arm, emulator, still_billed
):
    folder = emulator.folder / "deployments" / "capitals"
    body = {"location": "eastus", "properties": {"authMode": "Key"}}
    http.put(f"{arm.workspace}/onlineEndpoints/Capitals", json=body)  # the SDK would write it small
    client.online_deployments.begin_create_or_update(deployment("capitals", "demo")).result()
    before = (len(groups_in(folder)), still_billed("Capitals"))
    client.online_deployments.begin_create_or_update(deployment("CAPITALS", "demo")).result()
    again = (len(groups_in(folder)), still_billed("Capitals"))
    client.online_endpoints.begin_delete("capitals").result()
    after = (len(groups_in(folder)), still_billed("Capitals"))
    assert (before, again, after) == ((1, ["deployment Capitals/demo"]),) * 2 + ((0, []),)
    assert "Capitals" not in [found.name for found in client.online_endpoints.list()]


@pytest.fixture
def at_once(http):
    """A function that sends requests at the same moment and returns the ends of their operations."""

    def send(*requests: tuple) -> list[str]:
        with ThreadPoolExecutor(len(requests)) as clients:
            sent = [clients.submit(http.request, method, path, json=body) for method, path, body in requests]
            answers = [answer.result() for answer in sent]
        return [ended(answer.headers["Azure-AsyncOperation"]) for answer in answers]

    def ended(address: str) -> str:
        while (status := http.get(address).json()["status"]) == "InProgress":
            time.sleep(0.05)
        return status

    return send


def test_traffic_names_a_deployment_in_any_capitals(http, arm, live):
    body = {
        "location": "eastus",
        "properties": {"authMode": "Key", "traffic": {"DEMO": 100}},
        "tags": {"run": "7"},
    }
    answer = http.put(f"{arm.workspace}/onlineEndpoints/live-endpoint", json=body)
    assert answer.json()["properties"]["traffic"] == {"demo": 100}


def test_a_deployment_asked_for_twice_at_once_has_one_process(client, arm, emulator, at_once, still_billed):
    client.online_endpoints.begin_create_or_update(endpoint("twice")).result()
    path = f"{arm.workspace}/onlineEndpoints/twice/deployments/demo"
    body = {"location": "eastus", "properties": {"model": MODEL, "instanceType": SIZE}}
    ends = at_once(*[("PUT", path, body)] * 3)
    running = len(groups_in(emulator.folder / "deployments" / "twice"))
    shown = client.online_deployments.get("demo", "twice").provisioning_state
    client.online_endpoints.begin_delete("twice").result()
    assert (sorted(ends), running, shown) == (["Failed", "Failed", "Succeeded"], 1, "Succeeded")
    assert processes_in(emulator.folder / "deployments" / "twice") == still_billed("twice") == []


def test_an_endpoint_deleted_while_it_is_deployed_to_leaves_nothing(
    client, http, arm, emulator, at_once, still_billed
):
    body = {"location": "eastus", "properties": {"model": MODEL, "instanceType": SIZE}}
    for number in range(3):
        name = f"hurried-{number}"
        client.online_endpoints.begin_create_or_update(endpoint(name)).result()
        path = f"{arm.workspace}/onlineEndpoints/{name}"
        http.put(f"{path}/deployments/demo", json=body)
        at_once(("DELETE", path, None))
    time.sleep(1)  # for a process that should not be
    left = [path for path in (emulator.folder / "deployments").glob("hurried-*") if processes_in(path)]
    assert (left, [still_billed(f"hurried-{number}") for number in range(3)]) == ([], [[]] * 3)


# scoring


def test_a_deployment_answers_in_the_shape_of_the_mlflow_server(client, live, question, monkeypatch):
    plain = {"Content-Type": "application/json"}  # the SDK's keeps a deployment that was named before
    monkeypatch.setattr("azure.ai.ml.constants._endpoint.EndpointInvokeFields.DEFAULT_HEADER", plain)
    answer = json.loads(client.online_endpoints.invoke("live-endpoint", request_file=question))
    assert [list(row) for row in answer] == [["0"]]


def test_an_answer_says_which_deployment_gave_it(client, live, http):
    keys = client.online_endpoints.get_keys("live-endpoint")
    headers = {"Authorization": f"Bearer {keys.secondary_key}", "x-request-id": "r-1"}
    answer = http.post(live.scoring_uri, json=QUESTION, headers=headers)
    shown = (answer.headers["azureml-model-deployment"], answer.headers["x-request-id"])
    assert (answer.status_code, shown) == (200, ("demo", "r-1"))
    assert float(answer.headers["x-ms-run-fn-exec-ms"]) > 0


@pytest.mark.parametrize("key", ["", "Bearer", "Bearer wrong", "Basic wrong"])
def test_a_wrong_key_is_answered_401(anonymous, live, key):
    headers = {"Authorization": key} if key else {}
    answer = anonymous.post(live.scoring_uri, json=QUESTION, headers=headers)
    assert answer.status_code == 401


def test_an_endpoint_without_traffic_answers_404(client, empty, http):
    keys = client.online_endpoints.get_keys("empty-endpoint")
    headers = {"Authorization": f"Bearer {keys.primary_key}"}
    answer = http.post(empty.scoring_uri, json=QUESTION, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "NoTraffic")
