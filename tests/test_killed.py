"""Killed at a random moment: what was written is whole or absent, and going on ends with the same. The short form."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "killed.py"


@pytest.mark.skipif(not SCRIPT.is_file(), reason="needs a checkout")
def test_a_killed_command_leaves_what_is_whole_and_goes_on_to_the_same_results() -> None:
    command = [sys.executable, str(SCRIPT), "--moments", "2", "--queries", "3", "--commands", "train", "evaluate"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("kills in") == 2
