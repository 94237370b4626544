"""local_azureml/engine/install.py, by its command line: uv takes its packages from where pip would."""

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from local_azureml.engine import install as install_program

ROOT = Path(__file__).parents[2]
PRESENT = "pip"  # a package that is there, so that pip has nothing to fetch


@pytest.fixture
def install(tmp_path):
    """A function that installs with settings for pip, and returns how it ended and what uv was asked."""
    (tmp_path / "pip.conf").write_text(
        "[global]\nindex-url = https://one.invalid/simple\nextra-index-url =\n  /more\n  /most\n"
        "[install]\nfind-links =\n  /wheels\n  /wheelhouse\n"
    )
    asked = tmp_path / "asked"
    uv = tmp_path / "uv"

    def run(uv_status: int = 0, python=sys.executable, **settings: str) -> tuple:
        uv.write_text(f'#!/bin/sh\n(echo "$@"; env) > {asked}\nexit {uv_status}\n')
        uv.chmod(0o755)
        own = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
        own |= {"PATH": f"{tmp_path}{os.pathsep}{own['PATH']}", "PIP_CONFIG_FILE": str(tmp_path / "pip.conf")}
        command = [python, ROOT / "local_azureml" / "engine" / "install.py", PRESENT]
        ended = subprocess.run(command, env=own | settings, capture_output=True, text=True, timeout=60)
        return ended, asked.read_text() if asked.exists() else ""

    return run


def test_uv_is_given_the_indexes_and_folders_that_pip_is_set_to(install):
    ended, asked = install()
    assert ended.returncode == 0 and asked.splitlines()[0].endswith(f" {PRESENT}")
    assert set(asked.splitlines()) >= {
        "UV_DEFAULT_INDEX=https://one.invalid/simple",
        "UV_INDEX=/more /most",
        "UV_FIND_LINKS=/wheels,/wheelhouse",
    }


def test_an_environment_variable_wins_over_pips_file_as_it_does_for_pip(install):
    asked = install(PIP_EXTRA_INDEX_URL="https://two.invalid")[1]
    assert "UV_INDEX=https://two.invalid" in asked.splitlines()


def test_a_setting_that_uv_has_no_counterpart_for_leaves_the_work_to_pip(install):
    ended, asked = install(PIP_NO_BINARY="torch")
    assert (ended.returncode, asked) == (0, "") and "already satisfied: pip" in ended.stdout


def test_where_uv_does_not_succeed_pip_tries_the_same(install):
    ended, asked = install(uv_status=1)
    assert ended.returncode == 0 and asked and "already satisfied: pip" in ended.stdout
    assert "uv did not succeed: pip tries the same\n" in ended.stderr


def test_settings_of_pip_that_cannot_be_read_are_not_passed_over(install, tmp_path):
    (tmp_path / "pip.conf").write_text("index-url = of no section")
    ended, asked = install()
    assert ended.returncode != 0 and asked == ""


def test_where_there_is_no_pip_uv_works_with_settings_of_its_own(install, tmp_path):
    venv.create(tmp_path / "venv")
    ended, asked = install(
        python=tmp_path / "venv" / "bin" / "python", UV_DEFAULT_INDEX="https://own.invalid"
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "UV_DEFAULT_INDEX=https://own.invalid" in asked.splitlines()


@pytest.mark.parametrize(
    ("settings", "reached", "chosen"),
    [({}, True, True), ({}, False, False), ({"extra-index-url": "https://mine.invalid"}, True, False)],
    ids=["nobody has chosen", "PyTorch's index is out of reach", "an index is set"],
)
def test_torch_is_the_build_for_this_machine_unless_somebody_chose_its_source(
    tmp_path, monkeypatch, settings, reached, chosen
):
    (tmp_path / "uv").write_text(f"#!/bin/sh\nenv > {tmp_path}/asked\n")
    (tmp_path / "uv").chmod(0o755)
    monkeypatch.delenv("UV_TORCH_BACKEND", raising=False)
    monkeypatch.setattr(install_program, "reached", lambda address: reached)
    assert install_program.install_with_uv(str(tmp_path / "uv"), sys.executable, settings, []) == 0
    assert ("UV_TORCH_BACKEND=auto" in (tmp_path / "asked").read_text().splitlines()) == chosen
