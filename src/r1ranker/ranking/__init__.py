"""Ranking with a model: plans say what is asked, `drive` asks, rankers and jobs are what a user calls.

Read `plans`, `drive`, `rankers`, `spec`, `journal`, `jobs`. Imports backends, io and the core.
"""
