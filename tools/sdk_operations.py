"""Call each public operation of the SDK on the emulator, and write on its page which it plays.

python -m local_azureml run -- python -m tools.sdk_operations

What the operations name is made by those that come first.
"""

import inspect
import logging
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import chdir
from dataclasses import dataclass, field
from pathlib import Path

from azure.ai.ml import Input, MLClient, automl, command, dsl, entities, spark
from azure.ai.ml.data_transfer import Database
from azure.ai.ml.finetuning import create_finetuning_job
from azure.ai.ml.parallel import RunFunction, parallel_run_function
from azure.ai.ml.sweep import Choice
from azure.core.paging import ItemPaged
from azure.core.polling import LROPoller
from azure.identity import DefaultAzureCredential

from local_azureml import identifiers
from tools import refresh_pages

NAME, VERSION = "probe", "1"
MADE = {"name": NAME, "version": VERSION}
SIZE = "Standard_DS3_v2"
ENVIRONMENT = f"{NAME}:{VERSION}"
SCRIPT = "def init():\n    pass\n\n\ndef run(data):\n    return data\n"
FIRST = ("create_or_update", "begin_create_or_update")  # of each group, so that the others find something
LAST = ("delete", "begin_delete")  # the groups in the opposite order
EARLY = ("environments", "online_endpoints")  # groups that others need
LEFT_OUT = "mount"  # needs a file system of the system's kernel
PLAYED, REFUSED, ABSENT, ALONE = "played", "refused with 501", "nothing there: 404", "decided by the SDK"


@dataclass
class Call:
    """An operation of the SDK, or a kind of what is given to it, and what it was answered."""

    group: str
    name: str
    kind: str = ""
    answers: list[tuple[str, str, int]] = field(default_factory=list)  # method, address, status
    error: Exception | None = None  # that the caller got

    def __str__(self) -> str:
        return f"{self.group}.{self.name}{f' of {self.kind}' if self.kind else ''}"

    @property
    def verdict(self) -> str:
        """PLAYED and so on; an error that is none of these is raised again."""
        status = getattr(self.error, "status_code", None)
        if status == 501 or any(answered == 501 for *_, answered in self.answers):
            return REFUSED
        if status == 404:
            return ABSENT
        if not self.answers or (self.error and status is None):
            return ALONE
        if self.error:
            raise self.error
        return PLAYED

    @property
    def repeated(self) -> list[str]:
        """What was refused, and asked for again."""
        refused = Counter(f"{method} {address}" for method, address, status in self.answers if status == 501)
        return [asked for asked, times in refused.items() if times > 1]


def calls() -> Iterator[Call]:
    """Give each public operation, in an order in which they can be called."""
    names = {}
    for group, value in inspect.getmembers(MLClient, lambda value: isinstance(value, property)):
        kind = inspect.signature(value.fget).return_annotation
        if inspect.isclass(kind) and not issubclass(kind, str):
            members = inspect.getmembers(kind, inspect.isfunction)
            names[group] = [name for name, _ in members if name[0] != "_" and name != LEFT_OUT]
    groups = [*EARLY, *(group for group in names if group not in EARLY)]
    for group in groups:
        yield from (Call(group, name) for name in names[group] if name in FIRST)
    for (group, name), kinds in KINDS.items():
        yield from (Call(group, name, kind) for kind in kinds)
    for group in groups:
        yield from (Call(group, name) for name in names[group] if name not in FIRST + LAST)
    for group in reversed(groups):
        yield from (Call(group, name) for name in names[group] if name in LAST)


def work(**options) -> entities.Command:
    return command(command="echo ${{inputs.x}}", environment=ENVIRONMENT, inputs={"x": 1}, **options)


def swept():
    job = work()(x=Choice([1, 2])).sweep(
        sampling_algorithm="random", primary_metric="loss", goal="minimize", compute=NAME
    )
    job.set_limits(max_total_trials=2)
    return job


def parallel():
    return parallel_run_function(
        inputs={"rows": Input(type="uri_folder", path=".")},
        input_data="${{inputs.rows}}",
        instance_count=1,
        mini_batch_size="1",
        task=RunFunction(code=".", entry_script="score.py", environment=ENVIRONMENT),
    )(rows=Input(type="uri_folder", path="."))


def pipeline(node):
    @dsl.pipeline(compute="serverless")
    def job():
        node()

    return job()


