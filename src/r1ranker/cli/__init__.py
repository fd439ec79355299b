"""The command line: one file for each group of commands, thin. `main` has the command that everything hangs on."""

from r1ranker.cli.main import app

__all__ = ["app"]
