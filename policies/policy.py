"""A policy loaded for use: one `decide` for one input, the same one for many."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policies.artifact import Manifest, read_file, read_manifest
from policies.errors import PolicyDamaged
from policies.features import TextEncoder, text_inputs
from policies.session import open_session, run_session
from policies.types import LocalDecision, Reason

Embedding = NDArray[np.float32]

_REFUSED = LocalDecision(None, False, 0.0, Reason.REFUSED)
_EMPTY = LocalDecision(None, False, 0.0, Reason.EMPTY)
_TOO_LONG = LocalDecision(None, False, 0.0, Reason.TOO_LONG)
_NO_EMBEDDING = LocalDecision(None, False, 0.0, Reason.NO_EMBEDDING)


class Policy:
    """An immutable snapshot of a policy folder's served version. Safe to use from many threads."""

    def __init__(self, manifest: Manifest, graph: bytes | None, encoder: TextEncoder | None) -> None:
        """Use `load`. `graph` is None for a refused policy, which defers everything."""
        self.manifest = manifest
        self.version = manifest.version
        self.labels = tuple(manifest.labels)
        self.certified = not manifest.certificate.refused
        self.input_kind = manifest.input_kind
        self.embedding_dim = manifest.embedding_dim
        # Nothing scores above infinity: without a certificate nothing is handled.
        self.threshold = float("inf") if manifest.threshold is None else manifest.threshold
        self._guard_threshold = float("inf") if manifest.guard_threshold is None else manifest.guard_threshold
        self._session = None if graph is None else open_session(graph)
        self._encoder = encoder
        n_tokens = manifest.features.get("n_tokens") if manifest.features.get("n_lexical") else None
        self._n_lexical_tokens: int | None = n_tokens

    @classmethod
    def load(cls, path: str | Path) -> "Policy":
        """Read and verify the served version in `path`. Raises PolicyMissing or PolicyDamaged."""
        manifest = read_manifest(path)
        if manifest.certificate.refused:
            return cls(manifest, None, None)
        if manifest.threshold is None or manifest.guard_threshold is None:
            raise PolicyDamaged(f"{path}: certified, but without thresholds")
        graph = read_file(path, manifest, "model")
        encoder = None
        if manifest.input_kind == "text":
            try:
                encoder = TextEncoder(read_file(path, manifest, "tokenizer"))
            except ValueError as error:
                raise PolicyDamaged(f"{path}: tokenizer.json: {error}") from error
        return cls(manifest, graph, encoder)

    def decide(self, input: str | Embedding) -> LocalDecision:  # noqa: A002 - the house's word for it
        """Decide on one text, or on one embedding of shape (d,).

        Raises ValueError for an embedding of another shape than the policy's.
        """
        if self._session is None:
            return _REFUSED
        if isinstance(input, str):
            return self._decide_text(input)
        if self.input_kind != "embedding":
            raise ValueError("this policy reads text, not embeddings")
        row = np.ascontiguousarray(input, dtype=np.float32)
        if row.shape != (self.embedding_dim,):
            raise ValueError(
                f"embedding dimension mismatch: expected {self.embedding_dim}, got {row.shape[-1] if row.ndim else 0}"
            )
        return self._judge({"embedding": row})

    def decide_many(self, inputs: Sequence[str] | NDArray[np.float32]) -> list[LocalDecision]:
        """`decide` of each text, or of each row of (n, d) embeddings."""
        return [self.decide(row) for row in inputs]

    def _decide_text(self, text: str) -> LocalDecision:
        if self._encoder is None:
            return _NO_EMBEDDING
        if len(text) > self.manifest.max_chars:
            return _TOO_LONG
        tokens = self._encoder.encode(text)
        if not tokens:
            return _EMPTY
        return self._judge(text_inputs(tokens, self._n_lexical_tokens))

    def _judge(self, inputs: Mapping[str, NDArray[Any]]) -> LocalDecision:
        label, score, guard = run_session(self._session, inputs)
        # Written so that a NaN fails both tests.
        if not guard >= self._guard_threshold:
            return LocalDecision(None, False, score if score == score else 0.0, Reason.NOVEL)  # noqa: PLR0124
        if not score >= self.threshold:
            return LocalDecision(None, False, score if score == score else 0.0, Reason.UNCERTAIN)  # noqa: PLR0124
        return LocalDecision(self.labels[label], True, score, None, 0)
