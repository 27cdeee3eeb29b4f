"""The Python face of a policy: `load_router(folder).predict(...)`, with the shapes users of `tracer-llm` know."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from policies.artifact import Manifest
from policies.embedder import Embedder
from policies.policy import Policy
from policies.types import LocalDecision


class Router:
    """Routes inputs through one loaded policy."""

    def __init__(self, policy: Policy, embedder: Embedder | None = None) -> None:
        self.policy = policy
        self.embedder = embedder

    @property
    def manifest(self) -> Manifest:
        """The policy's manifest."""
        return self.policy.manifest

    def predict(self, input: str | ArrayLike, fallback: Callable[[], Any] | None = None) -> dict[str, Any]:  # noqa: A002
        """Decide on one text, or on one embedding of shape (d,).

        Returns `label` (the teacher's answer, a tool's label; None when deferred), `decision` ("handled" or
        "deferred"), `accept_score` and `stage`. With `fallback`, a deferred call's label is what `fallback()` returns.
        Raises ValueError where the policy reads embeddings and gets text without an embedder, or an embedding of
        another dimension.
        """
        decision = self.policy.decide(self._prepared([input])[0])
        label = self._said(decision) if decision.handled or fallback is None else fallback()
        return {
            "label": label,
            "decision": _word(decision),
            "accept_score": decision.accept_score,
            "stage": decision.stage,
        }

    def predict_batch(self, inputs: Sequence[str] | ArrayLike) -> dict[str, Any]:
        """Decide on n texts, or on (n, d) embeddings.

        Returns lists `labels` (as `predict` gives them) and `decisions`, and arrays `handled` (bool), `accept_scores`,
        `preds` (label index, -1 when deferred) and `stage_id`.
        """
        rows = list(inputs)  # type: ignore[arg-type]
        decisions = self.policy.decide_many(self._prepared(rows))
        index = {label: i for i, label in enumerate(self.policy.labels)}
        return {
            "labels": [self._said(decision) for decision in decisions],
            "decisions": [_word(decision) for decision in decisions],
            "handled": np.array([decision.handled for decision in decisions], np.bool_),
            "accept_scores": np.array([decision.accept_score for decision in decisions]),
            "preds": np.array([-1 if d.label is None else index[d.label] for d in decisions], np.int64),
            "stage_id": np.array([decision.stage for decision in decisions], np.int64),
        }

    def _said(self, decision: LocalDecision) -> str | None:
        return None if decision.label is None else self.policy.said(decision.label)

    def _prepared(self, rows: list[Any]) -> list[str] | NDArray[np.float32]:
        if not rows:
            return []
        if not isinstance(rows[0], str):
            return np.asarray(rows, dtype=np.float32)
        if self.policy.input_kind == "text" or not self.policy.certified:
            return rows
        if self.embedder is None:
            raise ValueError(
                "this policy reads embeddings: pass one, or load_router(folder, embedder=tracer.Embedder(...))"
            )
        return self.embedder.embed(rows)


def load_router(artifact_dir: str | Path = ".tracer", embedder: Embedder | None = None) -> Router:
    """The policy in `artifact_dir`, ready to use. A refused policy defers every input.

    Raises PolicyMissing or PolicyDamaged.
    """
    return Router(Policy.load(artifact_dir), embedder)


def _word(decision: LocalDecision) -> str:
    return "handled" if decision.handled else "deferred"
