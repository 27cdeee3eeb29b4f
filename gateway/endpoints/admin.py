"""`/admin/projects...`: where projects stand, and what moves them, for holders of the admin key."""

from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs

from starlette.routing import Route

from gateway.admin import BY, Admin
from gateway.endpoints.exchange import Endpoint, answer_json
from gateway.errors import InvalidRequest
from gateway.exchange import Exchange
from gateway.services import Services
from gateway.wire import parse_object
from policies.projects import Projects

_MOVES, _MOST_MOVES = 50, 1_000

Change = Callable[[Projects, str, str | None], dict[str, Any]]
"""From a project and a version, where one is named, to the project's summary afterwards."""

# Those in the first group may name a version.
_VERSIONED: dict[str, Change] = {
    "promote": lambda projects, name, version: projects.promote(name, version, BY),
    "rollback": lambda projects, name, version: projects.rollback(name, version, BY),
}
_WHOLE: dict[str, Change] = {
    "pause": lambda projects, name, _: projects.pause(name, BY),
    "resume": lambda projects, name, _: projects.resume(name, BY),
}


def admin_routes(services: Services) -> list[Route]:
    """The admin API's routes; none where the settings name no key."""
    admin = services.admin
    if admin is None:
        return []
    one = "/admin/projects/{project}"
    changes = {**_VERSIONED, **_WHOLE}
    return [
        Route("/admin/projects", ProjectList(services, admin), methods=["GET"]),
        Route(one, ProjectPage(services, admin), methods=["GET"]),
        Route(f"{one}/moves", ProjectMoves(services, admin), methods=["GET"]),
        *(
            Route(
                f"{one}/{name}", ProjectChange(services, admin, change, versioned=name in _VERSIONED), methods=["POST"]
            )
            for name, change in changes.items()
        ),
    ]


class AdminEndpoint(Endpoint):
    """An endpoint that takes the admin key instead of a client's."""

    def __init__(self, services: Services, admin: Admin) -> None:
        super().__init__(services)
        self.admin = admin

    def enter(self, exchange: Exchange) -> None:
        """Raises HostNotAllowed as other endpoints do, and InvalidKey without the admin key."""
        self.services.access.check_host(exchange.scope)
        self.admin.check(exchange.scope)
        exchange.given = dict(exchange.scope["headers"])


class ProjectList(AdminEndpoint):
    """`GET /admin/projects`: every project's summary, by name."""

    async def serve(self, exchange: Exchange) -> None:
        """Answer."""
        await answer_json(exchange, await self.admin.ask(Projects.summaries))


class ProjectPage(AdminEndpoint):
    """`GET /admin/projects/{project}`: its summary."""

    async def serve(self, exchange: Exchange) -> None:
        """Answer."""
        name = _project(exchange)
        await answer_json(exchange, await self.admin.ask(lambda projects: projects.summary(name)))


class ProjectMoves(AdminEndpoint):
    """`GET /admin/projects/{project}/moves`: its latest moves, oldest first; `?limit=` says how many."""

    async def serve(self, exchange: Exchange) -> None:
        """Answer."""
        name, limit = _project(exchange), _limit(exchange)
        await answer_json(exchange, await self.admin.ask(lambda projects: projects.moves(name, limit)))


class ProjectChange(AdminEndpoint):
    """`POST /admin/projects/{project}/...`: one change; the answer is the summary after it.

    It is in force in this process when the answer is sent, and within a second in every other.
    """

    def __init__(self, services: Services, admin: Admin, change: Change, *, versioned: bool) -> None:
        super().__init__(services, admin)
        self._change = change
        self._versioned = versioned

    async def serve(self, exchange: Exchange) -> None:
        """Answer one call."""
        name, version = _project(exchange), self._version(await self.body(exchange))
        summary = await self.admin.ask(lambda projects: self._change(projects, name, version))
        await self.services.watch.catch_up()
        await answer_json(exchange, summary)

    def _version(self, raw: bytes) -> str | None:
        body = parse_object(raw) if raw.strip() else {}
        valid = {"version"} if self._versioned else set()
        for key in body:
            if key not in valid:
                raise InvalidRequest(f"{key[:64]!r} is not taken here.", param=key[:64])
        version = body.get("version")
        if version is not None and type(version) is not str:
            raise InvalidRequest("'version' should be a string.", param="version")
        return version


def _project(exchange: Exchange) -> str:
    name: str = exchange.scope["path_params"]["project"]
    return name


def _limit(exchange: Exchange) -> int:
    given = parse_qs(exchange.scope["query_string"].decode("latin-1"), keep_blank_values=True).get("limit")
    if given is None:
        return _MOVES
    text = given[-1]
    if not (text.isascii() and text.isdigit() and len(text) < 5 and 1 <= int(text) <= _MOST_MOVES):
        raise InvalidRequest(f"'limit' should be a number from 1 to {_MOST_MOVES}.", param="limit")
    return int(text)
