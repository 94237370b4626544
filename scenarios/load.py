"""An emulator under load: two deployments asked by four clients, a fifth that writes, and jobs that run."""

import io
import itertools
import os
import ssl
import threading
import time
from contextlib import redirect_stdout, suppress
from pathlib import Path
from unittest import mock

import httpx

from local_azureml import identifiers
from scenarios import notebook_runs as runs

SILENT = "no answer"
HONEST = {408, 424, 429, 503}  # the statuses of a refusal
VERSION = {"api-version": "2025-12-01"}
MODEL = "azureml://registries/azureml/models/Phi-3-mini-4k-instruct/versions/14"
SCRIPT = "def init():\n    pass\n\n\ndef run(text):\n    return len(text)\n"
QUESTION = {
    "input_data": {
        "input_string": [{"role": "user", "content": "What is one plus one?"}],
        "parameters": {"do_sample": False, "max_new_tokens": 8},
    }
}
IMPATIENT = {"period": 1, "timeout": 2, "failure_threshold": 10, "initial_delay": 10}  # seconds, of a probe
JOB = {
    "jobType": "Command",
    "environmentId": "azureml://registries/azureml/environments/plain/versions/1",
    "computeId": "serverless",
}


class Cloud:
    """An emulator with the deployments `chat` and `script`, which can be started again where it was."""

    def __init__(self, folder: Path):
        self._folder = folder
        self.emulator = runs.Emulator(folder)
        self._variables = self.emulator.variables
        self._tls = ssl.create_default_context(cafile=self._variables["REQUESTS_CA_BUNDLE"])
        try:
            with mock.patch.dict(os.environ, self._variables), redirect_stdout(io.StringIO()):
                self._addresses = self._deploy()
            with self.client() as client:
                self.expected = {name: self._answer(client, name).json() for name in self._addresses}
        except BaseException:
            self.emulator.close()
            raise

    def client(self) -> httpx.Client:
        """Return a client with a token for the workspace."""
        asked = {"params": {"resource": "https://ml.azure.local"}, "verify": self._tls}
        header = {"X-IDENTITY-HEADER": self._variables["IDENTITY_HEADER"]}
        token = httpx.get(self._variables["IDENTITY_ENDPOINT"], headers=header, **asked).json()
        bearer = {"Authorization": f"Bearer {token['access_token']}"}
        return httpx.Client(
            base_url=self._variables["HF_ENDPOINT"],
            headers=bearer,
            params=VERSION,
            verify=self._tls,
            timeout=60,
        )

    def submit(self, command: str) -> str:
        """Return the path of a job that runs a command."""
        path = f"{identifiers.WORKSPACE_ID}/jobs/job-{time.time_ns()}"
        with self.client() as client:
            client.put(path, json={"properties": JOB | {"command": command}}).raise_for_status()
        return path

    def job(self, path: str) -> tuple[str, str]:
        """Return the status of a job, and why it failed."""
        with self.client() as client:
            status = client.get(path).json()["properties"]["status"]
            run = client.get(f"/history/v1.0{identifiers.WORKSPACE_ID}/runs/{path.rpartition('/')[2]}").json()
        return status, ((run.get("error") or {}).get("error") or {}).get("message", "")

    def _deploy(self) -> dict[str, tuple[str, str]]:
        """Return the address and the key of each deployment."""
        from azure.ai.ml import MLClient, entities  # slow, and for who has an emulator's variables set
        from azure.identity import ManagedIdentityCredential

        place = (identifiers.SUBSCRIPTION, identifiers.GROUP, identifiers.WORKSPACE)
        workspace = MLClient(ManagedIdentityCredential(), *place)
        code = self._folder / "code"
        code.mkdir(exist_ok=True)
        (code / "score.py").write_text(SCRIPT)
        plain = entities.Environment(name="plain", version="1", image="python:3.11")
        script = entities.CodeConfiguration(code=str(code), scoring_script="score.py")
        found = {}
        scripted = {"code_configuration": script, "environment": plain}
        for name, options in {"chat": {"model": MODEL}, "script": scripted}.items():
            endpoint = entities.ManagedOnlineEndpoint(name=name)
            workspace.online_endpoints.begin_create_or_update(endpoint).result()
            deployment = entities.ManagedOnlineDeployment(
                name="one",
                endpoint_name=name,
                instance_type="Standard_NC24ads_A100_v4",
                instance_count=1,
                liveness_probe=entities.ProbeSettings(**IMPATIENT),
                **options,
            )
            workspace.online_deployments.begin_create_or_update(deployment).result()
            endpoint.traffic = {"one": 100}
            workspace.online_endpoints.begin_create_or_update(endpoint).result()
            address = workspace.online_endpoints.get(name).scoring_uri
            found[name] = address, workspace.online_endpoints.get_keys(name).primary_key
        return found

    def _answer(self, client: httpx.Client, name: str) -> httpx.Response:
        address, key = self._addresses[name]
        return client.post(address, json=QUESTION, headers={"Authorization": f"Bearer {key}"})

    def ask(self, client: httpx.Client, name: str) -> str:
        """Return "right", "refused" or what else a deployment answered to the question."""
        try:
            answer = self._answer(client, name)
        except httpx.TransportError as error:
            return f"{SILENT}: {error!r}"
        if answer.status_code == 200:
            return "right" if answer.json() == self.expected[name] else f"wrong: {answer.text}"
        return "refused" if answer.status_code in HONEST else f"{answer.status_code}: {answer.text}"


class Load:
    """Four clients that ask and one that writes, each again and again, and what they were answered."""

    def __init__(self, cloud: Cloud):
        self._cloud = cloud
        self.answers: list[tuple[float, int, str]] = []  # when, to which client, what
        self.written: list[str] = []  # the paths of what was acknowledged
        self._over = threading.Event()
        asked = enumerate([*cloud.expected, *cloud.expected])
        self._askers = [threading.Thread(target=self._ask, args=pair) for pair in asked]
        self._writer = threading.Thread(target=self._write)

    def __enter__(self) -> "Load":
        for thread in (*self._askers, self._writer):
            thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._over.set()
        for thread in (*self._askers, self._writer):
            thread.join()

    def _ask(self, number: int, name: str) -> None:
        with self._cloud.client() as client:
            while not self._over.is_set():
                said = self._cloud.ask(client, name)
                self.answers.append((time.monotonic(), number, said))
                self._over.wait(0.05 if said == "right" else 0.25)

    def _write(self) -> None:
        with self._cloud.client() as client:
            for number in itertools.count(time.time_ns()):
                path = f"{identifiers.WORKSPACE_ID}/environments/written/versions/{number}"
                with suppress(httpx.TransportError):
                    if client.put(path, json={"properties": {"image": "python:3.11"}}).is_success:
                        self.written.append(path)
                if self._over.wait(0.25):
                    return

    def well_after(self, moment: float, seconds: float) -> float | None:
        """Return how long after a moment each client was answered right three times in a row, if it was."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            well = [self._well_after(moment, number) for number in range(len(self._askers))]
            if None not in well:
                return max(well) - moment
            time.sleep(0.2)
        return None

    def _well_after(self, moment: float, number: int) -> float | None:
        last = [(at, said) for at, who, said in self.answers if who == number and at > moment][-3:]
        return last[0][0] if [said for _, said in last] == ["right"] * 3 else None

    def lost(self) -> list[str]:
        """Return the paths that were acknowledged and are not there."""
        with self._cloud.client() as client:
            return [path for path in self.written if client.get(path).status_code != 200]
