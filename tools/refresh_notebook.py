"""Execute a notebook on the emulator and store its outputs in it, without what differs from run to run."""

import argparse
import itertools
import json
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
COMPARED = {"compare_with_base": True}  # so that the answers show what the training changed
STANDS_FOR = [  # what a run prints, and what is stored in its place
    (r"\x1b\[[\d;]*m", ""),  # colours
    (r"(?<!\d)1[789]\d{8}(?!\d)", "1700000000"),  # the run's id, seconds since 1970
    (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d[\d.]*(Z?)", r"2025-01-01 00:00:00\1"),
    (r"localhost:\d+", "localhost:8443"),
    (r"ticket=[\w-]+", "ticket=…"),  # opens the page of a job
    (r"\d+ CPU cores", "… CPU cores"),
    (r"\d[\d.,]* tokens/s +\S+ left", "… tokens/s  … left"),
    (r"\d[\d.]* GiB free", "… GiB free"),
    (r"(in|bytes,) \d[\d.]* s\b", r"\1 … s"),
    (r"[^\s'\"]*/site-packages/", "site-packages/"),
]


def execute(notebook: Path, parameters: dict) -> list[nbformat.NotebookNode]:
    """Return the notebook's cells as they are after a run on an emulator and in a folder of their own."""
    with tempfile.TemporaryDirectory() as folder:
        for program in ROOT.glob("*.py"):  # that the cells call
            shutil.copy(program, folder)
        executed = Path(folder, "executed.ipynb")
        papermill = [sys.executable, "-m", "papermill", notebook.resolve(), executed, "--cwd", folder]
        papermill += ["--parameters_yaml", json.dumps(parameters)]
        subprocess.run([sys.executable, "-m", "local_azureml", "run", "--", *papermill], cwd=ROOT, check=True)
        cells = nbformat.read(executed, as_version=4).cells
    return [cell for cell in cells if "injected-parameters" not in cell.metadata.get("tags", [])]


def clean(text: str, numbers: dict[str, int]) -> str:
    """Return what is stored for `text`; the random parts of names become numbers, in order of appearance."""
    for pattern, stored in STANDS_FOR:
        text = re.sub(pattern, stored, text)
    return re.sub(r"(?<=_)[0-9a-f]{8}(?=\b|_)", lambda found: f"{numbers[found[0]]:08x}", text)


def stored_outputs(outputs: list[nbformat.NotebookNode], numbers: dict[str, int]) -> list:
    """Return the outputs to store: cleaned, streams in one piece."""
    kept = []
    for output in outputs:
        if output.output_type == "stream":
            output.text = clean(output.text, numbers)
            if kept and kept[-1].get("name") == output.name:
                kept[-1].text += output.text
                continue
        for kind, text in output.get("data", {}).items():
            if kind.startswith("text/"):
                output.data[kind] = clean(text, numbers)
        kept.append(output)
    return kept


def traces(notebook: nbformat.NotebookNode) -> list[str]:
    """Return the names of this machine and its folders that stand in the notebook's outputs."""
    text = "\n".join(str(cell.get("outputs", "")) for cell in notebook.cells)
    names = {platform.node(), str(Path.home()), str(ROOT), tempfile.gettempdir()} - {"localhost"}
    return sorted(name for name in names if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("notebook", type=Path)
    path = parser.parse_args().notebook
    notebook, numbers = nbformat.read(path, as_version=4), defaultdict(itertools.count(1).__next__)
    counts = itertools.count(1)
    for cell, executed in zip(notebook.cells, execute(path, COMPARED), strict=True):
        if cell.cell_type == "code":
            cell.outputs = stored_outputs(executed.outputs, numbers)
            cell.execution_count = next(counts)
            for output in cell.outputs:
                if "execution_count" in output:
                    output.execution_count = cell.execution_count
    if found := traces(notebook):
        sys.exit(f"not stored: the outputs name {', '.join(found)}; add a replacement to STANDS_FOR")
    nbformat.write(notebook, path)


if __name__ == "__main__":
    main()
