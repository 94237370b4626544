"""The files behind the blobs: containers are folders, blobs are files, and no path leaves its container."""

import hashlib
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO
from xml.etree import ElementTree

from local_azureml import cloud
from local_azureml.errors import AzureError

ACCOUNT = "store"
CONTAINERS = {"workspaceblobstore": "azureml-blobstore", "workspaceartifactstore": "azureml"}  # by datastore
VERSION = "2024-11-04"  # of the storage protocol
LONGEST_NAME = 1024  # bytes; Azure counts characters
LONGEST_PART = 255  # bytes between two slashes of a name: a file system's limit
UNLISTABLE = re.compile("[^\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML changes or lacks these


def signature(local: cloud.Cloud) -> str:
    """Return the query string that opens every container."""
    return f"sv={VERSION}&sr=c&sp=racwdl&sig={local.secret('sas_signature')}"


def check_container(container: str) -> None:
    """Refuse a container that is not there."""
    if container not in CONTAINERS.values():
        known = ", ".join(CONTAINERS.values())
        raise AzureError(404, "ContainerNotFound", f"no container {container!r}; there is: {known}")


def place(local: cloud.Cloud, container: str, name: str) -> Path:
    """Return the file behind a blob; refuse a container that is not there and a name that would leave it."""
    check_container(container)
    path = PurePosixPath(name)
    if not is_plain(path):
        raise AzureError(400, "InvalidResourceName", f"{name!r} is not the name of a blob")
    return local.blobs.joinpath(container, path)


def is_plain(path: PurePosixPath) -> bool:
    """Return whether a blob can have this name: it stays in its container, and fits files and listings."""
    return all(map(_is_plain_part, path.parts)) and len(bytes(path)) <= LONGEST_NAME


def _is_plain_part(part: str) -> bool:
    listed = "\\" not in part and not UNLISTABLE.search(part)
    return part not in ("..", "/") and listed and len(part.encode()) <= LONGEST_PART


def address(local: cloud.Cloud, container: str, name: str) -> str:
    """Return the address, signature included, at which a blob can be read."""
    return f"{local.origin}/{ACCOUNT}.blob.{cloud.STORAGE_SUFFIX}/{container}/{name}?{signature(local)}"


def save(local: cloud.Cloud, file: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    with _part_of(local, file) as stream:
        stream.write(content)


@contextmanager
def _part_of(local: cloud.Cloud, file: Path) -> Iterator[BinaryIO]:
    """Open a new file that takes the place of `file` when all is written."""
    part = local.folder / "blob-parts" / uuid.uuid4().hex
    part.parent.mkdir(exist_ok=True)
    try:
        with part.open("wb") as stream:
            yield stream
        file.parent.mkdir(parents=True, exist_ok=True)
        part.replace(file)
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
        raise AzureError(409, "PathConflict", f"{file.name!r} is a folder or lies below a blob") from None
    finally:
        part.unlink(missing_ok=True)


def block_file(local: cloud.Cloud, container: str, name: str, blockid: str) -> Path:
    """Return the file that holds a block until the list of blocks arrives."""
    digest = hashlib.sha256(f"{container}/{name}".encode()).hexdigest()
    return local.folder / "blob-blocks" / digest / hashlib.sha256(blockid.encode()).hexdigest()


def join(local: cloud.Cloud, container: str, name: str, block_list: bytes) -> None:
    """Make a blob of the blocks that an XML list names."""
    try:
        wanted = [entry.text or "" for entry in ElementTree.fromstring(block_list)]
    except ElementTree.ParseError as error:
        raise AzureError(400, "InvalidXmlDocument", f"the block list is not XML: {error}") from None
    blocks = [block_file(local, container, name, block) for block in wanted]
    if missing := [name for name, block in zip(wanted, blocks, strict=True) if not block.exists()]:
        raise AzureError(400, "InvalidBlockList", f"the block {missing[0]!r} was not sent")
    with _part_of(local, place(local, container, name)) as stream:
        for block in blocks:
            with block.open("rb") as source:
                shutil.copyfileobj(source, stream)
    shutil.rmtree(block_file(local, container, name, "").parent, ignore_errors=True)
