"""Sweeps: trials of one command with many values, side by side, and the best of them."""

import json
import math
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from threading import TIMEOUT_MAX, Timer

from local_azureml import process_environment
from local_azureml.context import Context
from local_azureml.control_plane import computes, datastores, jobs, outputs, shapes, sweep_shapes
from local_azureml.data_plane import tracking
from local_azureml.engine.jobs import command_steps, early_termination, placeholders, records, sampling
from local_azureml.engine.jobs.journal import Journal
from local_azureml.engine.jobs.steps import REASON, CancelledError, StepError, Steps
from local_azureml.errors import not_implemented, user_error

LOG = "azureml-logs/hyperdrive.txt"  # where the SDK looks for a sweep's log
SEARCHED = re.compile(r"\$\{\{\s*search_space\.(\w+)\s*\}\}")
POLL = 0.2  # seconds between two looks at what the trials have logged
OF_SWEEP = ("uri", "assetName", "assetVersion")  # what a sweep's output has, and each trial's has not


class Sweeps:
    """Runs sweeps, be they submitted or nodes of a pipeline."""

    def __init__(self, context: Context, documents: records.Records, steps: Steps, runs: tracking.Tracking):
        self._context, self._records, self._steps, self._runs = context, documents, steps, runs

    def run(self, name: str, properties: dict) -> None:
        """Run a sweep's trials, and give it the best one's outputs."""
        journal = Journal(self._context, name, LOG)
        root = self._records.root(name)
        limits = properties.get("limits") or {}
        trials = {f"{name}_{number}": values for number, values in enumerate(_values(properties))}
        at_once = _at_once(self._context, properties, len(trials))
        journal.say(f"{len(trials)} trials, at most {at_once} side by side")
        if taken := [child for child in trials if self._records.exists(child)]:
            raise StepError("UserError", f"{taken[0]!r} is the name of another job")
        late: list[str] = []

        def stop() -> None:
            for child in trials:
                self._steps.cancel(child)

        def time_out() -> None:
            late.append(f"the sweep took longer than its timeout of {limits['timeout']}")
            stop()

        with ThreadPoolExecutor(at_once) as pool, _timed(limits.get("timeout"), time_out):
            futures = {
                child: pool.submit(self._try, root, name, child, values, properties, journal)
                for child, values in trials.items()
            }
            try:
                self._watch(futures, properties, journal)
            except BaseException:
                stop()
                raise
        self._steps.check(root)
        ended = {child: future.exception() for child, future in futures.items()}
        for error in ended.values():
            if error and not isinstance(error, StepError | CancelledError):
                raise error
        if late:
            journal.say(late[0])
            with suppress(StepError):
                self._keep_best(name, properties, ended, journal)
            raise CancelledError
        self._keep_best(name, properties, ended, journal)

    def _try(
        self, root: str, name: str, child: str, values: dict, properties: dict, journal: Journal
    ) -> None:
        """Run one trial as the command job that it is."""
        self._steps.check(root, child)
        trial = _trial(properties, values)
        asked = {
            output: {key: value for key, value in given.items() if key not in OF_SWEEP}
            for output, given in (properties.get("outputs") or {}).items()
        }
        trial["outputs"] = outputs.placed(self._context, child, asked, properties)
        shown = {"jobType": "Command", "experimentName": properties.get("experimentName")}
        self._records.open(child, {**trial, **shown}, name, root)
        journal.say(f"Trial {child} with {json.dumps(values)}")
        limit = (properties.get("limits") or {}).get("trialTimeout")

        def time_out() -> None:
            journal.say(f"Trial {child} is canceled: it took longer than the trial timeout of {limit}")
            self._steps.cancel(child)

        with self._steps.ending(child, child, REASON, journal), _timed(limit, time_out):
            step = command_steps.of_job(self._context, child, trial)
            given = step.specification
            swept = {**given["literals"], **given["paths"], **given["outputs"]}
            given["variables"] = {  # as the SDK documents for SweepJob
                **{f"AZUREML_SWEEP_{key}": str(swept[key]) for key in swept if key.isidentifier()},
                **given["variables"],
            }
            self._steps.run(root, child, step, journal, quiet=True)

    def _watch(self, futures: dict[str, Future], properties: dict, journal: Journal) -> None:
        """Return when all trials have ended; end those that the policy of early termination stops."""
        policy, maximize = properties.get("earlyTermination"), _sign(properties) > 0
        if not policy:
            wait(futures.values())
            return
        logged: dict[str, list[float]] = {}
        judged = dict.fromkeys(futures, 0)  # by trial, the interval at which the policy has looked at it
        running = list(futures)
        while running:
            wait([futures[child] for child in running], POLL)
            logged |= {child: self._logged(child, properties) for child in running}
            running = [child for child in running if not futures[child].done()]
            for child in running:
                at = early_termination.interval(policy, len(logged[child]))
                if at > judged[child]:
                    judged[child], own = at, logged[child][:at]
                    if early_termination.stops(policy, maximize, own, list(logged.values())):
                        journal.say(f"Trial {child} is canceled by the policy {policy['policyType']}")
                        self._steps.cancel(child)

    def _logged(self, child: str, properties: dict) -> list[float]:
        """Return what a trial has logged of the primary metric, with a sign by which more is better."""
        found = self._runs.metric(child, properties["objective"]["primaryMetric"])
        return [-math.inf if math.isnan(value) else _sign(properties) * value for value in found]

    def _keep_best(
        self, name: str, properties: dict, ended: dict[str, Exception | None], journal: Journal
    ) -> None:
        """Give a sweep the outputs of its best trial, and the properties that tell of it."""
        completed = [child for child, error in ended.items() if error is None]
        if not completed:
            reasons = dict.fromkeys(error.message for error in ended.values() if isinstance(error, StepError))
            why = "; ".join(reasons) or "all were canceled"
            raise StepError("UserError", f"no trial has completed: {why}. The trials' logs tell more")
        scores = {child: max(self._logged(child, properties), default=-math.inf) for child in completed}
        best = max(scores, key=scores.get)
        metric = properties["objective"]["primaryMetric"]
        if scores[best] == -math.inf:
            names = sorted({each for child in completed for each in self._runs.metrics(child)})
            there = f"they logged: {', '.join(names) or 'none'}"
            raise StepError("UserError", f"no completed trial logged the metric {metric!r}; {there}")
        made = self._records.get(best)["properties"]["outputs"]
        for output, place in (self._records.get(name)["properties"].get("outputs") or {}).items():
            _copy(self._context, made[output]["uri"], place["uri"])
        score = str(_sign(properties) * scores[best])
        journal.say(f"The best trial is {best}: {metric} {score}")
        found = {"best_child_run_id": best, "score": score, "best_metric_status": "Succeeded"}
        found["best_data_container_id"] = f"dcid.{best}"
        self._records.change(
            name, properties={**self._records.get(name)["properties"]["properties"], **found}
        )


