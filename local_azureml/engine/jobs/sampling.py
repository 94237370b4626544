"""Sampling: the values that the trials of a sweep are given, out of its search space.

The source is learn.microsoft.com/azure/machine-learning/how-to-tune-hyperparameters, and for the parameters
of distributions reference-yaml-job-sweep beside it. On the wire a distribution is its name and parameters:
["quniform", [1, 9, 2]].
"""

import itertools
import math
import random
import sys
from statistics import NormalDist

from local_azureml.errors import not_played, user_error

PARAMETERS = {
    "choice": ("values",),
    "randint": ("upper",),
    "uniform": ("min_value", "max_value"),
    "normal": ("mu", "sigma"),
}
for _kind in ("uniform", "normal"):
    PARAMETERS[f"log{_kind}"] = PARAMETERS[_kind]
    PARAMETERS |= {f"q{kind}": (*PARAMETERS[kind], "q") for kind in (_kind, f"log{_kind}")}


def samples(space: dict[str, list], algorithm: dict, most: int) -> list[dict]:
    """Return the values of at most so many trials, by hyperparameter; with a seed, always the same."""
    if algorithm["samplingAlgorithmType"] == "Grid":
        grid = itertools.product(*(values for _, (values,) in space.values()))
        return [dict(zip(space, values, strict=True)) for values in itertools.islice(grid, most)]
    points = _sobol if algorithm.get("rule") == "Sobol" else _random
    return [
        {name: _drawn(name, *space[name], at) for name, at in zip(space, point, strict=True)}
        for point in points(len(space), most, algorithm.get("seed"))
    ]


def check(space: dict[str, list], algorithm: dict) -> None:
    """Refuse a search space that can't be sampled so, by the name of what is wrong."""
    if algorithm["samplingAlgorithmType"] == "Bayesian":
        raise not_played("Bayesian sampling", "random, Sobol and grid sampling are")
    if str(algorithm.get("logbase", "e")) != "e":
        raise not_played(f"logbase {algorithm['logbase']!r}", "e is")
    if not space:
        raise user_error("a sweep needs a search space")
    for name, (kind, given) in space.items():
        _check_distribution(name, kind, given)
        if algorithm["samplingAlgorithmType"] == "Grid" and kind != "choice":
            raise user_error(
                f"{name}: grid sampling takes choices only, not {kind}; random sampling takes it"
            )


def _check_distribution(name: str, kind: str, given: list) -> None:
    if kind not in PARAMETERS:
        raise user_error(f"{name}: there is no distribution {kind!r}; there is: {', '.join(PARAMETERS)}")
    if len(given) != len(PARAMETERS[kind]):
        raise user_error(f"{name}: {kind} takes {', '.join(PARAMETERS[kind])}")
    named = dict(zip(PARAMETERS[kind], given, strict=True))
    if kind == "choice":
        values = named["values"]
        if not isinstance(values, list) or not values:
            raise user_error(f"{name}: a choice needs a list of values")
        if any(isinstance(value, dict | list) for value in values):
            raise not_played(f"{name}: a choice between lists or objects", "one between plain values is")
        return
    for parameter, value in named.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise user_error(f"{name}: {kind} takes a number as {parameter}, not {value!r}")
    if kind == "randint" and (named["upper"] < 1 or named["upper"] % 1):
        raise user_error(f"{name}: the upper bound of randint is a whole number from 1 on, not {given[0]}")
    if named.get("min_value", 0) > named.get("max_value", math.inf):
        raise user_error(f"{name}: min_value {given[0]} is more than max_value {given[1]}")
    for parameter in ("sigma", "q"):
        if named.get(parameter, 1) <= 0:
            raise user_error(f"{name}: {parameter} is more than 0, not {named[parameter]}")
    for at in (sys.float_info.epsilon, 1 - sys.float_info.epsilon):
        _drawn(name, kind, given, at)


def _drawn(name: str, kind: str, given: list, at: float):
    """Return the value below which a share `at` of a distribution lies."""
    if kind == "choice":
        return given[0][int(at * len(given[0]))]
    try:
        if kind == "randint":
            return int(at * given[0])
        first, second, *q = given
        if kind.endswith("normal"):
            value = NormalDist(first, second).inv_cdf(max(at, sys.float_info.epsilon))
        else:
            value = first + at * (second - first)
        value = math.exp(value) if "log" in kind else value
        value = round(value / q[0]) * q[0] if q else value
        if math.isfinite(value):
            return value
    except OverflowError:
        pass
    raise user_error(f"{name}: {kind} of {given} leads to values that no number holds")


def _random(width: int, count: int, seed: int | None) -> list[list[float]]:
    source = random.Random(seed)
    return [[source.random() for _ in range(width)] for _ in range(count)]


def _sobol(width: int, count: int, seed: int | None) -> list[list[float]]:
    """Return the first points of a scrambled Sobol sequence; it balances in powers of two."""
    import numpy
    from scipy.stats import qmc

    sequence = qmc.Sobol(width, rng=numpy.random.default_rng(None if seed is None else seed % 2**64))
    return sequence.random_base2(math.ceil(math.log2(count)))[:count].tolist()
