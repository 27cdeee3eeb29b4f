"""What the endpoints share: one of each for one gateway, built from the settings without opening anything."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module

from gateway.access import Access, build_access
from gateway.admin import Admin
from gateway.attempts import Fallback, Guarded, Route
from gateway.audited import AuditAnswers
from gateway.auditor import Auditor
from gateway.decide import Decider
from gateway.epochs import Epochs
from gateway.errors import NoUpstream
from gateway.intake import Intake
from gateway.large import LargeBodies
from gateway.limits import Places
from gateway.metrics import Metrics
from gateway.recognise import Recogniser
from gateway.registry import Registry
from gateway.room import Room
from gateway.settings import Settings, admin_key, api_key
from gateway.shared_metrics import MetricsFolder
from gateway.trace_log import TraceLog
from gateway.upstream import HttpUpstream, Upstream
from gateway.watch import Watch


@dataclass(frozen=True)
class Services:
    """The parts of one gateway, or of one worker of it; `folder` is what workers count in together.

    `admin` is None where there is no admin API.
    """

    settings: Settings
    metrics: Metrics
    recogniser: Recogniser
    registry: Registry
    decider: Decider
    upstreams: Mapping[str, Upstream]
    traces: TraceLog
    watch: Watch
    auditor: Auditor
    access: Access
    places: Places
    room: Room
    large: LargeBodies
    admin: Admin | None = None
    folder: MetricsFolder | None = None

    def upstream_of(self, project: str | None) -> Upstream:
        """Where a project's calls are forwarded to, or every other call (None). Raises NoUpstream."""
        name = self.settings.upstream_of(project)
        if name is None:
            raise NoUpstream("The call was deferred and no upstream is configured to forward it to.")
        return self.upstreams[name]


def build_services(settings: Settings, environ: Mapping[str, str], folder: MetricsFolder | None = None) -> Services:
    """The parts `settings` asks for; raises SettingsError where an API key's variable is missing."""
    key = admin_key(settings, environ)
    metrics = Metrics(folder)
    store = settings.store
    registry, places = Registry(settings, metrics), Places(settings.server, metrics)
    upstreams = _routes(settings, environ, metrics)
    traces = TraceLog(store.url, store.spool, store.queue_size, metrics)
    epochs = {name: Epochs() for name in settings.projects}
    answers = AuditAnswers(traces, upstreams)
    auditor = Auditor(settings, upstreams, places, metrics, answers.take, epochs)
    intakes = {name: Intake(auditor.budgets.get(name), epochs[name]) for name in settings.projects}
    watch = Watch(settings, registry, metrics, intakes)
    answers.saw = watch.saw
    return Services(
        settings,
        metrics,
        Recogniser(settings),
        registry,
        Decider(settings.server, metrics),
        upstreams,
        traces,
        watch,
        auditor,
        build_access(settings, metrics),
        places,
        Room(settings.server, metrics),
        LargeBodies(),
        None if key is None else Admin(key, store.url),
        folder,
    )


def _routes(settings: Settings, environ: Mapping[str, str], metrics: Metrics) -> dict[str, Upstream]:
    guarded = {
        name: Guarded(_upstream(settings, name, environ), upstream, metrics)
        for name, upstream in settings.upstreams.items()
    }
    account = settings.access.account_headers
    return {
        name: Route(
            guarded[name], [Fallback(guarded[f.upstream], f.model) for f in upstream.fallbacks], metrics, account
        )
        for name, upstream in settings.upstreams.items()
    }


def _upstream(settings: Settings, name: str, environ: Mapping[str, str]) -> Upstream:
    upstream, key = settings.upstreams[name], api_key(settings, name, environ)
    # A client may bring it by mistake: it goes nowhere.
    secret = (admin_key(settings, environ) or "").encode()
    if upstream.provider == "openai":
        return HttpUpstream(name, upstream, key, settings.access.account_headers, secret)
    # What speaks to litellm comes with it: its HTTP client alone is 5 MB that no other upstream needs.
    provider: Upstream = import_module("gateway.providers").ProviderUpstream(name, upstream, key, secret)
    return provider
