"""The HTTP server of a scoring script or an MLflow model; runs in their environment, on the standard library.

python script_server.py SPECIFICATION, a JSON file: socket, script or model, most, timeout.
"""

import contextlib
import importlib.util
import json
import socketserver
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as TooSlow
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

QUEUED = 2  # times the concurrency limit: what Azure holds in flight before it answers 429
SENTENCE = "An unexpected error occurred in scoring script. Check the logs for more info."


class BadRequestError(Exception):
    """What a request got wrong."""


class Whole(NamedTuple):
    """An answer that is not put into JSON."""

    status: int
    body: bytes
    headers: dict


def of_script(path):
    """Return what answers a request by a script's `run`, after its `init`, and its OpenAPI descriptions."""
    with contextlib.suppress(ImportError):
        import raw_http  # needs Flask, which whatever environment has that is made for it

        raw_http.offer()
    sys.path[:1] = [str(Path(path).parent)]  # in place of this file's folder, whose names are not for scripts
    specification = importlib.util.spec_from_file_location("scoring_script", path)
    module = importlib.util.module_from_spec(specification)
    sys.modules["scoring_script"] = module
    specification.loader.exec_module(module)
    module.init()
    schemas = [{"type": "object", "example": {}}] * 2
    if "raw_http" in sys.modules and raw_http.DECORATED:
        return of_raw_requests(module.run, raw_http), descriptions(schemas)
    with contextlib.suppress(ImportError):
        from inference_schema import schema_util

        if schema_util.is_schema_decorated(module.run):
            schemas = [schema_util.get_input_schema(module.run), schema_util.get_output_schema(module.run)]
            return of_text(lambda text: module.run(**json.loads(text))), descriptions(schemas)
    return of_text(module.run), descriptions(schemas)


def descriptions(schemas):
    """Return the descriptions by OpenAPI's version: files beside the code, or one with the schemas of `run`.

    The names of the files are those of https://github.com/microsoft/azureml-inference-server.
    """
    files = [
        ("2", "swagger2.json"),
        ("2", "swagger.json"),
        ("3", "swagger3.json"),
        ("3.1", "swagger3.1.json"),
    ]
    own = {version: Path(name).read_text(encoding="utf-8") for version, name in files if Path(name).is_file()}
    return own if "2" in own else {"2": generated(schemas), **own}


def generated(schemas):
    """Return a description, in version 2, with the schemas of a request and its answer."""
    given, made = ({"schema": {"$ref": f"#/definitions/Service{way}"}} for way in ("Input", "Output"))
    body = {"in": "body", "name": "serviceInputPayload", **given}
    answers = {"200": {"description": "What the script returned", **made}}
    run = {"operationId": "RunMLService", "parameters": [body], "responses": answers}
    described = {
        "swagger": "2.0",
        "info": {"title": "ML service", "version": "1.0"},
        "consumes": ["application/json"],
        "produces": ["application/json"],
        "paths": {"/score": {"post": run}},
        "definitions": {"ServiceInput": schemas[0], "ServiceOutput": schemas[1]},
    }
    return json.dumps(described)


def of_text(run):
    """Return what answers a request by its text alone."""
    return lambda method, address, headers, body: run(body.decode("utf-8", "replace"))


def of_raw_requests(run, raw_http):
    """Return what answers a request by a `run` that takes it as it came, and may answer so."""

    def answer(*request):
        made = run(raw_http.request_of(*request))
        sent = raw_http.answer_of(made)
        return Whole(*sent) if sent else made

    return answer


def of_model(folder):
    """Return what answers a request by an MLflow model's `predict`."""
    import mlflow.pyfunc
    from mlflow.exceptions import MlflowException

    model = mlflow.pyfunc.load_model(folder)

    def answer(text):
        given, parameters = table_of(text)
        try:
            return model.predict(given, params=parameters) if parameters else model.predict(given)
        except MlflowException as error:  # what the model's signature does not take
            raise BadRequestError(str(error)) from error

    return of_text(answer)


