"""The ASGI application: every service at its address, and 501 for all others."""

import sqlite3

from fastapi import Depends, FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import Response

from local_azureml import errors
from local_azureml.access import AccessMiddleware, opened
from local_azureml.context import Context
from local_azureml.control_plane import (
    api_versions,
    assets,
    computes,
    datastores,
    deployments,
    endpoints,
    jobs,
    operations,
    quota,
    registry,
    workspace,
)
from local_azureml.data_plane import (
    artifacts,
    blobs,
    browser_sessions,
    history,
    hub,
    identity,
    scoring,
    tracking,
    uploads,
)
from local_azureml.data_plane.mlflow_compatibility import CompatibilityMiddleware
from local_azureml.engine.jobs.supervisor import Jobs
from local_azureml.engine.serving.supervisor import Deployments
from local_azureml.identifiers import SEEDS
from local_azureml.middleware import AccessLog, CaseInsensitivePaths, FaultMiddleware

CONTROL_PLANE = (
    workspace,
    quota,
    computes,
    datastores,
    jobs,
    endpoints,
    deployments,
    assets,
    operations,
    registry,
    history,
    uploads,
)
OWN_KEYS = (identity, blobs, scoring, hub)  # services whose requests carry another credential, or none
PUBLIC = (workspace, history)  # services of the control plane that answer some requests without a token
ROUTERS = [service.router for service in (*CONTROL_PLANE, *OWN_KEYS)] + [service.public for service in PUBLIC]
ROUTES = [route for router in ROUTERS for route in router.routes]
RULES = [*opened(ROUTES), *browser_sessions.RULES]  # of who gets in without a token
AT_ENDPOINT = scoring.at_endpoint.routes  # at the port that each endpoint has for itself


def create_app(context: Context) -> FastAPI:
    """Return the application that plays `local`."""
    checked = [Depends(workspace.check)]
    app = _bare(context)
    operations.recover(context)
    app.state.hub = hub.Hub(SEEDS / "hub")
    context.runs = tracking.Tracking(context)
    context.jobs = Jobs(context, context.runs)
    context.deployments = Deployments(context)
    for service in CONTROL_PLANE:
        app.include_router(service.router, dependencies=[Depends(api_versions.check), *checked])
    for service in PUBLIC:
        app.include_router(service.public)
    for service in OWN_KEYS:
        app.include_router(service.router, dependencies=checked)
    served = artifacts.Addresses(tracking.Page(context.runs), context, tracking.PREFIX)
    app.mount(tracking.PREFIX, CompatibilityMiddleware(served, context, tracking.PREFIX))
    at_endpoint = _bare(context)
    at_endpoint.include_router(scoring.at_endpoint)
    at_endpoint.add_middleware(AccessMiddleware, rules=opened(AT_ENDPOINT), token=scoring.check_key)
    app.add_middleware(AccessMiddleware, rules=RULES, token=identity.check_token)
    app.add_middleware(scoring.EndpointPortsMiddleware, context=context, at_endpoint=at_endpoint)
    app.add_middleware(FaultMiddleware, context=context)
    app.add_middleware(CaseInsensitivePaths)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=["localhost", "127.0.0.1"])
    app.add_middleware(AccessLog)
    return app


def _bare(context: Context) -> FastAPI:
    """Return an application without services, which answers all errors as Azure does."""
    app = FastAPI(title="local_azureml", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.context = context
    app.add_exception_handler(errors.AzureError, errors.on_azure_error)
    for storing in (OSError, sqlite3.Error):
        app.add_exception_handler(storing, errors.on_any_error)
    app.add_exception_handler(RequestValidationError, on_bad_request)
    app.add_exception_handler(HTTPException, errors.on_http_exception)
    return app


def on_bad_request(request: Request, error: RequestValidationError) -> Response:
    """Turn a body or query that does not fit the operation into a 400 that names the field."""
    return errors.answer(errors.unfit(error.errors()))
