"""What serves a deployment: a process and the Unix socket that it listens at, probed as Azure probes it."""

import time
from dataclasses import dataclass
from pathlib import Path

import httpx

from local_azureml.control_plane import shapes
from local_azureml.engine import processes

LEAST = 60.0  # seconds that a process gets for its first answer, however impatient its probe


@dataclass(frozen=True)
class Container:
    """A deployment's process, and whether it is well."""

    process: processes.Process
    socket: Path
    probe: dict  # of the deployment: initialDelay, period, timeout, failureThreshold

    def answers(self) -> bool:
        """Say whether the process answers its probe."""
        # with verify, httpx would read all the authorities' certificates each time
        transport = httpx.HTTPTransport(uds=str(self.socket), verify=False)
        try:
            with httpx.Client(transport=transport, timeout=shapes.seconds(self.probe["timeout"])) as client:
                return client.get("http://deployment/").status_code == 200
        except httpx.TransportError:
            return False

    def wait_for_health(self) -> str | None:
        """Return None once it answers; kill one that never does, and return what became of it."""
        delay, period = (shapes.seconds(self.probe[name]) for name in ("initialDelay", "period"))
        until = time.monotonic() + max(delay + self.probe["failureThreshold"] * period, LEAST)
        while time.monotonic() < until and self.process.wait(0.1) is None:
            if self.answers():
                return None
        return self._end()

    def wait_for_end(self) -> str:
        """Return what became of it when it has ended, or has failed its probe so often that it is killed."""
        failures = 0
        while failures < self.probe["failureThreshold"]:
            if self.process.wait(shapes.seconds(self.probe["period"])) is not None:
                break
            failures = 0 if self.answers() else failures + 1
        return self._end()

    def _end(self) -> str:
        reason = "did not answer its probe" if self.process.alive else "ended"
        self.process.kill()
        self.process.wait()
        self.socket.unlink(missing_ok=True)
        return reason
