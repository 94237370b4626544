"""The files behind the blobs: containers are folders, blobs are files, and no path leaves its container."""

import hashlib
import hmac
import shutil
import time
import uuid
from calendar import timegm
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote
from xml.etree import ElementTree

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from local_azureml import identifiers
from local_azureml.context import Context, current
from local_azureml.errors import AzureError, not_played
from local_azureml.paths import OutsideError, inside

ACCOUNT = "store"
ARTIFACT_STORE = "workspaceartifactstore"  # the datastore with the folders of runs
CONTAINERS = {"workspaceblobstore": "azureml-blobstore", ARTIFACT_STORE: "azureml"}  # by datastore
VERSION = "2024-11-04"  # of the storage protocol
PIECE = 1024 * 1024  # bytes that are written at once
TIME = "%Y-%m-%dT%H:%M:%SZ"


def run_folder(run: str, below: str = "") -> str:
    """Return the name in the artifact store of a run's folder, or of what lies `below` it."""
    return f"ExperimentRun/dcid.{run}" + (below and f"/{below}")


def signature(context: Context, container: str, expires: float | None = None) -> str:
    """Return the query string that opens a container until `expires`, by default for as long as a token."""
    se, sig = signed(context, container, time.time() + identifiers.LIFETIME if expires is None else expires)
    return f"sv={VERSION}&sr=c&sp=racwdl&se={quote(se)}&sig={sig}"


def signed(context: Context, container: str, expires: float) -> tuple[str, str]:
    """Return the end of a signature that opens a container, and the signature itself."""
    se = time.strftime(TIME, time.gmtime(expires))
    return se, context.sign("container", container, se)


def check_signature(request: Request) -> None:
    """Refuse a request whose address is not signed for its container, or no longer."""
    se, sig, prefix = (request.query_params.get(name, "") for name in ("se", "sig", "prefix"))
    container = request.path_params.get("container", prefix.partition("/")[0])
    check(current(request), container, se, sig)


def check(context: Context, container: str, se: str, given: str) -> None:
    """Refuse a signature that is not the container's, or is past its end."""
    if not hmac.compare_digest(given.encode(), context.sign("container", container, se).encode()):
        message = "the signature (sig) of the blob's address is not valid for its container and end (se)"
        raise AzureError(403, "AuthenticationFailed", message)
    if timegm(time.strptime(se, TIME)) < time.time():
        message = f"the signature of the blob's address was valid until {se}: ask the datastore for another"
        raise AzureError(403, "AuthenticationFailed", message)


def check_container(container: str) -> None:
    """Refuse a container that is not there."""
    if container not in CONTAINERS.values():
        known = ", ".join(CONTAINERS.values())
        raise AzureError(404, "ContainerNotFound", f"no container {container!r}; there is: {known}")


def place(context: Context, container: str, name: str) -> Path:
    """Return the file behind a blob; refuse a container that is not there and a name that would leave it."""
    check_container(container)
    try:
        return inside(context.blobs / container, name)
    except OutsideError:
        raise AzureError(400, "InvalidResourceName", f"{name!r} is not the name of a blob") from None


def find(context: Context, container: str, name: str) -> Path:
    """Return the file behind a blob that is there; clients ask for "folder/" too, which none can be."""
    with suppress(OutsideError):
        file = inside(context.blobs / container, name)
        if file.is_file():
            return file
    raise AzureError(404, "BlobNotFound", f"no blob {name!r} in the container {container!r}")


def names(context: Context, container: str) -> Iterator[str]:
    """Give the names of a container's blobs; a job may leave files in its folder that are none."""
    root = context.blobs / container
    for file in root.rglob("*"):
        name = file.relative_to(root).as_posix()
        with suppress(OutsideError):
            if inside(root, name).is_file():
                yield name


def address(context: Context, container: str, name: str) -> str:
    """Return the address, signature included, at which a blob can be read."""
    account = f"{context.origin}/{ACCOUNT}.blob.{identifiers.STORAGE_SUFFIX}"
    return f"{account}/{container}/{name}?{signature(context, container)}"


async def receive(context: Context, file: Path, content: AsyncIterator[bytes]) -> bytes:
    """Write a file as its content comes, whole or not at all, and return the content's MD5."""
    digest, piece = hashlib.md5(usedforsecurity=False), bytearray()

    def take() -> None:
        digest.update(piece)
        stream.write(piece)
        piece.clear()

    with part_of(context, file) as stream:
        async for chunk in content:
            piece += chunk
            if len(piece) >= PIECE:
                await run_in_threadpool(take)
        await run_in_threadpool(take)
    return digest.digest()


@contextmanager
def part_of(context: Context, file: Path) -> Iterator[BinaryIO]:
    """Open a new file that takes the place of `file` when all is written."""
    part = context.folder / "blob-parts" / uuid.uuid4().hex
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


def block_file(context: Context, container: str, name: str, blockid: str) -> Path:
    """Return the file that holds a block until the list of blocks arrives."""
    digest = hashlib.sha256(f"{container}/{name}".encode()).hexdigest()
    return context.folder / "blob-blocks" / digest / hashlib.sha256(blockid.encode()).hexdigest()


def join(context: Context, container: str, name: str, block_list: bytes) -> None:
    """Make a blob of the blocks that an XML list names."""
    try:
        wanted = [entry.text or "" for entry in ElementTree.fromstring(block_list)]
    except ElementTree.ParseError as error:
        raise AzureError(400, "InvalidXmlDocument", f"the block list is not XML: {error}") from None
    if len(set(wanted)) < len(wanted):
        raise not_played("a block that is listed twice")
    blocks = [block_file(context, container, name, block) for block in wanted]
    if missing := [name for name, block in zip(wanted, blocks, strict=True) if not block.exists()]:
        raise AzureError(400, "InvalidBlockList", f"the block {missing[0]!r} was not sent")
    with part_of(context, place(context, container, name)) as stream:
        for block in blocks:
            with block.open("rb") as source:
                shutil.copyfileobj(source, stream)
    shutil.rmtree(block_file(context, container, name, "").parent, ignore_errors=True)
