"""`POST /predict` and `/predict_batch`: the decision server's calls, in the shapes of `tracer-llm`."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gateway.asgi import batch_headers, new_id, tracer_headers
from gateway.control import Mode
from gateway.decide import LONG_CHARS, Decision, Lane, Value, deferred
from gateway.endpoints.exchange import Endpoint, answer_json
from gateway.errors import InvalidRequest, TooManyRows
from gateway.exchange import Exchange
from gateway.registry import Serving
from gateway.services import Services
from policies.types import Reason

# More rows than this, or more text, take over a millisecond: they leave the event loop.
_ROWS_ON_LOOP = 8
# What is read and counted on the event loop at a time: each takes about a millisecond.
_ROWS_AT_ONCE = 256
_NUMBERS_AT_ONCE = 20_000


class Predict(Endpoint):
    """`{"embedding": [...]}` or `{"input": "..."}` -> `{"label", "decision", "accept_score", "stage"}`."""

    async def serve(self, exchange: Exchange) -> None:
        """Answer one call."""
        body = await self.object(exchange)
        project = project_of(self.services, exchange, body)
        self.admit(exchange, project)
        serving = self.serving(project, exchange.caller)
        key, given = _one_of(body, "embedding", "input")
        value = _text(given, key) if key == "input" else _rows([given], key, serving)[0]
        decision = _shown(exchange, await self._decide(exchange, serving, value))
        self.count(project, decision.lane, decision.reason or "")
        exchange.headers = tracer_headers(project, decision, new_id())
        self.explain(exchange, decision, serving)
        score = 0.0 if decision.accept_score is None else decision.accept_score
        label = serving.said(decision.label)
        answer = {"label": label, "decision": decision.word, "accept_score": score, "stage": decision.stage}
        await answer_json(exchange, answer)

    async def _decide(self, exchange: Exchange, serving: Serving, value: Value) -> Decision:
        return (
            await self.score(exchange, serving, value)
            if isinstance(value, str)
            else self.here(exchange, serving, value)
        )

    def here(self, exchange: Exchange, serving: Serving, value: Value) -> Decision:
        """Decide on the calling thread."""
        reason = self.unscored(exchange, serving, value if isinstance(value, str) else None)
        if reason is not None:
            return deferred(serving, reason)
        return self.services.decider.decide_here(serving, value, exchange.control.agreement)


class PredictBatch(Predict):
    """`{"embeddings": [[...]]}` or `{"inputs": [...]}` -> `{"labels", "decisions", "handled"}`."""

    async def serve(self, exchange: Exchange) -> None:
        """Answer one call."""
        body = await self.object(exchange)
        project = project_of(self.services, exchange, body)
        self.admit(exchange, project)
        serving = self.serving(project, exchange.caller)
        key, given = _one_of(body, "embeddings", "inputs")
        exchange.headers = batch_headers(project, serving.version)
        if type(given) is not list:
            raise InvalidRequest(f"{key!r} should be an array.", param=key)
        if len(given) > self.services.settings.server.max_batch_rows:
            most = self.services.settings.server.max_batch_rows
            raise TooManyRows(f"{key!r} has {len(given)} rows; the limit is {most}.", param=key)
        labels: list[str | None] = []
        words: list[str] = []
        counts: Counter[tuple[Lane, Reason | None]] = Counter()
        with exchange.watched():
            for part in _parts(given, key, serving):
                for found in await self._decide_part(exchange, serving, part):
                    decision = _shown(exchange, found)
                    labels.append(serving.said(decision.label))
                    words.append(decision.word)
                    counts[decision.lane, decision.reason] += 1
        for (lane, reason), n in counts.items():
            self.count(project, lane, reason or "", n)
        handled = [label is not None for label in labels]
        await answer_json(exchange, {"labels": labels, "decisions": words, "handled": handled})

    async def _decide_part(self, exchange: Exchange, serving: Serving, values: Sequence[Value]) -> list[Decision]:
        policy = serving.policy
        texts = [value if isinstance(value, str) else None for value in values]
        long = len(values) > _ROWS_ON_LOOP or sum(len(text or "") for text in texts) > LONG_CHARS
        if policy is None or not (long or policy.slow):
            return [self.here(exchange, serving, value) for value in values]
        reasons = [self.unscored(exchange, serving, text) for text in texts]
        asked = [value for value, reason in zip(values, reasons, strict=True) if reason is None]
        found = iter(await self.services.decider.decide_rows(serving, asked, exchange.control.agreement))
        return [next(found) if reason is None else deferred(serving, reason) for reason in reasons]


def _shown(exchange: Exchange, decision: Decision) -> Decision:
    """The decision as its caller is to see it: `x-tracer-mode: shadow` answers nothing."""
    shadow = exchange.control.mode is Mode.SHADOW and decision.label is not None
    return decision.put_off(Reason.ASKED) if shadow else decision


def project_of(services: Services, exchange: Exchange, body: dict[str, Any]) -> str:
    """The project a decision call is about: `project` in the body, the header, or the one served by default."""
    named = body.get("project", exchange.control.project)
    if named is None:
        named = services.settings.project_served()
        if named is None:
            raise InvalidRequest("Several projects are served: name one as 'project'.", param="project")
    if type(named) is not str:
        raise InvalidRequest("'project' should be a string.", param="project")
    return services.recogniser.named(named, "project")


def _one_of(body: dict[str, Any], *keys: str) -> tuple[str, Any]:
    given = [key for key in keys if body.get(key) is not None]
    if len(given) != 1:
        raise InvalidRequest(f"Give one of {' and '.join(map(repr, keys))}.", param=keys[0])
    return given[0], body[given[0]]


def _text(value: Any, key: str) -> str:
    if type(value) is not str:
        raise InvalidRequest(f"{key!r} should hold text.", param=key)
    return value


def _parts(given: list[Any], key: str, serving: Serving) -> Iterator[Sequence[Value]]:
    """The texts or embeddings of a batch, as many at a time as are read in about a millisecond."""
    if key == "inputs":
        texts = [_text(item, key) for item in given]
        yield from (texts[i : i + _ROWS_AT_ONCE] for i in range(0, len(texts), _ROWS_AT_ONCE))
        return
    lengths = {len(row) if type(row) is list else -1 for row in given}
    if len(lengths) > 1 or lengths == {-1}:
        raise InvalidRequest(f"{key!r} should hold numbers, equally many a row.", param=key)
    at_once = max(1, min(_ROWS_AT_ONCE, _NUMBERS_AT_ONCE // max(lengths, default=1) or 1))
    for i in range(0, max(1, len(given)), at_once):
        yield list(_rows(given[i : i + at_once], key, serving))


def _rows(given: list[Any], key: str, serving: Serving) -> NDArray[np.float32]:
    """Embeddings of shape (n, d), checked against the served policy."""
    policy = serving.policy
    if policy is not None and policy.certified and policy.input_kind != "embedding":
        raise InvalidRequest("The served policy reads text: give 'input', not an embedding.", param=key)
    try:
        rows = np.asarray(given, dtype=np.float32) if given else np.empty((0, 0), np.float32)
    except (TypeError, ValueError):
        rows = np.empty(0, np.float32)
    if rows.ndim != 2:
        raise InvalidRequest(f"{key!r} should hold numbers, equally many a row.", param=key)
    if not np.isfinite(rows).all():
        raise InvalidRequest(f"{key!r} should hold finite numbers.", param=key)
    expected = None if policy is None else policy.embedding_dim
    if given and expected is not None and rows.shape[1] != expected:
        message = f"Embedding dimension mismatch: the served policy reads {expected} numbers, found {rows.shape[1]}."
        raise InvalidRequest(message, param=key)
    return rows
