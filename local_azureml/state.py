"""What the stand-in remembers: documents keyed by resource id, in one SQLite file."""

import json
import sqlite3
import threading
import time
from pathlib import Path

SCHEMA = """
CREATE TABLE IF NOT EXISTS documents (key TEXT PRIMARY KEY, parent TEXT, created REAL, body TEXT);
CREATE INDEX IF NOT EXISTS documents_parent ON documents (parent, created);
"""


def _key(resource_id: str) -> str:
    return resource_id.rstrip("/").lower()  # Azure compares resource ids without regard to capitals


class State:
    """A store of JSON documents; a document's parent is its id without the last segment."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._lock = threading.RLock()
        (folder / "state.sqlite").touch(mode=0o600)  # it holds the endpoints' keys
        self._connection = sqlite3.connect(folder / "state.sqlite", check_same_thread=False)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=NORMAL")
        self._connection.executescript(SCHEMA)

    def get(self, resource_id: str) -> dict | None:
        """Return the document at `resource_id`, or None."""
        with self._lock:
            row = self._connection.execute(
                "SELECT body FROM documents WHERE key = ?", (_key(resource_id),)
            ).fetchone()
        return json.loads(row[0]) if row else None

    def put(self, resource_id: str, body: dict) -> dict:
        """Write `body` at `resource_id`, keeping its first place in time, and return it."""
        key = _key(resource_id)
        with self._lock, self._connection:
            self._connection.execute(
                "INSERT INTO documents VALUES (?, ?, ?, ?)"
                " ON CONFLICT (key) DO UPDATE SET body = excluded.body",
                (key, key.rpartition("/")[0], time.time(), json.dumps(body)),
            )
        return body

    def merge(self, resource_id: str, **changes) -> dict | None:
        """Write `changes` over the top-level keys of a document and return it; None where there is none."""
        with self._lock:
            found = self.get(resource_id)
            return None if found is None else self.put(resource_id, {**found, **changes})

    def delete(self, resource_id: str) -> bool:
        """Remove a document and all below it; return whether it was there."""
        key = _key(resource_id)
        below = key.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "/%"
        with self._lock, self._connection:
            self._connection.execute("DELETE FROM documents WHERE key LIKE ? ESCAPE '\\'", (below,))
            return self._connection.execute("DELETE FROM documents WHERE key = ?", (key,)).rowcount > 0

    def children(self, resource_id: str) -> list[dict]:
        """Return the documents directly below `resource_id`, oldest first."""
        with self._lock:
            rows = self._connection.execute(
                "SELECT body FROM documents WHERE parent = ? ORDER BY created", (_key(resource_id),)
            ).fetchall()
        return [json.loads(body) for (body,) in rows]

    def created(self, resource_id: str) -> float:
        """Return when a document was first written, in seconds since 1970."""
        with self._lock:
            query = "SELECT created FROM documents WHERE key = ?"
            return self._connection.execute(query, (_key(resource_id),)).fetchone()[0]

    def locked(self) -> threading.RLock:
        """Return the lock that makes a read and the write that follows one act."""
        return self._lock

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()
