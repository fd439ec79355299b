"""A PyTerrier pipeline: a first stage, then the embedded model (a toy: for real text, `smol`). No Java is started.

pip install 'r1-ranker[pyterrier]'
python examples/pyterrier_pipeline.py
"""

import pandas as pd
import pyterrier as pt

from r1ranker.adapters.pyterrier import R1Ranker

QUERY = "how long do barn owls live"
texts = ["A tractor needs oil.", "A barn owl lives about four years.", "Owls eat mice."]
rows = [
    {"qid": "q1", "query": QUERY, "docno": f"d{n}", "text": text, "score": -n, "rank": n}
    for n, text in enumerate(texts)
]
first_stage = pt.Transformer.from_df(pd.DataFrame(rows))

pipeline = first_stage % 50 >> R1Ranker("nano") % 2
print(pipeline.search(QUERY, qid="q1")[["docno", "rank", "score", "text"]])
