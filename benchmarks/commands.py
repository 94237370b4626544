"""Seconds of a command job, from its submission to Completed: the first, later ones, in a new environment.

python -m local_azureml run -- python -m benchmarks.commands
"""

import os
import statistics
import time

from azure.ai.ml import MLClient, command
from azure.ai.ml.entities import Environment
from azure.identity import DefaultAzureCredential

from local_azureml.control_plane.jobs import FINAL

REPETITIONS = 5
NAMES = ("SUBSCRIPTION", "RESOURCEGROUP", "WORKSPACE_NAME")
PLAIN = Environment(image="python:3.11")
CONDA = {"dependencies": ["scikit-learn=1.5", "pandas", {"pip": ["mlflow-skinny"]}]}
SAMPLE = Environment(image="ubuntu", conda_file=CONDA)
LOOK = 0.05  # seconds between two looks at a job


def seconds(client: MLClient, environment: Environment) -> float:
    """Return how long a job took that does nothing; one that does not complete is an error."""
    began = time.monotonic()
    name = client.jobs.create_or_update(command(command="true", environment=environment)).name
    while (status := client.jobs.get(name).status) not in FINAL:
        time.sleep(LOOK)
    took = time.monotonic() - began
    if status != "Completed":
        client.jobs.stream(name)
    return took


def main() -> None:
    """Print a table."""
    client = MLClient(DefaultAzureCredential(), *(os.environ[f"AZUREML_ARM_{name}"] for name in NAMES))
    rows = {"the first job after a start": seconds(client, PLAIN)}
    rows["a job"] = statistics.median(seconds(client, PLAIN) for _ in range(REPETITIONS))
    rows["a job in a new environment of scikit-learn and pandas"] = seconds(client, SAMPLE)
    rows["a job in that environment"] = statistics.median(seconds(client, SAMPLE) for _ in range(REPETITIONS))
    print(
        "| | seconds |", "|---|---|", *(f"| {what} | {took:.1f} |" for what, took in rows.items()), sep="\n"
    )


if __name__ == "__main__":
    main()
