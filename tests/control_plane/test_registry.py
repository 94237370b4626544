"""The registry `azureml`, read with the SDK."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import client_of

from local_azureml import identifiers
from local_azureml.cli import main
from local_azureml.control_plane import registry

PROVIDER = f"/subscriptions/{identifiers.SUBSCRIPTION}/providers/{identifiers.PROVIDER}"
LOCATION = f"{PROVIDER}/locations/{identifiers.LOCATION}"


def test_the_label_latest_gives_the_newest_version(registry_client):
    model = registry_client.models.get("Phi-3-mini-4k-instruct", label="latest")
    assert (model.version, model.id) == (
        "14",
        "azureml://registries/azureml/models/Phi-3-mini-4k-instruct/versions/14",
    )
    assert "emulator" in model.description


def defaults(client) -> dict:
    tags = client.models.get("Phi-3-mini-4k-instruct", label="latest").tags
    told = json.loads(tags["model_specific_defaults"])
    return {name: told[name] for name in ("learning_rate", "num_train_epochs", "precision")}


def test_what_suits_the_small_model_is_not_told_of_another(registry_client, emulator_with, tmp_path):
    assert defaults(registry_client) == {"learning_rate": 0.002, "num_train_epochs": 3, "precision": 16}
    shutil.copytree(identifiers.SMALL_MODEL, tmp_path / "other")
    emulator_with(options=("--base-model", str(tmp_path / "other")))
    other = client_of(registry_name="azureml")
    assert defaults(other) == {"learning_rate": 5e-06, "num_train_epochs": 1, "precision": 16}
    model = other.models.get("Phi-3-mini-4k-instruct", label="latest")
    assert ("3.3 million" in model.description, "emulator" in model.tags) == (False, False)


def with_config(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (
            lambda folder: with_config(folder, quantization_config={"quant_method": "bitsandbytes"}),
            "weights are quantised (bitsandbytes) and can't be trained; give the model in 16 or 32 bits",
        ),
        (lambda folder: (folder / "config.json").unlink(), "is no checkpoint: it has no config.json, only"),
        (lambda folder: (folder / "config.json").write_text("[1"), "of the base model is not JSON"),
        (lambda folder: (folder / "config.json").write_text("[1]"), "of the base model is no JSON object"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no file model.safetensors"),
        (
            lambda folder: (folder / "model.safetensors").write_text("cut"),
            "is truncated or not a safetensors file",
        ),
        (lambda folder: (folder / "tokenizer_config.json").unlink(), "has no tokenizer_config.json"),
        (lambda folder: with_config(folder, model_type="evil"), "has no model of the type 'evil', and code"),
        (lambda folder: with_config(folder, model_type="t5"), "of the type 't5', no causal language model"),
        (lambda folder: with_config(folder, model_type="mamba"), "not all their layers are attention"),
        (
            lambda folder: with_config(folder, hidden_size="many"),
            "can't read the base model's config.json",
        ),
        (
            lambda folder: with_config(folder, num_hidden_layers=5),
            "weights that its files lack, model.layers.4",
        ),
        (
            lambda folder: with_config(folder, vocab_size=99),
            "tokenizer has a token 3965; its config.json says",
        ),
        (lambda folder: (folder / "chat_template.jinja").unlink(), "no chat template; a chat model has one"),
        (
            lambda folder: (folder / "chat_template.jinja").write_text("Hello!"),
            "chat template can't write an answer: of 1 questions and answers it writes 0",
        ),
        (
            lambda folder: (folder / "chat_template.jinja").write_text("{{ raise_exception('no chats') }}"),
            "chat template can't write an answer: no chats",
        ),
    ],
)
def test_what_is_no_chat_model_that_can_be_trained_is_refused_when_the_emulator_starts(
    tmp_path, capsys, variables_kept, spoil, words
):
    folder = tmp_path / "model"
    shutil.copytree(identifiers.SMALL_MODEL, folder)
    spoil(folder)
    assert main(["serve", "--base-model", str(folder)]) == 2
    said = capsys.readouterr().err
    assert (said.startswith(f"local_azureml: --base-model {folder}: "), words in said) == (True, True), said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("models", ["Phi-3-mini-4k-instruct", "Phi-4"]),
        ("components", ["chat_completion_pipeline"]),
        ("environments", sorted(registry.ENVIRONMENTS)),
    ],
)
def test_what_the_registry_holds_is_listed(registry_client, kind, names):
    assert sorted(found.name for found in getattr(registry_client, kind).list()) == names


@pytest.mark.parametrize("kind", ["models", "components", "environments"])
def test_what_the_registry_lists_tells_its_type(http, arm, kind):
    listed = http.get(f"/mferp/managementfrontend{arm.registry}/{kind}").json()["value"]
    assert {found["type"] for found in listed} == {kind}


def test_the_archived_version_is_listed_where_it_is_asked_for(http, arm):
    path = f"/mferp/managementfrontend{arm.registry}/models/Phi-3-mini-4k-instruct/versions"
    views = ("ActiveOnly", "ArchivedOnly", "All")  # the SDK asks a registry for none of them
    told = [http.get(path, params={"listViewType": view}).json()["value"] for view in views]
    assert [[entry["name"] for entry in found] for found in told] == [["14"], ["15"], ["15", "14"]]


def test_an_archived_version_is_found_by_its_number_and_tells_no_allow_list(registry_client):
    model = registry_client.models.get("Phi-3-mini-4k-instruct", version="15")
    assert model.tags.keys() - {"emulator"} == {"_aml_system_vanity_registry", "model_specific_defaults"}


def test_the_sizes_of_todays_models_stand_in_a_block_of_their_own(http, arm):
    sizes = {size["name"] for size in http.get(LOCATION + "/vmSizes").json()["value"]}
    told = {}
    for name, version in (("Phi-3-mini-4k-instruct", "15"), ("Phi-4", "8")):
        entry = http.get(f"/mferp/managementfrontend{arm.registry}/models/{name}/versions/{version}").json()
        told[name] = entry["properties"]["system_metadata"]
    computes = told["Phi-4"]["supportedComputes"]
    retired = told["Phi-3-mini-4k-instruct"]["deprecation"]["finetuneRetirementDate"]
    assert (retired, "deprecation" in told["Phi-4"]) == ("2025-08-30T00:00:00.000000Z", False)
    assert [set(computes[use]) - sizes for use in ("finetuneComputes", "inferenceComputes")] == [set(), set()]
    assert "Standard_ND96isr_H100_v5" in computes["finetuneComputes"]


def test_phi_4_recommends_the_third_stage_and_tells_nothing_else(registry_client):
    model = registry_client.models.get("Phi-4", label="latest")
    defaults = json.loads(model.tags["model_specific_defaults"])
    assert (model.tags.keys() - {"emulator"}, defaults["deepspeed_stage"]) == ({"model_specific_defaults"}, 3)


@pytest.mark.parametrize("asked", [{"label": "latest"}, {"version": "12"}])
def test_a_curated_environment_says_what_it_is_made_of(registry_client, asked):
    found = registry_client.environments.get("sklearn-1.5", **asked)
    address = f"azureml://registries/azureml/environments/sklearn-1.5/versions/{asked.get('version', '1')}"
    assert (found.id, "pandas~=1.5.3" in found.conda_file["dependencies"]) == (address, True)


def test_an_unknown_model_is_answered_with_the_models_there_are(registry_client):
    from azure.core.exceptions import HttpResponseError

    with pytest.raises(HttpResponseError, match=r"no model named 'Phi-99'.*Phi-3-mini-4k-instruct, Phi-4"):
        registry_client.models.get("Phi-99", label="latest")


def test_an_unknown_version_is_answered_with_the_versions_there_are(registry_client):
    from azure.core.exceptions import ResourceNotFoundError

    with pytest.raises(ResourceNotFoundError, match=r"no version '99' of 'Phi-4'.*there is: 8"):
        registry_client.models.get("Phi-4", version="99")


def test_the_component_has_its_69_inputs(registry_client):
    component = registry_client.components.get("chat_completion_pipeline", label="latest")
    assert (component.version, len(component.inputs), len(component.outputs)) == ("0.0.82", 69, 2)


def test_a_registry_that_is_not_there_is_not_found(environment):
    from azure.core.exceptions import ResourceNotFoundError

    with pytest.raises(ResourceNotFoundError, match="no registry named 'contoso'; there is: azureml"):
        client_of(registry_name="contoso")


def test_the_address_of_a_model_cannot_leave_the_registry(http, arm):
    answer = http.get(f"/mferp/managementfrontend{arm.registry}/models/..%2F..%2Fhub/versions")
    assert answer.status_code in (404, 501)


@pytest.mark.parametrize("name", ["%2E", "%2E%2E", "%00", "a" * 300])
def test_what_is_no_name_of_a_model_is_answered_as_an_unknown_name(http, arm, name):
    model = f"/mferp/managementfrontend{arm.registry}/models/{name}"
    answers = [http.get(model), http.get(f"{model}/versions"), http.get(f"{model}/versions/1")]
    assert [answer.status_code for answer in answers] == [404] * 3


def test_the_fault_model_archived_brings_a_newest_version_without_allow_lists(emulator_with):
    emulator_with("model-archived")
    model = client_of(registry_name="azureml").models.get("Phi-3-mini-4k-instruct", label="latest")
    defaults = json.loads(model.tags["model_specific_defaults"])
    assert (model.version, "finetune_compute_allow_list" in model.tags, "learning_rate_min" in defaults) == (
        "15",
        False,
        True,
    )
