"""Training past one machine by verl on Ray: `pip install 'r1-ranker[verl]'`, in an environment of its own.

Read in this order: `data` (problems to verl's files), `reward` (what it calls for a DRanker), `episode` (an
IRanker's steps as token sequences), `agent_loop` (both designs against verl's servers), `settings` (a run's
config in verl's words), `launch`. Only `agent_loop` and `launch` need verl.
"""
