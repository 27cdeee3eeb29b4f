"""Vectors from an OpenAI-compatible `/v1/embeddings` endpoint, over connections that stay open."""

import os
import ssl
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import SplitResult, urlsplit

import numpy as np
import orjson

from policies.encoding import DimensionError, Progress, Vectors, clean, encode_chunks, silent, unit
from policies.errors import FitError

API_KEY_VARIABLE = "TRACER_EMBEDDINGS_API_KEY"
_BATCH = 64
_PAUSES_SECONDS = (0.1, 0.5)
_PIECE_BYTES = 65_536
_MAX_ANSWER_BYTES = 2**28
_PROBE_TEXT = "a"


class EndpointEncoder:
    """An embedding model behind a URL. Safe to use from several threads."""

    def __init__(
        self,
        url: str,
        model: str,
        api_key: str | None = None,
        timeout: float = 30.0,
        *,
        dimensions: int | None = None,
    ) -> None:
        """`url` is the base URL or that of /embeddings. Asks nothing; `dimensions` are asked for when first needed.

        `timeout`, in seconds, bounds a call with all its tries. Raises FitError for a URL that is not http or https or
        carries a password, and for a key no header can carry.
        """
        self._parts = _endpoint(url)
        self.url = self._parts.geturl()
        self._model, self._timeout, self._dimensions = model, timeout, dimensions
        self._headers = _headers(api_key)
        self._secret = (api_key or "").strip()
        # Reading the CA bundle takes tens of milliseconds: once, not for every connection.
        self._tls = ssl.create_default_context() if self._parts.scheme == "https" else None
        self._lock = threading.Lock()
        self._idle: list[HTTPConnection] = []
        self._finalizer = weakref.finalize(self, _close_all, self._idle)

    @classmethod
    def from_recipe(cls, recipe: Mapping[str, Any]) -> "EndpointEncoder":
        """From what `files()` keeps; the key comes from the environment. Raises ValueError where damaged."""
        url, model, dimensions = (recipe.get(name) for name in ("url", "model", "dimensions"))
        if not isinstance(url, str) or not isinstance(model, str) or type(dimensions) is not int or dimensions < 1:
            raise ValueError("encoder.json: not the recipe of an endpoint encoder")
        try:
            return cls(url, model, os.environ.get(API_KEY_VARIABLE), dimensions=dimensions)
        except FitError as error:
            raise ValueError(f"encoder.json: {error}") from error

    def within(self, seconds: float) -> "EndpointEncoder":
        """The same endpoint over connections of its own, where a call takes at most so long with all its tries."""
        timeout = min(seconds, self._timeout)
        return EndpointEncoder(self.url, self._model, self._secret, timeout, dimensions=self._dimensions)

    @property
    def dimensions(self) -> int:
        """Length d of a vector; asks the endpoint where that is not known yet. Raises as `encode` does."""
        if self._dimensions is None:
            self._rows([_PROBE_TEXT])
        assert self._dimensions is not None  # noqa: S101 - a call that returns has set it
        return self._dimensions

    @property
    def identity(self) -> dict[str, object]:
        """What decides the vectors, as JSON; never the key."""
        return {
            "kind": "endpoint",
            "url": self.url,
            "model": self._model,
            "dimensions": self.dimensions,
            "normalize": True,
        }

    @property
    def at_once(self) -> int:
        """Texts of one request, when traces are read and when calls are served."""
        return _BATCH

    def encode(self, text: str) -> Vectors:
        """The unit vector of one text, (d,); of white space, zeros, without a call.

        Raises ConnectionError where the endpoint cannot be reached, is overloaded or does not answer in time, and
        ValueError where it refuses or gives something else than finite vectors of one length: DimensionError where they
        are of another length than before.
        """
        vector: Vectors = self._rows([text])[0]
        return vector

    def encode_many(self, texts: Sequence[str], on_done: Progress = silent, threads: int = 1) -> Vectors:
        """The unit vectors of `texts`, (n, d), asked for 64 at a time. Raises as `encode` does."""
        out = np.empty((len(texts), self.dimensions), np.float32)
        return encode_chunks(self._rows, texts, out, _BATCH, on_done, threads)

    def files(self) -> dict[str, bytes]:
        """Only encoder.json: the identity."""
        return {"encoder.json": orjson.dumps(self.identity, option=orjson.OPT_INDENT_2)}

    def close(self) -> None:
        """Close the idle connections; a later call opens new ones."""
        _close_all(self._idle)

    def _rows(self, texts: Sequence[str]) -> Vectors:
        # Endpoints refuse empty texts.
        asked = [i for i, text in enumerate(texts) if text and not text.isspace()]
        if not asked:
            return np.zeros((len(texts), self.dimensions), np.float32)
        payload = {"model": self._model, "input": [clean(texts[i]) for i in asked], "encoding_format": "float"}
        answer = self._post(orjson.dumps(payload))
        try:
            vectors = _vectors(answer, len(asked))
        except ValueError as error:
            raise ValueError(f"embedding endpoint {self.url}: {error}") from error
        self._expect(vectors.shape[1])
        rows = np.zeros((len(texts), vectors.shape[1]), np.float32)
        rows[asked] = vectors
        return rows

    def _expect(self, dimensions: int) -> None:
        with self._lock:
            if self._dimensions is None:
                self._dimensions = dimensions
            if dimensions != self._dimensions:
                raise DimensionError(
                    f"embedding endpoint {self.url}: gave {dimensions} dimensions where {self._dimensions} are expected"
                )

    def _post(self, payload: bytes) -> bytes:
        """The body of a 200. Overload and a broken connection are tried twice more, all within the timeout."""
        deadline = time.monotonic() + self._timeout
        for pause in (*_PAUSES_SECONDS, None):
            try:
                status, body = self._exchange(payload, deadline)
            except TimeoutError as error:
                raise ConnectionError(f"embedding endpoint {self.url}: no answer in {self._timeout:g} s") from error
            except (OSError, HTTPException) as error:
                problem = f"no connection ({str(error) or type(error).__name__})"
            else:
                if status == 200:
                    return body
                if status != 429 and status < 500:
                    raise ValueError(f"embedding endpoint {self.url}: answered {status}{self._reason(status, body)}")
                problem = f"answered {status}"
            if pause is None or time.monotonic() + pause >= deadline:
                break
            time.sleep(pause)
        raise ConnectionError(f"embedding endpoint {self.url}: {problem}")

    def _exchange(self, payload: bytes, deadline: float) -> tuple[int, bytes]:
        """(status, body) of one request, on an idle connection where one still lives."""
        while True:
            try:
                connection, fresh = self._idle.pop(), False
            except IndexError:
                connection, fresh = self._connection(), True
            try:
                status, body, keep = self._ask(connection, payload, deadline)
            except TimeoutError:
                connection.close()
                raise
            except (OSError, HTTPException):
                connection.close()
                if fresh:
                    raise
                continue  # the server had closed it while idle: no failure
            except BaseException:
                connection.close()
                raise
            if keep:
                self._idle.append(connection)
            else:
                connection.close()
            return status, body

    def _ask(self, connection: HTTPConnection, payload: bytes, deadline: float) -> tuple[int, bytes, bool]:
        connection.timeout = _left(deadline)
        if connection.sock is None:
            connection.connect()
        path = self._parts.path + (f"?{self._parts.query}" if self._parts.query else "")
        connection.sock.settimeout(_left(deadline))
        connection.request("POST", path, payload, self._headers)
        # getresponse takes the socket away from a connection that will close.
        sock = connection.sock
        with connection.getresponse() as response:
            body = bytearray()
            while not response.isclosed():
                sock.settimeout(_left(deadline))
                piece = response.read1(_PIECE_BYTES)
                if not piece:
                    break
                body += piece
                if len(body) > _MAX_ANSWER_BYTES:
                    raise HTTPException("the answer is too long")
            if response.length:
                raise HTTPException("the answer was cut off")
            return response.status, bytes(body), not response.will_close

    def _connection(self) -> HTTPConnection:
        host, port = self._parts.hostname or "", self._parts.port
        if self._tls is not None:
            return HTTPSConnection(host, port, context=self._tls)
        return HTTPConnection(host, port)

    def _reason(self, status: int, body: bytes) -> str:
        """The endpoint's own words, where they cannot be about the key."""
        if status in {401, 403}:
            return f": is {API_KEY_VARIABLE} right?"
        try:
            message = orjson.loads(body)["error"]["message"]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            return ""
        words = " ".join(str(message).split())
        return f": {words.replace(self._secret, '***') if self._secret else words}"[:300]


