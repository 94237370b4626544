"""What services ask of tracking, of the engine and of the server, which they do not import."""

from pathlib import Path
from typing import Protocol


class Runs(Protocol):
    """MLflow's runs."""

    def experiment(self, name: str) -> str:
        """Return the id of an experiment, which is made where it is not there."""

    def warm(self) -> None:
        """Begin to load MLflow."""

    def close(self) -> None:
        """Write nothing more."""


class Supervisor(Protocol):
    """What keeps processes."""

    def running(self) -> list[str]:
        """Return a line for each thing that would be left running."""

    def stop(self) -> None:
        """End all processes."""


class Jobs(Supervisor, Protocol):
    """The jobs that run."""

    def submit(self, name: str, properties: dict) -> dict:
        """Return the document of a new job, and start it."""

    def cancel(self, name: str) -> None:
        """Kill what a submitted job runs."""

    def wait(self, name: str) -> None:
        """Return when a submitted job has ended."""


class Deployments(Supervisor, Protocol):
    """The processes behind deployments; a deployment is its document."""

    def begin(self, document: dict) -> None:
        """Start a deployment's process and return when it is healthy."""

    def end(self, document: dict) -> None:
        """Stop a deployment's process."""

    def socket(self, document: dict) -> Path | None:
        """Return the socket of a deployment's process, or None where it does not run."""


class EndpointPorts(Protocol):
    """The ports that endpoints have of their own."""

    def endpoint(self, port: int) -> str | None:
        """Return the endpoint that has a port."""

    def open(self, endpoint: str, preferred: int = 0) -> int:
        """Return the endpoint's port, from now on open."""

    def close(self, endpoint: str) -> None:
        """Close an endpoint's port."""
