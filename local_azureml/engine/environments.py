"""Virtual environments of jobs and deployments: made once for a specification, with nothing of ours in it."""

import hashlib
import json
import os
import re
import shutil
import site
import subprocess
import sys
import time
import venv
from pathlib import Path

import filelock

from local_azureml.engine.processes import UserError

INSTALLER = Path(__file__).with_name("install.py")
MADE = "made"  # in an environment's folder, once all is installed
PINNED = re.compile(r"\s*(?:===?|~=)\s*([^;,\s]+?)(?:\.\*)?(?=[;,\s]|$)")
SLOW = "--only-binary=numpy,scipy,pandas,scikit-learn,matplotlib"  # to build, where they can be at all
PIP = '#!/bin/sh\nexec "$(dirname "$0")/python" -m pip "$@"\n'
OWN = f"{sys.version_info.major}.{sys.version_info.minor}"


def python_of(specification: dict | None, folder: Path) -> str:
    """Return the path of the Python for a specification, made below `folder` where it is not there yet.

    The log says first what is used; what can't be installed is a UserError with the installer's own words.
    """
    if specification is None:
        return sys.executable
    if specification["requirements"] is None:
        said = f"{specification['instead']} is not available here; using the emulator's Python {OWN}"
        print(f"environment {specification['name']}: {said}", flush=True)
        return sys.executable
    asked, requirements = specification["python"], specification["requirements"]
    base = _find(asked) if asked else sys.executable
    substitute = asked is not None and base is None
    base = base or sys.executable
    wanted = [base, requirements]
    place = folder / hashlib.sha256(json.dumps(wanted).encode()).hexdigest()[:16]
    python = place / "bin" / "python"
    said = f"Python {asked} is not on this machine: {OWN} in its place" if substitute else f"Python {base}"
    print(f"environment {specification['name']}: {said}, {len(requirements)} requirements", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(place.with_suffix(".lock")):
        if (place / MADE).exists():
            print(f"environment {specification['name']}: reused", flush=True)
        else:
            begun = time.monotonic()
            _make(place, base, requirements, substitute)
            (place / MADE).touch()
            print(
                f"environment {specification['name']}: made in {time.monotonic() - begun:.1f} s", flush=True
            )
    return str(python)


def layer(python: str, place: Path, inherited: dict[str, str]) -> dict[str, str]:
    """Return the variables of a program in that Python, with a layer of its own for what it installs there.

    The environments are shared: what one job writes is no other's.
    """
    shutil.rmtree(place, ignore_errors=True)
    below, others = site.getsitepackages(), inherited.get("PATH", os.defpath).split(os.pathsep)
    if python == sys.executable:
        venv.EnvBuilder().create(place)
    else:
        subprocess.run([python, "-m", "venv", "--without-pip", place], check=True)
        below = [str(folder) for folder in Path(python).parents[1].glob("lib/python*/site-packages")]
        ours = Path(sys.executable).parent
        others = [str(Path(python).parent), *(other for other in others if Path(other) != ours)]
    bins = place.resolve() / "bin"
    (packages,) = place.glob("lib/python*/site-packages")
    lines = [f"import site; site.addsitedir({folder!r})" for folder in below]
    (packages / "below.pth").write_text("\n".join(lines), encoding="utf-8")
    for name in ("pip", "pip3"):  # those below would install there
        (bins / name).write_text(PIP, encoding="utf-8")
        (bins / name).chmod(0o755)
    return inherited | {"PATH": os.pathsep.join([str(bins), *others]), "VIRTUAL_ENV": str(bins.parent)}


def _find(version: str) -> str | None:
    """Return a Python of that version which can be run here, if there is one."""
    if not re.fullmatch(r"\d+(\.\d+)*", version):  # it becomes part of a file's name
        return None
    short = ".".join(version.split(".")[:2])
    if short == OWN:
        return sys.executable
    candidates = [shutil.which(f"python{short}")]
    candidates += sorted(Path.home().glob(f".pyenv/versions/{short}.*/bin/python"))
    candidates += sorted(Path.home().glob(f".local/share/uv/python/cpython-{short}.*/bin/python"))
    for candidate in filter(None, candidates):
        told = subprocess.run([candidate, "-c", "import sys, venv; print(sys.version)"], capture_output=True)
        if told.returncode == 0:
            return str(candidate)
    return None


def _make(place: Path, base: str, requirements: list[str], substitute: bool) -> None:
    shutil.rmtree(place, ignore_errors=True)
    made = subprocess.run([base, "-m", "venv", place], capture_output=True, text=True)
    if made.returncode:
        raise UserError(f"could not create a virtual environment with {base}: {made.stdout}{made.stderr}")
    failure = _install(place, requirements, *([SLOW] if substitute else []))
    if failure and substitute:
        failure = _install_next(place, requirements)
    if failure and substitute:
        print("no compatible later versions either; installing without version pins", flush=True)
        failure = _install(place, [PINNED.sub("", line) for line in requirements])
    if failure:
        raise UserError(f"the environment can't be made: {failure}")


def _install_next(place: Path, requirements: list[str]) -> str:
    """Install the first version from a fixed one on that this Python has, then the rest; say why not."""
    print("no wheels of these versions for this Python; trying the next ones available", flush=True)
    later = [PINNED.sub(r">=\1", line) for line in requirements]
    fixed = [new for old, new in zip(requirements, later, strict=True) if new != old]
    first = ("--resolution=lowest-direct", "--only-binary=:all:")  # pip knows no such thing, uv does
    return _install(place, fixed, *first) or _install(place, later)


def _install(place: Path, requirements: list[str], *options: str) -> str:
    """Install, and return why that failed; an empty string where it did not."""
    file = place / "requirements.txt"
    file.write_text("\n".join(requirements) + "\n", encoding="utf-8")
    command = [sys.executable, INSTALLER, "--python", place / "bin" / "python", "-r", file, *options]
    quietly = {**os.environ, "PIP_PROGRESS_BAR": "off", "UV_NO_PROGRESS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=quietly)
    print(done.stdout[-2000:] + done.stderr[-4000:], flush=True)
    return "" if done.returncode == 0 else _reason(done.stderr)


def _reason(said: str) -> str:
    """Return the lines in which pip or uv names what can't be had, and the last, a crash's cause."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    named = [
        line for line in lines if re.search(r"ERROR|Because|no version|not found|failed", line, re.IGNORECASE)
    ]
    return " ".join(dict.fromkeys([*named[-4:], *lines[-1:]]))[:1000]
