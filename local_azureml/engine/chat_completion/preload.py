"""Imported once by the warm server: what children need, and what libraries put off to their first use."""

import gc
import importlib
import os
import tempfile
import warnings

os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.gettempdir()  # else torch makes a folder in it when imported
gc.disable()  # nothing of all that is imported is garbage: looking for some takes a sixth of the time
for step in ("validation", "model_import", "preprocess", "finetune", "convert"):
    importlib.import_module(f"local_azureml.engine.chat_completion.{step}")
importlib.import_module("local_azureml.engine.serving.chat")
importlib.import_module("transformers.conversion_mapping").get_checkpoint_conversion_mapping("phi3")  # 0.3 s
requirements = importlib.import_module("mlflow.utils.requirements_utils")
requirements.warn_dependency_requirement_mismatches(["mlflow"])  # 1 s: it looks through all that is installed
importlib.import_module("transformers.utils.logging").disable_progress_bar()  # unreadable in a streamed log
warnings.simplefilter("ignore", FutureWarning)  # libraries' words to one another
del os.environ["TORCHINDUCTOR_CACHE_DIR"]
gc.freeze()  # children look for garbage among their own objects alone
gc.enable()
