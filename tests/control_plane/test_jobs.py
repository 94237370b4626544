"""Command jobs and pipelines: submitted, streamed, cancelled, listed, downloaded."""

import time

import pytest
from clients import end_of, make_job, reason
from conftest import PLAIN_JOB, fine_tune

SCRIPT = """\
import pathlib, sys
source, target, times = sys.argv[1:]
print("hello from the script")
pathlib.Path(target, "made.txt").write_text(pathlib.Path(source).read_text() * int(times))
"""


@pytest.fixture(scope="module")
def cluster(client) -> str:
    from azure.ai.ml.entities import AmlCompute

    wanted = AmlCompute(name="jobs", size="Standard_DS3_v2", max_instances=1, idle_time_before_scale_down=1)
    return client.compute.begin_create_or_update(wanted).result().name


@pytest.fixture(scope="module")
def doubled(client, cluster, tmp_path_factory):
    """A job that ran a script of its own on a file, and has ended."""
    from azure.ai.ml import Input, Output

    code = tmp_path_factory.mktemp("code")
    (code / "script.py").write_text(SCRIPT)
    (code / "word.txt").write_text("ab")
    job = make_job(
        cluster,
        "python script.py ${{inputs.source}} ${{outputs.target}} ${{inputs.times}}",
        code=code,
        display_name="double a word",
        tags={"run": "7"},
        inputs={"source": Input(type="uri_file", path=code / "word.txt"), "times": 2},
        outputs={"target": Output(type="uri_folder")},
    )
    return end_of(client, client.jobs.create_or_update(job).name)


def test_a_command_runs_on_its_inputs_and_fills_its_outputs(client, doubled, tmp_path):
    client.jobs.download(doubled.name, download_path=tmp_path, output_name="target")
    (made,) = tmp_path.rglob("made.txt")
    assert (doubled.status, made.read_text()) == ("Completed", "abab")


def test_the_logs_of_a_job_are_downloaded(client, doubled, tmp_path):
    client.jobs.download(doubled.name, download_path=tmp_path)
    assert "hello from the script" in next(tmp_path.rglob("std_log.txt")).read_text()


def test_a_job_has_its_logs_and_children_by_its_name_in_any_capitals(http, arm, trained, doubled):
    run = f"/history/v1.0{arm.workspace}/runs"
    logs = http.get(f"{run}/{doubled.name.upper()}/details").json()["logFiles"]
    children = http.get(f"{run}/{trained.name.upper()}/children").json()["value"]
    assert (list(logs), [child["parentRunId"] for child in children]) == (
        ["user_logs/std_log.txt"],
        [trained.name],
    )


def test_a_job_keeps_its_names_and_tags(client, doubled):
    found = client.jobs.get(doubled.name)
    shown = (found.display_name, found.experiment_name, found.tags)
    assert shown == ("double a word", "commands", {"run": "7"})


def test_a_model_is_registered_from_what_a_job_wrote(client, doubled, tmp_path):
    from azure.ai.ml.entities import Model

    address = f"azureml://jobs/{doubled.name}/outputs/target"
    made = client.models.create_or_update(Model(name="of-a-job", path=address, type="custom_model"))
    client.models.download(made.name, made.version, download_path=tmp_path)
    assert next(tmp_path.rglob("made.txt")).read_text() == "abab"


def test_a_model_of_an_output_that_the_job_does_not_have_is_refused(client, doubled):
    from azure.ai.ml.entities import Model

    with pytest.raises(Exception, match=r"has no output 'other'; it has: .*target"):
        path = f"azureml://jobs/{doubled.name}/outputs/other"
        client.models.create_or_update(Model(name="of-a-job-2", path=path))


def test_a_command_that_fails_ends_the_job_with_its_exit_status(client, cluster):
    job = make_job(cluster, "echo before; exit 7")
    assert "the command ended with exit status 7" in reason(client, job)


def test_a_job_is_cancelled_by_its_name_in_any_capitals(client, http, arm, cluster):
    """The address of the operation is 202 until then."""
    job = client.jobs.create_or_update(make_job(cluster, "sleep 600", name="Slow"))
    answer = http.post(f"{arm.workspace}/jobs/sLOW/cancel")
    states = [http.get(answer.headers["location"]).status_code]
    while http.get(answer.headers["azure-asyncoperation"]).json()["status"] == "InProgress":
        time.sleep(0.02)
    states.append(http.get(answer.headers["location"]).status_code)
    assert (client.jobs.get(job.name).status, states) == ("Canceled", [202, 204])


def test_a_job_on_a_cluster_that_is_not_there_is_refused(client, cluster):
    with pytest.raises(Exception, match=f"Unknown compute target 'nowhere'; there is: .*{cluster}"):
        client.jobs.create_or_update(make_job("nowhere", "true"))


def test_more_nodes_than_the_cluster_has_fail_the_job(client, cluster):
    job = make_job(cluster, "true", instance_count=3)
    assert "3 nodes asked for; cluster 'jobs' has at most 1" in reason(client, job)


