"""Numbers for Prometheus: requests, tokens, waiting and running answers, seconds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

if TYPE_CHECKING:
    from kamerton.serving.hub import Hub

CONTENT_TYPE = CONTENT_TYPE_LATEST
SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Measures:
    """The counters of one server, in a registry of its own."""

    def __init__(self, hub: Hub) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "kamerton_requests", "Requests by address and status.", ["path", "status"], registry=self.registry
        )
        self.read = Counter("kamerton_prompt_tokens", "Tokens of prompts.", ["model"], registry=self.registry)
        self.written = Counter("kamerton_generated_tokens", "Tokens of answers.", ["model"], registry=self.registry)
        self.first = Histogram(
            "kamerton_first_token_seconds", "From a request to its first token.", ["model"], buckets=SECONDS,
            registry=self.registry,
        )  # fmt: skip
        self.whole = Histogram(
            "kamerton_answer_seconds", "From a request to its last token.", ["model"], buckets=SECONDS,
            registry=self.registry,
        )  # fmt: skip
        self.gone = Counter("kamerton_cancelled", "Requests whose client went away.", registry=self.registry)
        self.registry.register(_Live(hub))

    def text(self) -> bytes:
        """All of it in Prometheus's text format."""
        return generate_latest(self.registry)


class _Live:
    """What is read off the batches when somebody asks."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def collect(self) -> Iterator[Any]:
        running = GaugeMetricFamily("kamerton_running_requests", "Requests that hold a place.")
        running.add_metric([], self._hub.running)
        yield running
        rows = GaugeMetricFamily("kamerton_batch_rows", "Answers that are decoded now.", labels=["model"])
        waiting = GaugeMetricFamily("kamerton_waiting_rows", "Answers that wait for a place.", labels=["model"])
        steps = CounterMetricFamily("kamerton_decoding_steps", "Steps of the running batch.", labels=["model"])
        decoded = CounterMetricFamily("kamerton_decoded_tokens", "Tokens that the batch gave.", labels=["model"])
        for served in self._hub.models.values():
            batch = served.engine.batch
            if batch is not None:
                rows.add_metric([served.name], len(batch.rows))
                waiting.add_metric([served.name], len(batch.waiting))
                steps.add_metric([served.name], batch.steps)
                decoded.add_metric([served.name], batch.decoded)
        yield from (rows, waiting, steps, decoded)
