"""Browsers: a job's link carries a ticket, which is exchanged once for a cookie that reads MLflow's page."""

import hmac
import posixpath
import re
import secrets
import time
from urllib.parse import parse_qs, urlparse

from fastapi import Request
from fastapi.responses import Response

from local_azureml import identifiers
from local_azureml.access import KIB, MIB, Opened, Rule
from local_azureml.context import Context, current
from local_azureml.data_plane import artifacts, identity, tracking
from local_azureml.errors import AzureError, user_error

SESSION = "session"  # what the cookie is signed for
COOKIE = "local_azureml_session"
LIFETIME = 12 * 3600  # seconds
LINKS = "/runs"
NOT_THE_PAGES = ("/api/", "/ajax-api/2.0/mlflow-artifacts/")
READING = (  # what the page asks for with POST, and changes nothing
    "/graphql",  # a run's page; its one mutation echoes what it is given
    "/ajax-api/2.0/mlflow/runs/search",
    "/ajax-api/2.0/mlflow/experiments/search",
    "/ajax-api/2.0/mlflow/logged-models/search",
    "/ajax-api/3.0/mlflow/traces/search",
)


def link(context: Context, job: str) -> str:
    """Return an address of a job's page that opens it in one browser; it holds no subscription."""
    ticket = secrets.token_urlsafe(32)
    # the SDK appends &tid=…
    return f"{context.origin}{LINKS}/{job}?wsid={identifiers.WORKSPACE}&ticket={ticket}"


def check_link(request: Request) -> None:
    """Reject requests with neither a valid ticket nor a session cookie."""
    job = current(request).state.get(_id(request))
    if not _has_cookie(request) and not (job and _fits(request, job)):
        raise _refused()


def exchange(request: Request, answer: Response) -> None:
    """Give a cookie for the ticket of a request, which is replaced by another, to be read from the job."""
    if _has_cookie(request):
        return
    context = current(request)
    with context.state.locked():
        job = context.state.get(_id(request))
        if not (job and _fits(request, job)):
            raise _refused()
        studio = {**_studio(job), "endpoint": link(context, job["name"])}
        services = {**job["properties"]["services"], "Studio": studio}
        context.state.merge(job["id"], properties={**job["properties"], "services": services})
    expires = int(time.time()) + LIFETIME
    value = f"{expires}.{context.sign(SESSION, str(expires))}"
    for path in (LINKS, tracking.PREFIX):
        answer.set_cookie(COOKIE, value, LIFETIME, path=path, secure=True, httponly=True, samesite="lax")


def check_reader(request: Request) -> None:
    """Refuse a request to MLflow without a token, unless it reads and is the page's own."""
    path = request.scope["path"]
    if posixpath.normpath(path) != (path.rstrip("/") or "/"):
        raise user_error(f"the path {path!r} is not normalised", "InvalidPath")
    below = path.removeprefix(tracking.PREFIX)
    if "authorization" in request.headers:
        if artifacts.is_signature(request.headers["authorization"]):
            return artifacts.check_signature(request, below)
        return identity.check_token(request)
    reads = request.method in ("GET", "HEAD") or below in READING
    if not (reads and not below.startswith(NOT_THE_PAGES) and _has_cookie(request) and _is_own_page(request)):
        raise _refused()


ALL = {"GET", "HEAD", "OPTIONS", "PUT", "POST", "PATCH", "DELETE"}
READER = "a browser has no token; it reads with the cookie that a job's link gave it"
FILES = "/[^/]+/2.0/mlflow-artifacts/artifacts/.*"
RULES = [  # of MLflow's server, which has routes of its own; the first that matches counts
    Opened(methods, re.compile(re.escape(tracking.PREFIX) + below), Rule(check_reader, READER, most))
    for methods, below, most in (
        ({"POST"}, "/graphql", 64 * KIB),
        ({"PUT"}, f"{FILES}/MLmodel", artifacts.LONGEST_MODEL),
        ({"PUT"}, FILES, 5000 * MIB),
        (ALL, "/.*", 16 * MIB),
    )
]


def _id(request: Request) -> str:
    return f"{identifiers.JOBS}/{request.path_params['name']}"


def _studio(job: dict) -> dict:
    return job["properties"]["services"]["Studio"]


def _fits(request: Request, job: dict) -> bool:
    known = parse_qs(urlparse(_studio(job)["endpoint"]).query).get("ticket", [""])[0]
    given = request.query_params.get("ticket", "")
    return bool(known) and hmac.compare_digest(given.encode(), known.encode())


def _has_cookie(request: Request) -> bool:
    expires, _, given = request.cookies.get(COOKIE, "").partition(".")
    made = current(request).sign(SESSION, expires)
    return hmac.compare_digest(given.encode(), made.encode()) and int(expires) > time.time()


def _is_own_page(request: Request) -> bool:
    """Return whether a browser says that no other page is behind a request; cookies know no ports."""
    from_elsewhere = request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
    return not from_elsewhere or request.headers.get("sec-fetch-mode") == "navigate"


def _refused() -> AzureError:
    message = (
        "The request needs a bearer token of this emulator; or, in a browser, the link of a job, which lets "
        "one browser in: read the job again for a fresh one, its studio_url"
    )
    return AzureError(401, "AuthenticationFailed", message, headers={"WWW-Authenticate": "Bearer"})
