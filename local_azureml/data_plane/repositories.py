"""Folders as dataset repositories: files with the ids that git would give them, and commits."""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath

import yaml

TEXT_SUFFIXES = {"", ".csv", ".json", ".jsonl", ".md", ".py", ".txt", ".yaml", ".yml"}
LARGEST_TEXT = 10_000_000  # bytes; a bigger file is stored outside git, with its SHA-256 as its tag
READ_SIZE = 1 << 20  # bytes


@dataclass(frozen=True)
class StoredFile:
    """One file of a repository as the listing shows it."""

    path: str
    location: Path
    size: int
    oid: str  # of the git blob: the file itself, or the pointer to a large one
    sha256: str | None  # of a large file

    @property
    def tag(self) -> str:
        return self.sha256 or self.oid

    def entry(self) -> dict:
        entry = {"type": "file", "oid": self.oid, "size": self.size, "path": self.path}
        if self.sha256:
            entry["lfs"] = {"oid": self.sha256, "size": self.size, "pointerSize": len(pointer(self))}
        return entry

    def sibling(self) -> dict:
        entry = self.entry()
        large = {"sha256": self.sha256, "size": self.size, "pointerSize": len(pointer(self))}
        named = {"rfilename": self.path, "size": self.size, "blobId": entry["oid"]}
        return named | ({"lfs": large} if self.sha256 else {})


@dataclass(frozen=True)
class Snapshot:
    """What a repository holds at one moment."""

    repository: str
    files: dict[str, StoredFile]
    commit: str
    modified: str
    card: dict

    def below(self, folder: str, recursive: bool) -> list[dict]:
        """Return the listing's entries under `folder`: directories first, as the real hub sorts them."""
        prefix = f"{folder}/" if folder else ""
        files, folders = [], set()
        for path, file in self.files.items():
            if not path.startswith(prefix):
                continue
            parents = [str(parent) for parent in PurePosixPath(path[len(prefix) :]).parents][:-1]
            folders.update(prefix + parent for parent in (parents if recursive else parents[-1:]))
            if recursive or not parents:
                files.append(file.entry())
        return [self.directory(path) for path in sorted(folders)] + files

    def directory(self, path: str) -> dict:
        inside = [file.oid for file in self.files.values() if file.path.startswith(f"{path}/")]
        return {"type": "directory", "oid": sha1(*inside), "size": 0, "path": path}

    def last_commit(self) -> dict:
        return {"id": self.commit, "title": "Serve the folder", "date": self.modified}


@dataclass
class Hub:
    """The repositories under a folder."""

    root: Path
    digests: dict[tuple, tuple[str, str | None]] = field(default_factory=dict)

    def repositories(self) -> list[str]:
        folders = sorted((self.root / "datasets").glob("*/*/"))
        return [f"{folder.parent.name}/{folder.name}" for folder in folders if folder.is_dir()]

    def snapshot(self, repository: str) -> Snapshot | None:
        """Return the repository as its folder is now, or None if there is no such folder."""
        if repository not in self.repositories():
            return None
        folder = self.root / "datasets" / repository
        files = {file.path: file for file in self.stored_files(folder)}
        commit = sha1(*(f"{file.path} {file.tag}" for file in files.values()))
        newest = max((file.location.stat().st_mtime for file in files.values()), default=0)
        return Snapshot(repository, files, commit, moment(newest), card(files.get("README.md")))

    def stored_files(self, folder: Path) -> Iterator[StoredFile]:
        for location in sorted(folder.rglob("*")):
            path = location.relative_to(folder)
            if ".git" not in path.parts and location.is_file():
                status = location.stat()
                known = (str(location), status.st_size, status.st_mtime_ns)
                if known not in self.digests:
                    self.digests[known] = digest(location, status.st_size)
                yield StoredFile(path.as_posix(), location, status.st_size, *self.digests[known])


def sha1(*lines: str) -> str:
    return hashlib.sha1("\n".join(lines).encode(), usedforsecurity=False).hexdigest()


def pointer(file: StoredFile) -> str:
    """Return what git itself stores of a large file."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{file.sha256}\nsize {file.size}\n"


def digest(location: Path, size: int) -> tuple[str, str | None]:
    """Return the git blob's id, and the SHA-256 where the file is a large one."""
    large = size > LARGEST_TEXT or location.suffix not in TEXT_SUFFIXES
    header = b"" if large else f"blob {size}\0".encode()
    total = hashlib.sha256() if large else hashlib.sha1(header, usedforsecurity=False)
    with location.open("rb") as file:
        while block := file.read(READ_SIZE):
            total.update(block)
    return (sha1(total.hexdigest()), total.hexdigest()) if large else (total.hexdigest(), None)


def moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def card(readme: StoredFile | None) -> dict:
    """Return the YAML block at the head of the dataset's card."""
    text = readme.location.read_text(encoding="utf-8") if readme else ""
    block = re.match(r"---\r?\n(.*?)\r?\n---", text, re.DOTALL)
    return json.loads(json.dumps(yaml.safe_load(block[1]) or {}, default=str)) if block else {}
