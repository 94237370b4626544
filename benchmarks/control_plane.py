"""Median milliseconds of control-plane requests, over https with one kept connection.

python -m local_azureml run -- python -m benchmarks.control_plane
"""

import os
import statistics
import time

import requests

WORKSPACE = (
    f"subscriptions/{os.environ['AZUREML_ARM_SUBSCRIPTION']}"
    f"/resourceGroups/{os.environ['AZUREML_ARM_RESOURCEGROUP']}"
    "/providers/Microsoft.MachineLearningServices"
    f"/workspaces/{os.environ['AZUREML_ARM_WORKSPACE_NAME']}"
)
REGISTRY = (
    "mferp/managementfrontend/subscriptions/s/resourceGroups/g"
    "/providers/Microsoft.MachineLearningServices/registries/azureml"
)
MODEL = {"properties": {"modelType": "custom_model", "modelUri": "https://localhost/none"}}
REQUESTS = {
    "show the workspace": ("GET", WORKSPACE, None),
    "list the clusters": ("GET", f"{WORKSPACE}/computes", None),
    "find a registry model": ("GET", f"{REGISTRY}/models/Phi-3-mini-4k-instruct/versions", None),
    "find the component": ("GET", f"{REGISTRY}/components/chat_completion_pipeline/versions", None),
    "register a model": ("PUT", f"{WORKSPACE}/models/timed/versions/1", MODEL),
    "list the endpoints": ("GET", f"{WORKSPACE}/onlineEndpoints", None),
}
REPETITIONS = 200


def main() -> None:
    """Print a table: request, median, slowest of a hundred."""
    origin = os.environ["REGISTRY_DISCOVERY_ENDPOINT_URL"]
    identity = {"X-IDENTITY-HEADER": os.environ["IDENTITY_HEADER"]}
    with requests.Session() as session:
        answer = session.get(os.environ["IDENTITY_ENDPOINT"], params={"resource": origin}, headers=identity)
        session.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"
        print("| request | median ms | 99 of 100 within ms |\n|---|---|---|")
        for name, (method, path, body) in REQUESTS.items():
            times = sorted(timed(session, method, origin + path, body) for _ in range(REPETITIONS))
            print(f"| {name} | {statistics.median(times):.1f} | {times[int(REPETITIONS * 0.99) - 1]:.1f} |")


def timed(session: requests.Session, method: str, address: str, body: dict | None) -> float:
    """Return the milliseconds of one request."""
    started = time.perf_counter()
    session.request(method, address, json=body).raise_for_status()
    return (time.perf_counter() - started) * 1000


if __name__ == "__main__":
    main()