FEATURES = """\
source: {type: csv, path: x, timestamp_column: {name: t}}
index_columns: [{name: x, type: string}]
features: [{name: y, type: string}]
"""
TABLE = {"type": "mltable", "path": "."}
JOBS = {
    "a pipeline": lambda: pipeline(work()),
    "a sweep": swept,
    "a pipeline with a sweep": lambda: pipeline(swept),
    "a pipeline with a parallel node": lambda: pipeline(parallel),
    "a Spark job": lambda: spark(
        code=".", entry={"file": "score.py"}, driver_cores=1, driver_memory="2g", executor_cores=1,
        executor_memory="2g", executor_instances=1,
        resources={"instance_type": "standard_e4s_v3", "runtime_version": "3.4"},
    ),
    "automated ML": lambda: automl.classification(
        target_column_name="y", training_data=Input(**TABLE), compute=NAME
    ),
    "fine-tuning without a pipeline": lambda: create_finetuning_job(
        model="azureml://registries/azureml/models/Phi-3-mini-4k-instruct/versions/14", task="ChatCompletion",
        training_data=f"azureml:{ENVIRONMENT}", validation_data=f"azureml:{ENVIRONMENT}",
        output_model_name_prefix=NAME,
    ),
}  # fmt: skip
ATTACHED = {"name": f"{NAME}-attached", "resource_id": identifiers.WORKSPACE_ID}
COMPUTES = {
    "an instance": lambda: entities.ComputeInstance(name=f"{NAME}-instance", size=SIZE),
    "a Kubernetes cluster": lambda: entities.KubernetesCompute(**ATTACHED),
    "a virtual machine": lambda: entities.VirtualMachineCompute(**ATTACHED),
}
ENDPOINTS = {
    "one on Kubernetes": lambda: entities.KubernetesOnlineEndpoint(name=f"{NAME}-attached", compute=NAME)
}
ON_MACHINE = {"name": "own", "endpoint_name": NAME, "instance_type": SIZE, "instance_count": 1}
DEPLOYMENTS = {
    "a custom container": lambda: entities.ManagedOnlineDeployment(**ON_MACHINE, environment=ENVIRONMENT),
    "a Triton model": lambda: entities.ManagedOnlineDeployment(
        **ON_MACHINE, model=entities.Model(path="spec", type="triton_model")
    ),
}
KINDS = {
    ("jobs", "create_or_update"): JOBS,
    ("compute", "begin_create_or_update"): COMPUTES,
    ("online_endpoints", "begin_create_or_update"): ENDPOINTS,
    ("online_deployments", "begin_create_or_update"): DEPLOYMENTS,
}
FOR_DEPLOYMENT = {
    "name": "blue",
    "endpoint_name": NAME,
    "environment": ENVIRONMENT,
    "code_configuration": entities.CodeConfiguration(code=".", scoring_script="score.py"),
}
ENTITIES = {  # by the name of the parameter, or of the group and the parameter
    "compute": lambda: entities.AmlCompute(name=NAME, size=SIZE, max_instances=1),
    "datastore": lambda: entities.AzureBlobDatastore(name=NAME, account_name="theirs", container_name="c"),
    "environment": lambda: entities.Environment(**MADE, image="ubuntu"),
    "component": lambda: work(**MADE).component,
    "model": lambda: entities.Model(**MADE, path="score.py"),
    "evaluators.model": lambda: entities.Model(name=f"{NAME}-evaluator", version=VERSION, path="."),
    "data": lambda: entities.Data(**MADE, path=".", type="uri_folder"),
    "data_import": lambda: entities.DataImport(
        name=NAME, path="azureml://datastores/workspaceblobstore/paths/x",
        source=Database(connection="azureml:theirs", query="select 1"),
    ),
    "job": lambda: work(name=NAME),
    "online_endpoints.endpoint": lambda: entities.ManagedOnlineEndpoint(name=NAME),
    "online_deployments.deployment": lambda: entities.ManagedOnlineDeployment(
        **FOR_DEPLOYMENT, instance_type=SIZE, instance_count=1
    ),
    "batch_endpoints.endpoint": lambda: entities.BatchEndpoint(name=NAME),
    "batch_deployments.deployment": lambda: entities.BatchDeployment(**FOR_DEPLOYMENT, compute=NAME),
    "serverless_endpoints.endpoint": lambda: entities.ServerlessEndpoint(name=NAME, model_id="azureml://x"),
    "marketplace_subscription": lambda: entities.MarketplaceSubscription(name=NAME, model_id="azureml://x"),
    "schedule": lambda: entities.JobSchedule(
        name=NAME, create_job=pipeline(work()), trigger=entities.CronTrigger(expression="0 0 * * *")
    ),
    "registry": lambda: entities.Registry(name=NAME, location="eastus", replication_locations=[]),
    "workspace_connection": lambda: entities.ServerlessConnection(
        name=NAME, endpoint="https://x", api_key=NAME
    ),
    "begin_create.workspace": lambda: entities.Workspace(name=NAME, location="eastus"),
    "begin_update.workspace": lambda: entities.Workspace(name=identifiers.WORKSPACE, description=NAME),
    "rule": lambda: entities.FqdnDestination(name=NAME, destination="example.org"),
    "feature_store": lambda: entities.FeatureStore(name=NAME, location="eastus"),
    "feature_store_entity": lambda: entities.FeatureStoreEntity(
        **MADE, index_columns=[entities.DataColumn(name="x", type="string")]
    ),
    "featureset": lambda: entities.FeatureSet(
        **MADE, entities=["azureml:x:1"], specification=entities.FeatureSetSpecification(path="spec")
    ),
    "index": lambda: entities.Index(**MADE, path="."),
    "capability_host": lambda: entities.CapabilityHost(name=NAME),
    "deployment_template": lambda: entities.DeploymentTemplate(**MADE),
    "package_request": lambda: entities.ModelPackage(
        target_environment=NAME, inferencing_server=entities.AzureMLOnlineInferencingServer()
    ),
}  # fmt: skip
TEXTS = {
    "online_deployments.name": "blue",
    "batch_deployments.name": "blue",
    "evaluators.name": f"{NAME}-evaluator",
    "workspaces.name": identifiers.WORKSPACE,
    "name": NAME,
    "display_name": NAME,
    "deployment_name": "blue",
    "workspace_name": identifiers.WORKSPACE,
    "registry_name": "azureml",
    "version": VERSION,
    "share_with_version": VERSION,
    "path": "azureml:probe:1",
    "request_file": "request.json",
    "download_path": "downloaded",
    "lines": 10,
    "delete_dependent_resources": False,
    "action": "Delete",
}


