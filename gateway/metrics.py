"""Every Prometheus object of one gateway; no logic.

Label values come from closed sets: configured project and upstream names, lanes, reasons, error codes. Never from a
request, so no client can make the number of series grow.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector

# A local decision takes tens of microseconds; the teacher takes a second.
_DECISION_BUCKETS = (20e-6, 50e-6, 100e-6, 200e-6, 500e-6, 1e-3, 2e-3, 5e-3, 20e-3, 0.1)
_REQUEST_BUCKETS = (1e-3, 2e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """One set of metrics with a registry of its own, so that two gateways fit in one process."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self.requests = Counter(
            "tracer_requests",
            "Calls by project ('' where no project is concerned), lane that answered and reason of deferral.",
            ["project", "lane", "reason"],
            registry=registry,
        )
        self.errors = Counter(
            "tracer_errors", "Error answers made by the gateway itself, by code.", ["code"], registry=registry
        )
        self.decision_seconds = Histogram(
            "tracer_decision_seconds",
            "Time a local decision took.",
            buckets=_DECISION_BUCKETS,
            registry=registry,
        )
        self.request_seconds = Histogram(
            "tracer_request_seconds",
            "Time from a call's whole body to the last byte of its answer, by lane.",
            ["lane"],
            buckets=_REQUEST_BUCKETS,
            registry=registry,
        )
        self.upstream_seconds = Histogram(
            "tracer_upstream_seconds",
            "Time from a call to the last byte of its answer, by upstream, with waits and retries.",
            ["upstream"],
            buckets=_REQUEST_BUCKETS,
            registry=registry,
        )
        self.upstream_errors = Counter(
            "tracer_upstream_errors",
            "Upstream failures by kind: unreachable, timeout, broken, status_4xx, status_5xx.",
            ["upstream", "kind"],
            registry=registry,
        )
        self.upstream_retries = Counter(
            "tracer_upstream_retries", "Calls repeated at the same upstream.", ["upstream"], registry=registry
        )
        self.upstream_fallbacks = Counter(
            "tracer_upstream_fallbacks",
            "Calls an upstream did not answer, by the fallback that did ('' where none did).",
            ["upstream", "fallback"],
            registry=registry,
        )
        self.breaker_open = Gauge(
            "tracer_breaker_open", "1 while an upstream is left alone.", ["upstream"], registry=registry
        )
        self.disconnects = Counter("tracer_disconnects", "Clients that left before their last byte.", registry=registry)
        self.internal_errors = Counter(
            "tracer_internal_errors",
            "Faults caught at a border: endpoint, decide, trace, policy_watch, key_watch.",
            ["where"],
            registry=registry,
        )
        self.traces_stored = Counter("tracer_traces_stored", "Traces the store acknowledged.", registry=registry)
        self.traces_dropped = Counter(
            "tracer_traces_dropped", "Traces lost to a full queue or a full spool.", registry=registry
        )
        self.traces_spooled = Counter(
            "tracer_traces_spooled", "Traces written to the spool file because the store was down.", registry=registry
        )
        self.trace_queue = Gauge("tracer_trace_queue", "Traces waiting for the store.", registry=registry)
        self.forwards = Gauge("tracer_forwards", "Calls that are with an upstream.", registry=registry)
        self.forwards_waiting = Gauge(
            "tracer_forwards_waiting", "Calls waiting for a place with an upstream.", registry=registry
        )
        self.held_bytes = Gauge(
            "tracer_held_bytes", "Bytes of request bodies that came in pieces and are held.", registry=registry
        )
        self.keys = Gauge("tracer_keys", "Keys in force (access.mode keys).", registry=registry)
        self.key_file_reads = Counter(
            "tracer_key_file_reads",
            "Readings of the keys file, by outcome: ok, missing or damaged.",
            ["outcome"],
            registry=registry,
        )
        self.policy_info = Gauge(
            "tracer_policy_info",
            "1 for the policy version a project serves.",
            ["project", "version"],
            registry=registry,
        )
        self.policy_certified = Gauge(
            "tracer_policy_certified", "1 where the gate certified the served policy.", ["project"], registry=registry
        )
        self.policy_coverage = Gauge(
            "tracer_policy_coverage", "Coverage the served policy's certificate states.", ["project"], registry=registry
        )
        self.policy_loads = Counter(
            "tracer_policy_loads", "Policy folders read, by outcome: ok or damaged.", ["outcome"], registry=registry
        )
