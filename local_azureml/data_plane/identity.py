"""Cloud metadata and tokens: what azure-identity and the SDK ask before anything else."""

import hmac
import time

import jwt
from fastapi import APIRouter, Request

from local_azureml import cloud
from local_azureml.errors import AzureError

router = APIRouter()
LOGIN = "https://login.azure.local/"  # never asked; azure-identity takes none with a port
USER = "00000000-0000-0000-0000-000000000002"


@router.get("/metadata/endpoints")
def metadata(request: Request) -> list[dict]:
    """Return the clouds that there are: this one."""
    origin = cloud.current(request).origin
    suffixes = ("keyVaultDns", "sqlServerHostname", "acrLoginServer", "azureDataLakeStoreFileSystem")
    addresses = ("media", "graph", "graphAudience", "gallery", "batch", "sqlManagement", "vmImageAliasDoc")
    return [
        {
            "name": cloud.NAME,
            "portal": cloud.PORTAL,
            "resourceManager": f"{origin}/",
            "activeDirectoryDataLake": origin,
            "authentication": {
                "loginEndpoint": LOGIN,
                "audiences": [f"{origin}/", cloud.AUDIENCE],
                "tenant": "common",
                "identityProvider": "AAD",
            },
            "suffixes": {
                "storage": cloud.STORAGE_SUFFIX,
                "azureDataLakeAnalyticsCatalogAndJob": cloud.STORAGE_SUFFIX,
                **dict.fromkeys(suffixes, cloud.STORAGE_SUFFIX),
            },
            **dict.fromkeys(addresses, origin),
        }
    ]


@router.get("/identity/token")
def token(request: Request, resource: str) -> dict:
    """Return a token for `resource`, as App Service's managed identity does."""
    local = cloud.current(request)
    expires = int(time.time() + (local.faults.value("token-seconds") or cloud.LIFETIME))
    return {
        "access_token": make_token(local, resource, expires),
        "expires_on": str(expires),
        "resource": resource,
        "token_type": "Bearer",
    }


def check_header(request: Request) -> None:
    """Refuse a request for a token that does not know the secret of the start."""
    local, given = cloud.current(request), request.headers.get("x-identity-header", "")
    known = hmac.compare_digest(given.encode(), local.secret("identity_header").encode())
    if "no-credential" in local.faults or not known:
        raise AzureError(400, "invalid_request", "no managed identity is here for that X-IDENTITY-HEADER")


def make_token(local: cloud.Cloud, resource: str, expires: int, key: str | None = None) -> str:
    """Return a token whose audience is `resource`, signed with `key`, by default the one that opens all."""
    claims = {
        "aud": resource.rstrip("/"),
        "iss": f"{local.origin}/{cloud.TENANT}/",
        "exp": expires,
        "oid": USER,
        "tid": cloud.TENANT,
        "name": "you",
    }
    return jwt.encode(claims, key or local.secret("token_key"), algorithm="HS256")


def job_token(local: cloud.Cloud) -> str:
    """Return the token with which a job of ours writes its metrics."""
    return make_token(local, cloud.AUDIENCE, int(time.time()) + cloud.LIFETIME)


def check_token(request: Request, key: str | None = None) -> None:
    """Refuse a request whose bearer token is not one that this stand-in gave out, signed with `key`."""
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    given = given if scheme.lower() == "bearer" else ""
    options = {"verify_aud": False}  # the control plane and the ML services each ask for their own audience
    try:
        key = key or cloud.current(request).secret("token_key")
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
            "The request needs a bearer token of this stand-in: see IDENTITY_ENDPOINT",
            headers={"WWW-Authenticate": "Bearer"},
        ) from None
