"""What a fine-tune takes of memory, found by going through a step on tensors that hold nothing."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from local_azureml.engine.chat_completion.attention import WITHIN_ROWS
from local_azureml.engine.chat_completion.machine import GIB, Machine, layout, precision
from local_azureml.engine.chat_completion.packing import FlatteningCollator
from local_azureml.engine.processes import UserError

OPTIMIZER_BYTES = {"adamw_torch": 8, "adafactor": 1}  # for each trained weight; gradients come on top
TWO_ROWS = [2, 3]  # tokens of each, enough to see whether a model can be trained at all


@dataclass(frozen=True)
class Need:
    """Bytes that one process of the fine-tune takes at its peak."""

    parameters: int
    kind: str  # fp32, bf16 or fp16
    why: str  # where that is not what the input asks for
    weights: int
    training: int  # gradients and optimizer state
    activations: int
    recomputed: bool  # activations, layer by layer in the backward pass

    @property
    def total(self) -> int:
        return self.weights + self.training + self.activations

    def __str__(self) -> str:
        return (
            f"{self.total / GIB:.2f} GiB planned: weights {self.weights / GIB:.2f}, gradients and optimizer"
            f" {self.training / GIB:.2f}, activations {self.activations / GIB:.2f}"
            f"{' with recomputation' if self.recomputed else ''}"
        )


def plan(config: PreTrainedConfig, values: dict, rows: list[int] = TWO_ROWS) -> Need:
    """Return what training takes whose largest batch has rows of so many tokens; raise if it does not fit.

    Activations are recomputed in the backward pass only where they do not fit otherwise.
    """
    running, free = layout(values), Machine.here().free
    room = free if running.gpus else free // running.processes
    for need in _needs(config, values, rows):
        if need.total <= room:
            return need
    raise UserError(
        f"the base model does not fit: {need} for each of {running.processes} processes,"
        f" {room / GIB:.2f} GiB free; lower max_seq_length or per_device_train_batch_size, or set apply_lora"
    )


def _needs(config: PreTrainedConfig, values: dict, rows: list[int]) -> Iterator[Need]:
    """Yield what training takes without recomputation, and with it."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    parameters, lora = model.num_parameters(), values["apply_lora"]
    adapters = values["lora_r"] * sum(sum(weight.shape) for weight in adapted(model)) if lora else 0
    trained = adapters or parameters
    kind, why = precision(values, parameters)
    half = lora and kind == "bf16"  # adapters, and weights that are trained, stay in 32 bits
    need = Need(
        parameters,
        kind,
        why,
        weights=parameters * (2 if half else 4) + adapters * 4,
        training=trained * (4 + OPTIMIZER_BYTES[values["optim"]]),
        activations=kept(config, rows, kind, lora),
        recomputed=False,
    )
    yield need
    least = kept(config, rows, kind, lora, recomputed=True)
    layer = (need.activations - least) // config.get_text_config().num_hidden_layers
    yield replace(need, activations=least + layer, recomputed=True)


def adapted(model: PreTrainedModel) -> list[torch.Tensor]:
    """Return the weights that get an adapter: those of all linear layers but the head."""
    head = model.get_output_embeddings()
    return [part.weight for part in model.modules() if isinstance(part, torch.nn.Linear) and part is not head]


def kept(config: PreTrainedConfig, rows: list[int], kind: str, lora: bool, recomputed: bool = False) -> int:
    """Return the bytes that a forward pass keeps for the backward pass, weights not counted."""
    # where tensors hold nothing, PyTorch multiplies the weights of experts in 16 bits alone
    experts = hasattr(config.get_text_config(), "num_experts_per_tok")
    half = experts or (lora and kind == "bf16")
    found: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        found[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    with FakeTensorMode(), saved_tensors_hooks(keep, lambda tensor: tensor):
        model = AutoModelForCausalLM.from_config(
            _unscaled(config),
            attn_implementation=WITHIN_ROWS,
            dtype=torch.bfloat16 if half else torch.float32,
        ).train()
        if lora:
            model.requires_grad_(False)
            for weight in adapted(model):
                weight.requires_grad_()
        if recomputed:
            model.gradient_checkpointing_enable()
            model.enable_input_require_grads()
        own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
        tokens = [{"input_ids": [0] * length, "labels": [0] * length} for length in rows]
        inputs = FlatteningCollator(0)(tokens)
        labels = inputs.pop("labels")[0]
        with torch.autocast("cpu", torch.bfloat16, enabled=kind != "fp32" and not experts):
            logits = model(**inputs, use_cache=False).logits[0].float()
        torch.nn.functional.cross_entropy(logits, labels)
        gradients = 2 * logits.nbytes  # of the logits, and their copy in the precision of the head
        activations = sum(storage.nbytes() for key, storage in found.items() if key not in own)
        return (2 if experts and kind == "fp32" else 1) * (activations + gradients)


def _unscaled(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return the config without rotary scaling, some kinds of which look at positions, which hold nothing."""
    config = copy.deepcopy(config)
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    for given in (rope, *rope.values()):  # for all layers, or for each type of them
        if isinstance(given, dict) and "rope_type" in given:
            given["rope_type"] = "default"
    return config
