"""What MLflow's client of this Python can do with a tracking server: prints the outcome of each call as JSON.

A program of its own, since another version of MLflow runs it than the tests' own.
"""

import json
import logging
import os
import re
import tempfile
import warnings
from collections.abc import Callable

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException


class One(mlflow.pyfunc.PythonModel):
    """A model that answers one."""

    def predict(self, context, model_input, params=None):
        return [1]


def outcomes() -> dict[str, str]:
    """Return for each call `works`, or the status or MLflow's code with which it was refused."""
    client, folder = mlflow.MlflowClient(), tempfile.mkdtemp()
    name = f"compatible-with-{mlflow.__version__}"
    experiment = mlflow.set_experiment(name).experiment_id
    run = mlflow.start_run().info.run_id
    found = {"experiment_ids": [experiment]}
    calls: dict[str, Callable] = {
        "log_metric": lambda: mlflow.log_metric("loss", 1.5, step=1),
        "log_params": lambda: mlflow.log_params({"epochs": 3}),
        "set_tag": lambda: mlflow.set_tag("colour", "blue"),
        "log_batch": lambda: client.log_batch(run, params=[mlflow.entities.Param("note", "n")]),
        "log_text": lambda: mlflow.log_text("hello", "folder/a.txt"),
        "log_input": lambda: mlflow.log_input(mlflow.data.from_pandas(pd.DataFrame({"a": [1]}))),
        "list_artifacts": lambda: client.list_artifacts(run)[0],
        "list_artifacts of a folder": lambda: client.list_artifacts(run, "folder")[0],
        "download_artifacts": lambda: mlflow.artifacts.download_artifacts(
            run_id=run, artifact_path="folder/a.txt"
        ),
        "get_metric_history": lambda: client.get_metric_history(run, "loss")[0],
        "search_runs": lambda: mlflow.search_runs(**found, filter_string="tags.colour = 'blue'").run_id[0],
        "search_runs by metric": lambda: mlflow.search_runs(**found, order_by=["metrics.loss DESC"]),
        "search_runs tag !=": lambda: mlflow.search_runs(**found, filter_string="tags.colour != 'red'"),
        "search_runs metric in quotes": lambda: mlflow.search_runs(
            **found, filter_string="metrics.`a b` > 1"
        ),
        "log_model": lambda: mlflow.pyfunc.log_model(
            "logged", python_model=One(), pip_requirements=[], registered_model_name="logged"
        ),
        "save_model": lambda: mlflow.pyfunc.save_model(
            f"{folder}/saved", python_model=One(), pip_requirements=[]
        ),
        "log_artifacts": lambda: mlflow.log_artifacts(f"{folder}/saved", "saved"),
        "register_model": lambda: mlflow.register_model(f"runs:/{run}/saved", name),
        "load_model of a run": lambda: mlflow.pyfunc.load_model(f"runs:/{run}/saved"),
        "load_model of a version": lambda: mlflow.pyfunc.load_model(f"models:/{name}/1"),
        "load_model of the latest": lambda: mlflow.pyfunc.load_model(f"models:/{name}/latest"),
        "get_registered_model": lambda: client.get_registered_model(name),
        "search_registered_models": lambda: client.search_registered_models(f"name = '{name}'")[0],
        "search_registered_models LIKE": lambda: client.search_registered_models("name LIKE 'comp%'")[0],
        "search_registered_models by tag": lambda: client.search_registered_models("tags.a = 'b'"),
        "search_model_versions": lambda: client.search_model_versions(f"name = '{name}'")[0],
        "set_model_version_tag": lambda: client.set_model_version_tag(name, "1", "tags", "like"),
        "update_model_version": lambda: client.update_model_version(name, "1", "described"),
        "set_registered_model_alias": lambda: client.set_registered_model_alias(name, "best", "1"),
        "transition_model_version_stage": lambda: client.transition_model_version_stage(name, "1", "Staging"),
        "rename_registered_model": lambda: client.rename_registered_model(name, "other"),
        "delete_model_version": lambda: client.delete_model_version(name, "1"),
        "delete_registered_model": lambda: client.delete_registered_model(name),
        "search_traces": lambda: mlflow.search_traces([experiment]),
        "end_run": mlflow.end_run,
        "delete_run": lambda: client.delete_run(run),
        "restore_run": lambda: client.restore_run(run),
        "rename_experiment": lambda: client.rename_experiment(experiment, "renamed"),
        "set_experiment_tag": lambda: client.set_experiment_tag(experiment, "colour", "blue"),
        "search_experiments": lambda: client.search_experiments()[0],
        "delete_experiment": lambda: client.delete_experiment(experiment),
    }
    return {name: outcome(call) for name, call in calls.items()}


def outcome(call: Callable) -> str:
    try:
        call()
    except MlflowException as error:
        status = re.search(r"error code (\d+) != 200. Response body: ''", str(error))
        return status[1] if status else error.error_code
    return "works"


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable()
    with tempfile.TemporaryDirectory() as place:  # MLflow leaves what it downloads
        tempfile.tempdir = os.environ["TMPDIR"] = place
        print(json.dumps(outcomes()))