def _endpoint(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable or not url.isascii() or not url.isprintable() or " " in url:
        raise FitError(f"an embedding endpoint is an http or https URL, got {url!r}")
    if parts.username is not None or parts.password is not None:
        raise FitError(f"the URL of an embedding endpoint holds no password: set {API_KEY_VARIABLE}")
    path = parts.path.rstrip("/")
    return parts._replace(path=path if path.endswith("/embeddings") else f"{path}/embeddings", fragment="")


def _headers(api_key: str | None) -> dict[str, str]:
    key = (api_key or "").strip()
    # http.client would print a key that it cannot send.
    if not key.isascii() or (key and not key.isprintable()):
        raise FitError(f"{API_KEY_VARIABLE} holds characters that no header can carry")
    known = {"Content-Type": "application/json", "Accept": "application/json"}
    return known | {"Authorization": f"Bearer {key}"} if key else known


def _vectors(answer: bytes, n: int) -> Vectors:
    """(n, d) unit vectors from the OpenAI form, put in the order of `index`."""
    try:
        data = orjson.loads(answer)["data"]
        by_index = {item["index"]: item["embedding"] for item in data}
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError("the answer is not an OpenAI list of embeddings") from error
    if len(data) != n or by_index.keys() != set(range(n)):
        raise ValueError(f"gave {len(data)} embeddings, or wrong indices, for {n} texts")
    try:
        with np.errstate(over="ignore"):
            matrix = np.asarray([by_index[i] for i in range(n)], np.float32)
    except (ValueError, TypeError) as error:
        raise ValueError("the embeddings are not numbers, or not of one length") from error
    if matrix.ndim != 2 or matrix.shape[1] == 0:
        raise ValueError("an embedding is not a list of numbers")
    return unit(matrix)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _close_all(connections: list[HTTPConnection]) -> None:
    while connections:
        connections.pop().close()
