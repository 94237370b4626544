"""Prompts: conversations in the words of a model's template, made by a child that can be ended.

A template is a program that comes with the model. It reads no file and runs no code, but it may not end.
"""

import queue
import time
from multiprocessing.connection import Connection
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from local_azureml.engine import processes

SOON = 0.25  # seconds to wait for a child that is busy, before another is started


class TemplateError(Exception):
    """A template that raised; the message names the exception, which itself could quote a prompt."""


class Prompts:
    """Makes prompts in child processes, one for each that is being made."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._idle: queue.SimpleQueue[Child] = queue.SimpleQueue()
        self._idle.put(Child(folder))

    def make(self, messages: list[dict], seconds: float) -> list[int]:
        """Return the tokens of a conversation and of what begins its answer; TimeoutError after `seconds`."""
        until = time.monotonic() + seconds
        try:
            child = self._idle.get(timeout=max(0.0, min(SOON, seconds)))
        except queue.Empty:
            child = Child(self._folder)
        try:
            made = child.make(messages, until - time.monotonic())
        except BaseException:
            child.end()
            child = Child(self._folder)
            raise
        finally:
            if self._idle.empty():
                self._idle.put(child)
            else:
                child.end()
        if isinstance(made, str):
            raise TemplateError(made)
        return made


class Child:
    """A process with a model's tokenizer."""

    def __init__(self, folder: Path):
        self._connection, there = processes.CONTEXT.Pipe()
        self._process = processes.CONTEXT.Process(
            target=_work, args=(folder, there, processes.here), daemon=True
        )
        with processes.STARTING:
            self._process.start()
        there.close()

    def make(self, messages: list[dict], seconds: float) -> list[int] | str:
        """Return the tokens, or the name of the exception that the template raised."""
        self._connection.send(messages)
        if not self._connection.poll(max(0.0, seconds)):
            raise TimeoutError
        return self._connection.recv()

    def end(self) -> None:
        """Kill the process, whatever it does."""
        with processes.STARTING:
            self._process.kill()
            self._process.join()
        self._connection.close()


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a model folder, without any code that lies in it."""
    beside = next(folder.rglob("tokenizer_config.json"), None)
    if beside is None:
        raise processes.UserError(f"the model folder {folder.name} has no tokenizer_config.json")
    return AutoTokenizer.from_pretrained(beside.parent, trust_remote_code=False)


def _work(folder: Path, connection: Connection, place: processes.Place | None) -> None:
    if place:
        place.enter()
    tokenizer = load_tokenizer(folder)
    while True:
        try:
            messages = connection.recv()
        except EOFError:
            return
        try:
            encoded = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
            connection.send(list(encoded["input_ids"]))
        except Exception as error:
            connection.send(type(error).__name__)
