"""What a conda file asks for, in pip's words."""

import re

import yaml
from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import Version

from local_azureml.errors import user_error

REQUIREMENT = re.compile(r"([A-Za-z0-9_.-]+)\s*(.*)")  # of conda: a name, and what versions it may have
ON_INDEX = {  # the names on Python's package index of what conda calls otherwise
    "pytorch": "torch",
    "pytorch-cpu": "torch",
    "pytorch-gpu": "torch",
    "tensorflow-gpu": "tensorflow",
    "matplotlib-base": "matplotlib",
    "py-xgboost": "xgboost",
    "opencv": "opencv-python",
    "msgpack-python": "msgpack",
    "dask-core": "dask",
    "pytables": "tables",
}
LONGEST, DEEPEST = 100_000, 20  # characters and levels of a file; PyYAML reads that in a second
OWN = ("pip", "wheel")  # every environment has its own
FOR_NUMPY_2 = {  # the first versions that run with it; pip's of before do not say so, as conda's do
    "scikit-learn": "1.4.2",
    "scipy": "1.13",
    "pandas": "2.2.2",
    "matplotlib": "3.8.4",
}


def read(name: str, conda: str) -> dict:
    """Return the Python and pip's requirements that a conda file asks for."""
    try:
        _check(conda)
        listed = (yaml.safe_load(conda) or {}).get("dependencies") or []
        own = [each for each in listed if isinstance(each, str)]
        of_pip = [line for each in listed if isinstance(each, dict) for line in each.get("pip") or []]
    except (yaml.YAMLError, AttributeError, TypeError, ValueError) as error:
        raise user_error(f"the conda file of the environment {name!r} can't be read: {error}") from None
    return specification(own, [str(line) for line in of_pip])


def _check(conda: str) -> None:
    """Raise ValueError for a file that takes much longer to read than it is long."""
    if len(conda) > LONGEST:
        raise ValueError(f"it has more than {LONGEST} characters")
    depth = 0
    for event in yaml.parse(conda):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent) or depth > DEEPEST:
            raise ValueError(f"aliases, and more than {DEEPEST} levels, are not read in it")


def specification(conda: list[str], pip: list[str]) -> dict:
    """Return the Python and pip's requirements of what conda and pip are asked for, each in its own words."""
    python, requirements = None, []
    for text in conda:
        found = REQUIREMENT.fullmatch(text.rpartition("::")[2].strip())
        name, versions = (found[1].lower(), found[2].replace(" ", "")) if found else (text, "")
        if name == "python":
            python = versions.lstrip("=<>~!").partition(",")[0].removesuffix(".*") or None
        elif name not in OWN:
            requirements.append(ON_INDEX.get(name, name) + _pips(versions))
    if any(map(_is_for_numpy_1, requirements)):
        requirements.append("numpy<2")
    return {"python": python, "requirements": [*requirements, *pip]}


def _is_for_numpy_1(requirement: str) -> bool:
    """Return whether a requirement fixes a version from before numpy 2; the installer says what is none."""
    try:
        asked = Requirement(requirement)
    except InvalidRequirement:
        return False
    fixed = [Version(each.version.removesuffix(".*")) for each in asked.specifier if each.operator == "=="]
    return any(version < Version(FOR_NUMPY_2.get(asked.name, "0")) for version in fixed)


def _pips(versions: str) -> str:
    """Return the versions that conda would take in pip's words: =1.2 and =1.2=build are ==1.2.*"""
    if not versions.startswith("=") or versions.startswith("=="):
        return versions
    return f"=={versions.lstrip('=').partition('=')[0].removesuffix('.*')}.*"
