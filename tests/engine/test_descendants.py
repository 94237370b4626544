"""What a job starts ends with it, however it was detached, and with the emulator, however that ended."""

import signal
import sys
import time
from collections.abc import Callable

import psutil
import pytest
from conftest import PLAIN_JOB, Emulator, raw_client

LONGEST = 60.0  # seconds
DETACHED = {
    "by its session": "setsid -f sleep {}",
    "by its parent": "(sleep {} &)",
    "without variables": "env -i $(command -v setsid) -f $(command -v sleep) {}",
    "twice": "setsid -f bash -c 'setsid -f sleep {}; sleep 1000'",
}
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="setsid, and adopting, are Linux's")


@pytest.fixture
def sleeping():
    """A number of seconds that nobody else sleeps, and a function that returns who does."""
    seconds = str(time.time_ns() % 10**9 + 10**9)

    def found() -> list[psutil.Process]:
        return [p for p in psutil.process_iter(["cmdline"]) if (p.info["cmdline"] or [])[1:] == [seconds]]

    yield seconds, found
    for process in found():
        process.kill()


def in_all_ways(seconds: str) -> str:
    """Return the command that starts one who sleeps in each way."""
    return "; ".join(way.format(seconds) for way in DETACHED.values())


def wait_for(happens: Callable[[], object]) -> bool:
    until = time.monotonic() + LONGEST
    while not (done := happens()) and time.monotonic() < until:
        time.sleep(0.1)
    return bool(done)


def submit(http, arm, command: str) -> str:
    """Return the path of a job that runs the command."""
    path = f"{arm.workspace}/jobs/detaching-{time.time_ns()}"
    body = PLAIN_JOB | {"command": command}
    answer = http.put(path, json={"properties": body}, timeout=300)  # the first waits for MLflow
    assert answer.status_code == 201
    return path


def status(http, path: str) -> str:
    return http.get(path).json()["properties"]["status"]


def test_a_job_that_completes_leaves_nothing_behind(http, arm, sleeping):
    seconds, found = sleeping
    path = submit(http, arm, f"{in_all_ways(seconds)}; sleep 2")
    assert wait_for(lambda: len(found()) == len(DETACHED))
    assert wait_for(lambda: status(http, path) == "Completed")
    assert not found()


def test_a_job_that_is_cancelled_leaves_nothing_behind(http, arm, sleeping):
    seconds, found = sleeping
    path = submit(http, arm, f"{in_all_ways(seconds)}; sleep 1000")
    assert wait_for(lambda: len(found()) == len(DETACHED))
    http.post(f"{path}/cancel")
    assert wait_for(lambda: status(http, path) == "Canceled")
    assert not found()


def test_the_death_of_the_emulator_leaves_nothing_behind(tmp_path, arm, sleeping):
    seconds, found = sleeping
    served = Emulator(tmp_path / "data")
    try:
        with raw_client(served.environment) as http:
            submit(http, arm, f"{in_all_ways(seconds)}; sleep 1000")
            assert wait_for(lambda: len(found()) == len(DETACHED))
    finally:
        served.end(signal.SIGKILL)
    assert wait_for(lambda: not found())
