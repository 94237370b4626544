"""Answers of the control plane and of run history that are Azure's to the letter."""

import time

import pytest
from conftest import raw_client

A100 = "Standard_NC24ads_A100_v4"
SERVED = {"model": "azureml://registries/azureml/models/Phi-4/versions/8", "instanceType": A100}


def command(client, name: str, **options):
    """Return a job that was submitted; it runs `true` or what `options` say."""
    from azure.ai.ml import command
    from azure.ai.ml.entities import Environment

    environment = Environment(name="plain", image="python:3.11")
    job = command(**{"name": name, "command": "true", "environment": environment, **options})
    return client.jobs.create_or_update(job, experiment_name="answers")


@pytest.fixture(scope="module")
def job(client):
    return command(client, "answered")


def ended(http, answer) -> dict:
    """Return what the address of an operation tells when it has ended."""
    while (told := http.get(answer.headers["azure-asyncoperation"]).json())["status"] == "InProgress":
        time.sleep(0.02)
    return told


def cluster(http, arm, name: str, **properties):
    """Return the answer to a request for a cluster."""
    inner = {"vmSize": A100, "scaleSettings": {"maxNodeCount": 1, "nodeIdleTimeBeforeScaleDown": "PT77S"}}
    body = {"properties": {"computeType": "AmlCompute", **properties}}
    body["properties"]["properties"] = inner | properties.get("properties", {})
    body |= {"location": "eastus", "identity": {"type": "systemassigned"}}
    answer = http.put(f"{arm.workspace}/computes/{name}", json=body)
    ended(http, answer)
    return answer


def test_an_archived_job_is_archived_until_it_is_restored(client, http, arm, job):
    path = f"{arm.workspace}/jobs/{job.name}"

    def put(archived: bool) -> None:
        properties = http.get(path).json()["properties"]
        http.put(path, json={"properties": {**properties, "isArchived": archived}}).raise_for_status()

    states = []
    for change, given in (
        (client.jobs.archive, job.name),
        (client.jobs.restore, job.name),
        (put, True),
        (put, False),
    ):
        change(given)
        states.append(http.get(path).json()["properties"]["isArchived"])
    assert states == [True, False] * 2


def test_an_update_of_a_job_adds_to_its_tags_and_properties(client, job):
    client.jobs.update(job.name, tags={"a": "1"}, properties={"x": "1"}, display_name="shown")
    changed = client.jobs.update(job.name, tags={"b": "2"}, properties={"y": "2"})
    added = {name: changed.properties[name] for name in ("x", "y")}
    assert (changed.tags, changed.display_name) == ({"a": "1", "b": "2"}, "shown")
    assert added == {"x": "1", "y": "2"}


@pytest.mark.parametrize("place", ["", "experiments/answers/", "experimentids/answers/"])
def test_a_run_is_changed_below_its_experiment_too(http, arm, job, place):
    path = f"/history/v1.0{arm.workspace}/{place}runs/{job.name}"
    run = http.patch(path, json={"properties": {f"at {place}": "yes"}}).json()
    assert (run["runId"], run["properties"][f"at {place}"]) == (job.name, "yes")


def test_a_change_of_a_run_that_is_not_played_is_refused_by_name(http, arm, job):
    answer = http.patch(f"/history/v1.0{arm.workspace}/runs/{job.name}", json={"status": "Completed"})
    assert (answer.status_code, "a run's status" in answer.json()["error"]["message"]) == (501, True)


def test_a_patch_of_a_cluster_changes_what_it_names_alone(http, arm):
    cluster(http, arm, "merged", description="kept", disableLocalAuth=False)
    path = f"{arm.workspace}/computes/merged"
    ended(http, http.patch(path, json={"properties": {"properties": {"scaleSettings": {"maxNodeCount": 2}}}}))
    now = http.get(path).json()
    scale = {"minNodeCount": 0, "maxNodeCount": 2, "nodeIdleTimeBeforeScaleDown": "PT77S"}
    assert now["properties"]["properties"]["scaleSettings"] == scale
    kept = [now["properties"][name] for name in ("description", "disableLocalAuth")]
    assert (kept, now["identity"]["type"]) == (["kept", False], "SystemAssigned")


