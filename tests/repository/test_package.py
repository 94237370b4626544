"""The emulator as a package: installed from its wheel, used outside the clone."""

import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from clients import wheel
from conftest import ROOT
from packaging.requirements import Requirement


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with the emulator as its wheel brings it; nothing of the clone."""
    source, place = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    shutil.copytree(ROOT / "local_azureml", source / "local_azureml")
    for file in (ROOT / "pyproject.toml", ROOT / "LICENSE", *ROOT.glob("requirements-*.txt")):
        shutil.copy(file, source)
    alone = ["--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check"]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", *alone, "--target", place, source]
    subprocess.run(pip, check=True)
    return place


def test_the_installed_command_runs_a_job_in_a_conda_environment(installed, tmp_path):
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    wheel(shelf, "localmade", "1.0")
    index = {"PIP_INDEX_URL": tmp_path.as_uri(), "PIP_FIND_LINKS": str(shelf), "PIP_CONFIG_FILE": "/dev/null"}
    script = [sys.executable, ROOT / "scenarios" / "conda_job.py", "localmade"]
    ended = subprocess.run(
        [installed / "bin" / "local-azureml", "run", "--poll", "0.1", "--", *script],
        cwd=tmp_path,
        env=os.environ | index | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ended.returncode == 0, ended.stderr
    assert "localmade.py" in ended.stdout


def test_the_light_part_needs_no_training_library(installed):
    (there,) = metadata.distributions(name="local-azureml", path=[str(installed)])
    needed = {"light": set(), "train": set()}
    for line in there.requires:
        requirement = Requirement(line)
        needed["train" if requirement.marker else "light"].add(requirement.name)
    assert needed["train"] == {"datasets", "peft", "torch", "transformers", "trl"}
    assert needed["light"] >= {"fastapi", "mlflow", "uvicorn"} and not needed["light"] & needed["train"]


def test_all_seeds_come_along(installed):
    def seeds(place: Path) -> set[Path]:
        return {file.relative_to(place) for file in (place / "local_azureml" / "seeds").rglob("*.*")}

    assert seeds(ROOT) - seeds(installed) == set()
