"""Every Prometheus object of one gateway; no logic.

Label values come from closed sets: configured project and upstream names, lanes, reasons, error codes. Never from a
request, so no client can make the number of series grow.
"""

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from gateway.shared_metrics import AddedUp, MetricsFolder, SampledGauge

# A local decision takes tens of microseconds; the teacher takes a second.
_DECISION_BUCKETS = (20e-6, 50e-6, 100e-6, 200e-6, 500e-6, 1e-3, 2e-3, 5e-3, 20e-3, 0.1)
_TEXT_BUCKETS = (1, 2, 4, 8, 16, 32, 64)
_WAIT_BUCKETS = (1e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0)
_REQUEST_BUCKETS = (1e-3, 2e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class PolicyGauges(Collector):
    """What each project serves: its policy's version, whether it is certified, and with which coverage."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._served: dict[str, tuple[str | None, bool, float]] = {}
        registry.register(self)

    def set(self, project: str, version: str | None, certified: bool, coverage: float) -> None:
        """The project serves this from now on; `version` None: no policy."""
        self._served[project] = (version, certified, coverage)

    def collect(self) -> Iterator[Metric]:
        """The three families."""
        info = GaugeMetricFamily(
            "tracer_policy_info", "1 for the policy version a project serves.", labels=["project", "version"]
        )
        certified = GaugeMetricFamily(
            "tracer_policy_certified", "1 where the gate certified the served policy.", labels=["project"]
        )
        coverage = GaugeMetricFamily(
            "tracer_policy_coverage", "Coverage the served policy's certificate states.", labels=["project"]
        )
        for project, served in sorted(self._served.items()):
            if served[0] is not None:
                info.add_metric([project, served[0]], 1)
            certified.add_metric([project], served[1])
            coverage.add_metric([project], served[2])
        yield from (info, certified, coverage)


class ProjectGauges(Collector):
    """Where each project stands, and what its audits say, as of the last look at the store: all processes' together."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._summaries: dict[str, dict[str, Any]] = {}
        registry.register(self)

    def set(self, project: str, summary: dict[str, Any]) -> None:
        """The project stands so from now on (`policies.projects.summary`)."""
        self._summaries[project] = summary

    def collect(self) -> Iterator[Metric]:
        """The families."""
        state = GaugeMetricFamily(
            "tracer_project_state", "1 for the state a project is in.", labels=["project", "state"]
        )
        policy = GaugeMetricFamily(
            "tracer_policy_state",
            "1 for the state of each of a project's policies.",
            labels=["project", "version", "state"],
        )
        withheld = GaugeMetricFamily(
            "tracer_labels_withheld", "Labels that the live policy does not answer for now.", labels=["project"]
        )
        rate = GaugeMetricFamily("tracer_audit_rate", "Share of handled calls that is audited.", labels=["project"])
        shadow = GaugeMetricFamily(
            "tracer_shadow_comparisons", "Comparisons of the policy in shadow with the teacher.", labels=["project"]
        )
        live = {key: GaugeMetricFamily(name, told, labels=["project"]) for key, (name, told) in _LIVE_GAUGES.items()}
        for project, found in sorted(self._summaries.items()):
            state.add_metric([project, found["state"]], 1)
            rate.add_metric([project], found["audit_rate"])
            for shown in found["policies"]:
                policy.add_metric([project, shown["version"], shown["state"]], 1)
                if shown["version"] == found["shadow"]:
                    shadow.add_metric([project], shown["shadow"][0]["comparisons"])
                if shown["version"] == found["live"]:
                    withheld.add_metric([project], len(shown.get("withheld", ())))
                    live["target"].add_metric([project], shown["target"])
                    for key, value in shown.get("live", {}).items():
                        if key in live and value is not None:
                            live[key].add_metric([project], value)
        yield from (state, policy, withheld, rate, shadow, *live.values())


_LIVE_GAUGES = {
    "target": ("tracer_agreement_target", "Agreement that the live policy promises."),
    "audits": ("tracer_agreement_audits", "Audits that the figures of the live policy rest on."),
    "agreement": ("tracer_agreement_estimate", "Agreement of the live policy with the teacher, by its audits."),
    "agreement_lower": (
        "tracer_agreement_lower_bound",
        "Lower bound on the live policy's agreement, true at all times with probability 0.95.",
    ),
    "evidence_against": (
        "tracer_evidence_against",
        "Natural logarithm of the evidence that the promise is broken; at tracer_evidence_limit the policy is demoted.",
    ),
    "demoted_at": ("tracer_evidence_limit", "What tracer_evidence_against is compared with."),
    "detector": ("tracer_drift", "Natural logarithm of the detector for change; at tracer_drift_limit it alarms."),
    "detector_at": ("tracer_drift_limit", "What tracer_drift is compared with."),
}


class Metrics:
    """One set of metrics with a registry of its own, so that two gateways fit in one process.

    `page` is what is shown: with `folder`, which this process has joined, the sum over all workers.
    """

    def __init__(self, folder: MetricsFolder | None = None) -> None:
        self.registry = registry = CollectorRegistry()
        self.page = registry
        if folder is None:
            ProcessCollector(registry=registry)
        else:
            self.page = CollectorRegistry()
            self.page.register(AddedUp(folder, registry))
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
            "Time a local decision took. One that was remembered took none, and is not counted here.",
            buckets=_DECISION_BUCKETS,
            registry=registry,
        )
        self.scoring_pending = SampledGauge(
            "tracer_scoring_pending",
            "Hand-overs that wait for the threads that score, or are with them.",
            multiprocess_mode="livesum",
            registry=registry,
        )
        self.scoring_batch = Histogram(
            "tracer_scoring_batch",
            "Calls that a thread scored together.",
            buckets=_TEXT_BUCKETS,
            registry=registry,
        )
        self.scoring_wait_seconds = Histogram(
            "tracer_scoring_wait_seconds",
            "Time from a call's coming to the threads that score until one began with it.",
            buckets=_WAIT_BUCKETS,
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
            "tracer_breaker_open",
            "1 while an upstream is left alone.",
            ["upstream"],
            multiprocess_mode="livemax",
            registry=registry,
        )
        self.disconnects = Counter("tracer_disconnects", "Clients that left before their last byte.", registry=registry)
        self.internal_errors = Counter(
            "tracer_internal_errors",
            "Faults caught at a border: endpoint, decide, trace, policy_watch, key_watch, audit.",
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
        self.trace_queue = SampledGauge(
            "tracer_trace_queue", "Traces waiting for the store.", multiprocess_mode="livesum", registry=registry
        )
        self.audits = Counter(
            "tracer_audits",
            "Handled calls drawn to be asked of the teacher as well, by what became of it: agreed, disagreed, unread, "
            "failed, expired, dropped, throttled.",
            ["project", "result"],
            registry=registry,
        )
        self.audit_usd = Counter(
            "tracer_audit_usd",
            "What audits cost, where the project's settings say what tokens cost.",
            ["project"],
            registry=registry,
        )
        self.audit_queue = SampledGauge(
            "tracer_audit_queue",
            "Audits waiting for the teacher's answer.",
            multiprocess_mode="livesum",
            registry=registry,
        )
        self.forwards = SampledGauge(
            "tracer_forwards", "Calls that are with an upstream.", multiprocess_mode="livesum", registry=registry
        )
        self.forwards_waiting = SampledGauge(
            "tracer_forwards_waiting",
            "Calls waiting for a place with an upstream.",
            multiprocess_mode="livesum",
            registry=registry,
        )
        self.keys = SampledGauge(
            "tracer_keys", "Keys in force (access.mode keys).", multiprocess_mode="livemax", registry=registry
        )
        self.held_bytes = SampledGauge(
            "tracer_held_bytes",
            "Bytes of request bodies that came in pieces and are held.",
            multiprocess_mode="livesum",
            registry=registry,
        )
        self.key_file_reads = Counter(
            "tracer_key_file_reads",
            "Readings of the keys file, by outcome: ok, missing or damaged.",
            ["outcome"],
            registry=registry,
        )
        self.policies = PolicyGauges(registry)
        self.projects = ProjectGauges(registry)
        self.store_up = Gauge(
            "tracer_store_up",
            "1 while the store answers: what projects are to do comes from there.",
            multiprocess_mode="livemin",
            registry=registry,
        )
        self.evidence_dropped = Counter(
            "tracer_evidence_dropped", "Teacher's answers that found no room to be compared.", registry=registry
        )
        self.policy_loads = Counter(
            "tracer_policy_loads", "Policy folders read, by outcome: ok or damaged.", ["outcome"], registry=registry
        )
        self.workers = Gauge("tracer_workers", "Processes that serve.", multiprocess_mode="livesum", registry=registry)
        self.worker_restarts = Counter(
            "tracer_worker_restarts", "Processes started in the place of one that had ended.", registry=registry
        )

    def sample(self) -> None:
        """Write down, for the other workers, what only this one knows."""
        for gauge in vars(self).values():
            if isinstance(gauge, SampledGauge):
                gauge.sample()
