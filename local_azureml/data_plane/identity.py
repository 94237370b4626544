"""Cloud metadata and tokens: what azure-identity and the SDK ask before anything else."""

import hmac
import time

import jwt
from fastapi import APIRouter, Request

from local_azureml import identifiers
from local_azureml.access import nothing, opens
from local_azureml.context import Context, current
from local_azureml.errors import AzureError

router = APIRouter()
LOGIN = "https://login.azure.local/"  # never asked; azure-identity takes none with a port
USER = "00000000-0000-0000-0000-000000000002"


@router.get("/metadata/endpoints")
@opens(nothing, "addresses, read to learn where tokens are given out")
def metadata(request: Request) -> list[dict]:
    """Return the clouds that there are: this one."""
    origin = current(request).origin
    suffixes = ("keyVaultDns", "sqlServerHostname", "acrLoginServer", "azureDataLakeStoreFileSystem")
    addresses = ("media", "graph", "graphAudience", "gallery", "batch", "sqlManagement", "vmImageAliasDoc")
    return [
        {
            "name": identifiers.NAME,
            "portal": identifiers.PORTAL,
            "resourceManager": f"{origin}/",
            "activeDirectoryDataLake": origin,
            "authentication": {
                "loginEndpoint": LOGIN,
                "audiences": [f"{origin}/", identifiers.AUDIENCE],
                "tenant": "common",
                "identityProvider": "AAD",
            },
            "suffixes": {
                "storage": identifiers.STORAGE_SUFFIX,
                "azureDataLakeAnalyticsCatalogAndJob": identifiers.STORAGE_SUFFIX,
                **dict.fromkeys(suffixes, identifiers.STORAGE_SUFFIX),
            },
            **dict.fromkeys(addresses, origin),
        }
    ]


def check_header(request: Request) -> None:
    """Refuse a request for a token that does not know the secret of the start."""
    context, given = current(request), request.headers.get("x-identity-header", "")
    if not hmac.compare_digest(given.encode(), context.secret("identity_header").encode()):
        raise AzureError(400, "invalid_request", "no managed identity matches this X-IDENTITY-HEADER")


@router.get("/identity/token")
@opens(check_header, "gives the token, for the secret of the start")
def token(request: Request, resource: str) -> dict:
    """Return a token for `resource`, as App Service's managed identity does."""
    context = current(request)
    expires = int(time.time() + (context.faults.value("token-seconds") or identifiers.LIFETIME))
    return {
        "access_token": make_token(context, resource, expires),
        "expires_on": str(expires),
        "resource": resource,
        "token_type": "Bearer",
    }


def make_token(context: Context, resource: str, expires: int, key: str | None = None) -> str:
    """Return a token whose audience is `resource`, signed with `key`, by default the one that opens all."""
    claims = {
        "aud": resource.rstrip("/"),
        "iss": f"{context.origin}/{identifiers.TENANT}/",
        "exp": expires,
        "oid": USER,
        "tid": identifiers.TENANT,
        "name": "you",
    }
    return jwt.encode(claims, key or context.secret("token_key"), algorithm="HS256")


def check_token(request: Request, key: str | None = None) -> None:
    """Refuse a request whose bearer token is not one that this emulator gave out, signed with `key`."""
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    given = given if scheme.lower() == "bearer" else ""
    options = {"verify_aud": False}  # the control plane and the ML services each ask for their own audience
    try:
        key = key or current(request).secret("token_key")
        jwt.decode(given, key, algorithms=["HS256"], options=options)
    except jwt.ExpiredSignatureError:
        raise AzureError(
            401,
            "ExpiredAuthenticationToken",
            "The access token is expired: ask for a new one",
            headers={"WWW-Authenticate": 'Bearer error="invalid_token"'},
        ) from None
    except jwt.InvalidTokenError:
        raise AzureError(
            401,
            "InvalidAuthenticationToken" if scheme else "AuthenticationFailed",
            "The request needs a bearer token of this emulator: see IDENTITY_ENDPOINT",
            headers={"WWW-Authenticate": "Bearer"},
        ) from None
