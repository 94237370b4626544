"""Children's entries that do nothing but live."""

import json
import multiprocessing
import os
import time
from pathlib import Path

from local_azureml.engine import processes


def sleep_with_a_child(specification: dict) -> None:
    """Start a child in the same group, which writes both process ids, and sleep."""
    processes.CONTEXT.Process(target=_sleep, args=(processes.here,)).start()
    time.sleep(600)


def _sleep(place: processes.Place) -> None:
    place.enter()
    Path("pids.json").write_text(json.dumps([multiprocessing.parent_process().pid, os.getpid()]))
    time.sleep(600)
