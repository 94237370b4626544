"""Prompts: conversations in the words of a model's template, made by a child that can be ended.

A template is a program that comes with the model. It reads no file and runs no code, but it may not end, or
fill the memory.
"""

import queue
import resource
import sys
import time
from pathlib import Path

import psutil
from transformers import PreTrainedTokenizerBase

from local_azureml.engine import child, processes
from local_azureml.engine.chat_completion import loading

ROOM = 256 * 2**20  # bytes for prompts, of which the longest take some
SOON = 0.25  # seconds to wait for a child that is busy, before another is started


class TemplateError(Exception):
    """A template that raised; the message names the exception, which itself could quote a prompt."""


class Prompts:
    """Makes prompts in child processes, one for each that is being made."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._idle: queue.SimpleQueue[processes.Child] = queue.SimpleQueue()
        self._idle.put(self._child())

    def _child(self) -> processes.Child:
        return processes.Child(f"{__name__}:work", {"folder": str(self._folder)}, processes.here)

    def make(self, messages: list[dict], seconds: float) -> list[int]:
        """Return the tokens of a conversation and of what begins its answer; TimeoutError after `seconds`."""
        until = time.monotonic() + seconds
        try:
            worker = self._idle.get(timeout=max(0.0, min(SOON, seconds)))
        except queue.Empty:
            worker = self._child()
        try:
            worker.send(messages)
            while (made := worker.receive(max(0.0, until - time.monotonic()))) is None:
                pass  # it has only just begun
        except BaseException:
            worker.end()
            worker = self._child()
            raise
        finally:
            if self._idle.empty():
                self._idle.put(worker)
            else:
                worker.end()
        if isinstance(made, str):
            raise TemplateError(made)
        return made


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a model folder, without any code that lies in it."""
    beside = next(folder.rglob("tokenizer_config.json"), None)
    if beside is None:
        raise processes.UserError(f"the model folder {folder.name} has no tokenizer_config.json")
    return loading.load_tokenizer(beside.parent)


def work(specification: dict) -> None:
    """Answer each conversation with its tokens, or with the name of the template's exception."""
    tokenizer = load_tokenizer(Path(specification["folder"]))
    if sys.platform == "linux":  # elsewhere it is not kept
        resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + ROOM, -1))
    while True:
        messages = child.messages.get()
        try:
            encoded = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
            child.say(list(encoded["input_ids"]))
        except Exception as error:
            child.say(type(error).__name__)
