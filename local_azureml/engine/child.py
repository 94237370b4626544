"""A child's own side: it takes its place, runs what it is told, and tells how that ended."""

import errno
import faulthandler
import importlib
import os
import queue
import signal
import socket
import threading
import traceback
from contextlib import suppress
from pathlib import Path

from local_azureml.engine import descendants, processes
from local_azureml.engine.channel import Channel

messages: queue.SimpleQueue = queue.SimpleQueue()  # what the process that started this one tells it


def run(end: socket.socket) -> None:
    """Run the task that comes first through the socket, and end this process."""
    os.set_inheritable(end.fileno(), False)
    channel = Channel(end)
    try:
        task = channel.receive()
    except EOFError:
        return  # who asked for this child is gone, or has no use for it any more
    processes.parent = channel
    if task["place"]:
        processes.here = processes.Place(**task["place"]).enter()
    faulthandler.enable()
    threading.Thread(target=_listen, args=(channel,), name="parent", daemon=True).start()
    channel.send(["pid", os.getpid()])
    ended = _outcome(task)
    _end_descendants()
    with suppress(OSError):
        channel.send(["ended", ended])


def say(message: object) -> None:
    """Tell the process that started this one something."""
    processes.parent.send(["said", message])


def _outcome(task: dict) -> dict:
    module, function = task["entry"].split(":")
    try:
        if on_web := task["specification"].pop("web", None):
            from local_azureml.engine.web import fetch  # httpx, which few need

            for address, file in on_web.items():
                fetch(address, Path(file))
        getattr(importlib.import_module(module), function)(task["specification"])
    except processes.UserError as error:
        return _failure("UserError", str(error))
    except BaseException as error:  # uvicorn ends with SystemExit where it can't start
        from local_azureml.errors import full_disk  # the server's libraries, which few need

        if sentence := full_disk(error):
            return {"exit": errno.ENOSPC, "error": {"code": "UserError", "message": sentence}}
        traceback.print_exc()
        first = (str(error).strip() or "no message").splitlines()[0]
        return _failure("SystemError", f"{type(error).__name__}: {first}")
    return {"exit": 0}


def _failure(code: str, message: str) -> dict:
    print(f"{code}: {message}", flush=True)
    return {"exit": 1, "error": {"code": code, "message": message}}


def _listen(channel: Channel) -> None:
    """Pass on what this process is told, and end it with the one that started it."""
    with suppress(EOFError, OSError):
        while True:
            messages.put(channel.receive())
    _end_descendants()
    os.kill(os.getpid(), signal.SIGKILL)


def _end_descendants() -> None:
    """End what this process started, and what that did, where it leads its group."""
    if processes.here and processes.here.group == os.getpid():
        descendants.end(processes.here.environment[descendants.MARK], os.getpid())
