"""Take a checkpoint of Phi-3-mini's size through the notebook's nine steps, and say what that takes.

The weights are random, 3.8 billion in 16 bits: 8 GB of disk for each of the checkpoint, the trained model and
the registered one, and as much memory. `--layers 1` tries the same with a twelfth of them.
"""

import argparse
import os
import subprocess
import tempfile
import time
from contextlib import suppress
from math import prod
from pathlib import Path

import nbformat
import psutil

from benchmarks.synthetic import full_size
from local_azureml.engine.chat_completion.checkpoint import shapes
from local_azureml.engine.chat_completion.machine import GIB
from scenarios.notebook_runs import EMULATOR, VARIABLES, papermill, prepare

OUTPUT = "executed.ipynb"
SETTINGS = {"finetune_parameters": {"max_steps": 2, "max_seq_length": 64, "logging_steps": 1}}


def main() -> None:
    """Make the checkpoint, run the notebook with it, print what that took and its last words."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=32, help="Phi-3-mini has 32")
    parser.add_argument("--folder", type=Path, help="where temporary files go")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        base, folder = full_size(options.layers, Path(name)), prepare(Path(name, "run"))
        begun = time.monotonic()
        command = [*EMULATOR, "run", "--base-model", str(base), "--", *papermill(OUTPUT, SETTINGS)]
        peak = execute(command, folder)
        seconds = time.monotonic() - begun
        parameters = sum(prod(shape) for shape, _ in shapes(base).values())
        print(f"{parameters / 1e9:.2f} billion parameters: {seconds:.0f} s, {peak / GIB:.1f} GiB at the peak")
        cells = nbformat.read(folder / OUTPUT, as_version=4).cells
        print(next(cell for cell in cells if cell.id == "delete").outputs[-1].text)


def execute(command: list[str], folder: Path) -> int:
    """Run a command to its end, which has to be good, and return the most bytes that it held at once."""
    peak = 0
    with psutil.Popen(command, cwd=folder, env={**os.environ, **VARIABLES}) as process:
        while process.poll() is None:
            peak = max(peak, sum(map(held, [process, *process.children(recursive=True)])))
            time.sleep(0.5)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return peak


def held(process: psutil.Process) -> int:
    """Return the bytes of memory that a process does not share, or its part of those it does."""
    with suppress(psutil.Error):  # gone meanwhile
        memory = process.memory_full_info()
        return getattr(memory, "pss", memory.uss)  # Linux alone tells the parts
    return 0


if __name__ == "__main__":
    main()
