"""Where a name from outside leads: to a file below a root, or nowhere."""

import re
from pathlib import Path

LONGEST_NAME = 1024  # bytes; Azure counts characters
LONGEST_PART = 255  # bytes between two slashes: a file system's limit
# What parts names, here or on another system, and what no listing can show, since XML changes or lacks it.
FOREIGN = re.compile(r"[/\\]|[^\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class OutsideError(Exception):
    """A name that leads out of its root, or that no file below it can have."""

    def __init__(self, name: str):
        super().__init__(f"{name!r} is not the name of a file that can lie here")


def inside(root: Path, name: str) -> Path:
    """Return the place that `name`, parts with single slashes between, has below `root`; "" is `root` itself.

    Nothing else joins a name of several parts from outside to a folder. Each name has a place of its own: one
    spelled another way, or with a link on its way, wherever that leads, is refused with an OutsideError.
    """
    if not name:
        return root
    parts = name.split("/")
    if not all(map(is_plain, parts)) or len(name.encode()) > LONGEST_NAME:
        raise OutsideError(name)
    place = root.joinpath(*parts)
    try:
        if place.resolve() == root.resolve().joinpath(*parts):
            return place
    except (OSError, RuntimeError, ValueError):  # links in a circle; letters that this locale lacks
        pass
    raise OutsideError(name)


def is_plain(part: str) -> bool:
    """Return whether a file can have this name and stay in its folder, unless it is a link."""
    return part not in ("", ".", "..") and not FOREIGN.search(part) and len(part.encode()) <= LONGEST_PART
