"""chat_completion_model_import: finds the checkpoint in what was given, checks it, plans its memory."""

import json
import os
import shutil
from pathlib import Path

from local_azureml.engine.chat_completion.checkpoint import check
from local_azureml.engine.chat_completion.inputs import typed
from local_azureml.engine.chat_completion.loading import examine
from local_azureml.engine.chat_completion.memory import plan


def run(specification: dict) -> None:
    """Lay the base model's checkpoint into the output folder, if it is one and fits the machine."""
    values = typed(specification["inputs"])
    given = values.get("pytorch_model_path", values.get("mlflow_model_path"))
    folder, tokenizer = check(given)
    config = examine(folder, tokenizer)
    need = plan(config, values)
    output = Path(specification["output"])
    output.mkdir(parents=True, exist_ok=True)
    (output / "config.json").write_text(config.to_json_string(), encoding="utf-8")
    link_files(folder, output)
    if tokenizer != folder:
        link_files(tokenizer, output)
    _keep_checkpoints(given, output)
    print(f"imported a {config.model_type} model of {need.parameters:,} parameters; {need}", flush=True)


def link_files(source: Path, target: Path, weights: bool = True) -> None:
    """Put the files of `source` that `target` lacks there, as hard links, or copies across file systems."""
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        wanted = weights or ".safetensors" not in path.name
        if path.is_file() and wanted and not (target / path.name).exists():
            _link(path.resolve(), target / path.name)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _keep_checkpoints(given: Path, output: Path) -> None:
    """Bring the Trainer's checkpoints along, for resume_from_checkpoint."""
    for checkpoint in given.glob("checkpoint-*"):
        link_files(checkpoint, output / checkpoint.name)
    if (given / "trainer_state.json").exists():
        step = json.loads((given / "trainer_state.json").read_text())["global_step"]
        link_files(given, output / f"checkpoint-{step}")
