"""MLflow's registry of models: the workspace's own, so that a model is one however it was registered."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

from mlflow.entities.model_registry import (
    ModelVersion,
    ModelVersionTag,
    RegisteredModel,
    RegisteredModelAlias,
    RegisteredModelTag,
)
from mlflow.exceptions import MlflowException
from mlflow.protos import databricks_pb2 as codes
from mlflow.store.artifact.utils.models import get_model_name_and_version
from mlflow.store.entities.paged_list import PagedList
from mlflow.store.model_registry.abstract_store import AbstractStore
from mlflow.utils.search_utils import SearchModelUtils, SearchModelVersionUtils, SearchUtils

from local_azureml import identifiers, resource
from local_azureml.context import Context
from local_azureml.control_plane import addresses, assets
from local_azureml.data_plane import artifacts
from local_azureml.errors import AzureError

KIND = "models"
RUN, LOGGED_MODEL, RUN_LINK = "mlflow.runId", "mlflow.modelId", "mlflow.runLink"  # properties of a version
ALIAS = "mlflow.alias."  # begins a property of a model, whose value is a version
CODES = {404: codes.RESOURCE_DOES_NOT_EXIST, 403: codes.PERMISSION_DENIED, 409: codes.RESOURCE_ALREADY_EXISTS}
NEWEST_FIRST = ["last_updated_timestamp DESC", "name ASC", "version_number DESC"]


@contextmanager
def _in_mlflows_words() -> Iterator[None]:
    try:
        yield
    except AzureError as error:
        code = CODES.get(error.status, codes.INVALID_PARAMETER_VALUE)
        raise MlflowException(error.message, error_code=code) from None
    except MlflowException as error:
        if error.error_code == "INTERNAL_ERROR":  # which MLflow calls an address that it can't read
            raise MlflowException.invalid_parameter_value(error.message) from None
        raise


def _milliseconds(document: dict, key: str) -> int:
    return int(datetime.fromisoformat(document["systemData"][key]).timestamp() * 1000)


def _not_played(self, *_, **__):
    raise MlflowException("this is not part of the emulator", error_code=codes.NOT_IMPLEMENTED)


class Models(AbstractStore):
    """The workspace's models and their versions, as MLflow asks for them; its numbers are whole ones."""

    create_webhook = get_webhook = update_webhook = delete_webhook = test_webhook = _not_played
    create_prompt = rename_registered_model = _not_played

    def __init__(self, context: Context, runs):
        super().__init__()
        self._context, self._runs = context, runs

    def _shown(self, document: dict) -> RegisteredModel:
        properties = document["properties"]
        return RegisteredModel(
            document["name"],
            _milliseconds(document, "createdAt"),
            _milliseconds(document, "lastModifiedAt"),
            properties.get("description"),
            self._latest(document["name"]),
            [RegisteredModelTag(key, value) for key, value in properties["tags"].items()],
            [RegisteredModelAlias(alias, version) for alias, version in _aliases(document).items()],
        )

    def _model(self, name: str) -> dict:
        with _in_mlflows_words():
            return assets.find_container(self._context, KIND, name)

    def _version(self, name: str, version: str) -> dict:
        with _in_mlflows_words():
            return assets.find(self._context, KIND, name, str(version))

    def _versions(self, name: str) -> list[ModelVersion]:
        """Return the versions of a model, oldest first, without those whose names are no numbers."""
        model = self._model(name)
        found = self._context.state.children(f"{model['id']}/versions")
        return [_shown_version(model, each) for each in found if each["name"].isdecimal()]

    def _latest(self, name: str) -> list[ModelVersion]:
        return list({version.current_stage: version for version in self._versions(name)}.values())

    def _change(self, document: dict, **changes) -> dict:
        properties = {**document["properties"], **changes}
        system_data = resource.system_data(document)
        return self._context.state.merge(document["id"], properties=properties, systemData=system_data)

    def _tag(self, document: dict, key: str, value: str | None) -> None:
        """Set a tag, or remove it where the value is None."""
        others = {name: old for name, old in document["properties"]["tags"].items() if name != key}
        self._change(document, tags=others if value is None else {**others, key: value})

    def list_webhooks(self, *_, **__):
        return PagedList([], None)

    list_webhooks_by_event = list_webhooks

    # models

    def create_registered_model(self, name, tags=None, description=None, deployment_job_id=None):
        with self._context.state.locked(), _in_mlflows_words():
            document = assets.create_container(self._context, KIND, name)
            given = {tag.key: tag.value for tag in tags or []}
            return self._shown(self._change(document, tags=given, description=description))

    def update_registered_model(self, name, description, deployment_job_id=None):
        with self._context.state.locked():
            return self._shown(self._change(self._model(name), description=description))

    def delete_registered_model(self, name):
        self._context.state.delete(self._model(name)["id"])

    def get_registered_model(self, name):
        return self._shown(self._model(name))

    def search_registered_models(self, filter_string=None, max_results=None, order_by=None, page_token=None):
        there = self._context.state.children(f"{identifiers.WORKSPACE_ID}/{KIND}")
        found = SearchModelUtils.filter([self._shown(each) for each in there], filter_string)
        return _page(SearchModelUtils.sort(found, order_by), max_results, page_token)

    def get_latest_versions(self, name, stages=None):
        wanted = {stage.lower() for stage in stages or []}
        return [each for each in self._latest(name) if not wanted or each.current_stage.lower() in wanted]

    def set_registered_model_tag(self, name, tag):
        with self._context.state.locked():
            self._tag(self._model(name), tag.key, tag.value)

    def delete_registered_model_tag(self, name, key):
        with self._context.state.locked():
            self._tag(self._model(name), key, None)

    # versions

    def create_model_version(
        self,
        name,
        source,
        run_id=None,
        tags=None,
        run_link=None,
        description=None,
        local_model_path=None,
        model_id=None,
    ):
        if source.startswith("models:/"):
            with _in_mlflows_words():
                named = get_model_name_and_version(self, source)  # or the id of a logged model, alone
            logged = len(named) == 1 and self._runs.get_logged_model(*named)
            source = logged.artifact_location if logged else self.get_model_version_download_uri(*named)
        known = {RUN: run_id, LOGGED_MODEL: model_id, RUN_LINK: run_link}
        properties = {
            "modelUri": artifacts.datastore_uri(source),
            "description": description or None,
            "tags": {tag.key: tag.value for tag in tags or []},
            "properties": {key: value for key, value in known.items() if value},
        }
        with self._context.state.locked(), _in_mlflows_words():
            is_mlflow = (addresses.resolve(self._context, properties["modelUri"]) / "MLmodel").is_file()
            properties["modelType"] = "mlflow_model" if is_mlflow else "custom_model"
            version = assets.next_version(self._context, KIND, name)
            document, _ = assets.register(self._context, KIND, name, version, properties)
            return _shown_version(self._model(name), document)

    def update_model_version(self, name, version, description):
        with self._context.state.locked():
            document = self._change(self._version(name, version), description=description)
            return _shown_version(self._model(name), document)

    def transition_model_version_stage(self, name, version, stage, archive_existing_versions):
        with self._context.state.locked():
            for other in self._versions(name) if archive_existing_versions else []:
                if other.current_stage == stage and other.version != str(version):
                    self._change(self._version(name, other.version), stage="Archived")
            document = self._change(self._version(name, version), stage=stage)
            return _shown_version(self._model(name), document)

    def delete_model_version(self, name, version):
        self._context.state.delete(self._version(name, version)["id"])

    def get_model_version(self, name, version):
        return _shown_version(self._model(name), self._version(name, version))

    def get_model_version_download_uri(self, name, version):
        source = self.get_model_version(name, version).source
        if not source.startswith(artifacts.STORED):  # MLflow's server would read any file of the machine
            message = f"version {version!r} of {name!r} lies at {source!r}, where MLflow reads nothing here"
            raise MlflowException(message, error_code=codes.INVALID_PARAMETER_VALUE)
        return source

    def search_model_versions(self, filter_string=None, max_results=None, order_by=None, page_token=None):
        there = self._context.state.children(f"{identifiers.WORKSPACE_ID}/{KIND}")
        versions = [version for model in there for version in self._versions(model["name"])]
        found = SearchModelVersionUtils.filter(versions, filter_string)
        found = SearchModelVersionUtils.sort(found, order_by or NEWEST_FIRST)
        return _page(found, max_results, page_token)

    def set_model_version_tag(self, name, version, tag):
        with self._context.state.locked():
            self._tag(self._version(name, version), tag.key, tag.value)

    def delete_model_version_tag(self, name, version, key):
        with self._context.state.locked():
            self._tag(self._version(name, version), key, None)

    # aliases

    def set_registered_model_alias(self, name, alias, version):
        with self._context.state.locked():
            model, found = self._model(name), self._version(name, version)
            named = {**model["properties"]["properties"], f"{ALIAS}{alias}": found["name"]}
            self._change(model, properties=named)

    def delete_registered_model_alias(self, name, alias):
        with self._context.state.locked():
            model = self._model(name)
            kept = {
                key: v for key, v in model["properties"]["properties"].items() if key != f"{ALIAS}{alias}"
            }
            self._change(model, properties=kept)

    def get_model_version_by_alias(self, name, alias):
        there = _aliases(self._model(name))
        if alias not in there:
            known = ", ".join(there) or "none"
            raise MlflowException(
                f"the model {name!r} has no alias {alias!r}; it has: {known}",
                error_code=codes.INVALID_PARAMETER_VALUE,
            )
        return self.get_model_version(name, there[alias])


def _shown_version(model: dict, document: dict) -> ModelVersion:
    properties = document["properties"]
    own = properties["properties"]
    return ModelVersion(
        model["name"],
        document["name"],
        _milliseconds(document, "createdAt"),
        _milliseconds(document, "lastModifiedAt"),
        properties.get("description"),
        current_stage=properties.get("stage") or "None",
        source=artifacts.stored(properties.get("modelUri") or ""),
        run_id=own.get(RUN),
        tags=[ModelVersionTag(key, value) for key, value in properties["tags"].items()],
        run_link=own.get(RUN_LINK),
        aliases=[alias for alias, version in _aliases(model).items() if version == document["name"]],
        model_id=own.get(LOGGED_MODEL),
    )


def _aliases(model: dict) -> dict[str, str]:
    own = model["properties"]["properties"]
    return {key.removeprefix(ALIAS): version for key, version in own.items() if key.startswith(ALIAS)}


def _page(found: list, max_results: int | None, token: str | None) -> PagedList:
    begin = SearchUtils.parse_start_offset_from_page_token(token)
    end = begin + (max_results or len(found))
    return PagedList(found[begin:end], SearchUtils.create_page_token(end) if end < len(found) else None)
