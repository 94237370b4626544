"""What stands in a command for its inputs and outputs: literals as they are, as on Azure, paths as one word.

A path may hold what a shell takes for its own: a data folder is named by its owner, a file by its maker.
So an odd one is read from a variable, within quotes, and its text is never part of the command.
"""

import re

from local_azureml.engine.processes import UserError

PLACEHOLDER = re.compile(r"\$\{\{\s*(inputs|outputs)\.(\w+)\s*\}\}")
OPTIONAL = re.compile(r"\$\[\[(.*?)\]\]")  # left out where an input in it is not given
PLAIN = re.compile(r"[\w@%+=:,./-]+")
TOKEN = re.compile(rf"{PLACEHOLDER.pattern}|\\(?!\$\{{\{{).|['\"\n)]|\$?\(|(?<!\S)#", re.DOTALL)
CLOSING = {"'": "'", '"': '"', "(": ")", "$(": ")", "#": "\n"}  # what ends each, in a shell
OPENING = {"": CLOSING, ")": CLOSING, '"': ("$(",), "'": (), "\n": ()}  # what begins within what ends so


def fill(specification: dict) -> tuple[str, dict[str, str]]:
    """Return the command with something for each placeholder, and the variables that it reads paths from.

    An input or output that is not given is a UserError.
    """
    paths = {"inputs": specification["paths"], "outputs": specification["outputs"]}
    literals = {key: value for key, value in specification["literals"].items() if value is not None}

    def is_given(kind: str, key: str) -> bool:
        return key in paths[kind] or (kind == "inputs" and key in literals)

    def optional(found: re.Match) -> str:
        return found[1] if all(is_given(*named) for named in PLACEHOLDER.findall(found[1])) else ""

    def literal(found: re.Match) -> str:
        kind, key = found.groups()
        if not is_given(kind, key):
            raise UserError(f"the command names ${{{{{kind}.{key}}}}}, which is not given")
        return found[0] if key in paths[kind] else str(literals[key])

    command = PLACEHOLDER.sub(literal, OPTIONAL.sub(optional, specification["command"]))
    variables: dict[str, str] = {}
    ends = [""]  # of the quotes, substitutions and comments around a place, innermost last

    def path(found: re.Match) -> str:
        token, end = found[0], ends[-1]
        if found[1]:
            return _word(paths[found[1]][found[2]], end, variables)
        if token == end or (end in ("'", "\n") and token.endswith(end)):  # a backslash is nothing to these
            ends.pop()
        elif token in OPENING[end]:
            ends.append(CLOSING[token])
        return token

    return TOKEN.sub(path, command), variables


def _word(path: str, end: str, variables: dict[str, str]) -> str:
    """Return what stands for a path between quotes that end so."""
    if PLAIN.fullmatch(path):
        return path
    name = f"LOCAL_AZUREML_PATH_{len(variables)}"
    variables[name] = path
    value = f"${{{name}}}"
    return {"'": f"'\"{value}\"'", '"': value, "\n": value}.get(end, f'"{value}"')
