"""Lists: what a client may ask of them is done as Microsoft describes it, all else is refused by name."""

import importlib
import os
import re
import time
from pathlib import Path

import pytest
import witness
from conftest import PLAIN_JOB, client_of, raw_client

from local_azureml import resource
from local_azureml.control_plane import queries
from local_azureml.identifiers import WORKSPACE_ID

SIZE = "Standard_NC24ads_A100_v4"
IMAGE = {"image": "python:3.11"}
VERSION_OF = {
    "models": {"modelUri": "azureml://datastores/workspaceblobstore/paths/any"},
    "data": {"dataType": "uri_file", "dataUri": "azureml://datastores/workspaceblobstore/paths/any"},
    "environments": IMAGE,
    "components": {"componentSpec": {"name": "listed", "type": "command", "command": "true"}},
}
NOT_PLAYED = {  # of Microsoft's description; refused by name
    "workspaces": {"aiCapabilities"},
    "onlineEndpoints": {"computeType"},
    "models/versions": {"description", "offset", "feed"},
    "registries/models/versions": {"description"},
    "runs/children": {"$filter", "$continuationtoken", "$orderby", "$sortorder", "$count"},
}


def put(http, path: str, **properties) -> dict:
    """Return what a version is after a PUT."""
    return http.put(path, json={"properties": properties}).raise_for_status().json()


def names(answer) -> list[str]:
    """Return the names on a page."""
    return [found["name"] for found in answer.raise_for_status().json()["value"]]


@pytest.fixture(scope="module")
def versions(http, arm) -> str:
    """The address of a model's versions: 1, 2 and 3, which was changed last is 1, archived is 2."""
    address = f"{arm.workspace}/models/listed/versions"
    for number, tags in (("1", {"a": "x"}), ("2", {}), ("3", {"a": "y", "b": "x"})):
        put(http, f"{address}/{number}", **VERSION_OF["models"], tags=tags, properties={"n": number})
    put(http, f"{address}/2", **VERSION_OF["models"], isArchived=True)
    put(http, f"{address}/1", **VERSION_OF["models"], tags={"a": "x"}, properties={"n": "1"})
    return address


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({}, ["3", "1"]),
        ({"listViewType": "ArchivedOnly"}, ["2"]),
        ({"listViewType": "all"}, ["3", "2", "1"]),
        ({"$orderBy": "createdtime"}, ["1", "3"]),
        ({"$orderBy": "modifiedtime desc"}, ["1", "3"]),
        ({"$top": "1", "$orderBy": "modifiedtime desc"}, ["1"]),
        ({"version": "1"}, ["1"]),
        ({"tags": "a"}, ["3", "1"]),
        ({"tags": "a=x"}, ["1"]),
        ({"tags": "a,b=x"}, ["3"]),
        ({"tags": "a=x,b"}, []),
        ({"properties": "n=3"}, ["3"]),
    ],
)
def test_a_models_versions_are_filtered_ordered_and_cut(http, versions, asked, found):
    assert names(http.get(versions, params=asked)) == found


@pytest.mark.parametrize("kind", ["data", "environments", "components"])
def test_the_versions_of_other_assets_are_so_too(http, arm, kind):
    address = f"{arm.workspace}/{kind}/listed/versions"
    for number in ("1", "2", "3"):
        put(http, f"{address}/{number}", **VERSION_OF[kind], isArchived=number == "2", tags={"n": number})
    asked = [{"listViewType": "ArchivedOnly"}, {"$orderBy": "createdtime asc"}, {"$top": 1}]
    asked += [{"$tags": "n=1"}] if kind == "data" else []
    expected = [["2"], ["1", "3"], ["3"], ["1"]]
    assert [names(http.get(address, params=each)) for each in asked] == expected[: len(asked)]


