"""Faults that answer some requests in place of their service."""

import os

import pytest
from conftest import raw_client

from local_azureml import identifiers

PROVIDER = f"/subscriptions/{identifiers.SUBSCRIPTION}/providers/{identifiers.PROVIDER}"
LOCATION = f"{PROVIDER}/locations/{identifiers.LOCATION}"


@pytest.mark.parametrize(
    ("fault", "method", "address", "status", "words"),
    [
        (
            "registry-forbidden",
            "GET",
            "/registrymanagement/v1.0/registries/azureml/discovery",
            403,
            "Registry User",
        ),
        ("model-missing", "GET", "/mferp/managementfrontend{registry}/models/Phi-4", 404, "no model named"),
        ("quota-forbidden", "GET", f"{LOCATION}/vmSizes", 403, "subscription"),
        ("quota-forbidden", "GET", f"{LOCATION}/usages", 403, "subscription"),
        ("register-refused", "PUT", "{workspace}/models/m/versions/1", 403, "AzureML Data Scientist"),
        ("endpoint-taken", "PUT", "{workspace}/onlineEndpoints/any-name", 400, "'any-name' is taken"),
        (
            "delete-failed=1",
            "DELETE",
            "{workspace}/onlineEndpoints/stubborn",
            409,
            "'stubborn' is busy: try again",
        ),
    ],
)
def test_a_fault_refuses_what_it_is_for_and_says_why(
    emulator_with, arm, fault, method, address, status, words
):
    emulator_with(fault)
    body = {"location": "eastus", "properties": {"authMode": "Key"}} if method == "PUT" else None
    with raw_client(dict(os.environ)) as http:
        answer = http.request(method, address.format(**vars(arm)), json=body)
        assert (answer.status_code, words in answer.json()["error"]["message"]) == (status, True), answer.text
        assert method != "DELETE" or http.delete(address.format(**vars(arm))).status_code == 204
