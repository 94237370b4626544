"""Models, data, environments and components of the workspace, through the SDK."""

import pytest


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with two files."""
    made = tmp_path_factory.mktemp("asset")
    (made / "a.txt").write_text("a")
    (made / "below").mkdir()
    (made / "below" / "b.txt").write_text("b")
    return made


@pytest.fixture(scope="module")
def model(client, folder):
    from azure.ai.ml.entities import Model

    wanted = Model(name="kept", version="1", path=folder, type="custom_model", tags={"base": "none"})
    return client.models.create_or_update(wanted)


def test_a_model_comes_back_as_it_was_registered(client, model):
    found = client.models.get("kept", version="1")
    assert (found.version, found.type, found.tags) == ("1", "custom_model", {"base": "none"})


@pytest.mark.parametrize("name", ["Workspaces", "REGISTRIES"])
def test_a_name_keeps_its_capitals(http, arm, name):
    body = {"properties": {"image": "python:3.11"}}
    made = http.put(f"{arm.workspace}/environments/{name}/versions/1", json=body)
    assert made.json()["id"].endswith(f"/environments/{name}/versions/1")


def test_a_model_of_local_files_is_downloaded_whole(client, model, folder, tmp_path):
    client.models.download("kept", version="1", download_path=tmp_path)
    downloaded = {path.name: path.read_text() for path in tmp_path.rglob("*.txt")}
    assert downloaded == {"a.txt": "a", "b.txt": "b"}


def test_latest_is_the_newest_version_and_not_the_highest(client, folder):
    from azure.ai.ml.entities import Model

    for version in ("10", "9"):
        client.models.create_or_update(Model(name="dated", version=version, path=folder))
    assert client.models.get("dated", label="latest").version == "9"


def test_changing_an_old_version_changes_neither_the_latest_nor_the_next(client, folder, tmp_path):
    from azure.ai.ml.entities import Model

    made = [client.models.create_or_update(Model(name="retagged", path=folder)) for _ in range(2)]
    made[0].tags = {"seen": "yes"}
    client.models.create_or_update(made[0])
    assert client.models.get("retagged", label="latest").version == "2"
    (tmp_path / "other.txt").write_text("other")
    assert client.models.create_or_update(Model(name="retagged", path=tmp_path)).version == "3"


def test_the_next_version_follows_the_highest_and_not_the_newest(client, folder):
    from azure.ai.ml.entities import Model

    for version in ("10", "9", "beta"):
        client.models.create_or_update(Model(name="mixed", version=version, path=folder))
    assert client.models.create_or_update(Model(name="mixed", path=folder)).version == "11"


def test_a_deleted_version_is_neither_the_latest_nor_counted(http, arm):
    model, body = f"{arm.workspace}/models/shrinking", {"properties": {"modelUri": "azureml://x"}}
    for version in ("1", "2"):
        http.put(f"{model}/versions/{version}", json=body)
    assert http.delete(f"{model}/versions/2").status_code == 200
    left = http.get(model).json()["properties"]
    assert (left["latestVersion"], left["nextVersion"]) == ("1", "2")


def test_an_asset_whose_versions_are_all_deleted_is_not_found(http, arm):
    model, body = f"{arm.workspace}/models/fleeting", {"properties": {"modelUri": "azureml://x"}}
    http.put(f"{model}/versions/1", json=body)
    http.delete(f"{model}/versions/1")
    assert http.get(model).status_code == 404
    listed = http.get(f"{arm.workspace}/models").json()["value"]
    assert "fleeting" not in [found["name"] for found in listed]


def test_the_same_version_registered_again_changes_its_tags(client, model):
    found = client.models.get("kept", version="1")
    found.tags = {"base": "none", "job": "j"}
    client.models.create_or_update(found)
    assert client.models.get("kept", version="1").tags == {"base": "none", "job": "j"}


def test_the_path_of_a_version_is_fixed(client, model, tmp_path):
    from azure.ai.ml.entities import Model

    (tmp_path / "other.txt").write_text("other")
    with pytest.raises(Exception, match="Asset paths cannot be updated"):
        client.models.create_or_update(Model(name="kept", version="1", path=tmp_path))


def test_an_unknown_version_is_answered_with_the_versions_there_are(client, model):
    from azure.core.exceptions import ResourceNotFoundError

    with pytest.raises(ResourceNotFoundError, match="no version '7' of the model 'kept'; there is: 1"):
        client.models.get("kept", version="7")


def test_an_unknown_model_is_answered_with_the_models_there_are(client, model):
    from azure.core.exceptions import HttpResponseError

    with pytest.raises(HttpResponseError, match=r"no model named 'nope' in the workspace; there is: .*kept"):
        client.models.get("nope", label="latest")


def test_models_and_their_versions_are_listed(client, model):
    assert "kept" in [found.name for found in client.models.list()]
    assert [found.version for found in client.models.list(name="kept")] == ["1"]


def test_an_archived_version_is_not_listed_until_asked(client, folder):
    from azure.ai.ml.constants import ListViewType
    from azure.ai.ml.entities import Model

    client.models.create_or_update(Model(name="shelved", version="1", path=folder))
    client.models.archive("shelved", version="1")
    everything = client.models.list("shelved", list_view_type=ListViewType.ALL)
    assert [*client.models.list("shelved")] == [] != [*everything]


def test_a_model_of_a_job_that_is_not_there_is_refused(client):
    from azure.ai.ml.entities import Model

    with pytest.raises(Exception, match="no job named 'ghost'"):
        client.models.create_or_update(Model(name="of-a-ghost", path="azureml://jobs/ghost/outputs/x"))


@pytest.mark.parametrize("name", ["-dash", "sp ace", "a" * 256])
def test_an_illegal_name_is_refused(http, arm, name):
    answer = http.put(f"{arm.workspace}/models/{name}/versions/1", json={"properties": {}})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "UserError")


@pytest.mark.parametrize("version", ["²", "-1", "sp ace", "9" * 256])
def test_an_illegal_version_is_refused_and_not_kept(http, arm, version):
    model = f"{arm.workspace}/models/unversioned"
    answer = http.put(f"{model}/versions/{version}", json={"properties": {}})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "UserError")
    assert http.get(model).status_code == 404


@pytest.mark.parametrize(
    "uris",
    [{"pathless": None}, {"own-path": "own-path"}, {"first": "second", "second": "first"}],
    ids=["no path", "its own path", "a circle"],
)
def test_a_model_that_leads_to_no_files_is_not_deployed(http, arm, uris):
    for name, of in uris.items():
        where = {"modelUri": f"{arm.workspace}/models/{of}/versions/1"} if of else {}
        properties = {"modelType": "mlflow_model", **where}
        http.put(f"{arm.workspace}/models/{name}/versions/1", json={"properties": properties})
    http.put(
        f"{arm.workspace}/onlineEndpoints/fileless",
        json={"location": "eastus", "properties": {"authMode": "Key"}},
    )
    wanted = {"model": f"{arm.workspace}/models/{name}/versions/1", "instanceType": "Standard_DS3_v2"}
    path = f"{arm.workspace}/onlineEndpoints/fileless/deployments/demo"
    answer = http.put(path, json={"location": "eastus", "properties": wanted})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "UserError")
    assert "has no files of its own" in answer.json()["error"]["message"]


def test_a_kind_is_read_in_any_capitals(http, arm):
    http.put(
        f"{arm.workspace}/onlineEndpoints/shouted",
        json={"location": "eastus", "properties": {"authMode": "Key"}},
    )
    wanted = {"model": f"{arm.workspace}/MODELS/ghost/versions/1", "instanceType": "Standard_DS3_v2"}
    path = f"{arm.workspace}/onlineEndpoints/shouted/deployments/demo"
    answer = http.put(path, json={"location": "eastus", "properties": wanted})
    assert answer.json()["error"]["details"][0]["code"] == "ModelNotFound"


@pytest.mark.parametrize("kind", ["data", "models"])
def test_a_file_keeps_its_name_and_its_path_names_the_workspace_for_other_programs(client, folder, kind):
    from azure.ai.ml.entities import Data, Model

    asked = {"name": "letters", "version": "1", "path": folder / "a.txt"}
    made = getattr(client, kind).create_or_update(
        Data(**asked, type="uri_file") if kind == "data" else Model(**asked)
    )
    assert made.path.startswith(f"azureml://subscriptions/{client.subscription_id}/resourcegroups/")
    assert "/workspaces/local/datastores/workspaceblobstore/paths/LocalUpload/" in made.path
    assert made.path.endswith("/a.txt")


def test_a_file_that_was_uploaded_before_is_not_uploaded_again(client, folder):
    from azure.ai.ml.entities import Data

    made = [
        client.data.create_or_update(Data(name="twice", version=str(n), path=folder, type="uri_folder"))
        for n in (1, 2)
    ]
    assert made[0].path == made[1].path


def test_an_environment_comes_back_as_it_was_made(client):
    from azure.ai.ml.entities import Environment

    client.environments.create_or_update(Environment(name="plain", version="1", image="python:3.11"))
    assert client.environments.get("plain", version="1").image == "python:3.11"


def test_a_component_comes_back_with_its_inputs(client):
    from azure.ai.ml import Input, command

    step = command(
        name="adder",
        version="1",
        command="echo ${{inputs.a}}",
        environment="plain@latest",
        inputs={"a": Input(type="integer", default=1)},
    )
    client.components.create_or_update(step.component)
    assert client.components.get("adder", label="latest").inputs["a"].default == 1
