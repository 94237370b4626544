"""Experiments, runs and metrics: the real MLflow server, mounted where the SDK looks for it."""

import errno
import logging
import os
import re
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from starlette.concurrency import run_in_threadpool
from starlette.types import Message, Receive, Scope, Send

from local_azureml import identifiers
from local_azureml.context import Context
from local_azureml.control_plane import operations
from local_azureml.data_plane import artifacts
from local_azureml.errors import AzureError, full_disk

PREFIX = (
    f"/mlflow/v2.0{identifiers.WORKSPACE_ID}"  # azureml-mlflow asks for v2.0 where the workspace says v1.0
)
OWN_ROOT = re.compile(f"{artifacts.STORED}(?!/)")  # two slashes would name a host


@contextmanager
def _telling_a_full_disk() -> Iterator[None]:
    """Raise the system's own error for a full disk, which MLflow wraps in others."""
    try:
        yield
    except Exception as error:
        if full_disk(error):
            raise OSError(errno.ENOSPC, str(error)) from error
        raise


class Tracking:
    """MLflow's own server app and its store, on a SQLite file of the data folder."""

    def __init__(self, context: Context):
        self._context, self._folder = context, context.folder
        self._lock = threading.Lock()
        self._storing = threading.Lock()  # while there is something half-written
        self._closed = False

    @property
    def _store(self):
        return self.load()[1]

    def load(self) -> tuple:
        """Return MLflow's application and its store; the first time, importing them takes seconds."""
        with self._lock:
            if not hasattr(self, "_loaded"):
                self._loaded = self._load()
            return self._loaded

    def _load(self) -> tuple:
        uri = f"sqlite:///{self._folder / 'mlflow.sqlite'}"
        os.environ["_MLFLOW_SERVER_FILE_STORE"] = uri  # read when mlflow.server is imported
        os.environ["_MLFLOW_SERVER_ARTIFACT_ROOT"] = artifacts.ROOT
        os.environ["_MLFLOW_SERVER_ARTIFACT_DESTINATION"] = self._context.blobs.as_uri()
        os.environ["_MLFLOW_SERVER_SERVE_ARTIFACTS"] = "true"
        os.environ["MLFLOW_SERVER_ALLOWED_HOSTS"] = "localhost:*,127.0.0.1:*"
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # MLflow's own use of what Starlette deprecates
            from mlflow.exceptions import MlflowException
            from mlflow.server import app as flask
            from mlflow.server.fastapi_app import app
            from mlflow.server.handlers import _model_registry_store_registry, _tracking_store_registry
            from mlflow.store.tracking.dbmodels.models import SqlLoggedModel, SqlRun
            from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

            from local_azureml.data_plane.models import Models
        for name in ("mlflow.store.db.utils", "alembic"):  # now: MLflow's import sets its loggers' levels
            logging.getLogger(name).setLevel(logging.WARNING)

        class OwnArtifacts(SqlAlchemyStore):
            """MLflow's store, with a run's artifacts, and the models among them, where its job's logs are."""

            def create_experiment(self, name, artifact_location=None, tags=None):
                if artifact_location and not OWN_ROOT.match(artifact_location):
                    root = artifacts.STORED
                    message = f"artifacts lie below {root} here, not at {artifact_location!r}: leave it out"
                    raise MlflowException.invalid_parameter_value(message)
                return super().create_experiment(name, artifact_location, tags)

            def create_run(self, *asked, **named):
                made = super().create_run(*asked, **named)
                with self.ManagedSessionMaker(read_only=False) as session:
                    session.get(SqlRun, made.info.run_id).artifact_uri = artifacts.of_run(made.info.run_id)
                return self.get_run(made.info.run_id)

            def create_logged_model(self, *asked, **named):
                made = super().create_logged_model(*asked, **named)
                if made.source_run_id:
                    place = f"{artifacts.of_run(made.source_run_id)}/{made.name}"
                    with self.ManagedSessionMaker(read_only=False) as session:
                        session.get(SqlLoggedModel, made.model_id).artifact_location = place
                return self.get_logged_model(made.model_id)

        with self._storing:
            if self._closed:
                raise operations.stopped()
            store = OwnArtifacts(uri, artifacts.ROOT)
        models = Models(self._context, store)
        too_deep = {"error_code": "INVALID_PARAMETER_VALUE", "message": "the body is nested too deeply"}
        with suppress(AssertionError):  # an emulator before this one in the same process has done it
            flask.register_error_handler(RecursionError, lambda error: (too_deep, 400))
        _tracking_store_registry.register("sqlite", lambda **_: store)
        _model_registry_store_registry.register("sqlite", lambda **_: models)
        return app, store

    def warm(self) -> None:
        """Begin to load; nobody need wait for that, whoever stops included."""

        def load() -> None:
            with suppress(AzureError):  # closed meanwhile
                self.load()

        threading.Thread(target=load, daemon=True).start()

    def close(self) -> None:
        """Let nothing more be written by a load that is under way."""
        with self._storing:
            self._closed = True

    @_telling_a_full_disk()
    def start_run(self, name: str, experiment: str, title: str, tags: dict[str, str]) -> None:
        """Create a run whose id is the job's name, as Azure does; MLflow itself would draw a random one."""
        store = self._store  # before any import of MLflow's, which the loading of it must not meet
        from mlflow.entities import LifecycleStage, RunStatus, SourceType
        from mlflow.store.tracking.dbmodels.models import SqlRun, SqlTag

        experiment_id = self.experiment(experiment)
        all_tags = {"mlflow.runName": title, "mlflow.user": "you", **tags}
        with store.ManagedSessionMaker(read_only=False) as session:
            session.add(
                SqlRun(
                    name=title,
                    run_uuid=name,
                    experiment_id=int(experiment_id),
                    user_id="you",
                    status=RunStatus.to_string(RunStatus.RUNNING),
                    start_time=int(time.time() * 1000),
                    source_type=SourceType.to_string(SourceType.UNKNOWN),
                    source_name="",
                    entry_point_name="",
                    source_version="",
                    lifecycle_stage=LifecycleStage.ACTIVE,
                    artifact_uri=artifacts.of_run(name),
                    tags=[SqlTag(key=key, value=value) for key, value in all_tags.items()],
                )
            )

    def has_run(self, name: str) -> bool:
        """Say whether there is a run with that id, which outlives its job."""
        store = self._store
        from mlflow.store.tracking.dbmodels.models import SqlRun

        with store.ManagedSessionMaker() as session:
            return session.get(SqlRun, name) is not None

    def experiment(self, name: str) -> str:
        """Return the id of an experiment, which is made where it is not there."""
        found = self._store.get_experiment_by_name(name)
        return found.experiment_id if found else self._store.create_experiment(name)

    def metric(self, name: str, metric: str) -> list[float]:
        """Return all values of a metric that a run has logged, in the order of time; none without a run."""
        if not self.has_run(name):
            return []
        logged = self._store.get_metric_history(name, metric)
        return [one.value for one in sorted(logged, key=lambda one: (one.timestamp, one.step))]

    def metrics(self, name: str) -> list[str]:
        """Return the names of the metrics that a run has logged."""
        return list(self._store.get_run(name).data.metrics)

    def end_run(self, name: str, status: str) -> None:
        """Set a run's end; `status` is MLflow's: FINISHED, FAILED or KILLED."""
        store = self._store
        from mlflow.entities import RunStatus

        end = int(time.time() * 1000)
        store.update_run_info(name, RunStatus.from_string(status), end, None)


def uri(context: Context) -> str:
    """Return the address of the tracking server for a job of ours."""
    return f"{context.origin}{PREFIX}"


class Page:
    """MLflow's app with CORS headers removed."""

    def __init__(self, runs: Tracking):
        self._runs = runs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def without_invitation(message: Message) -> None:
            if message["type"] == "http.response.start":
                kept = [(k, v) for k, v in message["headers"] if not k.startswith(b"access-control-")]
                message = {**message, "headers": kept}
            await send(message)

        app, _ = await run_in_threadpool(self._runs.load)
        await app(scope, receive, without_invitation)
