"""Call each public operation of the SDK on the stand-in, and tell which it plays and which it refuses.

python -m local_azureml run -- python tools/sdk_operations.py [PAGE]

An operation is refused when an answer to it was 501, and played when there was none; one that asks nothing is
the client's alone. Arguments come from `values`, by the parameters' names; what they name is there.
"""

import inspect
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from azure.ai.ml import Input, MLClient, automl, command, dsl, entities, spark
from azure.ai.ml.finetuning import create_finetuning_job
from azure.ai.ml.parallel import RunFunction, parallel_run_function
from azure.ai.ml.sweep import Choice
from azure.core.polling import LROPoller
from azure.identity import DefaultAzureCredential

NAME, VERSION = "probe", "1"
SIZE = "Standard_DS3_v2"
IMAGE = "mcr.microsoft.com/azureml/openmpi4.1.0-ubuntu20.04"
SCRIPT = "def init():\n    pass\n\n\ndef run(data):\n    return data\n"
FIRST = ("create_or_update", "begin_create_or_update")  # of each group, so that the others find something
LAST = ("delete", "begin_delete")  # the groups in the opposite order
GROUPS = (  # what comes first is needed by what comes later
    "workspaces compute datastores environments components models data jobs online_endpoints online_deployments "
    "batch_endpoints batch_deployments serverless_endpoints marketplace_subscriptions schedules registries "
    "connections workspace_outbound_rules feature_stores feature_store_entities feature_sets evaluators indexes "
    "azure_openai_deployments capability_hosts deployment_templates"
).split()
PLAYED, REFUSED, ALONE = "played", "refused with 501", "asks nothing"


@dataclass
class Call:
    """An operation of the SDK, and what it was answered."""

    group: str
    name: str
    kind: str = ""  # of what is given to it, where there are several
    statuses: list[int] = field(default_factory=list)
    said: str = ""  # the error that the caller got

    @property
    def verdict(self) -> str:
        if 501 in self.statuses:
            return REFUSED
        return PLAYED if self.statuses else ALONE


def operations(client: MLClient) -> Iterator[Call]:
    """Give each public operation in an order in which they can be called."""
    groups = [name for name, value in inspect.getmembers(MLClient) if isinstance(value, property)]
    groups = [name for name in groups if hasattr(getattr(client, name), "_operation_scope")]
    if unknown := set(groups) ^ set(GROUPS):
        raise LookupError(f"the SDK's groups of operations are others than GROUPS says: {unknown}")
    names = {
        group: [
            name
            for name, value in inspect.getmembers(type(getattr(client, group)), inspect.isfunction)
            if not name.startswith("_") and name != "mount"  # needs a kernel's file system
        ]
        for group in GROUPS
    }
    for group in GROUPS:
        yield from (Call(group, name) for name in names[group] if name in FIRST)
        yield from (Call(group, "create_or_update", kind) for kind in KINDS if KINDS[kind][0] == group)
    for group in GROUPS:
        yield from (Call(group, name) for name in names[group] if name not in FIRST + LAST)
    for group in reversed(GROUPS):
        yield from (Call(group, name) for name in names[group] if name in LAST)


def work() -> entities.Command:
    return command(command="echo ${{inputs.x}}", environment=f"{NAME}:{VERSION}", inputs={"x": 1})


def pipeline(node) -> entities.PipelineJob:
    @dsl.pipeline(compute="serverless")
    def job():
        node()

    return job()


def parallel(folder: Path):
    return parallel_run_function(
        inputs={"rows": Input(type="uri_folder", path=str(folder))},
        input_data="${{inputs.rows}}",
        instance_count=1,
        mini_batch_size="1",
        task=RunFunction(code=str(folder), entry_script="score.py", environment=f"{NAME}:{VERSION}"),
    )


KINDS = {
    "a pipeline": ("jobs", lambda folder: pipeline(work)),
    "a sweep": ("jobs", lambda folder: swept()),
    "a pipeline with a sweep": ("jobs", lambda folder: pipeline(swept)),
    "a pipeline with a parallel node": ("jobs", lambda folder: pipeline(lambda: parallel(folder))),
    "automated ML": (
        "jobs",
        lambda folder: automl.classification(
            target_column_name="y", training_data=Input(type="mltable", path=str(folder)), compute=NAME
        ),
    ),
}
