"""Children's entries that do little but live."""

import json
import os
import tempfile
import time
from pathlib import Path

from local_azureml.engine import processes


def sleep_with_a_child(specification: dict) -> None:
    """Start a child in the same group, write both process ids, and sleep."""
    child = processes.Child("sleepers:sleep", {}, processes.here)
    child.receive()
    Path("pids.json").write_text(json.dumps([os.getpid(), child.pid]))
    time.sleep(600)


def sleep(specification: dict) -> None:
    """Sleep."""
    time.sleep(600)


def write_a_temporary_file(specification: dict) -> None:
    """Print the name of a temporary file that is left."""
    print(tempfile.mkstemp()[1])
