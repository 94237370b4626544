"""A dataset hub: serves folders as dataset repositories the way huggingface.co does, for its own clients.

Every folder `{root}/datasets/{owner}/{name}` is a repository with one revision, `main`, whose commit is a
hash of what the folder holds: change a file and the commit changes. It is read-only. Not played: models and
spaces, users and tokens, lists of branches and commits, Xet transfer, the dataset viewer, search.
"""

from pathlib import Path
from typing import Annotated
from urllib.parse import parse_qs, quote

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from fastapi.responses import FileResponse, JSONResponse
from fastapi.routing import APIRoute

from local_azureml.access import MIB, nothing, opens
from local_azureml.data_plane.repositories import Hub, Snapshot

ELSEWHERE = "Give the path of a file of your own, or start the emulator with --hub https://huggingface.co."
PAGE = 1000  # entries in one answer of the tree listing


class HubRoute(APIRoute):
    """A route that answers errors as the hub does, whatever application it is part of."""

    def get_route_handler(self):
        handle = super().get_route_handler()

        async def answer(request: Request):
            try:
                return await handle(request)
            except HTTPException as error:
                return JSONResponse({"error": error.detail}, error.status_code, error.headers)

        return answer


router = APIRouter(route_class=HubRoute)
PUBLIC = "what ships with the emulator, as public as on the hub"
public = opens(nothing, PUBLIC)


def refuse(status: int, code: str, message: str) -> HTTPException:
    """Return the hub's error; its clients read the two headers."""
    return HTTPException(
        status, message, headers={"X-Error-Code": code, "X-Error-Message": ascii(message)[1:-1]}
    )


def find(request: Request, repository: str, revision: str = "main") -> Snapshot:
    """Return the repository at that revision; unauthenticated callers get 401 whether or not it exists."""
    hub = request.app.state.hub
    snapshot = hub.snapshot(repository)
    if snapshot is None:
        status = 404 if "authorization" in request.headers else 401
        there = ", ".join(hub.repositories()[:3]) or "nothing"
        raise refuse(status, "RepoNotFound", f"this hub has {there}, and not {repository}. {ELSEWHERE}")
    if revision not in ("main", "refs/heads/main", snapshot.commit, snapshot.commit[:7]):
        raise refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
    return snapshot


def description(snapshot: Snapshot, blobs: bool = False) -> dict:
    """Return the repository's page as the API gives it."""
    owner = snapshot.repository.partition("/")[0]
    files = snapshot.files.values()
    return {
        "_id": snapshot.commit[:24],
        "id": snapshot.repository,
        "author": owner,
        "sha": snapshot.commit,
        "createdAt": snapshot.modified,
        "lastModified": snapshot.modified,
        "private": False,
        "gated": False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": snapshot.card.get("tags") or [],
        "cardData": snapshot.card,
        "siblings": [file.sibling() if blobs else {"rfilename": file.path} for file in files],
    }


def page(entries: list[dict], request: Request, cursor: int, limit: int) -> JSONResponse:
    """Return one page of the entries, with a link to the next."""
    following = cursor + limit
    headers = {}
    if following < len(entries):
        address = request.url.include_query_params(cursor=following)
        headers["Link"] = f'<{address}>; rel="next"'
    return JSONResponse(entries[cursor:following], headers=headers)


@router.get("/api/datasets/{owner}/{name}")
@public
def show_dataset(request: Request, owner: str, name: str, blobs: bool = False):
    """Return a dataset's description and its files."""
    return description(find(request, f"{owner}/{name}"), blobs)


@router.get("/api/datasets/{owner}/{name}/revision/{revision:path}")
@public
def show_revision(request: Request, owner: str, name: str, revision: str, blobs: bool = False):
    """Return the same at a branch or a commit."""
    return description(find(request, f"{owner}/{name}", revision), blobs)


@router.get("/api/datasets/{owner}/{name}/tree/{revision}")
@router.get("/api/datasets/{owner}/{name}/tree/{revision}/{folder:path}")
@public
def list_tree(
    request: Request,
    owner: str,
    name: str,
    revision: str,
    folder: str = "",
    recursive: bool = False,
    expand: bool = False,
    cursor: int = 0,
    limit: int = PAGE,
):
    """Return the files and folders below a folder, a page at a time."""
    snapshot = find(request, f"{owner}/{name}", revision)
    entries = snapshot.below(folder.strip("/"), recursive)
    if folder and not entries:
        raise refuse(404, "EntryNotFound", f"{folder} does not exist on {revision!r}")
    return page(with_commit(entries, snapshot, expand), request, cursor, min(limit, PAGE))


async def _body(request: Request) -> bytes:
    return await request.body()


@router.post("/api/datasets/{owner}/{name}/paths-info/{revision}")
@opens(nothing, PUBLIC, MIB)
def show_paths(
    request: Request, owner: str, name: str, revision: str, body: Annotated[bytes, Depends(_body)]
):
    """Return the sizes and checksums of the files that the body names."""
    try:
        form = parse_qs(body.decode(errors="replace"), max_num_fields=PAGE)
    except ValueError as error:
        raise refuse(413, "TooManyPaths", f"at most {PAGE} paths at once: {error}") from None
    paths, expand = dict.fromkeys(form.get("paths", [])), form.get("expand") == ["true"]
    snapshot = find(request, f"{owner}/{name}", revision)
    files = [snapshot.files[path].entry() for path in paths if path in snapshot.files]
    folders = [snapshot.directory(path) for path in paths if snapshot.below(path.strip("/"), recursive=False)]
    return with_commit(files + folders, snapshot, expand)


def with_commit(entries: list[dict], snapshot: Snapshot, expand: bool) -> list[dict]:
    return [entry | {"lastCommit": snapshot.last_commit()} for entry in entries] if expand else entries


@router.api_route("/datasets/{owner}/{name}/resolve/{revision}/{path:path}", methods=["GET", "HEAD"])
@router.api_route("/datasets/{owner}/{name}/raw/{revision}/{path:path}", methods=["GET", "HEAD"])
@public
def send_file(request: Request, owner: str, name: str, revision: str, path: str):
    """Return a file, or the range of it that is asked for."""
    snapshot = find(request, f"{owner}/{name}", revision)
    if path not in snapshot.files:
        raise refuse(404, "EntryNotFound", "Entry not found")
    file = snapshot.files[path]
    headers = {"X-Repo-Commit": snapshot.commit, "ETag": f'"{file.tag}"'}
    if file.sha256:
        headers |= {"X-Linked-Size": str(file.size), "X-Linked-ETag": f'"{file.tag}"'}
    headers["Content-Disposition"] = f"inline; filename*=UTF-8''{quote(file.location.name)}"
    media_type = "application/octet-stream" if file.sha256 else "text/plain; charset=utf-8"
    return FileResponse(file.location, headers=headers, media_type=media_type)


@router.get("/api/datasets")
@router.get("/api/datasets/{rest:path}")
@router.get("/datasets/{rest:path}")
@public
def refuse_others(request: Request):
    """Answer 501 to whatever else the hub has."""
    raise HTTPException(501, f"{request.method} {request.url.path} is not part of the emulator")


def create_app(root: Path) -> FastAPI:
    """Return the hub as an application of its own."""
    app = FastAPI(openapi_url=None)
    app.state.hub = Hub(root)
    app.include_router(router)
    return app
