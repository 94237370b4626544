"""Control-plane requests over https with kept connections: milliseconds for one client, a second for twenty.

python -m local_azureml run -- python -m benchmarks.control_plane
python -m benchmarks.control_plane --fill FOLDER
python -m local_azureml run --data-dir FOLDER -- python -m benchmarks.control_plane
"""

import argparse
import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import requests

from local_azureml import identifiers
from local_azureml.context import Context
from local_azureml.control_plane import assets
from local_azureml.data_plane.tracking import Tracking
from local_azureml.engine.jobs.records import Records

WORKSPACE = identifiers.WORKSPACE_ID[1:]
REGISTRY = f"mferp/managementfrontend/{WORKSPACE.partition('/workspaces/')[0]}/registries/azureml"
MODEL = {"properties": {"modelType": "custom_model", "modelUri": "https://localhost/none"}}
CLUSTER = {
    "location": "eastus",
    "properties": {"computeType": "AmlCompute", "properties": {"vmSize": "Standard_DS3_v2"}},
}
CHANGED_LAST = "$orderBy=modifiedtime desc"
VERSIONS, JOBS = 5000, 2000  # of a filled data folder
REQUESTS = {
    "show the workspace": ("GET", WORKSPACE, None),
    "show the cluster": ("GET", f"{WORKSPACE}/computes/timed", None),
    "list the clusters": ("GET", f"{WORKSPACE}/computes", None),
    "find a registry model": ("GET", f"{REGISTRY}/models/Phi-3-mini-4k-instruct/versions", None),
    "find the component": ("GET", f"{REGISTRY}/components/chat_completion_pipeline/versions", None),
    "register a model": ("PUT", f"{WORKSPACE}/models/timed/versions/1", MODEL),
    "list the endpoints": ("GET", f"{WORKSPACE}/onlineEndpoints", None),
    "list the models": ("GET", f"{WORKSPACE}/models", None),
    "show a model": ("GET", f"{WORKSPACE}/models/timed", None),
    "list 25 versions": ("GET", f"{WORKSPACE}/models/timed/versions?$top=25", None),
    "list 25 changed last": ("GET", f"{WORKSPACE}/models/timed/versions?$top=25&{CHANGED_LAST}", None),
    "list a page of jobs": ("GET", f"{WORKSPACE}/jobs", None),
    "make a cluster": ("PUT", f"{WORKSPACE}/computes/timed", CLUSTER),
}
REPETITIONS, CLIENTS, TURNS = 200, 20, 10


def main() -> None:
    """Print a table of the requests, or fill a data folder for it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--fill", metavar="FOLDER", type=Path, help="write many versions and jobs there instead"
    )
    if folder := parser.parse_args().fill:
        return fill(folder)
    print(f"| request | median ms | 99 of 100 within ms | a second, {CLIENTS} clients |\n|---|---|---|---|")
    sessions = [client() for _ in range(CLIENTS)]
    timed(sessions[0], *REQUESTS["make a cluster"])  # the first lets what jobs need be imported meanwhile
    for name, request in REQUESTS.items():
        times = sorted(timed(sessions[0], *request) for _ in range(REPETITIONS))
        started = time.perf_counter()
        with ThreadPoolExecutor(CLIENTS) as pool:
            asked = [pool.submit(timed, session, *request) for session in sessions * TURNS]
        rate = len([each.result() for each in asked]) / (time.perf_counter() - started)
        slow = times[int(REPETITIONS * 0.99) - 1]
        print(f"| {name} | {statistics.median(times):.1f} | {slow:.1f} | {rate:.0f} |")


def fill(folder: Path) -> None:
    """Write a model of many versions, and many jobs, as the emulator keeps them."""
    with closing(Context(folder.resolve(), 0, identifiers.SMALL_MODEL)) as context:
        for number in range(VERSIONS):
            properties = {**MODEL["properties"], "tags": {"n": "1"}}
            assets.register(context, "models", "timed", str(number), properties)
        jobs = Records(context, Tracking(context))
        for name in (f"timed-{number}" for number in range(JOBS)):
            jobs.open(name, {"jobType": "Command", "command": "true"}, parent=None, root=None)
            jobs.end(name, "Completed")


def client() -> requests.Session:
    """Return a session with a token."""
    session = requests.Session()
    answer = session.get(
        os.environ["IDENTITY_ENDPOINT"],
        params={"resource": os.environ["REGISTRY_DISCOVERY_ENDPOINT_URL"]},
        headers={"X-IDENTITY-HEADER": os.environ["IDENTITY_HEADER"]},
    )
    session.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"
    session.params = {"api-version": "2025-12-01"}
    return session


def timed(session: requests.Session, method: str, path: str, body: dict | None) -> float:
    """Return the milliseconds of one request."""
    started = time.perf_counter()
    address = os.environ["REGISTRY_DISCOVERY_ENDPOINT_URL"] + path
    session.request(method, address, json=body).raise_for_status()
    return (time.perf_counter() - started) * 1000


if __name__ == "__main__":
    main()
