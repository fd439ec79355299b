"""Routers that learn which LLM answers which query. In: training and test problems of routing. Out: `Ranking`s.

    rankings = knn_router(splits["train"], splits["test"])

One router a task, since a task has one objective: what they learn is the gain of each LLM on a query, which a
source has made of its utility under that objective. A query is its TF-IDF vector (cut to its main directions by
SVD where a router needs few numbers), or a pretrained encoder's embedding. An LLM that training did not see comes
last; one that lacks a gain for some query counts there as it does on average.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch

from r1ranker.backends.encoders import DENSE, load
from r1ranker.baselines.common import Scorer, fit_and_rank
from r1ranker.baselines.encoders import BATCH as TEXTS_AT_ONCE
from r1ranker.io.extras import library
from r1ranker.problem import Problem, Ranking

Array = np.ndarray[Any, np.dtype[Any]]
Featurise = Callable[[Sequence[str]], Any]
NEIGHBOURS = 50
CLUSTERS = 32
DIRECTIONS = 64
"""Numbers that describe a query after SVD."""
EPOCHS = 20
BATCH = 32
RANK = 32
"""Length of the vectors of the matrix factorisation."""


def knn_router(train: Sequence[Problem], test: Sequence[Problem], *, neighbours: int = NEIGHBOURS) -> list[Ranking]:
    """Mean gain of each LLM on the most similar training queries (cosine of TF-IDF)."""
    fit = partial(_fit_router, features=_tfidf, learn=partial(nearest, neighbours=neighbours))
    return fit_and_rank(fit, train, test, "router-knn", "routing")


def mlp_router(train: Sequence[Problem], test: Sequence[Problem], *, seed: int = 0) -> list[Ranking]:
    """A network with one hidden layer from the query to the gains of all LLMs."""
    fit = partial(_fit_router, features=partial(_main_directions, seed=seed), learn=partial(_mlp, seed=seed))
    return fit_and_rank(fit, train, test, "router-mlp", "routing")


def factor_router(train: Sequence[Problem], test: Sequence[Problem], *, seed: int = 0) -> list[Ranking]:
    """Query vector times LLM vector plus the LLM's bias, learnt from which of two LLMs gains more.

    The matrix factorisation of RouteLLM (Ong et al., 2024), there between two LLMs and over text embeddings.
    """
    fit = partial(_fit_router, features=partial(_main_directions, seed=seed), learn=partial(_factors, seed=seed))
    return fit_and_rank(fit, train, test, "router-mf", "routing")


def encoder_router(
    train: Sequence[Problem], test: Sequence[Problem], *, model: str = DENSE, seed: int = 0
) -> list[Ranking]:
    """`mlp_router` over a BERT-style encoder's embeddings. The encoder itself is not tuned."""
    fit = partial(_fit_router, features=partial(_embeddings, model=model), learn=partial(_mlp, seed=seed))
    return fit_and_rank(fit, train, test, "router-encoder", "routing")


def cluster_router(
    train: Sequence[Problem], test: Sequence[Problem], *, model: str = DENSE, clusters: int = CLUSTERS, seed: int = 0
) -> list[Ranking]:
    """Mean gain of each LLM on the training queries of the nearest k-means cluster of an encoder's embeddings."""
    features, learn = partial(_embeddings, model=model), partial(clustered, clusters=clusters, seed=seed)
    return fit_and_rank(partial(_fit_router, features=features, learn=learn), train, test, "router-kmeans", "routing")


def _fit_router(
    train: Sequence[Problem],
    features: Callable[[Sequence[str]], Featurise],
    learn: Callable[[Any, Array], Callable[[Any], Array]],
) -> Scorer:
    llms = sorted({candidate.docid for problem in train for candidate in problem.candidates})
    featurise = features([problem.query for problem in train])
    gains_Q_L = np.array([_gains(problem, llms) for problem in train])
    gains_Q_L = np.where(np.isnan(gains_Q_L), np.nanmean(gains_Q_L, axis=0), gains_Q_L)
    predict = learn(featurise([problem.query for problem in train]), gains_Q_L)

    def score(problems: Sequence[Problem]) -> list[dict[str, float]]:
        predicted_Q_L = predict(featurise([problem.query for problem in problems]))
        return [dict(zip(llms, row, strict=True)) for row in predicted_Q_L.tolist()]

    return score


def _gains(problem: Problem, llms: Sequence[str]) -> list[float]:
    pool = {candidate.docid for candidate in problem.candidates}
    return [float(problem.gains.get(llm, 0)) if llm in pool else float("nan") for llm in llms]


