"""Files that no run wrote: where Azure's plugin of MLflow puts a folder that it is to register."""

from fastapi import APIRouter, Body, Request
from typing_extensions import Required

from local_azureml import identifiers, storage
from local_azureml.context import current
from local_azureml.control_plane import shapes

router = APIRouter()
ORIGIN = "LocalUpload"
PATH = f"/artifact/v2.0{identifiers.WORKSPACE_PATH}/artifacts/{ORIGIN}/{{container}}"


class File(shapes.Shape, total=False):
    path: Required[shapes.Text]


@router.post(f"{PATH}/batch/metadata")
def begin(
    request: Request, container: str, files: list[File] = Body(alias="paths", embed=True, max_length=1000)
) -> dict:
    """Return the addresses to which files are to be written, by their paths."""
    context, store = current(request), storage.CONTAINERS[storage.ARTIFACT_STORE]
    known, found = {}, {}
    for path in (file["path"] for file in files):
        name = f"{ORIGIN}/{container}/{path}"
        storage.place(context, store, name)  # refuses what would lead elsewhere
        of_file = {"origin": ORIGIN, "container": container, "path": path}
        known[path] = {**of_file, "artifactId": name}
        found[path] = {**of_file, "contentUri": storage.address(context, store, name)}
    return {"artifacts": known, "artifactContentInformation": found, "errors": {}}
