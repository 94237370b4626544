"""The variables with which every process starts that the emulator starts; a job's steps add their own."""

import os
import re
import shlex
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:  # each child imports this module, and needs nothing of the server
    from local_azureml.context import Context

PROXIES = ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy")
HIDDEN = (  # what would lead a process elsewhere; a star stands for any end
    *PROXIES,
    *(proxy.upper() for proxy in PROXIES),
    *("AZURE_*", "AZUREML_*", "IDENTITY_*", "IMDS_ENDPOINT", "MSI_*", "OBO_ENDPOINT"),  # other identities
    *("ARM_CLOUD_METADATA_URL", "REGISTRY_DISCOVERY_ENDPOINT_URL"),  # another cloud, or an earlier start's
    *("MLFLOW_*", "_MLFLOW_*"),  # another tracking server, and what ours is told about itself
    *("HF_*", "HUGGINGFACE_*", "HUGGING_FACE_*", "TRANSFORMERS_*"),  # another hub, and its cache
)
PYTHON = ("PYTHONHOME", "PYTHONPATH", "PYTHONSTARTUP")  # the caller's own, which no job on Azure would see
LEADS_ELSEWHERE = "|".join(HIDDEN).replace("*", "[A-Za-z0-9_]*")  # for Python and for sed
LOOPBACK = "lo" if sys.platform == "linux" else "lo0"
ON_LOOPBACK = {
    "GLOO_SOCKET_IFNAME": LOOPBACK,
    "NCCL_SOCKET_IFNAME": LOOPBACK,
}  # wherever the host is
LIBRARIES = {  # how the engine's libraries are to behave; a command's own are left alone
    **ON_LOOPBACK,
    "HF_HUB_OFFLINE": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin while they wait slow a shared machine tenfold
    "PYTHONUTF8": "1",
    "PYTHONWARNINGS": "ignore:This process:DeprecationWarning",  # Python 3.12 on forking with threads about
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # a forked child can't use CUDA if its parent touched it
    "TOKENIZERS_PARALLELISM": "true",
}


def cores() -> int:
    """Return how many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def processes_with(name: str, value: str, after: float = 0) -> list[psutil.Process]:
    """Return the processes that began after a moment, with a variable of that value."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):  # gone meanwhile, or somebody else's
            if process.environ().get(name) == value and process.create_time() > after:
                found.append(process)
    return found


def clean() -> dict[str, str]:
    """Return this process's variables without those that lead elsewhere, and with this Python found first."""
    kept = {name: value for name, value in os.environ.items() if not re.fullmatch(LEADS_ELSEWHERE, name)}
    search = [str(Path(sys.executable).parent), kept.get("PATH", os.defpath)]
    return kept | {"PATH": os.pathsep.join(search), "PYTHONUTF8": "1"}


def leave(*others: str) -> None:
    """Remove from this process's variables those that lead elsewhere, and `others`."""
    for name in (os.environ.keys() - clean().keys()) | (os.environ.keys() & set(others)):
        del os.environ[name]


def of_command(context: "Context") -> dict[str, str]:
    """Return the variables of a caller's command: the caller's own, and those that lead to the emulator."""
    return clean() | context.environment()


def of_child(context: "Context", /, **own: str) -> dict[str, str]:
    """Return the variables of a job or a deployment: those that lead to the emulator, and on top its own."""
    inherited = {name: value for name, value in of_command(context).items() if name not in PYTHON}
    return inherited | {"TMPDIR": str(context.temporary)} | own


def lines(context: "Context") -> str:
    """Return the lines with which a shell hides and sets what is hidden from a child and set for it."""
    hidden = f"unset OLDPWD $(env | sed -nE 's/^({LEADS_ELSEWHERE})=.*/\\1/p')"
    return "\n".join([hidden, *(f"export {n}={shlex.quote(v)}" for n, v in context.environment().items())])
