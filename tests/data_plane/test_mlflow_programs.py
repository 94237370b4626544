"""MLflow in a program of one's own, outside jobs and in them: artifacts, models, the registry."""

import re
import tempfile
import textwrap
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from clients import ended, make_command

TRAIN = """
    import mlflow
    from sklearn.linear_model import LogisticRegression

    mlflow.sklearn.autolog(log_models=False)
    with mlflow.start_run() as run:
        model = LogisticRegression(C=3.0).fit([[0.0, 1.0], [1.0, 0.0]] * 9, [0, 1] * 9)
        mlflow.sklearn.save_model(model, "saved", pip_requirements=["scikit-learn"])
        mlflow.log_artifacts("saved", "model")
    mlflow.register_model(f"runs:/{run.info.run_id}/model", "autologged")
    mlflow.sklearn.log_model(model, name="model")
"""


@pytest.fixture(scope="module")
def mlflow(client, tmp_path_factory):
    """MLflow, pointed at the workspace, with a place for the files that it and its plug-in leave."""
    import mlflow

    mlflow.set_tracking_uri(client.workspaces.get(client.workspace_name).mlflow_tracking_uri)
    mlflow.set_experiment("programs")
    warnings.filterwarnings("ignore", module="mlflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("temporary")))
        yield mlflow


@pytest.fixture(scope="module")
def run(mlflow, tmp_path_factory):
    """A run with a metric, three artifacts and a model of scikit-learn's."""
    from sklearn.linear_model import LogisticRegression

    saved = tmp_path_factory.mktemp("saved") / "model"
    file = tmp_path_factory.mktemp("logged") / "table.csv"
    file.write_text("a,b\n1,2\n")
    with mlflow.start_run() as started, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow.log_metric("loss", 1.5)
        mlflow.log_artifact(file, "deep/er")
        mlflow.log_text("Grüße", "notes.txt")
        mlflow.log_dict({"a": 1}, "deep/a.json")
        model = LogisticRegression().fit([[0.0, 1.0], [1.0, 0.0]] * 9, [0, 1] * 9)
        mlflow.sklearn.save_model(model, saved, pip_requirements=["scikit-learn"])
        mlflow.log_artifacts(saved, "model")
    return started.info


@pytest.fixture(scope="module")
def registered(mlflow, run):
    """The model of that run, registered by MLflow."""
    mlflow.register_model(f"runs:/{run.run_id}/model", "by-mlflow")
    return mlflow.MlflowClient().get_model_version("by-mlflow", "1")


def test_the_artifacts_of_a_run_are_listed(mlflow, run):
    def names(address: str) -> list[str]:
        return sorted(Path(each.path).name for each in mlflow.artifacts.list_artifacts(artifact_uri=address))

    assert names(run.artifact_uri) == ["deep", "model", "notes.txt"]
    assert names(f"{run.artifact_uri}/deep") == ["a.json", "er"]


def test_the_artifacts_of_a_run_are_downloaded(mlflow, run, tmp_path):
    mlflow.artifacts.download_artifacts(run_id=run.run_id, dst_path=tmp_path)
    assert (tmp_path / "deep/er/table.csv").read_text() == "a,b\n1,2\n"
    assert mlflow.artifacts.load_text(f"runs:/{run.run_id}/notes.txt") == "Grüße"


def test_the_artifacts_of_a_run_lie_in_the_artifact_store(run, emulator):
    store = emulator.folder / "blobs/azureml/ExperimentRun" / f"dcid.{run.run_id}"
    assert sorted(place.name for place in store.iterdir()) == ["deep", "model", "notes.txt"]


def test_a_logged_model_is_loaded_and_answers(mlflow, run):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = mlflow.pyfunc.load_model(f"runs:/{run.run_id}/model")
    assert model.predict([[0.0, 1.0]]).tolist() == [0]


def test_a_model_that_mlflow_registered_is_the_workspaces(client, run, registered, tmp_path):
    found = client.models.get("by-mlflow", label="latest")
    assert (found.version, found.type) == ("1", "mlflow_model")
    assert f"ExperimentRun/dcid.{run.run_id}/model" in found.path
    assert "by-mlflow" in [model.name for model in client.models.list()]
    client.models.download("by-mlflow", "1", download_path=tmp_path)
    assert [file.name for file in tmp_path.rglob("MLmodel")] == ["MLmodel"]


def test_a_model_that_the_sdk_registered_is_mlflows(client, mlflow, run, tmp_path):
    from azure.ai.ml.entities import Model

    mlflow.artifacts.download_artifacts(run_id=run.run_id, artifact_path="model", dst_path=tmp_path)
    uploaded = Model(name="by-sdk", path=tmp_path / "model", type="mlflow_model", tags={"a": "b"})
    client.models.create_or_update(uploaded)
    found = mlflow.MlflowClient().get_model_version("by-sdk", "1")
    assert (found.version, found.status, found.tags) == ("1", "READY", {"a": "b"})
    assert mlflow.sklearn.load_model("models:/by-sdk/1").predict([[1.0, 0.0]]).tolist() == [1]


def test_a_folder_is_registered_from_where_it_lies(client, mlflow, run, tmp_path, monkeypatch):
    mlflow.artifacts.download_artifacts(run_id=run.run_id, artifact_path="model", dst_path=tmp_path)
    monkeypatch.chdir(tmp_path)
    made = mlflow.register_model("file://model", "from-a-folder")
    assert (str(made.version), client.models.get("from-a-folder", "1").type) == ("1", "mlflow_model")
    assert mlflow.sklearn.load_model("models:/from-a-folder/1").predict([[1.0, 0.0]]).tolist() == [1]


def test_a_web_service_outside_of_an_endpoint_is_refused_by_name(mlflow, registered, tmp_path):
    from mlflow.deployments import get_deploy_client

    (tmp_path / "service.json").write_text('{"computeType": "aci"}')
    config = {"deploy-config-file": str(tmp_path / "service.json")}
    service = get_deploy_client(mlflow.get_tracking_uri())
    with pytest.raises(mlflow.MlflowException) as raised:
        service.create_deployment("service", "models:/by-mlflow/1", config=config)
    assert "/services is not part of the emulator" in str(raised.value.__cause__)


@pytest.mark.parametrize("path", ["../../canary.txt", "/canary.txt", "a//b", ""])
def test_a_file_is_uploaded_to_its_own_place_alone(http, arm, path):
    address = f"/artifact/v2.0{arm.workspace}/artifacts/LocalUpload/folder/batch/metadata"
    assert http.post(address, json={"paths": [{"path": path}]}).status_code == 400


@pytest.fixture(scope="module")
def trained_by_job(client, mlflow, tmp_path_factory):
    """A job that saved a model, and then failed to log it."""
    code = tmp_path_factory.mktemp("code")
    (code / "train.py").write_text(textwrap.dedent(TRAIN))
    return ended(client, make_command("python train.py", code=code))


def test_a_job_autologs_and_registers_what_it_saved_but_logs_no_model(
    client, mlflow, trained_by_job, tmp_path
):
    """As on Azure, where log_model has failed since MLflow 3.0."""
    job, data = trained_by_job, mlflow.get_run(trained_by_job.name).data
    assert (job.status, data.params["C"]) == ("Failed", "3.0")
    assert data.metrics["training_accuracy_score"] == 1.0
    found = client.models.get("autologged", "1")
    assert (found.type, job.name in found.path) == ("mlflow_model", True)
    client.jobs.download(job.name, download_path=tmp_path)
    logged = "".join(file.read_text() for file in tmp_path.rglob("*.txt"))
    assert "/api/2.0/mlflow/logged-models failed with error code 404" in logged


@pytest.mark.parametrize("path", ["runs:/{}/model", "azureml://jobs/{}/outputs/artifacts/paths/model/"])
def test_a_model_is_registered_by_the_address_of_its_run(client, mlflow, trained_by_job, path):
    from azure.ai.ml.entities import Model

    name = f"of-a-{path.partition(':')[0]}"
    asked = Model(name=name, path=path.format(trained_by_job.name), type="mlflow_model")
    client.models.create_or_update(asked)
    assert "sklearn" in mlflow.artifacts.load_text(f"models:/{name}/1/MLmodel")


def test_versions_count_on_whoever_registers(client, mlflow, run, registered):
    from azure.ai.ml.entities import Model

    address = f"runs:/{run.run_id}/model"
    mlflow.register_model(address, "counted-together")
    second = client.models.create_or_update(Model(name="counted-together", path=address, type="mlflow_model"))
    third = mlflow.register_model(address, "counted-together")
    versions = mlflow.MlflowClient().search_model_versions("name = 'counted-together'")
    assert (second.version, str(third.version)) == ("2", "3")
    assert [str(version.version) for version in versions] == ["3", "2", "1"]


def test_tags_aliases_and_stages_of_mlflow_are_kept(client, mlflow, registered):
    registry = mlflow.MlflowClient()
    registry.set_model_version_tag("by-mlflow", "1", "colour", "blue")
    registry.set_registered_model_alias("by-mlflow", "champion", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        registry.transition_model_version_stage("by-mlflow", "1", "Production")
    found = registry.get_model_version_by_alias("by-mlflow", "champion")
    assert (str(found.version), found.tags, found.current_stage) == ("1", {"colour": "blue"}, "Production")
    assert client.models.get("by-mlflow", "1").tags == {"colour": "blue"}


@pytest.mark.parametrize("source", ["by-mlflow@one", "by-mlflow/latest", "by-mlflow/1"])
def test_a_version_is_made_of_another(http, arm, mlflow, registered, source):
    mlflow.MlflowClient().set_registered_model_alias("by-mlflow", "one", "1")
    api = f"/mlflow/v2.0{arm.workspace}/api/2.0/mlflow"
    http.post(f"{api}/registered-models/create", json={"name": "of-another"})
    body = {"name": "of-another", "source": f"models:/{source}"}
    made = http.post(f"{api}/model-versions/create", json=body).json()["model_version"]["source"]
    wanted = registered.source.partition("mlflow-artifacts/")[2]
    assert made.partition("mlflow-artifacts/")[2] == wanted != ""


@pytest.mark.parametrize("source", ["by-mlflow@nobody", "by-mlflow/9", "by-mlflow", "", "a/b/c"])
def test_a_version_of_none_that_is_there_is_refused(http, arm, registered, source):
    body = {"name": "by-mlflow", "source": f"models:/{source}"}
    told = http.post(f"/mlflow/v2.0{arm.workspace}/api/2.0/mlflow/model-versions/create", json=body)
    assert told.status_code in (400, 404) and told.json()["error_code"] != "INTERNAL_ERROR"


def test_a_model_without_versions_is_no_stumbling_block(client, mlflow):
    mlflow.MlflowClient().create_registered_model("empty", description="nothing yet")
    assert mlflow.MlflowClient().get_registered_model("empty").description == "nothing yet"
    assert "empty" in [model.name for model in client.models.list()]


def test_a_model_that_is_not_there_is_said_in_mlflows_words(mlflow):
    with pytest.raises(mlflow.exceptions.MlflowException, match="no model named 'ghost'"):
        mlflow.MlflowClient().get_registered_model("ghost")


def test_two_programs_that_write_one_artifact_lose_nothing(mlflow, run):
    client = mlflow.MlflowClient()
    texts = [letter * 300_000 for letter in "abcd"]

    def write(text: str) -> None:
        for _ in range(3):
            client.log_text(run.run_id, text, "raced/one.txt")

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(write, texts))
    assert mlflow.artifacts.load_text(f"runs:/{run.run_id}/raced/one.txt") in texts


@pytest.mark.parametrize("change", [lambda sig: "", lambda sig: sig[:-1] + "x", lambda sig: "x" * len(sig)])
def test_artifacts_are_closed_to_other_signatures(mlflow, run, anonymous, change):
    address = mlflow.get_run(run.run_id).info.artifact_uri
    user, _, signature = re.fullmatch("https://(.+)@.*", address)[1].rpartition(":")
    path = address.partition("@")[2].partition("/")[2]
    other = change(signature)
    refused = anonymous.get(f"/{path}/notes.txt", auth=(user.replace("%3A", ":"), other))
    allowed = anonymous.get(f"/{path}/notes.txt", auth=(user.replace("%3A", ":"), signature))
    assert (refused.status_code, allowed.status_code) == (403, 200)


def test_a_signature_of_artifacts_opens_nothing_else(mlflow, run, anonymous, arm):
    address = mlflow.get_run(run.run_id).info.artifact_uri
    user, _, signature = re.fullmatch("https://(.+)@.*", address)[1].rpartition(":")
    auth = (user.replace("%3A", ":"), signature)
    prefix = address.partition("@")[2].partition("/")[2].partition("/api/")[0]
    served = f"/{prefix}/api/2.0/mlflow-artifacts/artifacts"
    paths = [f"/{prefix}/api/2.0/mlflow/runs/get?run_id={run.run_id}", arm.workspace]
    paths += [f"{served}/azureml-blobstore/x", f"{served}?path=azureml-blobstore", served]
    paths += [f"{served}?path=azureml-blobstore&path=azureml"]
    assert {anonymous.get(path, auth=auth).status_code for path in paths} <= {401, 403}


def test_a_signature_is_told_no_other_and_no_longer_one(mlflow, run, anonymous, http):
    address = mlflow.get_run(run.run_id).info.artifact_uri
    user, _, signature = re.fullmatch("https://(.+)@.*", address)[1].rpartition(":")
    file = f"/{address.partition('@')[2].partition('/')[2]}/told/MLmodel"
    lines = ["a: mlflow-artifacts:/azureml/x", "b: mlflow-artifacts:/azureml-blobstore/y"]
    lines += ["c: https://example.org/mlflow-artifacts:/azureml/z"]
    assert http.put(file, content="\n".join(lines)).status_code == 200
    told = anonymous.get(file, auth=(user.replace("%3A", ":"), signature)).text.split("\n")
    assert f"//{user}:{signature}@" in told[0] and told[1:] == lines[1:]
    assert http.get(file).text.count("@localhost") == 2


def test_a_file_that_is_held_to_be_read_has_a_limit(mlflow, run, http):
    path = mlflow.get_run(run.run_id).info.artifact_uri.partition("@")[2].partition("/")[2]
    assert http.put(f"/{path}/long/MLmodel", content=bytes(17 * 1024 * 1024)).status_code == 413
