"""What the fine-tune runs on: devices, processes and precision."""

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch

from local_azureml import process_environment

GIB = 1 << 30
CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
PLAYED = "LOCAL_AZUREML_MACHINE"  # a variable with fields of Machine in JSON, to play another machine
BF16_PAYS_FROM = 50_000_000  # parameters of a model on a CPU; benchmarks/README.md has the figures


@dataclass(frozen=True)
class Machine:
    """What the hardware chooses."""

    gpus: int
    cores: int
    free: int  # bytes, on this process's device
    half: str | None  # bf16 or fp16, where the devices compute in it
    half_pays_from: int  # parameters of a model

    @classmethod
    def here(cls) -> "Machine":
        """Return this machine, or the one that the variable tells to play."""
        played = json.loads(os.environ.get(PLAYED, "{}"))
        gpus = played.get("gpus", torch.cuda.device_count())
        found = cls(
            gpus, process_environment.cores(), _free(gpus), _half(gpus), 0 if gpus else BF16_PAYS_FROM
        )
        return replace(found, **played)


def _free(gpus: int) -> int:
    if gpus:
        return torch.cuda.mem_get_info(int(os.environ.get("LOCAL_RANK", 0)))[0]
    limits = [Path(path).read_text().strip() for path in CGROUP_LIMITS if Path(path).exists()]
    return min([psutil.virtual_memory().available, *(int(limit) for limit in limits if limit.isdigit())])


def _half(gpus: int) -> str | None:
    """Return the 16-bit type that is faster here, if any; a CPU may emulate bf16, slowly."""
    if gpus:
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""  # Linux alone has it
    return "bf16" if "avx512_bf16" in flags or "amx_bf16" in flags else None


@dataclass(frozen=True)
class Layout:
    """Processes that run, and how often each repeats its batch to make up for those that don't."""

    asked: int
    processes: int
    repeats: int
    gpus: bool
    threads: int  # of each process

    @property
    def backend(self) -> str:
        return "nccl" if self.gpus else "gloo"

    def __str__(self) -> str:
        device = "GPUs" if self.gpus else f"{self.threads * self.processes} CPU cores"
        text = f"{self.asked} asked, {self.processes} run on {device}"
        if self.processes > 1:
            text += f" with {self.backend}"
        if self.repeats > 1:
            text += f"; each accumulates {self.repeats} batches for one, so that a step sees as many rows"
        return text


def layout(values: dict) -> Layout:
    """Return how the processes asked for map onto this machine's GPUs, or its cores where it has none."""
    asked, machine = values["number_of_gpu_to_use_finetuning"] * values["num_nodes_finetune"], Machine.here()
    most = min(asked, machine.gpus or machine.cores)
    processes = max(number for number in range(1, most + 1) if asked % number == 0)
    threads = max(1, machine.cores // processes)
    return Layout(asked, processes, asked // processes, machine.gpus > 0, threads)


def precision(values: dict, parameters: int) -> tuple[str, str]:
    """Return "fp32", "bf16" or "fp16" for what the component calls precision 32 or 16, and why, in words."""
    machine = Machine.here()
    if values["precision"] == "32":
        return "fp32", ""
    if machine.half is None:
        return "fp32", ", since this CPU has no bf16 instructions"
    if parameters < machine.half_pays_from:
        return "fp32", f", since a model of {parameters / 1e6:.1f} million parameters gains nothing from bf16"
    return machine.half, ""
