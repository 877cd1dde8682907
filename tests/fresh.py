"""Code in a process of its own."""

import subprocess
import sys
from typing import Any


def fresh(code: str, **options: Any) -> str:
    """What `code` prints in a fresh Python; it has to end well. options: of `subprocess.run`."""
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert run.returncode == 0, run.stderr
    return run.stdout
