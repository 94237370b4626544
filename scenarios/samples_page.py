"""The page of other people's notebooks: a line for each, with what stops it, and where Azure stops it too."""

import re
from dataclasses import dataclass
from importlib.metadata import version

from local_azureml import identifiers
from local_azureml.data_plane.mlflow_compatibility import ISSUES, LEARN, TABLE

CHANGES = ("ids", "pip", "source", "web", "size", "cluster")  # as docs/samples.md explains them
NOTHING = "nothing: it reached its end"
TOO = "on Azure too"
REFUSED = re.compile(r"API request to endpoint (\S+) failed with error code (\d+)")  # MLflow's words
SDK = f"azure-ai-ml {version('azure-ai-ml')}"
ITSELF = (  # a notebook and what stops it there too, since it or a library of today says so; and the source
    (r": NameError: name '\w+' is not defined", "no cell that runs defines it"),
    (r"online_endpoints\b.+'OnlineEndpointOperations' .+ 'list_keys'", f"{SDK} calls it get_keys"),
    (r"progresive\b.+'EndpointAuthKeys' .+ 'access_token'", "the notebook made it with keys"),
    (r"e2e-ml-workflow\b.+'LROPoller' .+ 'name'", "the notebook does not wait for the result"),
    (r"cifar10\b.+'NodeOutput' object is not subscriptable", f"an output of {SDK} is an object"),
    (r"tune-with-sklearn\b.+'NoneType' .+ 'properties'", f"`jobs.download` of {SDK} returns nothing"),
    (r"datastore\b.+Input path can't be empty", f"{SDK} has no Input(folder=)"),
    (r": ValidationException: No such file or directory: \.\./tests/", "the repository has no such file"),
    (r"diabetes\b.+argument 'normalize'", "scikit-learn lacks it from 1.2 on, and 1.5 is asked for"),
    (r"No module named 'skops'", "MLflow saves with it from 3.14 on (github.com/mlflow/mlflow/pull/23987)"),
    (r"xgboost\w*\b.+artifacts from path 'model'", f"autologging makes a logged model ({ISSUES}/44896)"),
    (r"cannot import name 'ResourceManagementClient'", "the changelog of azure-mgmt-resource, 25.0.0"),
    (r"profiler\b.+SubscriptionNotFound", "the notebook names its author's subscription"),
    (r"deploy-model\b.+/model/model'", f"{LEARN}/concept-online-deployment-model-specification"),
)
GUID = re.compile(r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b")  # an author's subscription, say
DATA = re.compile(
    r"(?<![\w/:])/(?!subscriptions/)[\w./-]+/(?=(deployments|environments|jobs|blobs|web)/)"
)  # the emulator's folder


@dataclass
class Row:
    """How far one notebook came."""

    notebook: str
    changes: set[str]
    cells: int  # of code, that ended
    of: int
    seconds: float
    jobs: dict[str, int]  # that it submitted, by the status that each ended with
    reason: str  # why it stopped, or why a job of its failed; empty if neither


def table(lines: dict[str, str]) -> str:
    """Return the table in Markdown, of lines by their notebooks."""
    head = ["| notebook | changes | cells | jobs | seconds | what stops it |", "|---|---|---|---|---|---|"]
    return "\n".join([*head, *(lines[notebook] for notebook in sorted(lines))])


def kept(page: str) -> dict[str, str]:
    """Return the lines that a page has, by their notebooks."""
    lines = [line for line in page.splitlines() if ".ipynb | " in line]
    return {line.split(" | ")[0].removeprefix("| "): line for line in lines}


def line(row: Row) -> str:
    """Return a row of the table."""
    reason = DATA.sub("DATA/", row.reason.replace(identifiers.WORKSPACE_ID, "WORKSPACE")).replace("|", "\\|")
    reason = GUID.sub("ID", " ".join(reason.split()))
    too = there_too(f"{row.notebook}: {reason}")
    reason = reason[:300] + ("…" if len(reason) > 300 else "") + too or NOTHING
    jobs = ", ".join(f"{count} {status.lower()}" for status, count in sorted(row.jobs.items()))
    cells = [
        row.notebook,
        ", ".join(name for name in CHANGES if name in row.changes),
        f"{row.cells} of {row.of}",
        jobs,
    ]
    return f"| {' | '.join([*cells, f'{row.seconds:.0f}', reason])} |"


def there_too(reason: str) -> str:
    """Return why a sample stops on Azure as well, where that is known, and where it is said."""
    path, status = found.groups() if (found := REFUSED.search(reason)) else ("", "")
    verbs = ("GET", "POST", "PATCH", "DELETE")
    lacks = [line for line in TABLE if any(line.match(verb, path, {}) for verb in verbs)]
    said = [line.lack for line in lacks if str(line.status) == status]
    said += [source for words, source in ITSELF if re.search(words, reason)]
    return f"; {TOO}: {said[0]}" if said and "(NotImplemented)" not in reason else ""


def page(before: str, lines: dict[str, str]) -> str:
    """Return a page with these lines in its table, and above it the paragraph that counts them."""
    done = sum(NOTHING in line for line in lines.values())
    refused = sum("(NotImplemented)" in line for line in lines.values())
    as_there = sum(TOO in line for line in lines.values())
    counts = (
        f"{done} of {len(lines)} reach their end with every job completed, {as_there} stop where they would"
        f" stop\n{TOO}, and {refused} come to what the emulator refuses by name, with status 501."
    )
    introduction = before.partition("\n\n| ")[0].rpartition("\n\n")[0]
    return f"{introduction}\n\n{counts}\n\n{table(lines)}\n"
