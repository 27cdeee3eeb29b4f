"""create_app(settings): routes, error handlers and lifespan of one gateway; nothing else."""

import contextlib
import os
from collections.abc import AsyncIterator, Mapping

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from gateway.access import check_access
from gateway.asgi import Whole, error_answer, send_whole
from gateway.endpoints.admin import admin_routes
from gateway.endpoints.chat import Chat
from gateway.endpoints.classify import Classify
from gateway.endpoints.decisions import Decisions
from gateway.endpoints.health import Health, Liveness, MetricsPage, Readiness
from gateway.endpoints.model import ModelEndpoint
from gateway.endpoints.openapi import OpenApi
from gateway.endpoints.passthrough import Passthrough
from gateway.endpoints.predict import Predict, PredictBatch
from gateway.endpoints.responses import Responses
from gateway.errors import AnswerableError, InternalError, MethodNotAllowed, NotFound
from gateway.services import Services, build_services
from gateway.settings import Settings
from gateway.shared_metrics import MetricsFolder
from gateway.turns import Turn


class Gateway(Starlette):
    """The routes of one gateway. Calls of a model skip the layers that only the others need."""

    def __init__(self, services: Services) -> None:
        models: list[ModelEndpoint] = [Chat(services), Responses(services), Decisions(services)]
        super().__init__(
            routes=[*(Route(f"/v1{m.surface}", m, methods=["POST"]) for m in models), *_routes(services)],
            exception_handlers={HTTPException: _refused, Exception: _failed},
            lifespan=lambda _: _running(services),
        )
        self.state.services = services
        # A redirect would send a client's POST, and its key, on a detour; the API has one spelling of each path.
        self.router.redirect_slashes = False
        self._models = {f"/v1{endpoint.surface}": endpoint for endpoint in models}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call."""
        endpoint = self._model_of(scope)
        if endpoint is None:
            await super().__call__(scope, receive, send)
            return
        scope["app"] = self
        try:
            await endpoint(scope, receive, send)
        except Exception:
            # As Starlette does; where an answer has begun the server refuses another and hangs up.
            with contextlib.suppress(RuntimeError):
                await send_whole(send, _failure(self.state.services))
            raise

    def begin(self, scope: Scope, body: bytes) -> Turn | None:
        """A request whose body is there, where it may be answered without a task; None: call the app."""
        endpoint = self._model_of(scope)
        return None if endpoint is None else endpoint.begin(scope, body)

    def _model_of(self, scope: Scope) -> ModelEndpoint | None:
        """The endpoint of a call of a model; None for all else, of which a lifespan has neither method nor path."""
        return self._models.get(scope["path"]) if scope.get("method") == "POST" else None


def create_app(
    settings: Settings, environ: Mapping[str, str] = os.environ, folder: MetricsFolder | None = None
) -> Gateway:
    """The gateway as an ASGI app; raises SettingsError. Nothing is opened before its lifespan starts.

    `folder` is what this process counts in where it is one of several workers.
    """
    check_access(settings)
    return Gateway(build_services(settings, environ, folder))


def _routes(services: Services) -> list[Route]:
    return [
        Route("/v1/{path:path}", Passthrough(services)),
        Route("/predict", Predict(services), methods=["POST"]),
        Route("/predict_batch", PredictBatch(services), methods=["POST"]),
        Route("/health", Health(services), methods=["GET"]),
        Route("/healthz", Liveness(services), methods=["GET"]),
        Route("/readyz", Readiness(services), methods=["GET"]),
        Route("/metrics", MetricsPage(services), methods=["GET"]),
        Route("/openapi.json", OpenApi(services), methods=["GET"]),
        Route("/{project}/classify", Classify(services), methods=["POST"]),
        *admin_routes(services),
    ]


@contextlib.asynccontextmanager
async def _running(services: Services) -> AsyncIterator[None]:
    async with contextlib.AsyncExitStack() as stack:
        for upstream in services.upstreams.values():
            await upstream.start()
            stack.push_async_callback(upstream.stop)
        stack.callback(services.decider.close)
        await services.traces.start()
        stack.push_async_callback(services.traces.stop)
        await services.access.start()
        stack.push_async_callback(services.access.stop)
        await services.registry.start()
        stack.push_async_callback(services.registry.stop)
        await services.watch.start()
        stack.push_async_callback(services.watch.stop)
        await services.auditor.start()
        stack.push_async_callback(services.auditor.stop)
        if services.admin is not None:
            stack.callback(services.admin.close)
        services.metrics.workers.set(1)
        yield


async def _refused(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException) and error.status_code == 405:
        refused = _answered(request, MethodNotAllowed(f"{request.url.path} does not take {request.method}."))
        refused.headers.update(error.headers or {})
        return refused
    return _answered(request, NotFound(f"There is nothing at {request.url.path[:200]}."))


async def _failed(request: Request, _: Exception) -> Response:
    return _response(_failure(request.app.state.services))


def _failure(services: Services) -> Whole:
    services.metrics.internal_errors.labels("endpoint").inc()
    error = InternalError("The gateway failed to answer.")
    services.metrics.errors.labels(error.code).inc()
    return error_answer(error)


def _answered(request: Request, error: AnswerableError) -> Response:
    services: Services = request.app.state.services
    services.metrics.errors.labels(error.code).inc()
    return _response(error_answer(error))


def _response(answer: Whole) -> Response:
    status, headers, body = answer
    response = Response(body, status)
    response.raw_headers = headers
    return response
