"""A Haystack pipeline: BM25 over a document store, then the embedded model (a toy: for real text, `smol`).

pip install 'r1-ranker[haystack]'
python examples/haystack_pipeline.py
"""

from haystack import Document, Pipeline
from haystack.components.retrievers.in_memory import InMemoryBM25Retriever
from haystack.document_stores.in_memory import InMemoryDocumentStore

from r1ranker.adapters.haystack import R1Ranker

QUERY = "how long do barn owls live"
store = InMemoryDocumentStore()
texts = ["A tractor needs oil.", "A barn owl lives about four years.", "Owls eat mice."]
store.write_documents([Document(content=text) for text in texts])

pipeline = Pipeline()
pipeline.add_component("retriever", InMemoryBM25Retriever(store, top_k=50))
pipeline.add_component("ranker", R1Ranker("nano", top_k=2))
pipeline.connect("retriever.documents", "ranker.documents")
found = pipeline.run({"retriever": {"query": QUERY}, "ranker": {"query": QUERY}})
print(*(f"{document.score:.3f} {document.content}" for document in found["ranker"]["documents"]), sep="\n")