def arguments(call: Call, operation) -> dict:
    """Return values for an operation's parameters: those that it needs, and those of TEXTS."""
    if call.kind:
        return {
            next(iter(inspect.signature(operation).parameters)): KINDS[call.group, call.name][call.kind]()
        }
    given = {}
    for name, parameter in inspect.signature(operation).parameters.items():
        needed = parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
        keys = (f"{call.group}.{name}", f"{call.name}.{name}", name)
        if texts := [TEXTS[key] for key in keys if key in TEXTS]:
            given[name] = texts[0]
        elif needed:
            given[name] = next((ENTITIES[key]() for key in keys if key in ENTITIES), NAME)
    return given


def try_all() -> list[Call]:
    """Return all operations with what they were answered."""
    heard: list[tuple[str, str, int]] = []

    def hear(response) -> None:
        request = response.http_request
        heard.append((request.method, request.url.partition("?")[0], response.http_response.status_code))

    client = MLClient(
        DefaultAzureCredential(),
        identifiers.SUBSCRIPTION,
        identifiers.GROUP,
        identifiers.WORKSPACE,
        raw_response_hook=hear,
    )
    made = list(calls())
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        Path("score.py").write_text(SCRIPT)
        Path("request.json").write_text("[1]")
        Path("MLTable").write_text("paths:\n  - file: ./request.json\ntransformations: []\n")
        Path("spec").mkdir()
        Path("spec/FeatureSetSpec.yaml").write_text(FEATURES)
        for call in made:
            heard.clear()
            operation = getattr(getattr(client, call.group), call.name)
            try:
                answer = operation(**arguments(call, operation))
                if isinstance(answer, LROPoller):
                    answer.result()
                elif inspect.isgenerator(answer) or isinstance(answer, ItemPaged):
                    list(answer)
            except Exception as error:  # whatever the SDK makes of the answer
                call.error = error
            call.answers = list(heard)
    return made


def table(made: list[Call]) -> str:
    """Return the table in Markdown: a line for each group of operations."""
    rows = []
    for group in sorted({call.group for call in made}):
        said = {verdict: [] for verdict in (PLAYED, REFUSED, ABSENT, ALONE)}
        for call in made:
            if call.group == group:
                said[call.verdict].append(f"`{call.name}`{f' of {call.kind}' if call.kind else ''}")
        rows.append(" | ".join([f"| `{group}`", *(", ".join(names) for names in said.values())]) + " |")
    return refresh_pages.table(f"| operations of | {PLAYED} | {REFUSED} | {ABSENT} | {ALONE} |", rows)


if __name__ == "__main__":
    logging.disable()
    warnings.simplefilter("ignore")
    page = refresh_pages.EMULATOR.read_text("utf-8")
    refresh_pages.EMULATOR.write_text(refresh_pages.with_table(page, table(try_all())), "utf-8")
