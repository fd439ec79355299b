"""A LangChain document compressor around the embedded model (a toy: for real text, `smol`).

pip install 'r1-ranker[langchain]'
python examples/langchain_reranker.py
"""

from langchain_core.documents import Document

from r1ranker.adapters.langchain import R1Ranker

reranker = R1Ranker(ranker="nano", top_n=2)
texts = ["A tractor needs oil.", "A barn owl lives about four years.", "Owls eat mice."]
found = reranker.compress_documents([Document(text) for text in texts], "how long do barn owls live")
print(*(f"{document.metadata['relevance_score']:.3f} {document.page_content}" for document in found), sep="\n")
