"""What is counted, named like TEI's, for Prometheus. One set for each app."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from r1ranker.problem import Usage
from r1ranker.ranking.live import Live

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Metrics:
    """Counters of rankings and of LLMs' answers, and what the rankers say of themselves when they are asked."""

    def __init__(self, rankers: Mapping[str, Live]) -> None:
        # A second series for each counter, which says when it began.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self.count = self._counter("te_request_count", "Rankings asked for")
        self.success = self._counter("te_request_success", "Rankings given")
        self.failure = self._counter("te_request_failure", "Rankings not given, by reason", "err")
        self.late = self._counter("te_request_cut_short", "Rankings given at the deadline, by what was known")
        self.tokens = self._counter("te_tokens", "Tokens, read and written", "kind")
        self.cost = self._counter("te_cost", "Money, in the currency of the price file")
        self.seconds = Histogram(
            "te_request_duration", "Seconds of a ranking", ("model",), buckets=SECONDS, registry=self.registry
        )
        self.upstream_success = self._counter("r1ranker_upstream_success", "Answers of LLMs that began well")
        self.upstream_failure = self._counter(
            "r1ranker_upstream_failure",
            "Calls of LLMs without an answer of use, by status; broken off is midway",
            "err",
        )
        self.upstream_tokens = self._counter("r1ranker_upstream_tokens", "Tokens of LLMs, read and written", "kind")
        self.upstream_cost = self._counter("r1ranker_upstream_cost", "Dollars that LLMs took")
        self.upstream_seconds = Histogram(
            "r1ranker_upstream_first_byte",
            "Seconds until an LLM's answer began",
            ("model",),
            buckets=(*SECONDS, 30, 60),
            registry=self.registry,
        )
        self.registry.register(_OfRankers(rankers))

    def _counter(self, name: str, what: str, *labels: str) -> Counter:
        return Counter(name, what, ("model", *labels), registry=self.registry)

    def spent(self, name: str, usage: Usage) -> None:
        """Count what a ranking cost."""
        self.tokens.labels(name, "read").inc(usage.prompt_tokens)
        self.tokens.labels(name, "written").inc(usage.generated_tokens)
        self.cost.labels(name).inc(usage.cost)

    def upstream_spent(self, name: str, prompt_tokens: int, completion_tokens: int, cost: float) -> None:
        """Count what an LLM's answer cost."""
        self.upstream_tokens.labels(name, "read").inc(prompt_tokens)
        self.upstream_tokens.labels(name, "written").inc(completion_tokens)
        self.upstream_cost.labels(name).inc(cost)

    def text(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self.registry)


class _OfRankers(Collector):
    def __init__(self, rankers: Mapping[str, Live]) -> None:
        self.rankers = rankers

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """See `Collector`."""
        told = {
            "te_queue_size": ("Queries that wait", lambda live: live.waiting),
            "te_batch_current_size": ("Queries in the last batch", lambda live: live.stats.batch),
            "te_batch_count": ("Batches so far", lambda live: live.stats.steps),
            "te_worker_restarts": ("Times that the model's thread was replaced", lambda live: live.stats.restarts),
            "te_healthy": ("1 where queries are being answered", lambda live: int(live.healthy)),
        }
        for name, (what, value) in told.items():
            gauge = GaugeMetricFamily(name, what, labels=("model",))
            for model, live in self.rankers.items():
                gauge.add_metric((model,), value(live))  # type: ignore[no-untyped-call]
            yield gauge
