"""A ranker as other libraries want it: one file for each, with a class `R1Ranker`; `mcp` has tools for agents.

    from r1ranker.adapters.langchain import R1Ranker

Read `common`: a query and texts in, places with scores out. Each other file is that in one library's words, and
imports that library, so nothing is imported here.
"""