def _tfidf(queries: Sequence[str]) -> Featurise:
    """Words of any form: code and formulas route too, so a single sign is a word."""
    text = library("sklearn.feature_extraction.text")
    transform: Featurise = text.TfidfVectorizer(sublinear_tf=True, token_pattern=r"\w+|[^\w\s]").fit(queries).transform
    return transform


def _main_directions(queries: Sequence[str], seed: int) -> Featurise:
    """Standardised coordinates of TF-IDF vectors along their first directions."""
    tfidf = _tfidf(queries)
    known = tfidf(queries)
    if known.shape[1] == 1:  # one word in all queries is a direction, but none for scikit-learn's SVD
        return lambda texts: tfidf(texts).toarray()
    size = min(DIRECTIONS, *known.shape)
    svd = library("sklearn.decomposition").TruncatedSVD(size, random_state=seed).fit(known)
    scaler = library("sklearn.preprocessing").StandardScaler().fit(svd.transform(known))
    return lambda texts: scaler.transform(svd.transform(tfidf(texts)))


@lru_cache(maxsize=1)
def _embedded(model: str) -> dict[str, Array]:
    """Vectors by text. Tasks that differ in their objective alone, and folds of each, ask for the same queries."""
    return {}


def _embeddings(queries: Sequence[str], model: str) -> Featurise:
    encoder, known = load("SentenceTransformer", model), _embedded(model)

    def featurise(texts: Sequence[str]) -> Any:
        if fresh := [text for text in dict.fromkeys(texts) if text not in known]:
            vectors = encoder.encode(fresh, batch_size=TEXTS_AT_ONCE, show_progress_bar=False)
            known.update(zip(fresh, vectors, strict=True))
        return np.stack([known[text] for text in texts])

    scaler = library("sklearn.preprocessing").StandardScaler().fit(featurise(queries))
    return lambda texts: scaler.transform(featurise(texts))


def nearest(queries: Any, values_Q_V: Array, neighbours: int) -> Callable[[Any], Array]:
    """Of queries asked (vectors), the mean values of the known ones that are nearest by cosine."""
    regressor = library("sklearn.neighbors").KNeighborsRegressor(
        min(neighbours, len(values_Q_V)), metric="cosine", algorithm="brute"
    )
    predict: Callable[[Any], Array] = regressor.fit(queries, values_Q_V).predict
    return predict


def clustered(queries: Any, values_Q_V: Array, clusters: int, *, seed: int = 0) -> Callable[[Any], Array]:
    """Of queries asked (vectors), the mean values of the known ones in the nearest of so many k-means clusters."""
    # One text's vector differs in the sixth digit by the batch it was embedded in: that is no query of its own.
    most = min(clusters, len(np.unique(np.round(queries, 5), axis=0)))
    found = library("sklearn.cluster").KMeans(most, n_init=4, random_state=seed).fit(queries)
    means_C_V = np.stack([values_Q_V[found.labels_ == cluster].mean(axis=0) for cluster in range(found.n_clusters)])
    return lambda asked: means_C_V[found.predict(asked)]


def _mlp(queries: Any, gains_Q_L: Array, seed: int) -> Callable[[Any], Array]:
    mean = gains_Q_L.mean(axis=0)  # what is learnt is the difference: little training still ranks as averages do
    network = library("sklearn.neural_network").MLPRegressor(
        hidden_layer_sizes=(64,), alpha=1.0, batch_size=min(BATCH, len(gains_Q_L)), random_state=seed
    )
    for _ in range(EPOCHS):
        network.partial_fit(queries, gains_Q_L - mean)
    return lambda asked: mean + network.predict(asked).reshape(len(asked), -1)


def _factors(queries: Any, gains_Q_L: Array, seed: int) -> Callable[[Any], Array]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = torch.nn.Sequential(torch.nn.Linear(queries.shape[1], RANK), torch.nn.Linear(RANK, gains_Q_L.shape[1]))
    queries_Q_D, gains = torch.tensor(queries).float(), torch.tensor(gains_Q_L).float()
    better_Q_L_L = (gains[:, :, None] > gains[:, None, :]).float()
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    for _ in range(100):
        scores = model(queries_Q_D)
        lost = torch.nn.functional.softplus(scores[:, None, :] - scores[:, :, None])
        loss = (better_Q_L_L * lost).sum() / better_Q_L_L.sum().clamp(min=1)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    def predict(asked: Any) -> Array:
        with torch.no_grad():
            predicted: Array = model(torch.tensor(asked).float()).double().numpy()
        return predicted

    return predict
