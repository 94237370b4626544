"""What a run would have cost: node-seconds for each cluster and deployment, as Azure would bill them."""

import secrets
import time
from dataclasses import dataclass

from local_azureml.state import State

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

    def start(self, interval: str, resource: str, size: str, nodes: int, tier: str = "dedicated") -> None:
        """Begin to count `nodes` nodes of `size` for `resource`, in place of what `interval` names so far."""
        self.stop(interval)
        entry = {"id": f"{LEDGER}/{secrets.token_hex(8)}", "interval": interval, "resource": resource}
        entry |= {"size": size, "nodes": nodes, "tier": tier, "start": time.time(), "stop": None}
        self._state.put(entry["id"], entry)

    def stop(self, interval: str, idle_seconds: float = 0) -> None:
        """End a stretch; `idle_seconds` are billed after it, since a cluster scales down only then."""
        for entry in self.open_intervals():
            if entry["interval"] == interval:
                self._state.merge(entry["id"], stop=time.time() + idle_seconds)

    def open_intervals(self) -> list[dict]:
        """Return the stretches that nobody ended."""
        return [entry for entry in self._state.children(LEDGER) if entry["stop"] is None]

    def bills(self) -> list[Bill]:
        """Return a bill for each resource, overlapping stretches of one node count counted once."""
        by_resource: dict[str, list[dict]] = {}
        for entry in self._state.children(LEDGER):
            by_resource.setdefault(entry["resource"], []).append(entry)
        return [self._bill(resource, entries) for resource, entries in by_resource.items()]

    def _bill(self, resource: str, entries: list[dict]) -> Bill:
        now = time.time()
        total, reached = 0.0, 0.0
        for entry in sorted(entries, key=lambda entry: entry["start"]):
            stop = entry["stop"] or now
            total += max(0.0, stop - max(entry["start"], reached)) * entry["nodes"]
            reached = max(reached, stop)
        running = any(entry["stop"] is None for entry in entries)
        return Bill(resource, entries[0]["size"], total, running)
