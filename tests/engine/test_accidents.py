"""What runs outlives the accidents of others: a part of `make accidents`, and how a deployment fails."""

import sys

import pytest
from clients import deployment, ended, endpoint, log_of, make_command
from conftest import ROOT, client_of, point

from scenarios import notebook_runs as runs
from scenarios.accidents import KEPT, ROLES, SERVER, WAYS, Stage

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="each process is found as Linux shows it")
MORTAL = """
import os

def init():
    pass

def run(text):
    os._exit(3)
"""


def test_the_kept_table_has_a_line_for_each_process_and_each_way_and_all_were_well_again():
    kept = KEPT.read_text()
    assert [f"{who} {way}" for who in ROLES for way in WAYS if f"| {who} {way} |" not in kept] == []
    assert "| never |" not in kept


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """An emulator under load."""
    with pytest.MonkeyPatch.context() as patch:
        point(patch, {})
        made = Stage(runs.prepare(tmp_path_factory.mktemp("load")))
        yield made
        made.cloud.emulator.close()


def test_a_killed_fork_server_and_a_killed_model_are_there_again_and_a_job_and_a_script_notice_nothing(stage):
    row = stage.accident(SERVER, "killed")
    assert (row.deviations, row.job) == ([], "Completed")


def test_a_deployment_that_ends_again_and_again_fails_in_the_end(emulator_with, monkeypatch, tmp_path):
    from azure.ai.ml.entities import CodeConfiguration, Environment
    from test_script_servers import post

    from local_azureml.engine.serving import supervisor

    monkeypatch.setattr(supervisor, "PAUSES", (0.1,))
    emulator_with()
    client = client_of()
    (tmp_path / "score.py").write_text(MORTAL)
    code = CodeConfiguration(code=str(tmp_path), scoring_script="score.py")
    plain = Environment(name="plain", version="1", image="python:3.11")
    client.online_endpoints.begin_create_or_update(endpoint("mortal")).result()
    asked = deployment("mortal", "blue", model=None, code_configuration=code, environment=plain)
    client.online_deployments.begin_create_or_update(asked).result()
    refusals = []
    while client.online_deployments.get("blue", "mortal").provisioning_state != "Failed":
        refusals.append(post(client, "mortal", {}))
    header = "ms-azureml-model-error-statuscode"
    assert {(said.status_code, said.headers[header]) for said in refusals} == {(424, "503")}
    log = client.online_deployments.get_logs("blue", "mortal", lines=50)
    assert "the container ended; it starts again in 0.1 s" in log
    assert "the container ended; it has failed for good" in log


def test_a_job_may_run_an_emulator_of_its_own(client, tmp_path):
    run = f"{sys.executable} -m local_azureml run -- {sys.executable} -c 'print(6 * 7)'"
    job = ended(client, make_command(f"cd {ROOT} && {run}"))
    assert "42\n" in log_of(client, job, tmp_path)
