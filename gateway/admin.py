"""The admin API's key, and its hand on the store."""

import asyncio
import hashlib
import logging
from collections.abc import Callable
from hmac import compare_digest
from typing import TypeVar

from starlette.types import Scope

from gateway.asgi import header
from gateway.errors import InvalidKey, PolicyNotFound, PolicyNotMoved, StoreAway
from policies.errors import LifecycleError, StoreError, UnknownPolicy
from policies.projects import Projects

logger = logging.getLogger(__name__)

T = TypeVar("T")

BY = "admin"
"""Who makes the moves that come this way."""


class Admin:
    """Whoever holds `key` may see and move the projects of the store at `url`, which is opened when it is needed."""

    def __init__(self, key: str, url: str) -> None:
        self._digest = _digest(key)
        self._url = url
        self._projects: Projects | None = None
        # The store can take its time; no more than one of the process's threads waits for it.
        self._turn = asyncio.Lock()

    def check(self, scope: Scope) -> None:
        """Raise InvalidKey unless the call brings the key, in a time that says nothing of it."""
        scheme, _, given = (header(scope, b"authorization") or "").partition(" ")
        right = compare_digest(_digest(given.strip()), self._digest)
        if scheme.lower() != "bearer" or not right:
            raise InvalidKey("The admin API takes its own key, as 'Authorization: Bearer KEY': see admin.key_env.")

    async def ask(self, question: Callable[[Projects], T]) -> T:
        """Put a question to the store, in a thread. Raises PolicyNotFound, PolicyNotMoved, StoreAway."""
        try:
            async with self._turn:
                return await asyncio.to_thread(lambda: question(self._opened()))
        except UnknownPolicy as error:
            raise PolicyNotFound(_sentence(error)) from error
        except LifecycleError as error:
            raise PolicyNotMoved(_sentence(error)) from error
        except StoreError as error:
            logger.warning("the admin API found the store away: %s", error)
            raise StoreAway(f"The store cannot be used: {error}") from error

    def close(self) -> None:
        """Let go of the store."""
        if self._projects is not None:
            self._projects.close()

    def _opened(self) -> Projects:
        if self._projects is None:
            self._projects = Projects.open(self._url)
        return self._projects


def _digest(key: str) -> bytes:
    # Of one length whatever the key: the comparison tells not even that.
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _sentence(error: Exception) -> str:
    text = str(error)
    return f"{text[:1].upper()}{text[1:]}."
