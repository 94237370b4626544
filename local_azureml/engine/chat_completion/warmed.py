"""Imported once by the warm server: work that libraries put off to their first use, and then keep."""

import warnings

from mlflow.utils.requirements_utils import warn_dependency_requirement_mismatches
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.utils.logging import disable_progress_bar

get_checkpoint_conversion_mapping("phi3")  # 0.3 s
warn_dependency_requirement_mismatches(["mlflow"])  # 1 s: mlflow looks through all that is installed
disable_progress_bar()  # a bar makes a streamed log unreadable
warnings.simplefilter("ignore", FutureWarning)  # libraries' words to one another
