"""What the tests of several rooms ask the SDK for."""

import time
import zipfile

import pytest

from local_azureml.control_plane.jobs import FINAL

SHORT = "serverless"
A100 = "STANDARD_NC24ADS_A100_V4"
MODEL = "azureml://registries/azureml/models/Phi-3-mini-4k-instruct/versions/14"
SIZE = "Standard_NC24ads_A100_v4"
QUESTION = {
    "input_data": {
        "input_string": [[{"role": "user", "content": "What is one plus one?"}]],
        "parameters": {"do_sample": False, "max_new_tokens": 4},
    },
    "params": {},
}


def make_command(text: str, **options):
    """Return a command of one line, for a job or for a node of a pipeline."""
    from azure.ai.ml import command
    from azure.ai.ml.entities import Environment

    environment = Environment(name="plain", version="1", image="python:3.11")
    return command(**{"command": text, "environment": environment, "compute": SHORT, **options})


def ended(client, job):
    """Submit a job, and return it when it has ended."""
    return end_of(client, client.jobs.create_or_update(job, experiment_name="commands").name)


def end_of(client, name: str):
    """Return a submitted job when it has ended."""
    pause = 0.1
    while (found := client.jobs.get(name)).status not in FINAL:
        time.sleep(pause)
        pause = min(1.3 * pause, 1.0)  # to look costs the SDK as much as to wait is worth
    return found


def reason(client, job) -> str:
    """Return why a job failed."""
    from azure.ai.ml.exceptions import JobException

    name = ended(client, job).name
    with pytest.raises(JobException) as raised:
        client.jobs.stream(name)
    return str(raised.value)


def log_of(client, job, tmp_path) -> str:
    """Return what a job that has completed wrote to its log."""
    assert job.status == "Completed"
    client.jobs.download(job.name, download_path=tmp_path)
    return (tmp_path / "artifacts/user_logs/std_log.txt").read_text()


def cluster(name: str, **options):
    from azure.ai.ml.entities import AmlCompute

    return AmlCompute(name=name, **{"size": A100, "max_instances": 1, **options})


def quotas(client) -> dict:
    """Return the quotas by tier and name, as `type` and `name` tell them."""
    return {
        (usage.type.split("/")[-2].removesuffix("Cores"), usage.name["value"]): usage
        for usage in client.compute.list_usage()
    }


def make_job(cluster: str, command: str, **options):
    """Return a command job of one line, not yet submitted."""
    from azure.ai.ml import command as command_job
    from azure.ai.ml.entities import Environment

    environment = Environment(name="plain", version="1", image="python:3.11")
    return command_job(
        command=command, environment=environment, compute=cluster, experiment_name="commands", **options
    )


def endpoint(name: str, **options):
    from azure.ai.ml.entities import ManagedOnlineEndpoint

    return ManagedOnlineEndpoint(name=name, **{"auth_mode": "key", **options})


def deployment(endpoint_name: str, name: str, **options):
    from azure.ai.ml.entities import ManagedOnlineDeployment

    given = {"model": MODEL, "instance_type": SIZE, "instance_count": 1, **options}
    return ManagedOnlineDeployment(name=name, endpoint_name=endpoint_name, **given)


def wheel(folder, name: str, version: str) -> None:
    """Write a package of one module, which says its version."""
    information = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as file:
        file.writestr(f"{name}.py", f"VERSION = {version!r}\n")
        file.writestr(f"{information}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        file.writestr(
            f"{information}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{information}/RECORD", "")
