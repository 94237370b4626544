"""Early termination: which trials of a sweep are stopped since others do better.

As learn.microsoft.com/azure/machine-learning/how-to-tune-hyperparameters documents it; each time a trial logs
the primary metric is one interval. Metrics come with a sign: more is better.
"""

from statistics import median

from local_azureml.errors import user_error


def check(policy: dict) -> None:
    """Refuse a policy that lacks what its kind needs."""
    kind = policy["policyType"]
    if kind == "Bandit" and (bool(policy.get("slackFactor")) == bool(policy.get("slackAmount"))):
        raise user_error("a bandit policy needs either slack_factor or slack_amount, more than 0")
    if kind == "TruncationSelection" and not 1 <= policy.get("truncationPercentage", 0) <= 99:
        raise user_error("a truncation selection policy needs a truncation_percentage from 1 to 99")


def interval(policy: dict, logged: int) -> int:
    """Return the latest interval at which a trial is looked at that has logged so often; 0 for none."""
    every = policy.get("evaluationInterval") or 1
    last = logged // every * every
    return last if last >= (policy.get("delayEvaluation") or 0) else 0


def stops(policy: dict, maximize: bool, own: list[float], all_logged: list[list[float]]) -> bool:
    """Say whether a trial is stopped that logged `own` up to an interval.

    `all_logged` is what each trial logged, this one too; of each counts what it logged up to that interval.
    """
    performance = max(own)
    reached = [logged[: len(own)] for logged in all_logged if logged]
    best = [max(logged) for logged in reached]
    if policy["policyType"] == "Bandit":
        # of a best of 0.8, 0.8 / (1 + factor) is allowed; where less is better, 0.8 * (1 + factor)
        factor = policy.get("slackFactor") or 0
        ratio = factor / (1 + factor) if maximize else factor
        return performance < max(best) - (policy.get("slackAmount") or abs(max(best)) * ratio)
    if policy["policyType"] == "MedianStopping":
        return performance < median(sum(logged) / len(logged) for logged in reached)
    # rounded down: which way Azure rounds isn't told
    lowest = len(best) * policy["truncationPercentage"] // 100
    return sum(one <= performance for one in best) <= lowest
