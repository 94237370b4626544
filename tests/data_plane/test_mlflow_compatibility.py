"""What Azure's tracking server has of MLflow's, and what not, through MLflow's own client, old and new."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Emulator

from local_azureml import identifiers
from local_azureml.data_plane import artifacts, mlflow_compatibility, tracking
from local_azureml.engine import environments, install
from scenarios.notebook_runs import ROOT

PROGRAM = ROOT / "tests" / "mlflow_client.py"
OLD = [
    "mlflow-skinny==2.16.2",
    "azureml-mlflow==1.62.0.post6",
    "pandas>=2.2,<3",
]  # what Microsoft's samples pin
REFUSED = {  # by Azure too: the sources are on the emulator's page
    "search_runs by metric": "INVALID_PARAMETER_VALUE",
    "search_runs tag !=": "INVALID_PARAMETER_VALUE",
    "search_runs metric in quotes": "INVALID_PARAMETER_VALUE",
    "search_registered_models LIKE": "INVALID_PARAMETER_VALUE",
    "search_registered_models by tag": "INVALID_PARAMETER_VALUE",
    "rename_registered_model": "404",
    "delete_registered_model": "404",
    "search_traces": "403",
    "rename_experiment": "404",
}
REFUSED_OF_NEW = {
    "list_artifacts of a folder": "404",  # which might hold a logged model
    "log_model": "404",
    "search_registered_models": "INVALID_PARAMETER_VALUE",
}


@pytest.fixture(scope="module")
def old_python(tmp_path_factory) -> Path:
    """A Python with MLflow's client of 2.16.2, and Azure's plug-in."""
    place = tmp_path_factory.mktemp("old") / "venv"
    python = place / "bin" / "python"
    pip = ["--without-pip"] if install.find_uv(str(python)) else []
    subprocess.run([sys.executable, "-m", "venv", *pip, place], check=True)
    command = [sys.executable, environments.INSTALLER, "--python", python, "--quiet", *OLD]
    lazy = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run(command, env=lazy, check=True)  # else all modules are compiled, of which few are used
    return python


def run_client(python: Path | str, environment: dict[str, str]) -> dict[str, str]:
    """Return what the calls of a Python's MLflow came to, against the emulator of an environment."""
    uri = f"azureml{environment['HF_ENDPOINT'].removeprefix('https')}/mlflow/v1.0{identifiers.WORKSPACE_ID}"
    variables = {"PATH": "", **environment, "MLFLOW_TRACKING_URI": uri}
    done = subprocess.run([python, PROGRAM], env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def refused(outcomes: dict[str, str]) -> dict[str, str]:
    return {call: outcome for call, outcome in outcomes.items() if outcome != "works"}


def test_mlflow_2_16_finds_what_azure_has(environment, old_python):
    assert refused(run_client(old_python, environment)) == REFUSED


def test_mlflow_3_finds_no_logged_models(environment):
    assert refused(run_client(sys.executable, environment)) == REFUSED | REFUSED_OF_NEW


def test_a_model_is_registered_where_mlflow_1_asks_for_it(http):
    made = http.post(
        f"{tracking.PREFIX}/api/2.0/preview/mlflow/registered-models/create", json={"name": "m1"}
    )
    assert made.json()["registered_model"]["name"] == "m1"


def test_a_call_that_azure_lacks_is_told_in_the_log_with_the_way_that_works(http, emulator):
    answer = http.post(f"{tracking.PREFIX}/api/2.0/mlflow/logged-models", json={"experiment_id": "0"})
    assert (answer.status_code, answer.content) == (404, b"")
    told = emulator.log.read_text().splitlines()[-1]
    assert (
        "POST '/api/2.0/mlflow/logged-models' answered 404: Azure's tracking server lacks logged models"
        in told
    )
    assert "azure-sdk-for-python/issues/44896" in told and "`save_model`, `log_artifacts`" in told


def test_an_option_lets_programs_have_all_of_mlflows_server(tmp_path):
    emulator = Emulator(tmp_path / "full", "--full-mlflow")
    outcomes = run_client(sys.executable, emulator.environment)
    assert refused(outcomes) == {"rename_registered_model": "NOT_IMPLEMENTED"}
    [model] = emulator.folder.glob("blobs/azureml/ExperimentRun/dcid.*/logged/MLmodel")
    told = f"artifact_path: {artifacts.of_run(model.parts[-3].removeprefix('dcid.'))}/logged\n"
    assert told in model.read_text()
    assert mlflow_compatibility.FULL in emulator.end()
