"""What a child starts, and what that starts: found and ended, however it was detached."""

import ctypes
import os
import sys
from contextlib import suppress

import psutil

MARK = "LOCAL_AZUREML_CHILD"  # a variable that all descendants inherit
ADOPT = 36  # PR_SET_CHILD_SUBREAPER of Linux's prctl


def adopt() -> None:
    """Let this process be the parent of what its descendants leave behind; Linux alone offers that."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(ADOPT, 1, 0, 0, 0)


def end(mark: str, leader: int = 0) -> None:
    """Kill all that bear the mark, and all below `leader`, which lives and has adopted what was detached."""
    while found := [process for process in (*_below(leader), *_marked(mark)) if _is_another(process, leader)]:
        for process in found:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(found, timeout=0.1)


def _below(leader: int) -> list[psutil.Process]:
    with suppress(psutil.Error):
        return psutil.Process(leader).children(recursive=True) if leader else []
    return []


def _marked(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):  # gone meanwhile, or somebody else's
            if process.environ().get(MARK) == mark:
                found.append(process)
    return found


def _is_another(process: psutil.Process, leader: int) -> bool:
    with suppress(psutil.Error):
        return process.pid not in (leader, os.getpid()) and process.status() != psutil.STATUS_ZOMBIE
    return False