def test_a_job_that_is_not_there_is_not_found(client):
    from azure.core.exceptions import ResourceNotFoundError

    with pytest.raises(ResourceNotFoundError, match="no job named 'ghost'"):
        client.jobs.get("ghost")


def test_the_name_of_a_deleted_job_stays_taken(client, cluster):
    from azure.core.exceptions import ResourceExistsError

    job = client.jobs.create_or_update(make_job(cluster, "true", name="once"))
    end_of(client, job.name)
    client.jobs.begin_delete(job.name).result()
    with pytest.raises(ResourceExistsError, match="'once' was the name of a job that is deleted"):
        client.jobs.create_or_update(make_job(cluster, "true", name="once"))
    assert job.name not in [found.name for found in client.jobs.list()]


def test_other_kinds_of_jobs_are_not_played(http, arm):
    answer = http.put(f"{arm.workspace}/jobs/sparked", json={"properties": {"jobType": "Spark"}})
    assert (answer.status_code, answer.json()["error"]["message"]) == (
        501,
        "a job of the type Spark is not part of the emulator",
    )


# the fine-tuning pipeline


def test_the_fine_tuning_pipeline_completes_and_its_five_steps_with_it(client, trained):
    (node,) = client.jobs.list(parent_job_name=trained.name)
    steps = {step.display_name: step.status for step in client.jobs.list(parent_job_name=node.name)}
    assert (trained.status, steps) == (
        "Completed",
        {
            "ft_nlp_common_validation": "Completed",
            "chat_completion_model_import": "Completed",
            "chat_completion_datapreprocess": "Completed",
            "chat_completion_finetune": "Completed",
            "ft_nlp_model_converter": "Completed",
        },
    )


def test_the_runs_of_a_fine_tuning_are_found_by_the_root_run_which_has_its_losses_too(client, trained):
    import mlflow

    tracking = mlflow.MlflowClient(client.workspaces.get(client.workspace_name).mlflow_tracking_uri)
    run = tracking.get_run(trained.name)
    below = tracking.search_runs([run.info.experiment_id], f"tags.mlflow.rootRunId = '{trained.name}'")
    assert (run.info.status, len(below)) == ("FINISHED", 7)  # the pipeline, its node and the five steps
    assert {"loss", "learning_rate", "epoch", "eval_loss", "train_loss"} <= run.data.metrics.keys()
    assert [point.step for point in tracking.get_metric_history(trained.name, "loss")] == [1, 2]


def test_the_stream_shows_the_steps_and_the_losses(fine_tuning):
    lines = fine_tuning[1].splitlines()
    assert any("Submitting chat_completion_finetune" in line for line in lines)
    assert any("loss" in line for line in lines)


def test_the_trained_model_is_an_mlflow_folder(client, trained, tmp_path):
    client.jobs.download(trained.name, download_path=tmp_path, output_name="trained_model")
    assert [path.name for path in tmp_path.rglob("MLmodel")] == ["MLmodel"]


@pytest.mark.parametrize(("length", "expected"), [(232, 201), (233, 501), (255, 501), (256, 400)])
def test_a_job_whose_name_is_too_long_for_its_folders_is_refused(http, arm, length, expected):
    path = f"{arm.workspace}/jobs/{'n' * length}"
    body = PLAIN_JOB | {"command": "true"}
    assert http.put(path, json={"properties": body}).status_code == expected
    while expected == 201 and (job := http.get(path).json())["properties"]["status"] != "Completed":
        assert job["properties"]["status"] != "Failed"
        time.sleep(0.1)


def test_an_input_that_the_component_does_not_have_is_refused(http, arm):
    from local_azureml.control_plane.registry import NAME

    component = f"azureml://registries/{NAME}/components/chat_completion_pipeline/versions/0.0.82"
    node = {"componentId": component, "inputs": {"learning_rate_min": {"value": "1"}}}
    properties = {"jobType": "Pipeline", "jobs": {"tune": node}}
    answer = http.put(f"{arm.workspace}/jobs/refused", json={"properties": properties})
    assert (answer.status_code, answer.json()["error"]["message"]) == (
        400,
        "the component chat_completion_pipeline has no input learning_rate_min",
    )


def test_a_training_input_that_the_emulator_cannot_honour_is_refused_before_a_job_is_billed(
    client, registry_client, tmp_path
):
    from azure.core.exceptions import HttpResponseError

    rows = tmp_path / "train.jsonl"
    rows.write_text('{"messages": []}\n')
    with pytest.raises(
        HttpResponseError, match="trust_remote_code is 'true'; the emulator runs no code"
    ) as refused:
        fine_tune(client, registry_client, rows, trust_remote_code="true")
    assert refused.value.status_code == 501


def test_a_fine_tuning_job_that_fails_names_the_step_and_the_reason(client, registry_client, tmp_path):
    from azure.ai.ml.exceptions import JobException

    rows = tmp_path / "train.jsonl"
    rows.write_text('{"Gespräch": "none"}\n' * 20, encoding="utf-8")
    with pytest.raises(JobException, match=r"ft_nlp_common_validation: .*`messages`.*Gespr\S+ch"):
        fine_tune(client, registry_client, rows)