def test_the_counts_of_a_node_come_back_as_they_were_sent(http, arm):
    spec = {"type": "command", "command": "true"}
    component = f"{arm.workspace}/components/counting/versions/1"
    http.put(component, json={"properties": {"componentSpec": spec}}).raise_for_status()
    node = {"componentId": component, "resources": {"instance_count": "1"}}
    job = {"jobType": "Pipeline", "jobs": {"one": node}, "settings": {"default_compute": "serverless"}}
    made = http.put(f"{arm.workspace}/jobs/as-sent", json={"properties": job}).json()
    assert made["properties"]["jobs"]["one"]["resources"] == {"instance_count": "1"}


def test_no_answer_tells_a_clusters_password(http, arm):
    credentials = {"adminUserName": "somebody", "adminUserPassword": "hush-hush"}
    made = cluster(http, arm, "guarded", properties={"userAccountCredentials": credentials})
    path = f"{arm.workspace}/computes"
    assert "hush-hush" not in made.text + http.get(path).text + http.get(f"{path}/guarded").text
    shown = http.get(f"{path}/guarded").json()["properties"]["properties"]["userAccountCredentials"]
    assert shown == {"adminUserName": "somebody", "adminUserPassword": None}


def test_a_container_has_its_type_and_that_of_its_data(http, arm):
    wanted = {"dataType": "mltable", "dataUri": "azureml://datastores/workspaceblobstore/paths/t"}
    http.put(f"{arm.workspace}/data/typed/versions/1", json={"properties": wanted})
    told = http.get(f"{arm.workspace}/data/typed").json()
    kind = "Microsoft.MachineLearningServices/workspaces/data"
    assert (told["type"], told["properties"]["dataType"]) == (kind, "mltable")


def test_a_long_operation_tells_its_name_its_times_and_how_far_it_is(http, arm):
    answer = cluster(http, arm, "timed")
    told = ended(http, answer)
    headers = {"azure-asyncoperation", "retry-after", "x-ms-async-operation-timeout"}
    assert headers <= answer.headers.keys()
    assert told["id"].endswith(told["name"]) and told["startTime"] <= told["endTime"]
    assert (told["status"], told["percentComplete"]) == ("Succeeded", 100.0)


def test_every_answer_has_a_correlation_id_and_the_clients_own_where_it_has_one(http, arm):
    name = "x-ms-correlation-request-id"
    answers = [http.get(arm.workspace), http.get(f"{arm.workspace}/nothing")]
    assert all(len(answer.headers[name]) == 36 for answer in answers)
    assert http.get(arm.workspace, headers={name: "mine"}).headers[name] == "mine"


def test_a_cluster_tells_its_nodes_and_its_times(http, arm):
    cluster(http, arm, "counted")
    told = http.get(f"{arm.workspace}/computes/counted").json()["properties"]
    states = ("idle", "running", "preparing", "unusable", "leaving", "preempted")
    assert told["properties"]["nodeStateCounts"] == {f"{state}NodeCount": 0 for state in states}
    assert told["createdOn"] <= told["properties"]["allocationStateTransitionTime"] <= told["modifiedOn"]


def test_the_workspace_names_what_it_leans_on_and_who_it_is(http, arm):
    told = http.get(arm.workspace).json()
    names = ("storageAccount", "keyVault", "applicationInsights", "containerRegistry")
    kinds = [told["properties"][name].split("/")[-2] for name in names]
    assert kinds == ["storageAccounts", "vaults", "components", "registries"]
    assert told["identity"].keys() == {"type", "principalId", "tenantId"}
    assert told["properties"]["tenantId"] == told["identity"]["tenantId"]
    assert told["systemData"]["lastModifiedBy"] == told["systemData"]["createdBy"]


def test_the_clusters_are_counted_among_the_quotas(client):
    counted = {usage.name["value"]: usage for usage in client.compute.list_usage()}["TotalClusters"]
    assert counted.limit == 200


@pytest.mark.parametrize("below", ["", "/datastores/workspaceblobstore"])
def test_what_was_there_from_the_start_was_made_once(http, arm, below):
    first, second = (http.get(f"{arm.workspace}{below}").json()["systemData"] for _ in range(2))
    assert first == second


def test_a_scoring_address_is_null_until_the_endpoint_is_made(http, arm):
    path = f"{arm.workspace}/onlineEndpoints/addressed"
    making = http.put(path, json={"location": "eastus", "properties": {"authMode": "Key"}})
    ended(http, making)
    made = http.get(path).json()["properties"]
    assert (making.json()["properties"]["scoringUri"], made["scoringUri"][-6:]) == (None, "/score")
    http.delete(path)