@pytest.mark.parametrize("kind", VERSION_OF)
def test_an_archived_asset_is_listed_only_where_it_is_asked_for(client, http, arm, kind):
    from azure.ai.ml.constants import ListViewType

    for name in ("shown", "stowed"):
        put(http, f"{arm.workspace}/{kind}/{name}/versions/1", **VERSION_OF[kind])
    assets = getattr(client, kind)
    assets.archive(name="stowed")
    assert http.get(f"{arm.workspace}/{kind}/stowed").json()["properties"]["isArchived"]
    views = (ListViewType.ACTIVE_ONLY, ListViewType.ARCHIVED_ONLY, ListViewType.ALL)
    listed = [{found.name for found in assets.list(list_view_type=view)} for view in views]
    assert [found & {"shown", "stowed"} for found in listed] == [{"shown"}, {"stowed"}, {"shown", "stowed"}]
    assets.restore(name="stowed")
    assert "stowed" in {found.name for found in assets.list()}


@pytest.fixture(scope="module")
def jobs(client, http, arm):
    """Three jobs: `tagged`, `untagged` and `archived`."""
    environment = f"{arm.workspace}/environments/listed/versions/1"
    put(http, environment, **IMAGE)
    plain = {**PLAIN_JOB, "command": "true", "environmentId": environment}
    put(http, f"{arm.workspace}/jobs/listed-tagged", **plain, tags={"made_by": "us"}, properties={"p": "1"})
    put(http, f"{arm.workspace}/jobs/listed-untagged", **plain)
    put(http, f"{arm.workspace}/jobs/listed-archived", **plain, tags={"made_by": "us"})
    client.jobs.archive("listed-archived")


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({}, ["untagged", "tagged"]),
        ({"listViewType": "ArchivedOnly"}, ["archived"]),
        ({"listViewType": "All"}, ["archived", "untagged", "tagged"]),
        ({"tag": "made_by", "listViewType": "All"}, ["archived", "tagged"]),
        ({"jobType": "Command"}, ["untagged", "tagged"]),
        ({"jobType": "Pipeline"}, []),
        ({"properties": "p=1"}, ["tagged"]),
    ],
)
def test_jobs_are_listed_by_view_tag_type_and_property(http, arm, jobs, asked, found):
    listed = names(http.get(f"{arm.workspace}/jobs", params=asked))
    prefix = "listed-"
    assert [name.removeprefix(prefix) for name in listed if name.startswith(prefix)] == found


def test_the_sdk_lists_jobs_by_their_tag(client, jobs):
    listed = {job.name for job in client.jobs.list(tag="made_by")}
    assert listed & {"listed-tagged", "listed-untagged", "listed-archived"} == {"listed-tagged"}


def test_endpoints_are_listed_by_name_tag_property_and_order(emulator_with):
    with raw_client(emulator_with().context.environment()) as http:
        bodies = {"first": {"tags": {"n": "1"}}, "second": {}}
        for name in ("first", "second", "first"):
            properties = {"authMode": "Key", "properties": {"p": "1"} if name == "second" else {}}
            body = {"location": "eastus", "properties": properties, **bodies[name]}
            http.put(f"{WORKSPACE_ID}/onlineEndpoints/{name}", json=body).raise_for_status()
        for asked, found in (
            ({}, ["second", "first"]),
            ({"name": "FIRST"}, ["first"]),
            ({"count": 1}, ["second"]),
            ({"tags": "n=1"}, ["first"]),
            ({"properties": "p"}, ["second"]),
            ({"orderBy": "CreatedAtAsc"}, ["first", "second"]),
            ({"orderBy": "UpdatedAtDesc"}, ["first", "second"]),
        ):
            assert names(http.get(f"{WORKSPACE_ID}/onlineEndpoints", params=asked)) == found, asked


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({"isDefault": "true"}, ["workspaceblobstore"]),
        ({"names": "workspaceartifactstore,other"}, ["workspaceartifactstore"]),
        ({"searchText": "BLOB"}, ["workspaceblobstore"]),
        ({"count": 1, "orderBy": "name"}, ["workspaceblobstore"]),
        ({"count": 1, "orderBy": "name", "orderByAsc": "true"}, ["workspaceartifactstore"]),
    ],
)
def test_datastores_are_listed_by_name_and_order(http, arm, asked, found):
    assert names(http.get(f"{arm.workspace}/datastores", params=asked)) == found


