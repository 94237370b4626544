"""Ends what a session of tests started when the session is gone, even if it was interrupted or killed."""

import os
import subprocess
import sys

from scenarios.notebook_runs import ROOT, end

MARK = "TEST_SESSION"  # the environment variable that whatever a session starts inherits


def watch(session: str) -> subprocess.Popen:
    """Return a process that waits until nobody can write to it, and then kills what bears the mark."""
    variables = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, __file__, session]
    return subprocess.Popen(command, env=variables, stdin=subprocess.PIPE, start_new_session=True)


if __name__ == "__main__":
    sys.stdin.read()
    while end(MARK, sys.argv[1]):
        pass
