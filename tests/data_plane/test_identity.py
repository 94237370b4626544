"""Cloud metadata, tokens and what is refused without one."""

import base64
import json
import time

import jwt
import pytest
from conftest import raw_client


def test_a_credential_gets_a_token_for_the_audience_that_it_asks_for(environment):
    from azure.identity import DefaultAzureCredential

    token = DefaultAzureCredential().get_token("https://ml.azure.local/.default").token
    assert jwt.decode(token, options={"verify_signature": False})["aud"] == "https://ml.azure.local"


def test_the_metadata_names_this_cloud_and_needs_no_token(anonymous):
    clouds = anonymous.get("/metadata/endpoints?api-version=2019-05-01").json()
    assert [cloud["name"] for cloud in clouds] == ["LocalAzureML"]


@pytest.mark.parametrize("header", [{}, {"X-IDENTITY-HEADER": "guess"}])
def test_no_token_without_the_identity_header(anonymous, header):
    answer = anonymous.get("/identity/token?resource=https://ml.azure.local", headers=header)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request")


def forged(claims: dict, key: str, algorithm: str = "HS256") -> str:
    return jwt.encode(claims, key, algorithm=algorithm)


def unsigned() -> str:
    """A token of the algorithm none."""
    parts = [{"alg": "none", "typ": "JWT"}, {"aud": "https://ml.azure.local", "exp": time.time() + 60}]
    encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts]
    return ".".join([*encoded, ""])


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Bearer",
        "Bearer nonsense",
        "Basic dXNlcjpwYXNzd29yZA==",
        f"Bearer {forged({'exp': 4e9}, 'another key, of at least 32 bytes')}",
        f"Bearer {unsigned()}",
    ],
)
def test_a_request_without_one_of_our_tokens_is_answered_401(anonymous, arm, authorization):
    answer = anonymous.get(arm.workspace, headers={"Authorization": authorization} if authorization else {})
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")


def test_an_expired_token_is_answered_so_that_the_client_asks_for_a_new_one(emulator_with, arm):
    faulty = emulator_with("token-seconds=-1")
    answer = raw_client(faulty.context.environment()).get(arm.workspace)
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "ExpiredAuthenticationToken")


def test_the_fault_no_credential_leaves_every_credential_without_a_token(emulator_with, monkeypatch):
    from azure.core.exceptions import ClientAuthenticationError
    from azure.identity import ManagedIdentityCredential

    emulator_with("no-credential")
    with pytest.raises(ClientAuthenticationError):
        ManagedIdentityCredential().get_token("https://ml.azure.local/.default")
