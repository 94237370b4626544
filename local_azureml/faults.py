"""Failures that tests and people switch on by name, to see what a notebook makes of them."""

from collections.abc import Iterable

# name: (meaning, default of VALUE: None where there is none, a tuple of all that it may be)
FAULTS = {
    "no-credential": ("no identity answers: every credential fails", None),
    "token-seconds": ("a token lives VALUE seconds", 60.0),
    "workspace-missing": ("the workspace is not there", None),
    "registry-forbidden": ("the registry answers 403", None),
    "model-missing": ("the registry holds no model", None),
    "model-archived": (
        "`latest` gives the archived version too: no allow lists, defaults that nobody accepts",
        None,
    ),
    "size-missing": ("the region lacks size VALUE, or every size with a GPU", ""),
    "quota-short": ("no cores are left in any GPU family, and none for low priority", None),
    "quota-forbidden": ("sizes and quota answer 403, as where a role ends at the workspace", None),
    "compute-failed": ("a new cluster ends in the provisioning state Failed", None),
    "preempted": ("a low-priority cluster's nodes are taken away while they train, VALUE times", 1),
    "hub-unreachable": ("every connection to the dataset hub is reset", None),
    "upload-broken": ("the first VALUE uploads of a file break off", 1_000_000),
    "validation-failed": ("the child job that validates fails", None),
    "preprocess-failed": ("the child job that tokenises fails", None),
    "finetune-failed": ("the child job that trains fails", None),
    "convert-failed": ("the child job that converts the model fails", None),
    "out-of-memory": ("the child job that trains runs out of memory", None),
    "stuck-preparing": ("a job stays in Preparing for VALUE seconds", 1_000_000),
    "register-refused": ("a model cannot be registered", None),
    "endpoint-taken": ("somebody has endpoint VALUE in the workspace, or every name in the region", ""),
    "deployment-unhealthy": ("a deployment's container exits before it is healthy", None),
    "scoring-status": ("scoring ends with status VALUE", (424, 401, 408, 429, 500)),
    "answer-shape": ("a deployment answers as the server VALUE does", ("mlflow", "vllm", "openai")),
    "delete-failed": ("the first VALUE deletions of an endpoint fail", 1),
    "throttled": ("every VALUE-th request is answered 429, of a blob 503, with Retry-After", 3),
    "slow": ("every answer takes VALUE seconds longer", 1.0),
    "reset": ("every VALUE-th request has its connection reset", 10),
}


class Faults:
    """The faults that are switched on, with their values."""

    def __init__(self, given: Iterable[str] = ()):
        self._values: dict[str, str | int | float | None] = {}
        self._taken: dict[str, int] = {}
        for item in given:
            name, _, value = item.partition("=")
            if name not in FAULTS:
                raise ValueError(f"no fault named {name!r}; there is: {', '.join(FAULTS)}")
            self._values[name] = _typed(name, value)

    def __contains__(self, name: str) -> bool:
        assert name in FAULTS, name
        return name in self._values

    def value(self, name: str):
        """Return the fault's value, given or by default; None while it is off."""
        assert name in FAULTS, name
        return self._values.get(name)

    def first(self, name: str) -> bool:
        """Say whether this is one of the first VALUE times that it is asked while the fault is on."""
        return 0 < self._count(name) <= self.value(name)

    def every(self, name: str) -> bool:
        """Say whether this is one of every VALUE times that it is asked while the fault is on."""
        count = self._count(name)
        return count > 0 and count % self.value(name) == 0

    def _count(self, name: str) -> int:
        self._taken[name] = self._taken.get(name, 0) + (name in self)
        return self._taken[name] if name in self else 0

    def clear(self) -> None:
        """Switch all faults off."""
        self._values.clear()

    def active(self) -> dict:
        """Return the names and values, for a child process."""
        return dict(self._values)


def _typed(name: str, value: str) -> str | int | float | None:
    """Return VALUE in its fault's type, or refuse one that the fault does not take."""
    default = FAULTS[name][1]
    legal = default if isinstance(default, tuple) else ()
    default = legal[0] if legal else default
    if not value:
        return default
    if default is None:
        raise ValueError(f"the fault {name} takes no value; {value!r} was given")
    try:
        typed = type(default)(value)
    except ValueError:
        raise ValueError(f"the fault {name} takes a number; {value!r} was given") from None
    if isinstance(default, int) and not legal and typed < 1:
        raise ValueError(f"the fault {name} takes a whole number above 0; {value!r} was given")
    if legal and typed not in legal:
        raise ValueError(f"the fault {name} takes one of {', '.join(map(str, legal))}; {value!r} was given")
    return typed


def listed() -> str:
    """Return a line for each fault: its name, its value if it takes one, its meaning."""
    return "\n".join(f"{_shown(name):44} {meaning}" for name, (meaning, _) in FAULTS.items())


def _shown(name: str) -> str:
    default = FAULTS[name][1]
    if default is None:
        return name
    values = "|".join(map(str, default)) if isinstance(default, tuple) else default
    return f"{name}[={values or 'NAME'}]"