def test_workspaces_are_listed_by_kind(client):
    listed = [
        [found.name for found in client.workspaces.list(filtered_kinds=kind)] for kind in ("default", "hub")
    ]
    assert listed == [["local"], []]


def test_a_registrys_versions_are_filtered_ordered_and_cut(http, arm):
    address = f"/mferp/managementfrontend{arm.registry}/models/Phi-3-mini-4k-instruct/versions"
    asked = [
        {"$top": 1, "listViewType": "All"},
        {"$orderBy": "createdtime asc", "listViewType": "All"},
        {"version": "14"},
        {"tags": "no-such-tag"},
    ]
    assert [names(http.get(address, params=each)) for each in asked] == [["15"], ["14", "15"], ["14"], []]


@pytest.mark.parametrize(
    ("below", "asked"),
    [
        ("models/listed/versions", {"listViewType": "Everything"}),
        ("models/listed/versions", {"$orderBy": "name"}),
        ("models/listed/versions", {"$top": "²"}),
        ("models/listed/versions", {"tags": "," * 2000}),
        ("models", {"count": "-1"}),
        ("jobs", {"jobType": "Laborious"}),
        ("onlineEndpoints", {"orderBy": "createdtime"}),
        ("datastores", {"orderBy": "size"}),
        ("datastores", {"isDefault": "perhaps"}),
        *[
            ("jobs", {"$skip": token})
            for token in (
                "25",
                "not hexadecimal",
                b"[1]".hex(),
                b'["\\ud800", 1]'.hex(),
                f"[1.5, {2**70}]".encode().hex(),
                ("[" * 5_000).encode().hex(),
            )
        ],
    ],
)
def test_a_value_that_a_filter_does_not_know_is_400_and_names_it(http, arm, versions, below, asked):
    answer = http.get(f"{arm.workspace}/{below}", params=asked)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "UserError")


@pytest.mark.parametrize(
    ("below", "name"),
    [
        ("models/listed/versions", "feed"),
        ("models/listed/versions", "$tags"),
        ("jobs", "$top"),
        ("computes", "count"),
        ("onlineEndpoints", "computeType"),
    ],
)
def test_what_may_not_be_asked_of_a_list_is_refused_by_name(http, arm, versions, below, name):
    answer = http.get(f"{arm.workspace}/{below}", params={name: "1"})
    assert (answer.status_code, repr(name) in answer.json()["error"]["message"]) == (501, True)


def described() -> dict[str, set[str]]:
    """Return what Microsoft's description lets a client ask of each list that is played."""
    found = {}
    for client in ("arm_ml_service", "runhistory"):
        source = Path(importlib.import_module(f"{witness.BASE}.{client}").__file__).with_name("operations")
        source = (source / "_operations.py").read_text()
        for body in re.findall(
            r"^def build_\w+(?:_list|_list_by\w+|_get_child)_request\((.*?)(?=^def |^class )",
            source,
            re.M | re.S,
        ):
            path = re.search(r'_url = \(?\s*"(.+)"', body)[1].rpartition(
                "Microsoft.MachineLearningServices/"
            )[2]
            kind = re.sub("(workspaces/|onlineEndpoints/)?{[^}]+}/", "", path)
            kind = kind if "registries/" not in path else f"registries/{kind.removeprefix('registries/')}"
            if kind in queries.FILTERS:
                found[kind] = set(re.findall(r'_params\["(.+?)"\]', body)) - {"api-version"}
    return found


def test_all_that_the_description_lets_a_client_ask_is_done_or_known_not_to_be():
    ours = {
        kind: {"$skip", *filters} | NOT_PLAYED.get(kind, set()) for kind, filters in queries.FILTERS.items()
    }
    ours["models/versions"] -= {"stage"}  # which the SDK asks without a word of the description
    ours["runs/children"] -= {"$skip"}  # a token of the emulator's own, in an address that no client builds
    assert described() == ours


