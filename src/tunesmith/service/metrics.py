"""Figures for Prometheus: requests as they end, and jobs, queue and engine as they are when somebody looks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from tunesmith.service.entrance import Visit
from tunesmith.service.limits import InFlight
from tunesmith.service.store.interface import Store
from tunesmith.service.store.nouns import Job, JobStatus

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 600)
"""Upper ends of the latency histogram."""

_NAME = re.compile(r"[^a-zA-Z0-9_]")


class Metrics:
    """One server's figures. `engine` gives the engine's numbers by name, empty where there is none."""

    def __init__(self, store: Store, in_flight: InFlight, engine: Callable[[], Mapping[str, float]]) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "tunesmith_requests",
            "Requests that ended, by route and status.",
            ("method", "route", "status"),
            registry=self.registry,
        )
        self.begin = Histogram(
            "tunesmith_first_byte_seconds",
            "Time until an answer began, seconds.",
            ("route",),
            buckets=SECONDS,
            registry=self.registry,
        )
        self.whole = Histogram(
            "tunesmith_request_seconds",
            "Time until an answer ended, seconds.",
            ("route",),
            buckets=SECONDS,
            registry=self.registry,
        )
        self.registry.register(_Now(store, in_flight, engine))

    def watch(self, visit: Visit) -> None:
        """Count a request that ended."""
        method = visit.method if visit.method in ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD") else "other"
        self.requests.labels(method, visit.route, str(visit.status)).inc()
        self.whole.labels(visit.route).observe(visit.seconds)
        if visit.seconds_to_begin is not None:
            self.begin.labels(visit.route).observe(visit.seconds_to_begin)

    def text(self) -> bytes:
        """All figures in Prometheus' text format; asks the store, so not for the event loop."""
        return generate_latest(self.registry)


class _Now(Collector):
    """What is looked up at the moment of asking."""

    def __init__(self, store: Store, in_flight: InFlight, engine: Callable[[], Mapping[str, float]]) -> None:
        self.store, self.in_flight, self.engine = store, in_flight, engine

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Nothing: registering must not ask the store."""
        return iter(())

    def collect(self) -> Iterator[GaugeMetricFamily]:
        yield GaugeMetricFamily("tunesmith_requests_in_flight", "Requests being answered.", value=self.in_flight.count)
        jobs = GaugeMetricFamily("tunesmith_jobs", "Fine-tuning jobs by status.", labels=("status",))
        for status in get_args(JobStatus):
            jobs.add_metric((status,), self.store.count(Job, {"status": status}))
        yield jobs
        for name, value in self.engine().items():
            yield GaugeMetricFamily(f"tunesmith_engine_{_NAME.sub('_', name)}", f"The engine's {name}.", value=value)
