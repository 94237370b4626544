"""The guard of the tests: what a session of theirs started ends with it."""

import os
import signal

import guard
import psutil


def test_what_a_session_started_ends_with_it_however_it_ended(tmp_path):
    own = os.environ | {guard.MARK: str(tmp_path)}
    with psutil.Popen(["sleep", "600"], env=own, start_new_session=True) as left:
        guard.watch(str(tmp_path)).communicate()
        assert left.wait(60) == -signal.SIGKILL
