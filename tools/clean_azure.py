"""List, and after asking remove, what a run of the notebook left in the workspace, or runs older than a day.

Nothing is touched that lacks the tags which the notebook puts on everything: `made_by` and `run_id`. What
colleagues made with the same notebook is shown and stays, without --all; a cluster is whose run it is.
Endpoints and clusters are deleted and jobs that still run are cancelled; a cluster that somebody works on
stays, and so do all while one of the notebook's jobs waits or runs. A registered model costs next to nothing
and may be in use: it goes (archived, so that it can be restored) only with --models. The workspace is that of
--workspace, else of the variables AZUREML_ARM_SUBSCRIPTION, AZUREML_ARM_RESOURCEGROUP and
AZUREML_ARM_WORKSPACE_NAME, else of config.json.
"""

import argparse
import contextlib
import io
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jwt
from azure.ai.ml import MLClient
from azure.ai.ml.exceptions import MlException
from azure.core.exceptions import AzureError
from azure.identity import DefaultAzureCredential

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where the notebook's own programs lie

from explain import error_message
from safeguards import ENDED, MADE_BY, PATIENT, place, tag

DAY = 24 * 3600  # seconds
SECONDS = re.compile("[0-9]{1,12}")  # since 1970
CLAIMS = ("name", "upn", "unique_name", "preferred_username", "appid", "oid")  # one is told of a maker


@dataclass
class Found:
    """A thing that a run left."""

    what: str  # "endpoint x"
    run: str
    by: str  # who made it, or ""
    state: str
    remove: Callable[[], object]


def main() -> int:
    options = command_line()
    credential = DefaultAzureCredential()
    try:
        workspace = MLClient(credential, *place(*(options.workspace or [""] * 3)), **PATIENT)
        workspace.workspaces.get(workspace.workspace_name)
        me = names_of(credential)
    except (AzureError, MlException) as error:
        return complain(f"the workspace did not answer: {error_message(error)} (--workspace names another)")
    found, unseen = [], 0
    for kind in (endpoints, jobs, clusters, models) if options.models else (endpoints, jobs, clusters):
        try:
            found += [one for one in kind(workspace) if wanted(one.run, options)]
        except AzureError as error:
            unseen = complain(f"{kind.__name__} can't be listed: {error_message(error)}")
    if found:
        return clean(found, me, options) or unseen
    if options.run and not unseen and not known(workspace, options.run):
        return complain(
            f"no run {options.run} in {workspace.workspace_name}: give the number that step 1 printed"
        )
    if not unseen:
        say(f"{f'run {options.run}' if options.run else 'runs older than a day'}: nothing is left")
    return unseen


def command_line() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--run", metavar="ID", help="only what this run left: the number that step 1 prints")
    names = ("SUBSCRIPTION", "GROUP", "NAME")
    parser.add_argument("--workspace", nargs=3, metavar=names, help="the notebook's first three parameters")
    parser.add_argument("--yes", action="store_true", help="remove without asking")
    parser.add_argument("--all", action="store_true", help="what colleagues made too")
    parser.add_argument("--models", action="store_true", help="the registered models too")
    return parser.parse_args()


def names_of(credential: DefaultAzureCredential) -> set[str]:
    """Return the names, in small letters, under which Azure may know who runs this."""
    token = credential.get_token("https://management.azure.com/.default").token
    claims = jwt.decode(token, options={"verify_signature": False})
    return {str(claims[name]).lower() for name in CLAIMS if claims.get(name)}


def wanted(run: str, options: argparse.Namespace) -> bool:
    """Say whether a run is the given one or, if none is given, older than a day; its id is its time."""
    if options.run:
        return run == options.run
    return bool(SECONDS.fullmatch(run)) and int(run) < time.time() - DAY


def known(workspace: MLClient, run: str) -> bool:
    """Say whether a job, ended or not, or a cluster is the run's; else its id may be mistyped."""
    things = [*workspace.jobs.list(), *workspace.compute.list()]
    return run in {thing.tags["run_id"] for thing in ours(things)}


