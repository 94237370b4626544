"""What a scoring script with `@rawhttp` takes and gives: Flask's requests and responses, as on Azure."""

import json
import sys
from types import ModuleType

from flask import Request, Response
from werkzeug.test import EnvironBuilder

PACKAGES = ("azureml_inference_server_http.api", "azureml.contrib.services")  # where scripts look for it
DECORATED = []


class AMLRequest(Request):
    """A request as it came."""


class AMLResponse(Response):
    """An answer as it is to be sent; without a message, an empty JSON object."""

    def __init__(
        self, message, status_code, response_headers=None, json_str=False, run_function_failed=False
    ):
        is_json = json_str or message is None
        text = json.dumps({} if message is None else message) if is_json else message
        super().__init__(text, status=status_code, mimetype="application/json" if is_json else None)
        self.headers["x-ms-run-function-failed"] = str(bool(run_function_failed))
        for name, value in (response_headers or {}).items():
            self.headers[name] = value


def rawhttp(run):
    """Return a script's `run`, which is to be given each request as it came."""
    DECORATED.append(run)
    return run


def offer():
    """Let a script import these by the names that Azure's server gives them."""
    for package in PACKAGES:
        for module, names in (("aml_request", (AMLRequest, rawhttp)), ("aml_response", (AMLResponse,))):
            made = sys.modules[f"{package}.{module}"] = ModuleType(f"{package}.{module}")
            vars(made).update({each.__name__: each for each in names})


def request_of(method, address, headers, body):
    """Return a request as `run` takes it."""
    return AMLRequest(EnvironBuilder(address, method=method, headers=headers, data=body).get_environ())


def answer_of(made):
    """Return status, body and headers of what `run` gave; None where that is for JSON."""
    if not isinstance(made, Response):
        return None
    headers = dict(made.headers)
    if made.status_code < 400:
        return made.status_code, made.get_data(), headers
    return 424, made.get_data(), {**headers, "ms-azureml-model-error-statuscode": str(made.status_code)}
