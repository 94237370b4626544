"""Installs what pip's arguments name into an environment, by default this Python's: with uv, or else pip.

uv is several times faster, but reads none of pip's settings, so pip's sources of packages are handed to it:
else it could fetch another build of torch than pip, with gigabytes of CUDA. Where pip is set to anything that
has no counterpart here, and where uv can't be had, pip does the work. Where nobody has chosen a source, uv
takes PyTorch's build for the GPU that is there, or the one without CUDA.

python local_azureml/engine/install.py -r requirements.txt -c constraints.txt
python local_azureml/engine/install.py --python OTHER/bin/python -r requirements.txt
"""

import ast
import contextlib
import os
import shutil
import subprocess
import sys
import urllib.request
from importlib.util import find_spec
from pathlib import Path

PIP = ["-m", "pip", "--disable-pip-version-check"]
COUNTERPARTS = {  # variables, since an address may hold a password, and a command line can be seen by others
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "constraint": "UV_CONSTRAINT",
    "cert": "SSL_CERT_FILE",
    "default-timeout": "UV_HTTP_TIMEOUT",
    "no-cache-dir": "UV_NO_CACHE",
}
NOT_NEEDED = {"cache-dir", "config-file", "disable-pip-version-check", "no-input", "progress-bar", "retries"}
NOT_NEEDED |= {"require-virtualenv", "root-user-action"}
SOURCES = {"index-url", "extra-index-url", "find-links"}  # somebody has chosen where torch is from
PYTORCH = "https://download.pytorch.org/whl/cpu/torch/"


def read_settings(python: str) -> dict[str, str]:
    """Return pip's settings by name, as its files and the environment give them to `pip install`.

    They are what the pip of this Python says, or that of `python`; without either, uv's own settings count.
    """
    asked = [sys.executable if find_spec("pip") else python, *PIP, "config", "list"]
    listed = subprocess.run(asked, capture_output=True, text=True)
    if "No module named pip" not in listed.stderr:
        listed.check_returncode()
    found = dict(line.split("=", 1) for line in listed.stdout.splitlines())
    settings = {}
    for section in ("global", "install", ":env:"):  # a later one wins
        for name, value in found.items():
            if name.startswith(f"{section}."):
                settings[name.removeprefix(f"{section}.")] = ast.literal_eval(value)
    return settings


def find_uv(python: str) -> str | None:
    """Return the path of uv, installed where there is none and it is wanted; None where it can't be had."""
    own = Path(sys.executable).with_name("uv")
    if found := shutil.which("uv"):
        return found
    if not own.exists() and python == sys.executable:
        subprocess.run([sys.executable, *PIP, "install", "--quiet", "uv"], stderr=subprocess.DEVNULL)
    return str(own) if own.exists() else None


def install_with_uv(uv: str, python: str, settings: dict[str, str], arguments: list[str]) -> int:
    """Return uv's exit status; it takes its packages from where pip would, and of each what pip would."""
    command = [uv, "pip", "install", "--python", python, "--index-strategy", "unsafe-best-match"]
    if sys.dont_write_bytecode:  # else each module is compiled when it is first imported, few of them
        command += ["--compile-bytecode"]
    variables = {COUNTERPARTS[name]: value for name, value in settings.items() if name in COUNTERPARTS}
    for name, between in (("UV_INDEX", " "), ("UV_CONSTRAINT", " "), ("UV_FIND_LINKS", ",")):  # of pip, lines
        if name in variables:
            variables[name] = between.join(variables[name].split())
    variables = {**os.environ, **variables}
    if not variables.keys() & {COUNTERPARTS[name] for name in SOURCES} and reached(PYTORCH):
        variables.setdefault("UV_TORCH_BACKEND", "auto")
    return subprocess.run([*command, *arguments], env=variables).returncode


def reached(address: str) -> bool:
    """Say whether an address answers within five seconds."""
    with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=5):
        return True
    return False


def main(arguments: list[str]) -> int:
    """Return the exit status of the installer."""
    python = sys.executable
    if arguments[:1] == ["--python"]:
        _, python, *arguments = arguments
    settings = read_settings(python)
    if settings.keys() <= COUNTERPARTS.keys() | NOT_NEEDED and (uv := find_uv(python)):
        if install_with_uv(uv, python, settings, arguments) == 0:
            return 0
        print("uv did not succeed: pip tries the same", file=sys.stderr)
    return subprocess.run([python, *PIP, "install", *arguments]).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
