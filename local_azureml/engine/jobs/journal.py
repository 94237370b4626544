"""The log that a job's stream shows."""

import time
from pathlib import Path

from local_azureml.context import Context
from local_azureml.control_plane import datastores


class Journal:
    """The log that a job's stream shows: what starts and ends, and the lines of the step worth watching."""

    def __init__(self, context: Context, run: str, name: str):
        self._file = datastores.run_log(context, run, name)
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._read: dict[Path, int] = {}  # bytes of each followed log that are copied already

    def say(self, text: str) -> None:
        """Append a line with the time."""
        with self._file.open("a", encoding="utf-8") as stream:
            stream.write(f"[{time.strftime('%Y-%m-%d %H:%M:%SZ', time.gmtime())}] {text}\n")

    def follow(self, source: Path) -> None:
        """Append the whole lines that `source` got since the last call."""
        if not source.exists():
            return
        with source.open("rb") as stream:
            stream.seek(self._read.get(source, 0))
            fresh = stream.read()
        whole = fresh[: fresh.rfind(b"\n") + 1]
        self._read[source] = self._read.get(source, 0) + len(whole)
        with self._file.open("ab") as stream:
            stream.write(whole)
