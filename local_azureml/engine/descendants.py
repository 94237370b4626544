"""What a child starts, and what that starts: found and ended, however it was detached."""

import ctypes
import os
import sys
from contextlib import suppress

import psutil

from local_azureml.process_environment import processes_with

MARK = "LOCAL_AZUREML_CHILD"  # a variable that all descendants inherit
ADOPT = 36  # PR_SET_CHILD_SUBREAPER of Linux's prctl


def adopt() -> None:
    """Let this process be the parent of what its descendants leave behind; Linux alone offers that."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(ADOPT, 1, 0, 0, 0)


def end(mark: str, leader: int = 0) -> None:
    """Kill all that bear the mark, and all below `leader`, which lives and has adopted what was detached."""
    while found := [
        one for one in (*_below(leader), *processes_with(MARK, mark)) if _is_another(one, leader)
    ]:
        for process in found:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(found, timeout=0.1)


def _below(leader: int) -> list[psutil.Process]:
    with suppress(psutil.Error):
        return psutil.Process(leader).children(recursive=True) if leader else []
    return []


def _is_another(process: psutil.Process, leader: int) -> bool:
    with suppress(psutil.Error):
        return process.pid not in (leader, os.getpid()) and process.status() != psutil.STATUS_ZOMBIE
    return False
