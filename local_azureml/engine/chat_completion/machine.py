"""What the fine-tune runs on: devices, processes, precision, and whether it fits in memory."""

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch
from transformers import PreTrainedModel

from local_azureml.engine.processes import UserError

GIB = 1 << 30
OPTIMIZER_BYTES = {"adamw_torch": 8, "adafactor": 1}  # for each trained weight; gradients come on top
CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
PLAYED = "LOCAL_AZUREML_MACHINE"  # a variable with fields of Machine in JSON, to play another machine
BF16_PAYS_FROM = 50_000_000  # parameters of a model on a CPU; benchmarks/README.md has the figures


@dataclass(frozen=True)
class Machine:
    """What the hardware chooses."""

    gpus: int
    cores: int
    free: int  # bytes, on the smallest device
    half: str | None  # bf16 or fp16, where the devices compute in it
    half_pays_from: int  # parameters of a model

    @classmethod
    def here(cls) -> "Machine":
        """Return this machine, or the one that the variable tells to play."""
        gpus = torch.cuda.device_count()
        found = cls(gpus, _cores(), _free(gpus), _half(gpus), 0 if gpus else BF16_PAYS_FROM)
        return replace(found, **json.loads(os.environ.get(PLAYED, "{}")))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _free(gpus: int) -> int:
    if gpus:
        return min(torch.cuda.mem_get_info(index)[0] for index in range(gpus))
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
        return "nccl" if torch.cuda.is_available() else "gloo"

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


@dataclass(frozen=True)
class Need:
    """Bytes that one process of the fine-tune takes at its peak."""

    parameters: int
    kind: str  # fp32, bf16 or fp16
    why: str  # where that is not what the input asks for
    weights: int
    training: int  # gradients and optimizer state
    activations: int
    checkpointing: bool  # recompute activations layer by layer in the backward pass

    @property
    def total(self) -> int:
        return self.weights + self.training + self.activations

    def __str__(self) -> str:
        return (
            f"{self.total / GIB:.2f} GiB planned: weights {self.weights / GIB:.2f}, gradients and optimizer"
            f" {self.training / GIB:.2f}, activations {self.activations / GIB:.2f}"
            f"{' with recomputation' if self.checkpointing else ''}"
        )


def plan(model: PreTrainedModel, values: dict, longest: int = 0) -> Need:
    """Return what training a model on rows of up to `longest` tokens takes; raise if it does not fit.

    Activations are recomputed in the backward pass only where they do not fit otherwise.
    """
    running, free = layout(values), Machine.here().free
    room = free if running.gpus else free // running.processes
    for checkpointing in (False, True):
        need = _need(model, values, longest, checkpointing)
        if need.total <= room:
            return need
    raise UserError(
        f"the base model does not fit: {need} for each of {running.processes} processes,"
        f" {room / GIB:.2f} GiB free; lower max_seq_length or per_device_train_batch_size, or set apply_lora"
    )


def _need(model: PreTrainedModel, values: dict, longest: int, checkpointing: bool) -> Need:
    linear = [part for part in model.modules() if isinstance(part, torch.nn.Linear)]
    widths = [sum(part.weight.shape) for part in linear if part is not model.get_output_embeddings()]
    parameters, lora = model.num_parameters(), values["apply_lora"]
    trained = values["lora_r"] * sum(widths) if lora else parameters
    kind, why = precision(values, parameters)
    half = lora and kind == "bf16"  # adapters, and weights that are trained, stay in 32 bits
    return Need(
        parameters,
        kind,
        why,
        weights=parameters * (2 if half else 4) + (trained * 4 if lora else 0),
        training=trained * (4 + OPTIMIZER_BYTES[values["optim"]]),
        activations=values["per_device_train_batch_size"]
        * longest
        * _activations(model, sum(widths), checkpointing, 4 if kind == "fp32" else 2),
        checkpointing=checkpointing,
    )


def _activations(model: PreTrainedModel, widths: int, checkpointing: bool, width: int) -> int:
    """Return the bytes that the backward pass needs of one token."""
    config = model.config.get_text_config()
    layers = 1.5 * widths  # what linear parts take in and give out, and half as much for the rest
    if checkpointing:
        layers = layers / config.num_hidden_layers + config.num_hidden_layers * config.hidden_size
    logits = 3 * config.vocab_size  # with their softmax and its gradient, in 32 bits
    return round(layers * width + logits * 4)
