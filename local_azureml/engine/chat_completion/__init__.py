"""The five steps of the registry's chat_completion_pipeline, each run as a process of its own."""

from importlib.util import find_spec

from local_azureml.errors import not_implemented

STEPS = {  # child job name -> what runs it, in order
    "ft_nlp_common_validation": "local_azureml.engine.chat_completion.validation:run",
    "chat_completion_model_import": "local_azureml.engine.chat_completion.model_import:run",
    "chat_completion_datapreprocess": "local_azureml.engine.chat_completion.preprocess:run",
    "chat_completion_finetune": "local_azureml.engine.chat_completion.finetune:run",
    "ft_nlp_model_converter": "local_azureml.engine.chat_completion.convert:run",
}


def check_installed() -> None:
    """Refuse training and chat models where only the emulator's light part is installed."""
    if missing := [
        name for name in ("torch", "transformers", "trl", "peft", "datasets") if not find_spec(name)
    ]:
        message = f"training and chat models need {', '.join(missing)}: pip install 'local-azureml[train]'"
        raise not_implemented(message)