@pytest.mark.parametrize("version", [None, "2020-20-20", "latest"])
def test_an_api_version_that_is_missing_or_never_was_is_400(emulator, arm, version):
    with raw_client(emulator.environment) as http:
        http.event_hooks = {}  # which would name a version
        answer = http.get(arm.workspace, params={"api-version": version} if version else {})
        assert answer.status_code == 400


@pytest.mark.parametrize(
    ("place", "body", "words"),
    [
        ("computes/bare", {}, "properties"),
        ("jobs/bare", {}, "properties"),
        ("models/bare/versions/1", {}, "properties"),
        ("onlineEndpoints/bare", {"properties": {"authMode": "Key"}}, "location"),
        ("onlineEndpoints/bare", {"location": "eastus"}, "properties"),
        ("jobs/bare", {"properties": {"jobType": "Command"}}, "command and properties.environmentId"),
        ("models/bare/versions/1", {"properties": {"modelUri": "no uri"}}, "modelUri"),
    ],
)
def test_a_put_without_what_is_required_is_400_and_names_it(http, arm, place, body, words):
    answer = http.put(f"{arm.workspace}/{place}", json=body)
    assert (answer.status_code, words in answer.json()["error"]["message"]) == (400, True)
    assert http.get(f"{arm.workspace}/{place}").status_code == 404


def test_a_deployment_of_an_environment_that_is_nowhere_is_refused(http, arm):
    path = f"{arm.workspace}/onlineEndpoints/rootless"
    http.put(path, json={"location": "eastus", "properties": {"authMode": "Key"}})
    nowhere = {"environmentId": f"{arm.workspace}/environments/nowhere/versions/1"}
    answer = http.put(f"{path}/deployments/demo", json={"location": "eastus", "properties": SERVED | nowhere})
    assert (answer.status_code, "'nowhere'" in answer.json()["error"]["message"]) == (404, True)
    http.delete(path)


@pytest.mark.parametrize(
    "place", ["models/never/versions/1", "computes/never", "onlineEndpoints/never", "jobs/never"]
)
def test_what_is_not_there_is_deleted_without_an_error_and_not_changed(http, arm, place):
    path = f"{arm.workspace}/{place}"
    assert (http.delete(path).status_code, http.get(path).status_code) == (204, 404)
    if place in ("computes/never", "onlineEndpoints/never"):
        changed = {"computeType": "AmlCompute", "properties": {"vmSize": A100}} if "comp" in place else {}
        assert http.patch(path, json={"properties": changed}).status_code == 404


def test_words_come_back_as_azure_writes_them_whatever_was_sent(http, arm):
    path = f"{arm.workspace}/onlineEndpoints/spelled"
    properties = {"authMode": "key", "publicNetworkAccess": "enabled"}
    body = {"location": "eastus", "identity": {"type": "systemassigned"}, "properties": properties}
    made = http.put(path, json=body).json()
    words = [made["properties"][name] for name in properties]
    assert ([*words, made["identity"]["type"]]) == ["Key", "Enabled", "SystemAssigned"]
    http.delete(path)


def test_sku_kind_and_resource_of_a_put_come_back(http, arm):
    path = f"{arm.workspace}/onlineEndpoints/kept-whole"
    extra = {"sku": {"name": "Default"}, "kind": "Own"}
    http.put(path, json={"location": "eastus", "properties": {"authMode": "Key"}, **extra})
    kept = http.get(path).json()
    cluster(http, arm, "kept-whole", resourceId="/subscriptions/x", computeLocation="westus")
    properties = http.get(f"{arm.workspace}/computes/kept-whole").json()["properties"]
    assert {name: kept[name] for name in extra} == extra
    assert [properties[name] for name in ("resourceId", "computeLocation")] == ["/subscriptions/x", "westus"]
    http.delete(path)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (
            {"outputs": {"o": {"jobOutputType": "uri_folder", "uri": "https://elsewhere/x"}}},
            "https://elsewhere/x",
        ),
        ({"services": {"notebook": {"jobServiceType": "JupyterLab"}}}, "the job service notebook"),
    ],
)
def test_what_a_job_asks_and_is_not_played_is_refused_by_name(http, arm, job, asked, words):
    environment = f"{arm.workspace}/environments/unplayed/versions/1"
    http.put(environment, json={"properties": {"image": "python:3.11"}})
    body = {"jobType": "Command", "command": "true", "environmentId": environment}
    answer = http.put(f"{arm.workspace}/jobs/unplayed", json={"properties": body | asked})
    assert (answer.status_code, words in answer.json()["error"]["message"]) == (501, True)
