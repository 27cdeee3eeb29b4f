"""Text to embeddings by something of the user's: a function, an HTTP endpoint, or sentence-transformers."""

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import orjson
from numpy.typing import ArrayLike, NDArray

EmbedFunction = Callable[[list[str]], ArrayLike]
_TIMEOUT_SECONDS = 30.0


class Embedder:
    """Wraps a function from n texts to an array of shape (n, d)."""

    def __init__(self, fn: EmbedFunction) -> None:
        self._fn = fn

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embeddings of `texts`, (n, d). Raises ValueError where the function returns another number of rows."""
        matrix = np.asarray(self._fn(list(texts)), dtype=np.float32)
        if matrix.ndim != 2 or len(matrix) != len(texts):
            raise ValueError(f"the embedder returned shape {matrix.shape} for {len(texts)} texts")
        return matrix

    def embed_one(self, text: str) -> NDArray[np.float32]:
        """Embedding of one text, (d,)."""
        return np.asarray(self.embed([text])[0])

    @classmethod
    def from_callable(cls, fn: EmbedFunction) -> "Embedder":
        """From any function of a list of texts."""
        return cls(fn)

    @classmethod
    def from_sentence_transformers(
        cls, model: str = "all-MiniLM-L6-v2", device: str | None = None, batch_size: int = 128, normalize: bool = True
    ) -> "Embedder":
        """From a sentence-transformers model, by name or path. Raises ImportError where the package is missing."""
        try:
            package = import_module("sentence_transformers")
        except ImportError as error:
            raise ImportError("sentence-transformers is not installed: pip install sentence-transformers") from error
        encoder = package.SentenceTransformer(model, device=device)

        def embed(texts: list[str]) -> ArrayLike:
            found: ArrayLike = encoder.encode(
                texts, batch_size=batch_size, normalize_embeddings=normalize, show_progress_bar=False
            )
            return found

        return cls(embed)

    @classmethod
    def from_endpoint(
        cls,
        url: str,
        headers: dict[str, str] | None = None,
        input_key: str = "input",
        output_key: str = "embedding",
        batch_key: str | None = None,
        batch_output_key: str | None = None,
    ) -> "Embedder":
        """From an HTTP endpoint: one request a text, or one for all where `batch_key` is given.

        Raises ValueError for a URL that is not http or https.
        """
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"an embedding endpoint is an http or https URL, got {url!r}")
        sent_headers = {"Content-Type": "application/json", **(headers or {})}

        def ask(payload: dict[str, Any]) -> dict[str, Any]:
            request = Request(url, data=orjson.dumps(payload), headers=sent_headers, method="POST")  # noqa: S310 - checked above
            with urlopen(request, timeout=_TIMEOUT_SECONDS) as response:  # noqa: S310
                answer: dict[str, Any] = orjson.loads(response.read())
                return answer

        def embed(texts: list[str]) -> ArrayLike:
            if batch_key is not None:
                found: ArrayLike = ask({batch_key: texts})[batch_output_key or output_key]
                return found
            return [ask({input_key: text})[output_key] for text in texts]

        return cls(embed)
