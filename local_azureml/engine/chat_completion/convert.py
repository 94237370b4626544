"""ft_nlp_model_converter: turns the checkpoint into an MLflow model folder that loads anywhere."""

import logging
import shutil
from importlib.metadata import version
from pathlib import Path

import mlflow.transformers
import torch
from mlflow.models import Model
from peft import PeftModel
from transformers import PreTrainedModel, TextGenerationPipeline

from local_azureml.engine.chat_completion.finetune import ADAPTER
from local_azureml.engine.chat_completion.inputs import typed
from local_azureml.engine.chat_completion.loading import load_model, load_tokenizer
from local_azureml.engine.processes import UserError

PACKAGES = ("mlflow", "transformers", "torch", "accelerate", "safetensors")  # what loading the folder takes


def run(specification: dict) -> None:
    """Fill the output mlflow_model_folder."""
    if "convert-failed" in specification["faults"]:
        raise UserError("the fault convert-failed is switched on")
    typed(specification["inputs"])
    source = Path(specification["outputs"]["pytorch_model_folder"])
    target = Path(specification["outputs"]["mlflow_model_folder"])
    save_mlflow_model(load(source), load_tokenizer(source), target)
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    print(f"wrote an MLflow model of {size / 1e6:.1f} MB", flush=True)


def load(folder: Path) -> PreTrainedModel:
    """Return the checkpoint's model, with its LoRA adapter merged if it has one."""
    model = load_model(folder, dtype="auto")
    if not (folder / ADAPTER).exists():
        return model
    print(
        "the adapter was kept apart; the MLflow model gets it merged, so that it loads without peft",
        flush=True,
    )
    return PeftModel.from_pretrained(model, str(folder / ADAPTER)).merge_and_unload()


def save_mlflow_model(model: PreTrainedModel, tokenizer, folder: Path) -> None:
    """Write an MLflow model with the transformers flavor to `folder`, without a signature as Azure's is."""
    logging.getLogger("mlflow").setLevel(
        logging.ERROR
    )  # it looks for a model card on a hub that is not there
    shutil.rmtree(folder, ignore_errors=True)
    model.name_or_path = model.config.model_type  # else the folder names this machine's paths
    model.config.use_cache = True
    mlflow.transformers.save_model(
        TextGenerationPipeline(
            model=model, tokenizer=tokenizer, task="text-generation", device=torch.device("cpu")
        ),
        str(folder),
        task="text-generation",
        pip_requirements=[f"{package}=={version(package).split('+')[0]}" for package in PACKAGES],
    )
    described = Model.load(str(folder))
    described.signature = None
    described.save(str(folder / "MLmodel"))
