"""What Azure's tracking server has of MLflow's, what it answers to the rest, and where that is said.

Azure answers the calls of MLflow 2.16's client, without what its own pages except. MLflow's own server, which
is mounted here, may be newer and has more: a program is not to find here what it won't find on Azure.
"""

import json
import logging
import re
from dataclasses import dataclass
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from local_azureml.context import Context
from local_azureml.data_plane import artifacts

log = logging.getLogger(__name__)
API = "/api/2.0/mlflow/"
BEFORE_2 = "/api/2.0/preview/mlflow/"  # where MLflow 1's clients ask for registered models and their versions
SEARCHES = f"{API}runs/search"
QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")  # in a filter
FULL = "MLflow's whole server is on: logged models, traces, prompts and all else that Azure's has not"


@dataclass(frozen=True)
class Calls:
    """A line of the table: calls of MLflow's client, and whether Azure's server has them."""

    what: str
    routes: str  # matches the method and the path below `API`; of others, the whole path
    source: str
    status: int = 200  # another is what Azure answers, as far as that is told
    instead: str = ""  # what works on Azure and here
    only: tuple[str, str] = ("", "")  # where this field of the query or of the body matches that

    @property
    def lack(self) -> str:
        """A clause that says that Azure has not these calls, and where that is said."""
        return f"Azure's tracking server lacks {self.what} ({self.source})"

    def match(self, method: str, path: str, asked: dict) -> bool:
        """Return whether a request is one of these calls."""
        field, pattern = self.only
        values = asked.get(field, [])
        texts = [QUOTED.sub("''", str(text)) for text in (values if isinstance(values, list) else [values])]
        fits = not field or any(re.search(pattern, text, re.IGNORECASE) for text in texts)
        return fits and re.fullmatch(self.routes, f"{method} {path.removeprefix(API)}") is not None


LEARN, ISSUES = "learn.microsoft.com/azure/machine-learning", "github.com/Azure/azure-sdk-for-python/issues"
LOGGING, RUNS = f"{LEARN}/how-to-log-view-metrics", f"{LEARN}/how-to-track-experiments-mlflow"
MODELS = f"{LEARN}/how-to-manage-models-mlflow"
UNTOLD = "nothing tells; MLflow 2.16's client has it"
RUNS_BUT, MODELS_BUT = f"{RUNS}; nothing tells the status", f"{MODELS}; nothing tells the status"
SEARCH = "POST runs/search"
TABLE = (  # the first line that matches counts
    Calls(
        "runs in the order of a metric, a parameter or a tag",
        SEARCH,
        RUNS_BUT,
        400,
        "`sort_values`, of what `search_runs` returns",
        ("order_by", r"^\s*(metric|param|parameter|tag)s?\."),
    ),
    Calls(
        "runs whose tag is not (`!=`) a value, and by metrics whose names need quotes",
        SEARCH,
        RUNS_BUT,
        400,
        "a choice among what `search_runs` returns",
        ("filter", r"\btags?\.(`[^`]*`|''|[^\s=!<>]{1,250})\s*!=|\bmetrics?\.(`|'')"),
    ),
    Calls(
        "registered models by tag (MLflow 3's `search_registered_models` always asks so) and by `LIKE`",
        "GET registered-models/search",
        f"{ISSUES}/42155, {MODELS}",
        400,
        "`search_model_versions`, `get_registered_model`",
        ("filter", r"\btags?\.|\bI?LIKE\b"),
    ),
    Calls("the renaming of an experiment", "POST experiments/update", RUNS_BUT, 404, "a new experiment"),
    Calls(
        "the renaming and the deletion of a registered model",
        "(POST registered-models/rename|DELETE registered-models/delete)",
        MODELS_BUT,
        404,
        "a new model, the deletion of each version",
    ),
    Calls(
        "logged models, which `log_model` makes from MLflow 3.0 on",
        r"\w+ (logged-models(/.*)?|runs/outputs)",
        f"{ISSUES}/44896",
        404,
        "`save_model`, `log_artifacts` and `register_model`, or MLflow 2's `log_model`",
    ),
    Calls("traces", r"\w+ traces(/.*)?", f"{ISSUES}/40261", 403, "artifacts"),
    Calls(
        "experiments: make, read, find, tag, delete",
        "(GET experiments/get(-by-name)?|POST experiments/(create|search|delete|set-experiment-tag))",
        RUNS,
    ),
    Calls(
        "runs: make, end; log metrics, parameters, tags",
        "POST runs/(create|update|log-(metric|parameter|batch)|set-tag)",
        LOGGING,
    ),
    Calls(
        "runs: read, find, delete; the steps of a metric; the list of artifacts",
        "(GET (runs/get|metrics/get-history|artifacts/list)|POST runs/(search|delete))",
        RUNS,
    ),
    Calls("runs: note the models in them", "POST runs/log-model", f"{LEARN}/how-to-log-mlflow-models"),
    Calls(
        "runs: note datasets, restore, delete a tag; a metric's steps thinned out; restore an experiment",
        "(POST (runs/(log-inputs|restore|delete-tag)|experiments/restore)"
        "|GET metrics/get-history-bulk-interval)",
        UNTOLD,
    ),
    Calls(
        "registered models: make, read, find by name, their newest versions",
        r"(POST registered-models/create|\w+ registered-models/(get|search|get-latest-versions))",
        MODELS,
    ),
    Calls(
        "registered models: describe, tag, name a version by an alias",
        r"\w+ registered-models/(update|set-tag|delete-tag|alias)",
        UNTOLD,
    ),
    Calls(
        "versions: make, read, find, describe, tag, move to a stage, delete",
        r"\w+ model-versions/(create|get|get-download-uri|search|update|delete|set-tag|delete-tag"
        r"|transition-stage)",
        MODELS,
    ),
    Calls(
        "artifacts themselves",
        r"\w+ /api/2\.0/mlflow-artifacts/.+",
        "Azure's plug-in asks another service for them; see *How it differs from Azure*",
    ),
    Calls(
        "what is newer: the traces of MLflow 3, assessments, webhooks, the gateway; what a page asks",
        ".*",
        "nothing tells; answered as logged models are",
        404,
    ),
)


