"""Datastores of other storage accounts: kept as they were asked for, and never read."""

import pytest
from clients import make_command, reason


@pytest.fixture
def other(client):
    """A datastore of a storage account that is somewhere else."""
    from azure.ai.ml.entities import AccountKeyConfiguration, AzureBlobDatastore

    asked = AzureBlobDatastore(
        name="elsewhere",
        description="of another account",
        account_name="canary",
        container_name="letters",
        credentials=AccountKeyConfiguration(account_key="canarykey="),
    )
    return client.datastores.create_or_update(asked)


def test_a_datastore_comes_back_as_it_was_made(client, other):
    found = client.datastores.get("elsewhere")
    assert (found.account_name, found.container_name, found.description) == (
        "canary",
        "letters",
        "of another account",
    )
    assert "elsewhere" in [store.name for store in client.datastores.list()]


def test_the_key_of_a_datastore_is_told_to_those_alone_who_ask_for_it(client, other, http, arm):
    found = client.datastores.get("elsewhere", include_secrets=True)
    assert found.credentials.account_key == "canarykey="
    told = [http.get(f"{arm.workspace}/datastores{name}").text for name in ("", "/elsewhere")]
    assert not [text for text in told if "canarykey" in text]


def test_a_job_that_reads_another_account_fails_and_names_it(client, other):
    from azure.ai.ml import Input

    given = Input(type="uri_folder", path="azureml://datastores/elsewhere/paths/a")
    said = reason(client, make_command("ls ${{inputs.a}}", inputs={"a": given}))
    assert "the storage account 'canary' of the datastore 'elsewhere' is not part of the emulator" in said


def test_a_letter_that_only_becomes_k_when_it_is_small_is_no_k(http, arm):
    kelvin = "\u212a"
    asked = {"datastoreType": "AzureBlob", "credentials": {"credentialsType": "None"}}
    assert http.put(f"{arm.workspace}/datastores/k", json={"properties": asked}).status_code == 201
    told = http.put(f"{arm.workspace}/datastores/{kelvin}", json={"properties": asked})
    assert (told.status_code, http.get(f"{arm.workspace}/datastores/{kelvin}").status_code) == (400, 404)
    assert http.delete(f"{arm.workspace}/datastores/k").status_code == 200


def test_a_deleted_datastore_is_gone(client, other):
    from azure.core.exceptions import ResourceNotFoundError

    client.datastores.delete("elsewhere")
    with pytest.raises(ResourceNotFoundError, match="no datastore named 'elsewhere'"):
        client.datastores.get("elsewhere")


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
def test_the_workspaces_own_datastores_stay_as_they_are(http, arm, method):
    body = {"properties": {"datastoreType": "AzureBlob", "credentials": {"credentialsType": "None"}}}
    told = http.request(method, f"{arm.workspace}/datastores/workspaceblobstore", json=body)
    assert told.status_code == 501 and "workspaceblobstore" in told.text
