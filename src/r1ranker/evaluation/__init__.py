"""From rankings to tables. In: `Ranking`s and their `Problem`s. Out: measures, intervals, tests, one page.

`measures` scores each query, `results` makes tidy rows and comparisons of the scores (`significance` has the
statistics), `table` and `report` show them. Run files are read and written by `io.runs`.
"""
