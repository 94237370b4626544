"""What a checkpoint folder has to look like, read without loading it."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

from local_azureml.engine.processes import UserError
from local_azureml.paths import is_plain

CAUSAL = "ForCausalLM"  # how the names of architectures end that write one word after the other
TOKENIZER = "tokenizer_config.json"
TEMPLATES = ("chat_template.jinja", "chat_template.json")  # where a chat template lies, or in TOKENIZER
PLACES = ("", "model", "data/model", "data/config", "components/model")  # where an MLflow folder keeps it


def find(given: Path) -> Path:
    """Return the folder with the config, in a checkpoint folder or an MLflow model folder."""
    if not given.is_dir():
        raise UserError(f"the base model {given.name} is not a folder")
    for place in PLACES:
        if (given / place / "config.json").is_file():
            return given / place
    there = ", ".join(sorted(path.name for path in given.iterdir())) or "nothing"
    raise UserError(f"the base model {given.name} is no checkpoint: it has no config.json, only {there}")


def check(given: Path) -> tuple[Path, Path]:
    """Return where a whole checkpoint in safetensors and its tokenizer lie.

    Raise for anything else, and for weights that were made smaller than 16 bits.
    """
    folder = find(given)
    if quantised := read_config(folder).get("quantization_config"):
        method = quantised.get("quant_method", "less than 16")
        raise UserError(
            f"the base model's weights are quantised ({method}) and can't be trained;"
            " give the model in 16 or 32 bits"
        )
    shapes(folder)
    return folder, _tokenizer_beside(folder, given)


def is_chat_model(given: Path) -> bool:
    """Return whether a folder holds a causal language model with a chat template."""
    try:
        folder = find(given)
        tokenizer = _tokenizer_beside(folder, given)
        architectures = read_config(folder).get("architectures") or [""]
        settings = json.loads((tokenizer / TOKENIZER).read_text(encoding="utf-8"))
    except (UserError, ValueError):
        return False
    has_template = "chat_template" in settings or any((tokenizer / name).exists() for name in TEMPLATES)
    return has_template and str(architectures[0]).endswith(CAUSAL)


def read_config(folder: Path) -> dict:
    """Return the config of a checkpoint as it is written."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"config.json of the base model is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise UserError("config.json of the base model is no JSON object")
    return config


def _tokenizer_beside(folder: Path, given: Path) -> Path:
    """Return the folder that holds the tokenizer: an MLflow folder keeps it apart from the weights."""
    if (folder / TOKENIZER).exists():
        return folder
    for candidate in sorted(given.rglob(TOKENIZER)):
        return candidate.parent
    raise UserError(f"the base model {given.name} has no {TOKENIZER}; a checkpoint holds one")


def shapes(folder: Path) -> dict[str, tuple[list[int], str]]:
    """Return name -> (shape, dtype) of every tensor, from the headers of the safetensors files."""
    return {name: shape for path in weight_files(folder) for name, shape in _header(path).items()}


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of the checkpoint; raise where one that the index names is missing."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    else:
        names = ["model.safetensors"]
    missing = [name for name in names if not (is_plain(name) and (folder / name).is_file())]
    if foreign := missing or [name for name in names if not name.endswith(".safetensors")]:
        raise UserError(
            f"the base model has no file {foreign[0]} in safetensors; weights are read from nothing else,"
            " never from pickles"
        )
    return [folder / name for name in names]


def _header(path: Path) -> dict[str, tuple[list[int], str]]:
    try:
        with safe_open(path, framework="numpy") as tensors:
            parts = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
            return {name: (part.get_shape(), part.get_dtype()) for name, part in parts.items()}
    except SafetensorError as error:
        raise UserError(
            f"{path.name} of the base model is truncated or not a safetensors file: {error}"
        ) from error
