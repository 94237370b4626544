"""Pipeline steps run as a job runs them, one by one."""

import json
from pathlib import Path

from local_azureml.engine import processes
from local_azureml.engine.chat_completion import STEPS


def child(entry: str, specification: dict, folder: Path, **environment: str) -> processes.Process:
    """Run a child to its end and return it."""
    process = processes.start(entry, specification, folder, folder / "log.txt", environment)
    process.wait(120)
    return process


def machine(**fields) -> dict[str, str]:
    """Return the variable that lets a step play another machine, which has no GPU unless it is told so."""
    return {"LOCAL_AZUREML_MACHINE": json.dumps({"gpus": 0, **fields})}


class Run:
    """A pipeline job's folder, and its steps run one by one."""

    def __init__(self, folder: Path, **inputs):
        self.folder, self.inputs, self.upstream = folder, inputs, {}

    def step(self, name: str, environment: dict | None = None, faults: dict | None = None, **inputs):
        """Run one step, with inputs on top of the run's own, and return its process."""
        place = self.folder / name
        specification = {
            "inputs": {key: str(value) for key, value in (self.inputs | inputs).items()},
            "upstream": dict(self.upstream),
            "output": str(place / "output"),
            "outputs": {"pytorch_model_folder": str(self.pytorch), "mlflow_model_folder": str(self.mlflow)},
            "size": {"name": "STANDARD_NC24ADS_A100_V4", "gpus": 1},
            "faults": faults or {},
        }
        self.upstream[name] = str(place / "output")
        return child(STEPS[name], specification, place, **(environment or {}))

    def log(self, name: str) -> str:
        """Return what a step wrote."""
        return (self.folder / name / "log.txt").read_text()

    @property
    def pytorch(self) -> Path:
        return self.folder / "pytorch"

    @property
    def mlflow(self) -> Path:
        return self.folder / "mlflow"

    def history(self) -> list[dict]:
        """Return the Trainer's own record of its logs, from its last checkpoint."""
        last = max(self.pytorch.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
        return json.loads((last / "trainer_state.json").read_text())["log_history"]

    def losses(self) -> list[float]:
        """Return the training losses that were logged."""
        return [log["loss"] for log in self.history() if "loss" in log]
