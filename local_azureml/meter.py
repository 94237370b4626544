"""What a run would have cost: node-seconds for each cluster and deployment, as Azure would bill them."""

import secrets
import time
from dataclasses import dataclass

from local_azureml.state import State, equal

LEDGER = "/meter"


@dataclass
class Bill:
    """The node-seconds of one resource, and whether it still counts."""

    resource: str  # "cluster gpu" or "deployment e/demo"
    size: str
    node_seconds: float
    running: bool

    def __str__(self) -> str:
        return f"{self.resource} ({self.size}): {self.node_seconds:.0f} node-seconds"


class Meter:
    """A ledger of intervals in which nodes were kept for a resource."""

    def __init__(self, state: State):
        self._state = state

    def start(
        self,
        interval: str,
        resource: str,
        size: str,
        nodes: int,
        tier: str = "dedicated",
        spare: bool = False,
        held: int = 0,
    ) -> None:
        """Begin to count nodes of `size` for `resource`, in place of what `interval` names so far.

        `spare` nodes are kept without work, and work that comes takes them. `held` of them count against
        the quota, where that is more than `nodes`.
        """
        self.stop(interval)
        entry = {"id": f"{LEDGER}/{secrets.token_hex(8)}", "interval": interval, "resource": resource}
        entry |= {"size": size, "nodes": nodes, "tier": tier, "spare": spare, "held": max(nodes, held)}
        self._state.put(entry["id"], entry | {"start": time.time(), "ended": None, "stop": None})

    def stop(self, interval: str, idle_seconds: float = 0) -> None:
        """End a stretch; `idle_seconds` are billed after it, since a cluster scales down only then."""
        now = time.time()
        for entry in self.open_intervals():
            if entry["interval"] == interval:
                self._state.merge(entry["id"], ended=now, stop=now + idle_seconds)

    def open_intervals(self) -> list[dict]:
        """Return the stretches that nobody ended."""
        return self._state.children(LEDGER, equal("stop", None))

    def bills(self) -> list[Bill]:
        """Return a bill for each resource and size."""
        kinds: dict[tuple[str, str], list[dict]] = {}
        for entry in self._state.children(LEDGER):
            kinds.setdefault((entry["resource"], entry["size"]), []).append(entry)
        return [
            Bill(*kind, _node_seconds(entries), any(entry["stop"] is None for entry in entries))
            for kind, entries in kinds.items()
        ]


@dataclass
class _Node:
    came: float
    free: float = 0.0  # from then on it waits for work
    until: float = 0.0  # then it goes


def _node_seconds(entries: list[dict]) -> float:
    """Return the seconds of all nodes: a stretch takes those that wait before it has new ones made."""
    now, nodes = time.time(), []
    for entry in sorted(entries, key=lambda entry: entry["start"]):
        start = entry["start"]
        taken = [node for node in nodes if node.free <= start <= node.until][: entry["nodes"]]
        fresh = [_Node(start) for _ in range(entry["nodes"] - len(taken))]
        for node in taken + fresh:
            node.free = start if entry["spare"] else entry["ended"] or now
            node.until = max(node.until, start, entry["stop"] or now)  # a clock may have been set back
        nodes += fresh
    return sum(node.until - node.came for node in nodes)
