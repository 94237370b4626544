"""Loading a checkpoint with transformers: any causal language model, and never code that comes with it."""

from pathlib import Path

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from local_azureml.engine.chat_completion import checkpoint
from local_azureml.engine.chat_completion.attention import WITHIN_ROWS
from local_azureml.engine.chat_completion.memory import TWO_ROWS, kept
from local_azureml.engine.chat_completion.turns import Turns
from local_azureml.engine.processes import UserError

ATTENTION = {"full_attention", "sliding_attention"}  # kinds of layers, as configs name them


def load_config(folder: Path) -> PreTrainedConfig:
    """Return a checkpoint's config; raise for one that transformers can't read without foreign code."""
    given, _ = PreTrainedConfig.get_config_dict(folder)
    _check_layers(folder, given)
    kind, rope = given.get("model_type"), given.get("rope_scaling") or {}
    if kind not in CONFIG_MAPPING:
        raise UserError(
            f"transformers {transformers.__version__} has no model of the type {kind!r},"
            " and code that comes with a model is never run"
        )
    try:
        if rope.get("type") == "su":  # longrope, as models of early 2024 call it
            return CONFIG_MAPPING[kind].from_dict(given | {"rope_scaling": rope | {"type": "longrope"}})
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # each kind of model has checks of its own
        raise UserError(f"transformers can't read the base model's config.json: {_first(error)}") from error


def _check_layers(folder: Path, given: dict) -> None:
    """Raise for a config with more layers than there are weights: made without weights, each takes memory."""
    if any(folder.glob("*.safetensors")):
        most = len(checkpoint.shapes(folder))
        for name, value in [*given.items(), *(given.get("text_config") or {}).items()]:
            count = (
                name.startswith("n") and "layer" in name
            )  # num_hidden_layers; not Qwen's max_window_layers
            if count and isinstance(value, int) and value > most:
                raise UserError(
                    f"the base model's config.json says {value} for {name}; its files hold {most} weights"
                )


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a checkpoint or of a folder without one."""
    config = load_config(folder) if (folder / "config.json").exists() else None
    return AutoTokenizer.from_pretrained(folder, config=config, trust_remote_code=False)


def load_model(folder: Path, **how) -> PreTrainedModel:
    """Return a checkpoint's model, from safetensors alone, since a pickle can run code."""
    return AutoModelForCausalLM.from_pretrained(
        folder, config=load_config(folder), use_safetensors=True, trust_remote_code=False, **how
    )


def examine(folder: Path, tokenizer_folder: Path) -> PreTrainedConfig:
    """Return a checkpoint's config; raise where the model can't be trained or served, which is tried."""
    config = load_config(folder)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UserError(f"the base model is of the type {config.model_type!r}, no causal language model")
    try:
        model, found = load_model(
            folder,
            device_map="meta",
            dtype=torch.bfloat16,
            attn_implementation=WITHIN_ROWS,
            ignore_mismatched_sizes=True,  # which an input of the fine-tune may allow
            output_loading_info=True,
        )
        if is_all_attention(model):
            kept(config, TWO_ROWS, "bf16", lora=True)
    except Exception as error:  # whatever a kind of model stumbles over
        raise UserError(
            f"models of the type {config.model_type!r} can't be trained here: {_first(error)}"
        ) from error
    if not is_all_attention(model):
        raise UserError(
            f"models of the type {config.model_type!r} can't be trained here:"
            " not all their layers are attention, so rows that share a batch would see one another"
        )
    if missing := sorted(found["missing_keys"]):
        raise UserError(
            f"the base model's config.json asks for {len(missing)} weights that its files lack,"
            f" {missing[0]} for one"
        )
    tokenizer = load_tokenizer(tokenizer_folder)
    Turns(tokenizer)
    known, most = model.get_input_embeddings().weight.shape[0], max(tokenizer.get_vocab().values())
    if most >= known:
        raise UserError(f"the base model's tokenizer has a token {most}; its config.json says {known} tokens")
    return config


def is_all_attention(model: PreTrainedModel) -> bool:
    """Return whether what a token sees is decided by attention alone, of kinds that are known."""
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    return model.is_backend_compatible() and kinds <= ATTENTION


def examine_base_model(specification: dict) -> None:
    """Raise where the checkpoint in `folder` can't be trained or served."""
    examine(*checkpoint.check(Path(specification["folder"])))


def _first(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
