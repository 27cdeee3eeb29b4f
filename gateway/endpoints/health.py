"""`/health`, `/healthz`, `/readyz` and `/metrics`: what runs, for people, orchestrators and Prometheus."""

import asyncio
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from gateway.asgi import LOCAL_HEADERS, send_bytes
from gateway.endpoints.exchange import Endpoint, answer_json
from gateway.exchange import Exchange
from gateway.registry import Registry


class Liveness(Endpoint):
    """`/healthz`: the event loop turns."""

    public = True

    async def serve(self, exchange: Exchange) -> None:
        """Answer."""
        await answer_json(exchange, {"status": "ok"})


class Readiness(Endpoint):
    """`/readyz`: settings and policies have been read. Never asks the teacher or the store: their outage is no reason
    to take every gateway out of service."""

    public = True

    async def serve(self, exchange: Exchange) -> None:
        """Answer; the socket opens only when everything has started."""
        await answer_json(exchange, {"status": "ready"})


class MetricsPage(Endpoint):
    """`/metrics` in Prometheus text format."""

    public = True

    async def serve(self, exchange: Exchange) -> None:
        """Answer."""
        if self.services.folder is None:
            page = generate_latest(self.metrics.page)
        else:
            page = await asyncio.to_thread(generate_latest, self.metrics.page)  # it reads the files of every worker
        await send_bytes(exchange.send, 200, CONTENT_TYPE_LATEST.encode(), page, LOCAL_HEADERS)


class Health(Endpoint):
    """`/health`: the default project in the keys of `tracer-llm`, and every project by name."""

    public = True

    async def serve(self, exchange: Exchange) -> None:
        """Answer."""
        registry = self.services.registry
        projects = {name: _describe(registry, name) for name in self.services.settings.projects}
        default = self.services.settings.project_served()
        folder = self.services.folder
        shown: dict[str, Any] = {"status": "ok", "workers": 1 if folder is None else len(folder.running())}
        if default is not None:
            keys = ("method", "coverage", "teacher_agreement", "n_labels", "n_traces")
            shown |= {key: projects[default][key] for key in keys}
        await answer_json(exchange, shown | {"projects": projects})


def _describe(registry: Registry, project: str) -> dict[str, Any]:
    """What answers; where nothing does, what its certificate says of the policy in shadow."""
    serving = registry.serving(project)
    described: dict[str, Any] = {"state": serving.state, "policy": serving.version, "shadow": serving.shadow}
    described["reason"] = serving.detail or None
    policy = serving.policy or registry.policy(project, serving.shadow)
    manifest = None if policy is None else policy.manifest
    certificate = None if manifest is None else manifest.certificate
    described |= {
        "method": certificate and certificate.method,
        "target": certificate and certificate.target,
        "coverage": manifest and manifest.coverage_cal,
        "teacher_agreement": certificate and certificate.teacher_agreement,
        "teacher_agreement_lower": certificate and certificate.teacher_agreement_lower,
        "n_labels": manifest.n_labels if manifest else 0,
        "n_traces": manifest.n_traces if manifest else 0,
    }
    if certificate is not None and certificate.refused:
        described["reason"] = certificate.reason
    return described
