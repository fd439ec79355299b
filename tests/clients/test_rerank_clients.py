"""Clients made for other servers, in their own words, against `r1ranker serve` in a process of its own, with a key.

Each must get the order and the scores that a plain request gets. What is not installed is skipped; `make test-adapters`
installs all.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it asks the network when it is imported
os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"

from serving_server import Server, hashed, running

pytestmark = pytest.mark.filterwarnings("default")  # clients leave sockets open
KEY = "a key of the tests"
QUERY = "how long do barn owls live"
TEXTS = [
    "tractors need oil",
    "a barn owl lives four years",
    "owls eat mice at night",
    "long roads in the north",
    "the barn stands alone",
]
TOP = 3
Places = list[tuple[int, float]]
CLIENTS: dict[str, Callable[[Server], Places]] = {}


def client(rank: Callable[[Server], Places]) -> Callable[[Server], Places]:
    """Registers a function that lets a client rank TEXTS for QUERY and says the best TOP."""
    CLIENTS[rank.__name__] = rank
    return rank


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    settings = {
        "rankers": {"nano": {"model": "nano"}},
        "keys": [{"name": "tests", "sha256": hashed(KEY)}],
        "limits": {"deadline_s": 60.0},
    }
    with running(tmp_path_factory.mktemp("clients"), settings, KEY) as found:
        yield found


@pytest.fixture(scope="module")
def expected(server: Server) -> Places:
    """What a plain request gets; an order that is not the one given."""
    status, _, answer = server.post("/v2/rerank", {"query": QUERY, "documents": TEXTS, "top_n": TOP})
    assert status == 200
    found = [(row["index"], row["relevance_score"]) for row in answer["results"]]
    assert [at for at, _ in found] != [0, 1, 2]
    return found


@client
def cohere_v1(server: Server) -> Places:
    cohere = pytest.importorskip("cohere")
    asked = cohere.Client(KEY, base_url=server.url)
    found = asked.rerank(model="nano", query=QUERY, documents=TEXTS, top_n=TOP, return_documents=True)
    assert [row.document.text for row in found.results] == [TEXTS[row.index] for row in found.results]
    return [(row.index, row.relevance_score) for row in found.results]


@client
def cohere_v2(server: Server) -> Places:
    cohere = pytest.importorskip("cohere")
    found = cohere.ClientV2(KEY, base_url=server.url).rerank(model="nano", query=QUERY, documents=TEXTS, top_n=TOP)
    return [(row.index, row.relevance_score) for row in found.results]


def _nodes() -> list[Any]:
    schema = pytest.importorskip("llama_index.core.schema")
    return [schema.NodeWithScore(node=schema.TextNode(text=text, id_=str(at))) for at, text in enumerate(TEXTS)]


def _of_nodes(nodes: list[Any]) -> Places:
    return [(int(node.node.node_id), node.score) for node in nodes]


@client
def llamaindex_cohere(server: Server) -> Places:
    package = pytest.importorskip("llama_index.postprocessor.cohere_rerank")
    rerank = package.CohereRerank(top_n=TOP, model="nano", api_key=KEY, base_url=server.url)
    return _of_nodes(rerank.postprocess_nodes(_nodes(), query_str=QUERY))


@client
def llamaindex_jina(server: Server) -> Places:
    package = pytest.importorskip("llama_index.postprocessor.jinaai_rerank")
    rerank = package.JinaRerank(top_n=TOP, model="nano", api_key=KEY, base_url=f"{server.url}/v1")
    return _of_nodes(rerank.postprocess_nodes(_nodes(), query_str=QUERY))


@client
def llamaindex_tei(server: Server) -> Places:
    package = pytest.importorskip("llama_index.postprocessor.tei_rerank")
    rerank = package.TextEmbeddingInference(top_n=TOP, base_url=server.url, auth_token=f"Bearer {KEY}")
    return _of_nodes(rerank.postprocess_nodes(_nodes(), query_str=QUERY))


def _documents() -> list[Any]:
    document = pytest.importorskip("haystack").Document
    return [document(content=text, meta={"at": at}) for at, text in enumerate(TEXTS)]


def _of_documents(found: dict[str, Any]) -> Places:
    return [(document.meta["at"], document.score) for document in found["documents"]]


@client
def haystack_jina(server: Server) -> Places:
    package = pytest.importorskip("haystack_integrations.components.rankers.jina")
    key = pytest.importorskip("haystack.utils").Secret.from_token(KEY)
    rank = package.JinaRanker("nano", key, TOP, base_url=f"{server.url}/v1/rerank")
    return _of_documents(rank.run(QUERY, _documents()))


@client
def haystack_tei(server: Server) -> Places:
    package = pytest.importorskip("haystack_integrations.components.rankers.huggingface_api")
    key = pytest.importorskip("haystack.utils").Secret.from_token(KEY)
    rank = package.HuggingFaceTEIRanker(url=server.url, top_k=TOP, token=key)
    return _of_documents(rank.run(QUERY, _documents()))


def _rerankers(provider: str, url: str) -> Places:
    package = pytest.importorskip("rerankers.models.api_rankers")
    found = package.APIRanker("nano", KEY, provider, url=url).rank(QUERY, TEXTS, list(range(len(TEXTS))))
    return [(result.doc_id, result.score) for result in found][:TOP]


@client
def rerankers_cohere(server: Server) -> Places:
    return _rerankers("cohere", f"{server.url}/v1/rerank")


@client
def rerankers_jina(server: Server) -> Places:
    return _rerankers("jina", f"{server.url}/v1/rerank")


@client
def rerankers_voyage(server: Server) -> Places:
    return _rerankers("voyage", f"{server.url}/voyage/v1/rerank")


@client
def rerankers_tei(server: Server) -> Places:
    return _rerankers("text-embeddings-inference", f"{server.url}/rerank")


def _litellm(provider: str, url: str) -> Places:
    package = pytest.importorskip("litellm")
    found = package.rerank(f"{provider}/nano", query=QUERY, documents=TEXTS, top_n=TOP, api_key=KEY, api_base=url)
    return [(row["index"], row["relevance_score"]) for row in found.results]


@client
def litellm_cohere(server: Server) -> Places:
    return _litellm("cohere", server.url)


@client
def litellm_jina(server: Server) -> Places:
    return _litellm("jina_ai", server.url)


@client
def litellm_vllm(server: Server) -> Places:
    return _litellm("hosted_vllm", server.url)


@client
def voyage(server: Server) -> Places:
    package = pytest.importorskip("voyageai")
    asked = package.Client(KEY, base_url=f"{server.url}/voyage/v1")
    found = asked.rerank(QUERY, TEXTS, "nano", TOP).results
    assert [row.document for row in found] == [TEXTS[row.index] for row in found]
    return [(row.index, row.relevance_score) for row in found]


@client
def xinference(server: Server) -> Places:
    package = pytest.importorskip("xinference_client.client.restful.restful_client")
    handle = package.RESTfulRerankModelHandle("nano", server.url, {"Authorization": f"Bearer {KEY}"})
    found = handle.rerank(TEXTS, QUERY, top_n=TOP)
    return [(row["index"], row["relevance_score"]) for row in found["results"]]


@pytest.mark.parametrize("name", CLIENTS)
def test_a_client_gets_the_order_of_a_plain_request(name: str, server: Server, expected: Places) -> None:
    found = CLIENTS[name](server)
    assert [at for at, _ in found] == [at for at, _ in expected]
    assert [score for _, score in found] == pytest.approx([score for _, score in expected])
    assert all(one > after for (_, one), (_, after) in pairwise(found))


def test_openai_lists_the_rankers(server: Server) -> None:
    openai = pytest.importorskip("openai")
    found = openai.OpenAI(api_key=KEY, base_url=f"{server.url}/v1").models.list()
    assert [model.id for model in found] == ["nano"]


def test_cohere_reads_what_is_wrong(server: Server) -> None:
    cohere = pytest.importorskip("cohere")
    with pytest.raises(cohere.NotFoundError, match="no model 'huge'"):
        cohere.ClientV2(KEY, base_url=server.url).rerank(model="huge", query=QUERY, documents=TEXTS)
    with pytest.raises(cohere.UnauthorizedError):
        cohere.ClientV2("another key", base_url=server.url).rerank(model="nano", query=QUERY, documents=TEXTS)


def test_clients_that_read_detail_get_it(server: Server) -> None:
    package = pytest.importorskip("llama_index.postprocessor.jinaai_rerank")
    rerank = package.JinaRerank(model="huge", api_key=KEY, base_url=f"{server.url}/v1")
    with pytest.raises(RuntimeError, match="no model 'huge'"):
        rerank.postprocess_nodes(_nodes(), query_str=QUERY)
    package = pytest.importorskip("xinference_client.client.restful.restful_client")
    handle = package.RESTfulRerankModelHandle("huge", server.url, {"Authorization": f"Bearer {KEY}"})
    with pytest.raises(RuntimeError, match="no model 'huge'"):
        handle.rerank(TEXTS, QUERY)


def test_tei_clients_read_what_is_wrong(server: Server) -> None:
    package = pytest.importorskip("haystack_integrations.components.rankers.huggingface_api")
    key = pytest.importorskip("haystack.utils").Secret.from_token(KEY)
    rank = package.HuggingFaceTEIRanker(url=server.url, token=key, max_retries=0)
    with pytest.raises(Exception, match=r"blank|query|400"):
        rank.run(" ", _documents())


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_example_with_curl_gets_texts_best_first(server: Server) -> None:
    script = Path(__file__).parents[2] / "examples" / "rerank.sh"
    said = subprocess.run(["sh", str(script), server.url, KEY], capture_output=True, text=True, check=True)
    found = json.loads(said.stdout)["results"]
    assert len(found) == 2
    assert all(row["document"]["text"] for row in found)
    assert found[0]["relevance_score"] > found[1]["relevance_score"]
