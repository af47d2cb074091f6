"""A fresh Python process, for what cannot be tried in the one that runs the tests."""

import os
import subprocess
import sys


def run(code, **environment):
    """The output of `code`, run in a new process that must end well."""
    completed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}, timeout=300
    )
    assert completed.returncode == 0, completed.stderr
    return completed.stdout.strip()
