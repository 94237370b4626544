"""MLflow behind the workspace's tracking address: azureml-mlflow's plugin, and MLflow's own page."""

import pytest

from local_azureml.cloud import SUBSCRIPTION


@pytest.fixture(scope="module")
def mlflow(client):
    """MLflow, pointed at the workspace the way the SDK's users do it."""
    import mlflow

    workspace = client.workspaces.get(client.workspace_name)
    mlflow.set_tracking_uri(workspace.mlflow_tracking_uri)
    return mlflow


@pytest.fixture(scope="module")
def run(mlflow):
    """A run with a parameter, a tag and a metric of three steps."""
    mlflow.set_experiment("by-hand")
    with mlflow.start_run(run_name="first") as started:
        mlflow.log_param("epochs", 3)
        mlflow.set_tag("colour", "blue")
        for step, loss in enumerate([3.0, 2.0, 1.0]):
            mlflow.log_metric("loss", loss, step=step)
    return started.info


def test_the_tracking_address_is_the_plugins(mlflow):
    assert mlflow.get_tracking_uri().startswith("azureml://localhost:")


def test_a_run_comes_back_with_what_was_logged(mlflow, run):
    data = mlflow.get_run(run.run_id).data
    assert (data.params, data.tags["colour"], data.metrics) == ({"epochs": "3"}, "blue", {"loss": 1.0})


def test_a_metric_keeps_its_steps(mlflow, run):
    history = mlflow.MlflowClient().get_metric_history(run.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(0, 3.0), (1, 2.0), (2, 1.0)]


def test_runs_are_found_by_experiment(mlflow, run):
    found = mlflow.search_runs(experiment_names=["by-hand"])
    assert found["run_id"].tolist() == [run.run_id]


def test_a_jobs_runs_are_found_by_the_root_run(mlflow, trained):
    found = mlflow.search_runs(
        experiment_names=["fine-tune"], filter_string=f"tags.mlflow.rootRunId = '{trained.name}'"
    )
    assert len(found) == 7  # the pipeline, the component's node and its five steps


def test_the_metrics_of_the_training_are_on_the_root_run_too(mlflow, trained):
    metrics = mlflow.get_run(trained.name).data.metrics
    assert {"loss", "learning_rate", "epoch", "eval_loss", "train_loss"} <= metrics.keys()


def test_the_losses_have_the_trainers_global_steps(mlflow, trained):
    history = mlflow.MlflowClient().get_metric_history(trained.name, "loss")
    assert [point.step for point in history] == [1, 2]


def test_a_completed_job_is_a_finished_run(mlflow, trained):
    assert mlflow.get_run(trained.name).info.status == "FINISHED"


def test_the_studio_link_of_a_job_leads_to_mlflows_page(anonymous, trained):
    answer = anonymous.get(trained.studio_url, follow_redirects=True)
    assert "<title>MLflow</title>" in answer.text and answer.url.fragment.endswith(f"/runs/{trained.name}")


def test_the_studio_link_of_a_job_holds_no_subscription(trained):
    assert SUBSCRIPTION not in trained.studio_url


def test_there_is_no_page_of_a_job_that_is_not_there(anonymous):
    assert anonymous.get("/runs/nobodys").status_code == 404


def test_the_page_reads_without_a_token(anonymous, arm, trained):
    search = f"/mlflow/v2.0{arm.workspace}/ajax-api/2.0/mlflow/experiments/search"
    assert anonymous.post(search, json={"max_results": 5}).status_code == 200


def test_the_page_of_a_run_reads_its_metrics_without_a_token(anonymous, arm, trained):
    query = """query GetRun($data: MlflowGetRunInput!)
        { mlflowGetRun(input: $data) { run { data { metrics { key } } } } }"""
    asked = {"operationName": "GetRun", "query": query, "variables": {"data": {"runId": trained.name}}}
    answer = anonymous.post(f"/mlflow/v2.0{arm.workspace}/graphql", json=asked)
    metrics = answer.json()["data"]["mlflowGetRun"]["run"]["data"]["metrics"]
    assert {"loss", "eval_loss"} <= {metric["key"] for metric in metrics}


@pytest.mark.parametrize(
    "path",
    ["api/2.0/mlflow/runs/search", "ajax-api/2.0/mlflow/runs/create", "ajax-api/2.0/mlflow/runs/delete"],
)
def test_nothing_is_written_without_a_token(anonymous, arm, path):
    assert anonymous.post(f"/mlflow/v2.0{arm.workspace}/{path}", json={}).status_code == 401