def check(context: Context, properties: dict) -> dict:
    """Return a sweep's properties as Azure writes them; refuse what can't run, before it costs anything."""
    properties = sweep_shapes.read(properties)
    space, limits = properties["searchSpace"], properties.get("limits") or {}
    sampling.check(space, properties["samplingAlgorithm"])
    if policy := properties.get("earlyTermination"):
        early_termination.check(policy)
    total = limits.get("maxTotalTrials")
    if total is None and properties["samplingAlgorithm"]["samplingAlgorithmType"] != "Grid":
        raise not_implemented("the sweep has no max_total_trials: Azure would run 1000 trials; name a number")
    if total and limits.get("maxConcurrentTrials", 0) > total:
        raise user_error(
            f"max_concurrent_trials, {limits['maxConcurrentTrials']}, is more than max_total_trials, {total}"
        )
    given = properties.get("inputs") or {}
    if both := sorted(space.keys() & given.keys()):
        raise user_error(f"{both[0]} is an input of the sweep, and in its search space")
    trial = _trial(properties, dict.fromkeys(space))
    named = placeholders.PLACEHOLDER.findall(placeholders.OPTIONAL.sub("", trial["command"]))
    for kind, name in named:
        there = trial["inputs"] if kind == "inputs" else properties.get("outputs") or {}
        if name not in there:
            raise user_error(
                f"the command names {name!r}, which is neither in the sweep's {kind} nor searched"
            )
    command_steps.check(context, {}, trial)
    goal, metric = properties["objective"]["goal"].lower(), properties["objective"]["primaryMetric"]
    shown = {  # what a sweep's run has on Azure, by the outputs of public notebooks
        "primary_metric_config": json.dumps({"name": metric, "goal": goal}),
        "runTemplate": "HyperDrive",
        "azureml.runsource": "hyperdrive",
    }
    found = {**properties, "properties": {**(properties.get("properties") or {}), **shown}}
    return {**found, "limits": {"jobLimitsType": "Sweep", **limits}} if limits else found


def _trial(properties: dict, values: dict) -> dict:
    """Return the properties of the command job that a trial with these values is."""
    trial = properties["trial"]
    searched = {name: {"jobInputType": "literal", "value": str(value)} for name, value in values.items()}
    resources = properties.get("resources") or trial.get("resources")
    return {
        **trial,
        "command": SEARCHED.sub(r"${{inputs.\1}}", trial["command"]),
        "inputs": {**(properties.get("inputs") or {}), **searched},
        **({"computeId": properties["computeId"]} if properties.get("computeId") else {}),
        **({"resources": resources} if resources else {}),
    }


def _at_once(context: Context, properties: dict, trials: int) -> int:
    """Return how many trials run side by side: as asked, as the cluster has nodes and this machine cores."""
    trial = _trial(properties, {})
    asked = (properties.get("limits") or {}).get("maxConcurrentTrials", trials)
    cores = process_environment.cores()
    compute = jobs.compute_named(trial.get("computeId"))
    if compute == jobs.SERVERLESS:
        return min(asked, cores)
    cluster = computes.find(context, compute)["properties"]["properties"]
    nodes = int((trial.get("resources") or {}).get("instanceCount") or 1)
    return max(1, min(asked, cores, cluster["scaleSettings"]["maxNodeCount"] // nodes))


def _copy(context: Context, source: str, target: str) -> None:
    """Copy what a trial wrote, if anything, to where the sweep's output lies."""
    made, place = (datastores.folder_at(context, uri) for uri in (source, target))
    if made.is_dir():
        shutil.copytree(made, place, symlinks=True, dirs_exist_ok=True)
    elif made.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(made, place)


def _values(properties: dict) -> list[dict]:
    """Return what each trial is given."""
    most = (properties.get("limits") or {}).get("maxTotalTrials", 1000)  # reference-yaml-job-sweep
    return sampling.samples(properties["searchSpace"], properties["samplingAlgorithm"], most)


def _sign(properties: dict) -> int:
    return 1 if properties["objective"]["goal"] == "Maximize" else -1


@contextmanager
def _timed(limit: str | None, time_out: Callable[[], None]) -> Iterator[None]:
    """Call `time_out` where what is within takes longer than a duration."""
    if not limit:
        yield
        return
    timer = Timer(min(shapes.seconds(limit), TIMEOUT_MAX), time_out)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
