"""What the emulator remembers: documents keyed by resource id, in one SQLite file."""

import json
import sqlite3
import string
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple


def _at(path: str) -> str:
    return f"json_extract(body, '$.{path}')"


ARCHIVED = f"coalesce({_at('properties.isArchived')}, 0)"
DIGITS = (
    f"CASE WHEN {_at('name')} NOT GLOB '*[^0-9]*' THEN ltrim({_at('name')}, '0') END"  # of a whole number
)
ORDERS = {  # of a list
    "created": "created",
    "modified": f"coalesce({_at('systemData.lastModifiedAt')}, '')",
    "name": f"lower({_at('name')})",
}
INDEXES = {  # of the documents below one, for lists, latest versions, jobs' children and open intervals
    "parent": "created",
    "archived": f"{ARCHIVED}, created",
    "modified": f"{ARCHIVED}, {ORDERS['modified']}",
    "number": f"length({DIGITS}), {DIGITS}",
    "run": f"{_at('run.parent')}, created",
    "stop": f"{_at('stop')}, created",
}
SCHEMA = "CREATE TABLE IF NOT EXISTS documents (key TEXT PRIMARY KEY, parent TEXT, created REAL, body TEXT);"
SCHEMA += "".join(
    f"CREATE INDEX IF NOT EXISTS documents_{name} ON documents (parent, {columns});"
    for name, columns in INDEXES.items()
)
STORED = "SELECT rowid AS number, created, body FROM documents WHERE parent = ?"
GIVEN = (
    "SELECT key AS number, json_extract(value, '$.systemData.createdAt') AS created, value AS body"
    " FROM json_each(?)"
)


SMALL = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)  # as in SQLite: of K, not of Kelvin's


class Where(NamedTuple):
    """A condition on a document, as SQLite reads it; the paths in it are ours, the values anybody's."""

    sql: str
    values: tuple = ()


def equal(path: str, value: str | bool | None) -> Where:
    """Return the condition that `path` of a document is `value`; None stands for nothing there."""
    return Where(f"{_at(path)} IS ?", (value,))


def before(path: str, text: str) -> Where:
    """Return the condition that the text at `path`, such as a time, comes before that one."""
    return Where(f"{_at(path)} < ?", (text,))


def archived(wanted: bool) -> Where:
    """Return the condition that a document is archived, or that it is not."""
    return Where(f"{ARCHIVED} = ?", (wanted,))


def one_of(path: str, *values: str) -> Where:
    """Return the condition that `path` of a document is one of `values`, in any capitals."""
    wanted = tuple({value.lower() for value in values})
    return Where(f"lower({_at(path)}) IN ({', '.join('?' * len(wanted))})", wanted)


def holds(path: str, text: str) -> Where:
    """Return the condition that `text` is in the text at `path`, in any capitals."""
    return Where(f"instr(lower({_at(path)}), ?)", (text.lower(),))


def has(path: str, key: str, value: str | None = None) -> Where:
    """Return the condition that the object at `path` has `key`, and with the value that is given."""
    inner = f"SELECT 1 FROM json_each(body, '$.{path}') WHERE key = ? AND coalesce(value = ?, TRUE)"
    return Where(f"EXISTS ({inner})", (key, value))


@dataclass
class Query:
    """Which documents of a list, in what order, how many, and behind which place of it."""

    where: list[Where] = field(default_factory=list)
    order: str = "created"
    descending: bool = True
    most: int = 100
    after: tuple | None = None


def _key(resource_id: str) -> str:
    return resource_id.rstrip("/").translate(SMALL)  # Azure compares ids without regard to capitals


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
        below = (f"{key}/", f"{key}0")  # 0 is the character behind the slash
        with self._lock, self._connection:
            self._connection.execute("DELETE FROM documents WHERE key > ? AND key < ?", below)
            return self._connection.execute("DELETE FROM documents WHERE key = ?", (key,)).rowcount > 0

    def delete_children(self, resource_id: str, *where: Where) -> None:
        """Remove the documents directly below `resource_id` of which these conditions are true."""
        conditions, values = _joined(where)
        with self._lock, self._connection:
            sql = f"DELETE FROM documents WHERE parent = ?{conditions}"
            self._connection.execute(sql, (_key(resource_id), *values))

    def children(self, resource_id: str, *where: Where) -> list[dict]:
        """Return the documents directly below `resource_id` that fit, oldest first."""
        return [json.loads(body) for body in self._column("body", resource_id, where)]

    def names(self, resource_id: str, *where: Where) -> list[str]:
        """Return the names of the documents directly below `resource_id` that fit, oldest first."""
        return self._column(_at("name"), resource_id, where)

    def _column(self, column: str, resource_id: str, where: tuple[Where, ...]) -> list:
        conditions, values = _joined(where)
        sql = f"SELECT {column} FROM documents WHERE parent = ?{conditions} ORDER BY created, rowid"
        with self._lock:
            rows = self._connection.execute(sql, (_key(resource_id), *values)).fetchall()
        return [value for (value,) in rows]

    def page(self, of: str | list[dict], query: Query) -> tuple[list[dict], tuple | None]:
        """Return a page of the documents below an id, or of those given, and its last place if more follow.

        A place is what the list is ordered by and a number: it stays, whatever comes and goes meanwhile.
        """
        source, value = (STORED, _key(of)) if isinstance(of, str) else (GIVEN, json.dumps(of))
        order, where = ORDERS[query.order], query.where
        down, beyond = ("DESC", "<") if query.descending else ("ASC", ">")
        if query.after:
            where = [*where, Where(f"({order}, number) {beyond} (?, ?)", query.after)]
        conditions, values = _joined(where)
        sql = (
            f"SELECT {order}, number, body FROM ({source}) WHERE TRUE{conditions}"
            f" ORDER BY {order} {down}, number {down} LIMIT ?"
        )
        with self._lock:
            rows = self._connection.execute(sql, (value, *values, query.most + 1)).fetchall()
        last = rows[query.most - 1][:2] if len(rows) > query.most else None
        return [json.loads(body) for *_, body in rows[: query.most]], last

    def highest(self, resource_id: str) -> int:
        """Return the highest of the whole numbers that documents below `resource_id` are named, or 0."""
        sql = f"SELECT {DIGITS} FROM documents WHERE parent = ?"
        with self._lock:
            row = self._connection.execute(
                f"{sql} ORDER BY length({DIGITS}) DESC, {DIGITS} DESC LIMIT 1", (_key(resource_id),)
            ).fetchone()
        return int(row[0] or 0) if row else 0

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


def _joined(where: Iterable[Where]) -> tuple[str, tuple]:
    """Return conditions as they follow another one, and their values."""
    return "".join(f" AND {one.sql}" for one in where), tuple(value for one in where for value in one.values)
