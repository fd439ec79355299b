"""`python -m r1ranker` is the command `r1ranker`."""

from r1ranker.cli import app

app()
