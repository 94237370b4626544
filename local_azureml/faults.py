"""Failures that tests and people switch on by name, to see what a notebook makes of them."""

import os
import signal
from collections.abc import Iterable

from local_azureml.processes import UserError

FAULTS = {
    "no-credential": "no identity answers: every credential fails",
    "token-seconds": "a token lives VALUE seconds",
    "workspace-missing": "the workspace is not there",
    "registry-forbidden": "the registry answers 403",
    "model-missing": "the registry holds no such model",
    "model-archived": "the newest version of the model is archived: no allow lists, defaults nobody accepts",
    "size-missing": "the region does not have size VALUE, or no GPU size at all",
    "quota-short": "no cores are left in any GPU family",
    "compute-failed": "a new cluster ends in the provisioning state Failed",
    "preempted": "the low-priority node is taken away while the fine-tune runs",
    "hub-unreachable": "the dataset hub answers 503",
    "upload-broken": "the connection breaks while a file is uploaded",
    "validation-failed": "the child job that validates fails",
    "preprocess-failed": "the child job that tokenises fails",
    "finetune-failed": "the child job that trains fails",
    "convert-failed": "the child job that converts the model fails",
    "out-of-memory": "the child job that trains runs out of memory",
    "stuck-preparing": "a job stays in Preparing for VALUE seconds (default: for ever)",
    "register-refused": "a model cannot be registered",
    "endpoint-taken": "every endpoint name is taken in the region",
    "deployment-unhealthy": "a deployment's container exits before it is healthy",
    "scoring-status": "scoring answers with status VALUE (401, 408, 424, 429, 500)",
    "answer-shape": "a deployment answers as the server VALUE does: mlflow, vllm or openai",
    "delete-failed": "the first VALUE deletions of an endpoint fail (default 1)",
    "throttled": "every VALUE-th request is answered 429 with Retry-After (default: 3rd)",
    "slow": "every answer takes VALUE seconds longer (default 1)",
    "reset": "every VALUE-th connection is reset (default: 10th)",
}


class Faults:
    """The faults that are switched on, with their values."""

    def __init__(self, given: Iterable[str] = ()):
        self._values: dict[str, str] = {}
        self._taken: dict[str, int] = {}
        for item in given:
            name, _, value = item.partition("=")
            if name not in FAULTS:
                raise ValueError(f"no fault named {name!r}; there is: {', '.join(FAULTS)}")
            self._values[name] = value

    def __contains__(self, name: str) -> bool:
        assert name in FAULTS, name
        return name in self._values

    def get(self, name: str, default):
        """Return the fault's value in the type of `default`, or `default` where it has none."""
        value = self._values.get(name, "")
        return type(default)(value) if value else default

    def count(self, name: str) -> int:
        """Return how often this fault was asked for, this time included; 0 while it is off."""
        if name not in self:
            return 0
        self._taken[name] = self._taken.get(name, 0) + 1
        return self._taken[name]

    def active(self) -> dict[str, str]:
        """Return the names and values, for a child process."""
        return dict(self._values)


def fail(specification: dict) -> None:
    """Fail the step that this runs in the place of, as its fault says."""
    fault = specification["fault"]
    print(f"the fault {fault} is on")
    if fault == "out-of-memory":
        os.kill(os.getpid(), signal.SIGKILL)  # what the kernel does to a process that takes too much
    if fault == "preempted":
        raise RuntimeError("the low-priority node was preempted")
    raise UserError(FAULT_MESSAGES[fault])


FAULT_MESSAGES = {
    "validation-failed": "the validation found the input test_file_path malformed",
    "preprocess-failed": "Failure while applying chat template to dataset",
    "finetune-failed": "the loss became NaN at step 3",
    "deployment-unhealthy": "the model could not be loaded",
    "convert-failed": "the model could not be saved in MLflow's format",
}
