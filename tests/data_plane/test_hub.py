"""The dataset hub, through the clients that are made for the real one."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pyarrow
import pyarrow.parquet
import pytest
from conftest import served
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

from local_azureml.data_plane.hub import create_app

ROOT = Path(__file__).parents[2]
NAME = "someone/chats"
CARD = """---
configs:
- config_name: default
  data_files:
  - {split: train_sft, path: data/train_sft-*}
  - {split: test_gen, path: data/test_gen-*}
tags: [chat]
---
# Chats
"""


def write_repository(folder: Path) -> None:
    (folder / "data").mkdir(parents=True)
    (folder / "README.md").write_text(CARD)
    for split, rows in {"train_sft": 30, "test_gen": 7}.items():
        table = pyarrow.table({"number": range(rows)})
        pyarrow.parquet.write_table(table, folder / "data" / f"{split}-00000-of-00001.parquet")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("hub")
    write_repository(root / "datasets" / NAME)
    return root


@pytest.fixture(scope="module")
def address(root) -> Iterator[str]:
    with served(create_app(root)) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def hub(address) -> huggingface_hub.HfApi:
    return huggingface_hub.HfApi(address, token=False)


@pytest.fixture(scope="module")
def files(address) -> huggingface_hub.HfFileSystem:
    return huggingface_hub.HfFileSystem(endpoint=address, token=False)


def parquet(root: Path, split: str) -> Path:
    return root / "datasets" / NAME / "data" / f"{split}-00000-of-00001.parquet"


def test_load_dataset_loads_a_slice_of_a_split(address, tmp_path):
    code = "from datasets import load_dataset as load; "
    code += f"print(load({NAME!r}, split='train_sft[0%:10%]')['number'][:])"
    environment = os.environ | {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-c", code]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[0, 1, 2]"


def test_a_dataset_is_described_with_its_card_and_files(hub, root):
    info = hub.dataset_info(NAME, files_metadata=True)
    assert (info.id, info.author, info.private, info.gated) == (NAME, "someone", False, False)
    assert info.card_data.tags == ["chat"]
    sizes = {file.rfilename: file.size for file in info.siblings}
    folder = root / "datasets" / NAME
    assert sizes == {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*.*")}


def test_a_commit_is_a_revision(hub):
    commit = hub.dataset_info(NAME).sha
    assert hub.dataset_info(NAME, revision=commit).sha == commit


def test_the_tree_is_listed_folder_by_folder_and_as_a_whole(hub):
    top = [entry.path for entry in hub.list_repo_tree(NAME, repo_type="dataset")]
    assert top == ["data", "README.md"]
    below = [
        entry.path for entry in hub.list_repo_tree(NAME, repo_type="dataset", recursive=True, expand=True)
    ]
    assert sorted(below) == [
        "README.md",
        "data",
        "data/test_gen-00000-of-00001.parquet",
        "data/train_sft-00000-of-00001.parquet",
    ]


def test_a_long_listing_comes_in_pages(hub, root):
    folder = root / "datasets" / "someone" / "long"
    folder.mkdir()
    for number in range(1001):
        (folder / f"{number}.txt").touch()
    assert len(list(hub.list_repo_tree("someone/long", repo_type="dataset"))) == 1001


def test_a_large_files_checksum_is_its_tag(hub, root):
    path = parquet(root, "test_gen").relative_to(root / "datasets" / NAME).as_posix()
    (info,) = hub.get_paths_info(NAME, path, repo_type="dataset")
    url = huggingface_hub.hf_hub_url(NAME, path, repo_type="dataset", endpoint=hub.endpoint)
    assert huggingface_hub.get_hf_file_metadata(url, token=False).etag == info.lfs.sha256


def test_files_are_downloaded_whole(hub, root, tmp_path):
    folder = Path(hub.snapshot_download(NAME, repo_type="dataset", cache_dir=tmp_path))
    original = root / "datasets" / NAME
    for path in original.rglob("*.*"):
        assert (folder / path.relative_to(original)).read_bytes() == path.read_bytes()


def test_a_part_of_a_file_is_read_by_range(files, root):
    path = parquet(root, "train_sft")
    part = files.cat_file(f"datasets/{NAME}/data/{path.name}", start=10, end=50)
    assert part == path.read_bytes()[10:50]


def test_the_file_system_finds_files_by_pattern(files):
    found = files.glob(f"datasets/{NAME}/**/test_*.parquet")
    assert found == [f"datasets/{NAME}/data/test_gen-00000-of-00001.parquet"]


def test_what_is_not_there_is_refused_as_the_real_hub_does(hub):
    with pytest.raises(RepositoryNotFoundError) as stranger:
        hub.dataset_info("someone/else")
    with pytest.raises(RepositoryNotFoundError) as known:
        hub.dataset_info("someone/else", token="hf_x")
    assert (stranger.value.response.status_code, known.value.response.status_code) == (401, 404)
    assert "this hub has someone/" in str(known.value) and "with --hub https://" in str(known.value)
    with pytest.raises(RevisionNotFoundError):
        hub.dataset_info(NAME, revision="v9")
    with pytest.raises(EntryNotFoundError):
        hub.hf_hub_download(NAME, "none.txt", repo_type="dataset")


@pytest.mark.parametrize("path", ["../chats/README.md", "..%2f..%2f..%2fREADME.md", "%2fetc%2fpasswd"])
def test_no_path_leads_out_of_a_repository(path, address, hub):
    session = huggingface_hub.utils.get_session()
    assert session.get(f"{address}/datasets/someone/none/resolve/main/{path}").status_code in (401, 404)
    assert session.get(f"{address}/datasets/{NAME}/resolve/main/{path}").status_code == 404


def test_paths_are_described_once_each_and_a_limited_number_at_a_time(address):
    session = huggingface_hub.utils.get_session()
    described = f"{address}/api/datasets/{NAME}/paths-info/main"
    told = session.post(described, data={"paths": ["README.md"] * 500})
    assert [entry["path"] for entry in told.json()] == ["README.md"]
    assert session.post(described, data={"paths": ["README.md"] * 90_000}).status_code == 413


@pytest.mark.parametrize("name", ["x" * 300, "%00", ".", ".."])
def test_what_is_no_name_of_a_repository_is_not_found(name, address):
    session = huggingface_hub.utils.get_session()
    answer = session.get(f"{address}/api/datasets/someone/{name.replace('.', '%2E')}")
    assert answer.status_code in (401, 404)


@pytest.mark.parametrize("revision", ["€", "%0DX-Injected: yes", "%00", "%C2%80"])
def test_a_revision_that_no_header_can_hold_is_not_found(revision, address):
    answer = huggingface_hub.utils.get_session().get(f"{address}/api/datasets/{NAME}/revision/{revision}")
    assert (answer.status_code, answer.headers["X-Error-Code"]) == (404, "RevisionNotFound")
    assert "X-Injected" not in answer.headers


def test_what_is_no_text_names_no_file(address):
    session = huggingface_hub.utils.get_session()
    answer = session.post(f"{address}/api/datasets/{NAME}/paths-info/main", content=b"paths=\xff")
    assert (answer.status_code, answer.json()) == (200, [])


def test_a_changed_file_makes_a_new_commit(hub, root):
    folder = root / "datasets" / "someone" / "moving"
    folder.mkdir()
    (folder / "one.txt").write_text("one")
    before = hub.dataset_info("someone/moving").sha
    (folder / "one.txt").write_text("another")
    after = hub.dataset_info("someone/moving").sha
    assert before != after
    with pytest.raises(RevisionNotFoundError):
        hub.dataset_info("someone/moving", revision=before)
