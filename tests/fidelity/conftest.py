"""One teacher, one fitted policy a form, and one gateway for all of the suite."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.fidelity.world import World, make_world, projects
from tests.scripted_teacher import ScriptedTeacher
from tests.serving import ThreadedGateway, make_settings

ADMIN_KEY = "an-admin-key-of-the-suite"


@dataclass
class Route:
    """A way to the teacher: straight, or through the gateway. `answers` are the headers of what came back."""

    base_url: str
    answers: list[httpx.Headers] = field(default_factory=list)

    def client(self, **options: Any) -> openai.OpenAI:
        """A client for this route."""
        http = openai.DefaultHttpxClient(event_hooks={"response": [self._note]})
        return openai.OpenAI(**self._options(options), http_client=http)

    def async_client(self, **options: Any) -> openai.AsyncOpenAI:
        """The same for asyncio."""

        async def note(answer: httpx.Response) -> None:
            self._note(answer)

        http = openai.DefaultAsyncHttpxClient(event_hooks={"response": [note]})
        return openai.AsyncOpenAI(**self._options(options), http_client=http)

    @property
    def decision(self) -> str | None:
        """Who answered last: handled, deferred, or None where no gateway was between."""
        found: str | None = self.answers[-1].get("x-tracer-decision")
        return found

    def _note(self, answer: httpx.Response) -> None:
        self.answers.append(answer.headers)

    def _options(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"base_url": self.base_url, "api_key": "sk-application", "max_retries": 0, **given}


@pytest.fixture(scope="session")
def policies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the forms' policies."""
    return tmp_path_factory.mktemp("fidelity")


@pytest.fixture(scope="session")
def world(policies: Path) -> World:
    """The forms' truths."""
    return make_world(policies)


@pytest.fixture(scope="session")
def openai_teacher(world: World) -> Iterator[ScriptedTeacher]:
    """A teacher that answers exactly as OpenAI does."""
    with ScriptedTeacher(answer_of=world.answer_of, script="openai") as running:
        yield running


@pytest.fixture(scope="module")
def gateway(
    policies: Path, openai_teacher: ScriptedTeacher, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ThreadedGateway]:
    """A gateway that knows each form's application by its system prompt: nothing but the base URL changes.

    Of a module's own: a policy that was promoted at once takes the prompts of some hundred calls on trust, and no more.
    """
    tree = {"projects": projects(policies), "admin": {"key_env": "ADMIN_KEY"}}
    settings = make_settings(tmp_path_factory.mktemp("gateway"), tree, upstream=openai_teacher.url)
    with ThreadedGateway(settings, {"ADMIN_KEY": ADMIN_KEY}) as running:
        yield running


@pytest.fixture(scope="session")
def direct(openai_teacher: ScriptedTeacher) -> Route:
    """Straight to the teacher."""
    return Route(openai_teacher.url)


@pytest.fixture(scope="module")
def through(gateway: ThreadedGateway) -> Route:
    """Through the gateway."""
    return Route(gateway.base_url)