def endpoints(workspace: MLClient) -> Iterator[Found]:
    for endpoint in ours(workspace.online_endpoints.list()):
        yield found("endpoint", endpoint, "billed", workspace.online_endpoints.begin_delete)


def jobs(workspace: MLClient) -> Iterator[Found]:
    for job in unfinished(workspace):
        yield found("job", job, job.status, workspace.jobs.begin_cancel)


def clusters(workspace: MLClient) -> Iterator[Found]:
    there = ours(workspace.compute.list())
    if there and (waiting := unfinished(workspace)):  # it may wait for its machine
        complain(f"clusters stay while job {waiting[0].name} is not finished; run this again after it")
        return
    known = [*ours(workspace.jobs.list()), *ours(workspace.online_endpoints.list())] if there else []
    makers = {one.tags["run_id"]: maker(one) for one in known}
    for cluster in there:
        if not list(workspace.compute.list_nodes(cluster.name)):
            by = makers.get(cluster.tags["run_id"], "")
            yield found("cluster", cluster, "idle", workspace.compute.begin_delete, by)


def models(workspace: MLClient) -> Iterator[Found]:
    for name in {model.name for model in workspace.models.list()}:
        for model in ours(workspace.models.list(name)):
            what = f"model {name}:{model.version}"
            remove = partial(workspace.models.archive, name, version=model.version)
            yield Found(what, model.tags["run_id"], maker(model), "stored", remove)


def unfinished(workspace: MLClient) -> list:
    return [job for job in ours(workspace.jobs.list()) if job.status not in ENDED]


def ours(things: Iterator) -> list:
    """Return those things that carry the notebook's tags."""
    return [one for one in things if one and tag(one, "made_by") == MADE_BY and "run_id" in one.tags]


def maker(thing) -> str:
    """Return who made something, as Azure tells it; an empty string where it does not."""
    context = getattr(thing, "creation_context", None)
    return (context.created_by if context else (thing.properties or {}).get("createdBy")) or ""


def found(kind: str, thing, state: str, begin: Callable, by: str | None = None) -> Found:
    by = maker(thing) if by is None else by
    return Found(f"{kind} {thing.name}", thing.tags["run_id"], by, state, lambda: begin(thing.name).result())


def clean(found: list[Found], me: set[str], options: argparse.Namespace) -> int:
    """Show what was found, ask, remove what is one's own; return the exit status."""
    for one in found:
        say(f"run {one.run}: {one.what}, {one.state}, made by {one.by or 'somebody, Azure does not say who'}")
    mine = [one for one in found if options.all or one.by.lower() in me]
    if stay := len(found) - len(mine):
        complain(f"{stay} of these stay, which you did not make: --all takes them too")
    if mine and not options.yes and not agreed(len(mine)):
        return complain("nothing was removed")
    return 1 if [one for one in mine if not removed(one)] else 0


def agreed(count: int) -> bool:
    try:
        return input(f"Remove {'it' if count == 1 else f'these {count}'}? [y/N] ").strip().lower() in (
            "y",
            "yes",
        )
    except EOFError:
        say("nobody is here to answer: add --yes")
        return False


def removed(one: Found) -> bool:
    """Remove a thing, and return whether that worked."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # the SDK's dots
            one.remove()
    except AzureError as error:
        complain(f"{one.what} stays: {error_message(error)}")
        return False
    say(f"removed: {one.what}")
    return True


def complain(sentence: str) -> int:
    say(f"clean_azure.py: {sentence}", sys.stderr)
    return 1


def say(sentence: str, stream=None) -> None:
    """Print a sentence without what would tell a terminal to do something: names and errors are others'."""
    print("".join(letter if letter.isprintable() else "?" for letter in sentence), file=stream)


if __name__ == "__main__":
    sys.exit(main())