class CompatibilityMiddleware:
    """Lets programs have what Azure's tracking server has; a browser, by its cookie, what the page reads."""

    def __init__(self, app: ASGIApp, context: Context, prefix: str):
        self.app, self._context, self._prefix = app, context, prefix
        if context.full_mlflow:
            log.warning(FULL)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (packed := Headers(scope=scope).get("content-encoding", "identity")) != "identity":
            told = f"a body in {packed!r} is not read here, since it may be of any size: send it as it is"
            return await JSONResponse({"message": told}, 415)(scope, receive, send)
        scope = {**scope, "path": scope["path"].replace(self._prefix + BEFORE_2, self._prefix + API, 1)}
        if self._context.full_mlflow or "authorization" not in Headers(scope=scope):
            return await self.app(scope, receive, send)
        method, path = scope["method"], scope["path"].partition(self._prefix)[2]
        asked: dict = parse_qs(scope["query_string"].decode("latin-1"))
        if path == SEARCHES:
            content = await Request(scope, receive).body()
            asked, receive = _fields(content), artifacts.again(content, receive)
        line = next(line for line in TABLE if line.match(method, path, asked))
        if line.status == 200:
            return await self.app(scope, receive, send)
        advice = f"; there and here works: {line.instead}" if line.instead else ""
        told = f"{line.lack}{advice}"
        log.warning("%s %r answered %d: %s", method, path[:100], line.status, told)
        if line.status == 400:  # as Azure refuses a filter
            answer = JSONResponse({"error_code": "INVALID_PARAMETER_VALUE", "message": told}, 400)
        else:
            answer = Response(status_code=line.status)
        await answer(scope, receive, send)


def _fields(content: bytes) -> dict:
    """Return the fields of a body in JSON; none where it is none, which MLflow's server says itself."""
    try:
        asked = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return asked if isinstance(asked, dict) else {}