def table_of(text):
    """Return the table or array of a request, and its parameters."""
    import numpy
    import pandas

    try:
        request = json.loads(text)
        data = request["input_data"]
    except (ValueError, KeyError, TypeError):
        raise BadRequestError("the body has to be JSON with input_data in it: columns, index, data") from None
    parameters = request.get("params")
    try:
        if not isinstance(data, dict):
            return numpy.array(data), parameters
        if "data" not in data:
            return {name: numpy.array(values) for name, values in data.items()}, parameters
        return pandas.DataFrame(**{key: data.get(key) for key in ("columns", "index", "data")}), parameters
    except (ValueError, TypeError) as error:
        raise BadRequestError(f"input_data is no table: {error}") from None


def plain(value):
    """Return what JSON can hold of an answer."""
    if hasattr(value, "to_dict"):
        return value.to_dict(orient="records") if getattr(value, "ndim", 1) == 2 else value.tolist()
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not JSON serializable")


class Server(socketserver.ThreadingUnixStreamServer):
    """Answers at a Unix socket of the owner's."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, specification, answer, described):
        self.answer, self.described = answer, described
        self.timeout_seconds = specification["timeout"]
        self.most = max(1, specification["most"])
        self.running, self.counting = 0, threading.Lock()
        self.threads = ThreadPoolExecutor(self.most)
        super().__init__(specification["socket"], Handler)

    def handle(self, *request):
        """Return status, body and headers of the answer to a request."""
        with self.counting:
            if self.running >= QUEUED * self.most:
                return refusal(429, f"more than {QUEUED * self.most} requests at once; try again later")
            self.running += 1
        try:
            future = self.threads.submit(self.answer, *request)
            try:
                made = future.result(self.timeout_seconds)
            finally:
                future.cancel()  # one that nobody waits for any more need not begin
            if isinstance(made, Whole):
                return made
            return 200, json.dumps(made, default=plain), {"content-type": "application/json"}
        except TooSlow:
            return refusal(408, f"no answer within the request timeout of {self.timeout_seconds:g} s")
        except BadRequestError as error:
            return refusal(400, str(error))
        except Exception as error:
            traceback.print_exc()
            return model_failed(error)
        finally:
            with self.counting:
                self.running -= 1


def model_failed(error):
    """Return Azure's answer for a model that raised: a sentence, and no JSON."""
    named = {
        "ms-azureml-model-error-statuscode": "500",
        "ms-azureml-model-error-reason": type(error).__name__,
    }
    return 424, SENTENCE, named


def refusal(status, message):
    """Return an error as the scoring server writes it."""
    body = json.dumps({"error": {"code": str(status), "message": message}})
    return status, body, {"content-type": "application/json"}


class Handler(BaseHTTPRequestHandler):
    """Reads a request and writes the server's answer."""

    protocol_version = "HTTP/1.1"

    def address_string(self):
        return "endpoint"

    def log_message(self, *_):
        """Say nothing of what no one asked; `do_POST` says how each request ended."""

    def do_GET(self):
        said = '{"status": "healthy"}'
        if self.path.startswith("/swagger.json"):
            version = parse_qs(urlsplit(self.path).query).get("version", ["2"])[0]
            said = self.server.described.get({"2.0": "2", "3.0": "3"}.get(version, version))
        self._send(200 if said else 404, said or "", {"content-type": "application/json"})

    def do_POST(self):
        begun = time.monotonic()
        content = self.rfile.read(int(self.headers.get("content-length") or 0))
        status, body, headers = self.server.handle(self.command, self.path, dict(self.headers), content)
        self._send(status, body, headers)
        print(f"{status} in {time.monotonic() - begun:.2f} s, {len(body)} characters", flush=True)

    def _send(self, status, body, headers):
        content = body if isinstance(body, bytes) else body.encode()
        self.send_response(status)
        written = {name.lower(): value for name, value in headers.items()}
        for name, value in {**written, "content-length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


def main(file):
    """Make the answerer, and serve until the process is killed."""
    specification = json.loads(Path(file).read_text(encoding="utf-8"))
    begun = time.monotonic()
    script = specification["script"]
    answer, described = of_script(script) if script else (of_model(specification["model"]), {})
    print(f"loaded in {time.monotonic() - begun:.1f} s", flush=True)
    Server(specification, answer, described).serve_forever()


if __name__ == "__main__":
    main(sys.argv[1])
