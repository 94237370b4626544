"""Fine-tuning jobs, as the SDK's `create_finetuning_job` submits them."""

import json

import pytest
from azure.core.exceptions import HttpResponseError
from clients import A100, QUESTION, cluster, deployment, end_of, endpoint

pytestmark = pytest.mark.gpu
HYPERPARAMETERS = {"max_steps": "2", "logging_steps": "1", "learning_rate": "0.00002"}
SIZES = [A100, "Standard_E4s_v3"]


@pytest.fixture(scope="module")
def order(client, registry_client, rows):
    """A function that makes a fine-tuning job, not yet submitted."""
    from azure.ai.ml.entities import Data
    from azure.ai.ml.finetuning import create_finetuning_job

    data = client.data.create_or_update(Data(path=rows, type="uri_file", name="chats", version="1")).id
    model = registry_client.models.get("Phi-3-mini-4k-instruct", label="latest").id

    def make(name: str, task: str = "ChatCompletion", **options):
        options = {"hyperparameters": HYPERPARAMETERS, "instance_types": SIZES, **options}
        given = {"training_data": data, "validation_data": data, "output_model_name_prefix": name}
        return create_finetuning_job(model=model, task=task, name=name, **given, **options)

    return make


@pytest.fixture(scope="module")
def tuned(client, order):
    job = client.jobs.create_or_update(order("tuned", tags={"for": "a test"}))
    return end_of(client, job.name)


def test_a_fine_tuning_job_registers_the_model_that_it_trained(client, tuned):
    model = client.models.get(tuned.outputs["registered_model"].name, version="1")
    assert (tuned.status, tuned.tags, model.name, model.type) == (
        "Completed",
        {"for": "a test"},
        "tuned",
        "mlflow_model",
    )


def test_its_losses_are_in_mlflow(client, tuned):
    import mlflow

    tracking = mlflow.MlflowClient(client.workspaces.get(client.workspace_name).mlflow_tracking_uri)
    assert [point.step for point in tracking.get_metric_history(tuned.name, "loss")] == [1, 2]


def test_the_model_answers_when_it_is_deployed(client, tuned, tmp_path):
    name = "tuned-answers"
    client.online_endpoints.begin_create_or_update(endpoint(name)).result()
    model = client.models.get("tuned", version="1")
    client.online_deployments.begin_create_or_update(deployment(name, "demo", model=model.id)).result()
    question = tmp_path / "question.json"
    question.write_text(json.dumps(QUESTION))
    answer = client.online_endpoints.invoke(name, deployment_name="demo", request_file=question)
    client.online_endpoints.begin_delete(name).result()
    assert list(json.loads(answer)[0]) == ["0"]


def test_a_fine_tuning_job_trains_on_a_cluster(client, order):
    client.compute.begin_create_or_update(cluster("ft")).result()
    compute = client.compute.get("ft").id
    job = client.jobs.create_or_update(order("on-a-cluster", compute=compute, instance_types=None))
    client.jobs.begin_cancel(job.name).result()
    assert end_of(client, job.name).status == "Canceled"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"hyperparameters": {"n_epochs": "3"}}, "there is no hyperparameter 'n_epochs'; there is: "),
        ({"hyperparameters": {"max_steps": "many"}}, "max_steps is 'many'; it has to be an integer"),
        ({"hyperparameters": {"lora_r": "0"}}, "lora_r is 0; it has to be at least 1"),
        ({"hyperparameters": {"apply_ort": "true"}}, "ONNX Runtime training is not part of the emulator"),
        ({"hyperparameters": {"train_file_path": "x"}}, "there is no hyperparameter 'train_file_path'"),
        ({"task": "TextCompletion"}, "taskType .* is not part of the emulator"),
        ({"instance_types": ["Standard_None"]}, "the size 'Standard_None' is not available"),
        ({"instance_types": None}, "needs a computeId, or the sizes of machines"),
    ],
)
def test_what_a_fine_tuning_job_cannot_have_is_refused_by_name(client, order, options, words):
    with pytest.raises(HttpResponseError, match=words):
        client.jobs.create_or_update(order("refused", **options))


def test_fine_tuning_of_azure_openai_is_not_played(http, arm):
    names = {"modelProvider": "AzureOpenAI", "taskType": "ChatCompletion"}
    body = {
        "properties": {
            "jobType": "FineTuning",
            "fineTuningDetails": {key: {} for key in ("model", "trainingData")} | names,
            "outputs": {},
        }
    }
    assert http.put(f"{arm.workspace}/jobs/openai", json=body).status_code == 501