# pages


@pytest.fixture(scope="module")
def many(http, arm) -> list[str]:
    """The versions of a model that has more than a page of them, newest first."""
    wanted = [str(number) for number in range(2 * queries.LONGEST + 3)]
    for number in wanted:
        put(http, f"{arm.workspace}/models/many/versions/{number}", **VERSION_OF["models"])
    return wanted[::-1]


def test_the_sdk_follows_the_pages_to_the_end(client, many):
    assert [model.version for model in client.models.list("many")] == many


def test_a_page_leads_to_the_next_with_all_that_was_asked(http, arm, many):
    address, pages = f"{arm.workspace}/models/many/versions", []
    asked = {"$top": 80, "$orderBy": "createdtime asc", "api-version": "2024-04-01"}
    answer = http.get(address, params=asked).json()
    while link := answer.get("nextLink"):
        pages.append([found["name"] for found in answer["value"]])
        answer = http.get(link).json()
    pages.append([found["name"] for found in answer["value"]])
    oldest_first = many[::-1]
    assert pages == [oldest_first[:80], oldest_first[80:160], oldest_first[160:]]


def test_no_page_is_longer_than_the_longest(http, arm, many):
    answer = http.get(f"{arm.workspace}/models/many/versions", params={"$top": 10_000})
    assert names(answer) == many[: queries.LONGEST]


def test_what_is_deleted_and_made_meanwhile_moves_no_page(http, arm):
    address = f"{arm.workspace}/models/moving/versions"
    for number in range(6):
        put(http, f"{address}/{number}", **VERSION_OF["models"])
    first = http.get(address, params={"$top": 2})
    for number in (5, 4):
        http.delete(f"{address}/{number}")
    put(http, f"{address}/6", **VERSION_OF["models"])
    second = http.get(first.json()["nextLink"])
    assert (names(first), names(second)) == (["5", "4"], ["3", "2"])


def test_what_is_listed_last_has_no_next_page(http, arm, versions):
    assert "nextLink" not in http.get(versions, params={"$top": 2}).json()


def test_a_message_names_the_newest_of_many_and_counts_the_rest(http, arm, many):
    said = http.get(f"{arm.workspace}/models/many/versions/none").json()["error"]["message"]
    assert said.endswith(f"there is: {', '.join(many[:20][::-1])} and {len(many) - 20} more")


# older data folders, and long ones


def test_a_container_of_an_older_data_folder_which_lacks_todays_fields_is_listed(emulator_with):
    state = emulator_with().context.state
    with raw_client(dict(os.environ)) as http:
        put(http, f"{WORKSPACE_ID}/models/old/versions/1", **VERSION_OF["models"])
    kept = state.get(f"{WORKSPACE_ID}/models/old")
    state.put(kept["id"], {name: kept[name] for name in ("id", "name", "systemData")})
    (model,) = client_of().models.list()
    assert (model.name, model.latest_version) == ("old", "1")


def test_an_operation_is_forgotten_an_hour_after_its_end(emulator_with):
    context = emulator_with().context
    body = {"location": "eastus", "properties": {"authMode": "Key"}}
    with raw_client(context.environment()) as http:

        def made(name: str) -> str:
            told = http.put(f"{WORKSPACE_ID}/onlineEndpoints/{name}", json=body).headers[
                "azure-asyncoperation"
            ]
            while http.get(told).json()["status"] == "InProgress":
                time.sleep(0.02)
            return told

        first = made("one")
        identifier = first.partition("?")[0].removeprefix(context.origin)
        context.state.merge(identifier, endTime=resource.now(-3601))
        made("two")
        until = time.monotonic() + 10
        while http.get(first).status_code == 200:
            assert time.monotonic() < until
            time.sleep(0.02)
