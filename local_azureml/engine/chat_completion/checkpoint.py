"""What a checkpoint folder has to look like, read without loading it."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

from local_azureml.engine.processes import UserError
from local_azureml.paths import is_plain

ARCHITECTURE = "Phi3ForCausalLM"
TOKENIZER = "tokenizer_config.json"
SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size")
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


def check(given: Path) -> tuple[Path, Path, dict]:
    """Return where a whole Phi-3 checkpoint in safetensors and its tokenizer lie, and its config.

    Raise for anything else.
    """
    folder = find(given)
    return folder, _tokenizer_beside(folder, given), _config(folder)


def _config(folder: Path) -> dict:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"config.json of the base model is not JSON: {error}") from error
    architectures = config.get("architectures") or ["none"]
    if architectures[0] != ARCHITECTURE:
        raise UserError(
            f"the base model's architecture is {architectures[0]}; the emulator trains {ARCHITECTURE}"
        )
    if lacking := [name for name in SIZES if not isinstance(config.get(name), int)]:
        raise UserError(f"the base model's config.json says no {', '.join(lacking)}")
    tensors = shapes(folder)
    layers = {name.split(".")[2] for name in tensors if name.startswith("model.layers.")}
    if len(layers) != config["num_hidden_layers"]:
        raise UserError(
            f"the base model's config.json says {config['num_hidden_layers']} layers;"
            f" its weights hold {len(layers)}"
        )
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
    if missing:
        raise UserError(
            f"the base model has no file {missing[0]}; weights are read from safetensors alone,"
            " never from pickles"
        )
    return [folder / name for name in names]


def _header(path: Path) -> dict[str, tuple[list[int], str]]:
    try:
        with safe_open(path, framework="numpy") as tensors:
            parts = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
            return {name: (part.get_shape(), part.get_dtype()) for name, part in parts.items()}
    except SafetensorError as error:
        raise UserError(f"{path.name} of the base model is no whole safetensors file: {error}") from error
