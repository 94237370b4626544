"""What a terminal is shown of a text that others wrote: a dataset, a model, Azure."""

import re

DOES = re.compile(
    r"\x1b\][^\x07\x1b]*(\x07|\x1b\\)?"  # sets a title, fills the clipboard
    r"|\x1b\[(?![\d;]*m)[0-?]*[ -/]*[@-~]"  # moves, clears
    r"|\x1b(?!\[)[ -/]*[0-~]|\x1b(?!\[[\d;]*m)"  # resets, and what is cut off
    r"|[\x00-\x07\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f-\x9f]"  # other controls
    r"|[\u202a-\u202e\u2066-\u2069]"  # turns of direction
)


def plain(text: str) -> str:
    """Return a text without what makes a terminal do something; colours, tabs and ends of lines stay."""
    return DOES.sub("", text)
