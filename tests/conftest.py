"""The emulator that the tests talk to, and clients of it."""

import contextlib
import functools
import getpass
import io
import json
import os
import shlex
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from types import SimpleNamespace

import guard
import httpx
import psutil
import pytest
import recorded
import uvicorn
import witness

from local_azureml import process_environment
from local_azureml.context import remove_temporary
from local_azureml.engine import processes
from scenarios.notebook_runs import ROOT, end, stop

DEAD = "http://127.0.0.1:9"  # nobody listens there
ELSEWHERE = {  # what an emulator must not let lead its children astray
    **{name: DEAD for proxy in process_environment.PROXIES for name in (proxy, proxy.upper())},
    **dict.fromkeys(("AZURE_CLIENT_ID", "AZURE_TENANT_ID", "AZURE_CLIENT_SECRET", "MSI_SECRET"), "theirs"),
    **dict.fromkeys(("AZURE_AUTHORITY_HOST", "IMDS_ENDPOINT", "MSI_ENDPOINT"), DEAD),
    **dict.fromkeys(("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "_MLFLOW_SERVER_ARTIFACT_ROOT"), DEAD),
    **dict.fromkeys(("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "AZUREML_RUN_ID"), "theirs"),
    **dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"), "1"),
    **dict.fromkeys(("HF_HOME", "HF_HUB_CACHE", "PYTHONSTARTUP"), "/nonexistent"),
    **{"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}
LEADING = ("AZURE_", "HF_", "MLFLOW_", "_MLFLOW_")  # the last says that a process is a server
API_VERSION = {"api-version": "2025-12-01"}
PLAIN_JOB = {  # what a command job has to name besides its command
    "jobType": "Command",
    "environmentId": "azureml://registries/azureml/environments/plain/versions/1",
    "computeId": "serverless",
}
OWN = f"pytest-of-{getpass.getuser()}"  # pytest's own folder, of which it keeps some
GUARD = pytest.StashKey[subprocess.Popen]()


def pytest_configure(config: pytest.Config) -> None:
    """Start as any shell would, and leave to the SDK its deprecations and connections it can't close."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores Ctrl-C
    process_environment.leave()  # as the emulator does
    config.addinivalue_line("filterwarnings", "ignore:unclosed:ResourceWarning")
    for module in ("azure", "marshmallow", "msrest", "pkg_resources"):
        config.addinivalue_line("filterwarnings", f"ignore:::{module}")
    if not hasattr(config, "workerinput"):  # the session itself, not one of its processes
        place = tempfile.mkdtemp(prefix="t-")  # short, for sockets below
        Path(place).chmod(0o711)  # a test runs as another user in a folder below
        config.stash[GUARD] = guard.watch(place)
        tempfile.tempdir = os.environ["TMPDIR"] = os.environ[guard.MARK] = place


@pytest.hookimpl(trylast=True)  # when its processes have ended
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fail a session that leaves processes or files; remove its folders unless a test has failed."""
    if hasattr(session.config, "workerinput"):
        return
    processes.SERVER.stop()  # of tests that start children in this process
    place = Path(os.environ["TMPDIR"])
    left = [f"{line}, which runs" for line in end(guard.MARK, str(place), seconds=10)]
    left += [f"{file.name} in TMPDIR" for file in place.iterdir() if file.name != OWN]
    for one in left:
        print(f"\nthe tests left {one}")
        session.exitstatus = exitstatus or pytest.ExitCode.TESTS_FAILED
    if exitstatus:
        print(f"\nthe tests' folders are kept in {place}")
    else:
        shutil.rmtree(place, ignore_errors=True)
    session.config.stash[GUARD].communicate()


class Emulator:
    """An emulator started by its command line; `environment` is what it tells clients to set."""

    def __init__(self, folder: Path, *options: str):
        self.folder = folder
        self.answers = folder.with_name(f"{folder.name}.answers")  # what its clients were answered
        WITNESS.files.setdefault(self.answers, 0)
        command = [*recorded.EMULATOR, "serve", "--poll", "0.1", "--data-dir", folder]
        self.log = folder.with_name(f"{folder.name}.log")
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [*command, *options],
                cwd=ROOT,
                env=os.environ | ELSEWHERE | recorded.variables(self.answers),
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        said = takewhile(lambda line: not line.startswith("# ready"), self.process.stdout)
        self.lines = "".join(said)  # for a shell
        self.environment = dict(self._exports())
        if "HF_ENDPOINT" not in self.environment:
            raise RuntimeError(self.log.read_text())

    def _exports(self) -> Iterator[tuple[str, str]]:
        for line in self.lines.splitlines():
            if line.startswith("export "):
                name, _, value = line.removeprefix("export ").partition("=")
                yield name, *shlex.split(value)

    def end(self, number: signal.Signals = signal.SIGTERM) -> str:
        """Send a signal and return what the emulator wrote to stderr by its end."""
        try:
            return stop(self.process, self.log, number)
        finally:
            self.process.stdout.close()
            remove_temporary(self.folder)  # as the next start would, of one that was killed


def processes_in(folder: Path) -> list[int]:
    """Return the processes that have a file of `folder` open as their log."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # gone meanwhile, or somebody else's
            if any(opened.path.startswith(str(folder)) for opened in process.open_files()):
                found.append(process.pid)
    return found


def groups_in(folder: Path) -> set[int]:
    """Return the process groups of those; each child of the emulator leads one, with its own in it."""
    return {os.getpgid(process) for process in processes_in(folder)}


class Witness:
    """Reads what was answered since it last did, and holds it against Microsoft's description."""

    def __init__(self):
        self.files: dict[Path, int] = {}  # how many bytes of each recording are read

    def departures(self) -> list[str]:
        """Return what in the answers since the last call differs from the description."""
        fresh = []
        for file, seen in self.files.items():
            exchanges, self.files[file] = witness.read(file, seen)
            fresh += exchanges
        return witness.departures(fresh)


WITNESS = Witness()


@pytest.fixture(autouse=True)
def answers_are_azures() -> Iterator[None]:
    """Let a test fail whose answers from the emulator are not as Microsoft describes them."""
    yield
    assert WITNESS.departures() == []


@pytest.fixture(scope="session")
def emulator(tmp_path_factory) -> Iterator[Emulator]:
    """One emulator for all tests that need no fault."""
    served = Emulator(tmp_path_factory.mktemp("it's $(touch run) emulator"))
    yield served
    assert "Traceback" not in served.end()


@contextlib.contextmanager
def served(application, **options) -> Iterator[int]:
    """The port at which a server offers the application."""
    config = uvicorn.Config(application, port=0, log_level="critical", ws="none", lifespan="off", **options)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = server.force_exit = True
        thread.join()


@pytest.fixture(scope="session", autouse=True)
def known_cloud(emulator: Emulator) -> None:
    """Let azureml-mlflow, which learns where clouds are described when it is imported, learn of this one."""
    assert "azureml.mlflow" not in sys.modules, "a test's file imports MLflow, or what does, at its top"
    with pytest.MonkeyPatch.context() as patch:
        point(patch, emulator.environment)
        import azureml.mlflow  # noqa: F401


def point(patch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    """Point this process's clients at the emulator whose variables these are."""
    for name in [name for name in os.environ if name.startswith(LEADING)]:
        patch.delenv(name)
    for name, value in variables.items():
        patch.setenv(name, value)


@pytest.fixture(scope="module")
def environment(emulator: Emulator) -> Iterator[dict[str, str]]:
    """The variables of the emulator, set for a module's tests."""
    with pytest.MonkeyPatch.context() as patch:
        point(patch, emulator.environment)
        yield emulator.environment


@pytest.fixture
def variables_kept(monkeypatch) -> None:
    """Bring back, at a test's end, the variables that the program's `main` removes from its process."""
    for name, value in list(os.environ.items()):
        monkeypatch.setenv(name, value)


@pytest.fixture
def emulator_with(tmp_path: Path, monkeypatch) -> Iterator:
    """A function that serves an emulator with faults or options and points this process's clients at it."""
    from local_azureml import app
    from local_azureml.cli import parse
    from local_azureml.server import Server

    running, answers = [], tmp_path / "answers"
    WITNESS.files[answers] = 0
    monkeypatch.setattr(app, "create_app", recorded.recording(app.create_app, answers))

    def start(*faults: str, options: tuple = ()) -> Server:
        options = parse(["serve", "--poll", "0.1", *options, *[f"--fault={fault}" for fault in faults]])
        running.append(Server(options, tmp_path / f"emulator_{len(running)}").__enter__())
        point(monkeypatch, running[-1].context.environment())
        return running[-1]

    yield start
    for server in running:
        server.__exit__()


def client_of(workspace_name: str | None = None, registry_name: str | None = None):
    """Return an SDK client of a workspace, or of a registry, of the emulator that the environment names."""
    from azure.ai.ml import MLClient
    from azure.identity import ManagedIdentityCredential

    if registry_name:
        return MLClient(ManagedIdentityCredential(), registry_name=registry_name)
    names = [
        os.environ[f"AZUREML_ARM_{name}"] for name in ("SUBSCRIPTION", "RESOURCEGROUP", "WORKSPACE_NAME")
    ]
    return MLClient(ManagedIdentityCredential(), *names[:2], workspace_name or names[2])


@pytest.fixture(scope="session")
def sdk():
    """A function that returns the one client of all tests of a workspace, or of a registry."""
    return functools.cache(client_of)


@pytest.fixture(scope="module")
def client(environment, sdk):
    return sdk()


@pytest.fixture(scope="module")
def registry_client(environment, sdk):
    return sdk(registry_name="azureml")


@pytest.fixture(scope="session")
def arm() -> SimpleNamespace:
    """The paths below which the workspace and the registry live."""
    from local_azureml import identifiers
    from local_azureml.control_plane import registry

    names = {"subscription": identifiers.SUBSCRIPTION, "group": identifiers.GROUP, "registry": "azureml"}
    return SimpleNamespace(workspace=identifiers.WORKSPACE_ID, registry=registry.RESOURCE.format(**names))


def token_of(variables: dict[str, str], resource: str = "https://ml.azure.local") -> str:
    """Return a token as App Service's managed identity gives it."""
    headers = {"X-IDENTITY-HEADER": variables["IDENTITY_HEADER"]}
    context = ssl.create_default_context(cafile=variables["REQUESTS_CA_BUNDLE"])
    answer = httpx.get(
        variables["IDENTITY_ENDPOINT"], params={"resource": resource}, headers=headers, verify=context
    )
    return answer.raise_for_status().json()["access_token"]


def raw_client(variables: dict[str, str], token: bool = True) -> httpx.Client:
    """Return an HTTP client of an emulator, with a token or without."""
    context = ssl.create_default_context(cafile=variables["REQUESTS_CA_BUNDLE"])
    headers = {"Authorization": f"Bearer {token_of(variables)}"} if token else {}
    options = {
        "verify": context,
        "headers": headers,
        "event_hooks": {"request": [name_version]},
        "timeout": 60,
    }
    return httpx.Client(base_url=variables["HF_ENDPOINT"], **options)


def name_version(request: httpx.Request) -> None:
    """Name a version of the API where the address names none; `params` of a client would replace a query."""
    if "api-version" not in request.url.params:
        request.url = request.url.copy_merge_params(API_VERSION)


@pytest.fixture(scope="session")
def http(emulator: Emulator) -> Iterator[httpx.Client]:
    with raw_client(emulator.environment) as opened:
        yield opened


@pytest.fixture(scope="session")
def anonymous(emulator: Emulator) -> Iterator[httpx.Client]:
    with raw_client(emulator.environment, token=False) as opened:
        yield opened


@pytest.fixture(scope="session")
def rows(tmp_path_factory) -> Path:
    """A file of 40 short conversations."""
    file = tmp_path_factory.mktemp("rows") / "train.jsonl"
    turns = [[f"What is {number} plus one?", f"It is {number + 1}."] for number in range(40)]
    chats = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in turns]
    file.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    return file


def fine_tune(client, registry_client, rows: Path, **inputs) -> tuple:
    """Return the fine-tuning pipeline's job when it has ended, two steps of training, and its stream."""
    from azure.ai.ml import Input, dsl
    from azure.ai.ml.entities import AmlCompute

    cluster = AmlCompute(name="training", size="Standard_NC24ads_A100_v4", idle_time_before_scale_down=60)
    client.compute.begin_create_or_update(cluster).result()
    component = registry_client.components.get("chat_completion_pipeline", label="latest")
    model = registry_client.models.get("Phi-3-mini-4k-instruct", label="latest")
    computes = ("compute_model_import", "compute_preprocess", "compute_finetune", "compute_model_evaluation")

    @dsl.pipeline(name="fine_tune")
    def pipeline():
        tuned = component(
            **dict.fromkeys(computes, cluster.name),
            mlflow_model_path=model.id,
            train_file_path=Input(type="uri_file", path=rows),
            test_file_path=Input(type="uri_file", path=rows),
            max_steps=2,
            per_device_train_batch_size=2,
            logging_steps=1,
            apply_lora="true",
            number_of_gpu_to_use_finetuning=1,
            **inputs,
        )
        return {"trained_model": tuned.outputs.mlflow_model_folder}

    job = pipeline()
    job.settings.force_rerun = True
    job = client.jobs.create_or_update(job, experiment_name="fine-tune")
    with contextlib.redirect_stdout(io.StringIO()) as streamed:
        client.jobs.stream(job.name)
    return client.jobs.get(job.name), streamed.getvalue()


@pytest.fixture(scope="session")
def fine_tuning(emulator: Emulator, rows: Path) -> tuple:
    """The one fine-tuning job of all tests, completed, and what its stream showed."""
    with pytest.MonkeyPatch.context() as patch:
        point(patch, emulator.environment)
        return fine_tune(client_of(), client_of(registry_name="azureml"), rows)


@pytest.fixture(scope="session")
def trained(fine_tuning):
    return fine_tuning[0]
