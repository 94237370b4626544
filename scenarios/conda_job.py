"""Run a command job in an environment made of a conda file, and print its log: `conda_job.py PACKAGE`."""

import contextlib
import io
import os
import sys
import tempfile
from pathlib import Path

from azure.ai.ml import MLClient, command
from azure.ai.ml.entities import Environment
from azure.identity import DefaultAzureCredential

package = sys.argv[1]
names = (os.environ[f"AZUREML_ARM_{name}"] for name in ("SUBSCRIPTION", "RESOURCEGROUP", "WORKSPACE_NAME"))
client = MLClient(DefaultAzureCredential(), *names)
with tempfile.TemporaryDirectory() as folder:
    conda_file = Path(folder, "conda.yaml")
    conda_file.write_text(f"dependencies: [pip, pip: [{package}]]\n")
    job = command(
        command=f"python -c 'import {package} as made; print(made.__file__)'",
        environment=Environment(name="made", conda_file=conda_file, image="plain"),
        experiment_name="conda-job",
    )
    job = client.jobs.create_or_update(job)
    with contextlib.redirect_stdout(io.StringIO()):
        client.jobs.stream(job.name)
    client.jobs.download(job.name, download_path=folder)
    print(Path(folder, "artifacts/user_logs/std_log.txt").read_text())
