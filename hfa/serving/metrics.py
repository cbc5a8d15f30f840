"""What Prometheus reads: the same numbers as the statistics, and the load of the moment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

from hfa.network.base import Network
from hfa.serving.schemas import ModelStatistics
from hfa.serving.service import Service
from hfa.serving.statistics import Record

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_QUANTILES = {"0.5": "p50_s", "0.95": "p95_s", "0.99": "p99_s"}


class Metrics(Collector):
    """Makes its metrics when asked, so that there is one source of every number.

    Counters begin with the process, unlike the track record, which outlives it: one that was restored, and has lost its
    last seconds, would look to Prometheus as if all of it had happened anew.

    Args:
        service: models and their track record.
        network: how fresh the view of the metagraph is.
    """

    def __init__(self, service: Service, network: Network) -> None:
        self._service, self._network = service, network
        self._before = service.statistics.totals()
        self._refusals: Counter[str] = Counter()
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def refused(self, code: str) -> None:
        """A request was answered with the error `code`."""
        self._refusals[code] += 1

    def refusals(self) -> dict[str, int]:
        """How often each error was the answer."""
        return dict(self._refusals)

    def exposition(self) -> bytes:
        """The text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        yield from self._records()
        yield from _times(self._service.statistics.report())
        yield from self._loads()
        yield from self._chain()
        refusals = CounterMetricFamily("hfa_refusals", "Requests answered with an error.", labels=["code"])
        for code, number in sorted(self._refusals.items()):
            refusals.add_metric([code], number)
        yield refusals

    def _records(self) -> Iterator[Metric]:
        requests = CounterMetricFamily("hfa_requests", "Requests given to a model.", labels=["model", "outcome"])
        tokens = CounterMetricFamily("hfa_tokens", "Tokens read and generated.", labels=["model", "kind"])
        cached = CounterMetricFamily("hfa_cached_tokens", "Of the prompts, found in checkpoints.", labels=["model"])
        misses = CounterMetricFamily("hfa_cache_misses", "Why no more was found.", labels=["model", "reason"])
        seconds = SummaryMetricFamily("hfa_request_seconds", "Time of requests that succeeded.", labels=["model"])
        for name, record in self._service.statistics.totals().items():
            before = self._before.get(name) or Record()
            for outcome in ("succeeded", "failed", "cancelled", "expired"):
                requests.add_metric([name, outcome], getattr(record, outcome) - getattr(before, outcome))
            tokens.add_metric([name, "prompt"], record.prompt_tokens - before.prompt_tokens)
            tokens.add_metric([name, "completion"], record.completion_tokens - before.completion_tokens)
            cached.add_metric([name], record.cached_tokens - before.cached_tokens)
            for reason, number in sorted(record.misses.items()):
                misses.add_metric([name, reason], number - before.misses.get(reason, 0))
            count, total = record.succeeded - before.succeeded, record.seconds - before.seconds
            seconds.add_metric([name], count_value=count, sum_value=total)
        yield from (requests, tokens, cached, misses, seconds)

    def _loads(self) -> Iterator[Metric]:
        running = GaugeMetricFamily("hfa_running_requests", "Requests being computed.", labels=["model"])
        waiting = GaugeMetricFamily("hfa_waiting_requests", "Requests in the queue.", labels=["model"])
        state = GaugeMetricFamily("hfa_state_bytes", "Reserved for states of running requests.", labels=["model"])
        budget = GaugeMetricFamily("hfa_state_budget_bytes", "Memory for states.", labels=["model"])
        kept = GaugeMetricFamily("hfa_session_bytes", "States of sessions that wait.", labels=["model"])
        for name, model in self._service.models.items():
            status = model.status()
            running.add_metric([name], status.running)
            waiting.add_metric([name], status.waiting)
            state.add_metric([name], status.state_bytes)
            budget.add_metric([name], status.budget_bytes)
            kept.add_metric([name], status.session_bytes)
        yield from (running, waiting, state, budget, kept)

    def _chain(self) -> Iterator[Metric]:
        network = self._network
        registered = network.neuron(network.hotkey) is not None
        age = GaugeMetricFamily("hfa_metagraph_age_seconds", "Since the last good look at the metagraph.")
        age.add_metric([], network.last_sync_age_s)
        own = GaugeMetricFamily("hfa_registered", "Whether our hotkey is on the subnet.")
        own.add_metric([], float(registered))
        neurons = GaugeMetricFamily("hfa_neurons", "Neurons of the subnet.")
        neurons.add_metric([], len(network.neurons()))
        yield from (age, own, neurons)


def _times(statistics: Mapping[str, ModelStatistics]) -> Iterator[Metric]:
    recent = GaugeMetricFamily(
        "hfa_recent_request_seconds", "Percentiles over the latest requests.", labels=["model", "quantile"]
    )
    for name, report in statistics.items():
        for quantile, attribute in _QUANTILES.items():
            if (value := getattr(report, attribute)) is not None:
                recent.add_metric([name, quantile], value)
    yield recent
