"""A policy loaded for use: one `decide` for one input, the same one for many."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, isnan
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from policies.artifact import Manifest, StageEntry, read_file, read_manifest
from policies.calibration import calibrated, jointly
from policies.encoders import DimensionError, Encoder, EndpointEncoder, load_encoder
from policies.errors import PolicyChanged, PolicyDamaged
from policies.features import TextEncoder, text_inputs
from policies.ladder import Ladder, Limits, limit
from policies.probes import ENCODED, EXACT, GAP_MOVES, GUARD_MOVES, Examined, Probe, difference, read_probes
from policies.session import check_words, open_session, run_fully, run_session
from policies.types import Answer, AnswerKind, LocalDecision, Reason
from policies.word_table import Words, load_words

logger = logging.getLogger(__name__)

Embedding = NDArray[np.float32]

# What a probe waits for an endpoint: a policy is loaded while calls wait for it.
_PROBE_SECONDS = 2.0

_Read = tuple[str, list[int]]

_REFUSED = LocalDecision(None, False, 0.0, Reason.REFUSED)
_EMPTY = LocalDecision(None, False, 0.0, Reason.EMPTY)
_TOO_LONG = LocalDecision(None, False, 0.0, Reason.TOO_LONG)
_TEMPLATE = LocalDecision(None, False, 0.0, Reason.TEMPLATE)
_NO_EMBEDDING = LocalDecision(None, False, 0.0, Reason.NO_EMBEDDING)
_MIN_AGREEMENT = LocalDecision(None, False, 0.0, Reason.MIN_AGREEMENT)

_CHANGED = "the policy no longer decides as it did when it was certified: the tokenizer, encoder or runtime has changed"


@dataclass(frozen=True, slots=True)
class _Stage:
    """`heads`: a session a field of the answer, and the guard value to reach."""

    entry: StageEntry
    heads: list[tuple[onnxruntime.InferenceSession, float]]


class Policy:
    """An immutable snapshot of a version of a policy folder. Safe to use from many threads."""

    def __init__(
        self,
        manifest: Manifest,
        graphs: Mapping[str, bytes],
        tokenizer: TextEncoder | None = None,
        encoder: Encoder | None = None,
        words: Words | None = None,
        probes: Sequence[Probe] = (),
    ) -> None:
        """Use `load`. `graphs` maps each head's role to its graph; a refused policy has none and defers everything.
        `words` is the table of word vectors (V, d), where a stage reads it; `probes` is what `probe` compares."""
        self.manifest = manifest
        self.version = manifest.version
        self.labels = tuple(manifest.labels)
        self.answers = manifest.answers.answers
        self.knows_tools = any(answer.kind is AnswerKind.TOOL for answer in self.answers.values())
        self.certified = not manifest.certificate.refused
        self.input_kind = manifest.input_kind
        self.embedding_dim = manifest.embedding_dim
        self.threshold = limit(manifest.threshold)
        self._words = words
        self._stages = [
            _Stage(entry, [(open_session(graphs[head.model]), head.guard_threshold) for head in entry.heads])
            for entry in manifest.stages
        ]
        for stage in self._stages:
            for session, _ in stage.heads:
                check_words(session, words if stage.entry.words else None)
        rows = _combinations(manifest)
        self._label_of = {tuple(row): i for i, row in enumerate(rows) if row}
        width = max(map(len, rows), default=0)
        self._classes = np.array([row or [-1] * width for row in rows], np.int64)
        self._input_form = manifest.input_form
        self._tokenizer = tokenizer
        self._encoder = encoder
        self._probes = tuple(probes)
        self._limits = Limits.of(self.labels, [entry.threshold for entry in manifest.stages], manifest.protected)
        stricter = [(row.target, Limits.of(self.labels, row.thresholds, row.protected)) for row in manifest.frontier]
        self._ladder = Ladder(manifest.certificate.target, self._limits, stricter)
        self.rungs = self._ladder.rungs if self._stages else ()
        """The agreements that it can be held to, loosest first; none where the gate refused.

        The certificate's target, and each certified target of the frontier above it that has other thresholds than the
        one before. `decide(text, rung)` goes by them. Of a policy of one stage, what a stricter one answers a looser
        one does, too.
        """

    @classmethod
    def load(cls, path: str | Path, version: str | None = None) -> "Policy":
        """Read and verify the served version in `path`, or any other `version` that is kept there.

        Raises PolicyMissing where there is none, PolicyDamaged, and PolicyChanged where `probe` finds a difference. An
        endpoint that cannot be asked is no reason not to load: what needs it cannot be answered anyway.
        """
        policy = cls._read_from(path, read_manifest(path, version))
        try:
            changed = policy.probe()
        except ConnectionError as error:
            logger.warning("policy %s in %s is used without having been tried: %s", policy.version, path, error)
            return policy
        if changed is not None:
            raise PolicyChanged(f"{path}: {changed}")
        return policy

    @classmethod
    def _read_from(cls, path: str | Path, manifest: Manifest) -> "Policy":
        if manifest.certificate.refused:
            return cls(manifest, {})
        roles = [head.model for entry in manifest.stages for head in entry.heads]
        graphs = {role: read_file(path, manifest, role) for role in roles}
        tokenizer = None
        if any(entry.tokens for entry in manifest.stages):
            try:
                tokenizer = TextEncoder.shared(read_file(path, manifest, "tokenizer"))
            except ValueError as error:
                raise PolicyDamaged(f"{path}: tokenizer.json: {error}") from error
        words = load_words(path, manifest) if any(entry.words for entry in manifest.stages) else None
        try:
            probes = read_probes(read_file(path, manifest, "probes"), of_texts=manifest.input_kind == "text")
        except ValueError as error:
            raise PolicyDamaged(f"{path}: probes.json: {error}") from error
        return cls(manifest, graphs, tokenizer, read_encoder(path, manifest), words, probes)

    def label_of(self, answer: Answer) -> str | None:
        """Which label a teacher's answer is; None where it is none of them."""
        return self.manifest.answers.label_of(answer)

    def said(self, label: str) -> str:
        """A label as the teacher says it: its text to the character, JSON included; the label's own name for a tool."""
        answer = self.answers[label]
        return answer.text if answer.kind is AnswerKind.TEXT else label

    @property
    def slow(self) -> bool:
        """Whether some inputs need an encoder: milliseconds, or a call over the network, instead of microseconds."""
        return self._encoder is not None

    @property
    def at_once(self) -> int:
        """How many texts the encoder takes in about the time of one."""
        return 1 if self._encoder is None else self._encoder.at_once

    @property
    def remote(self) -> bool:
        """Whether what it decides by lies behind a URL, and may become another while it is in use (see `probe`)."""
        return isinstance(self._encoder, EndpointEncoder)

    def probe(self) -> str | None:
        """What the policy no longer says of its probes as it did when it was certified; None where all is as it was.

        Takes up to 16 decisions: microseconds each, milliseconds with an encoder, one request to an endpoint. A policy
        of embeddings of more than 8,192 dimensions has no probes, and one that was refused has nothing to compare.
        Raises ConnectionError where an endpoint gives no vectors within two seconds.
        """
        try:
            now = self._said_of_probes()
        except DimensionError as error:
            return f"{_CHANGED} ({error})"
        except ValueError as error:
            if self.remote:
                # A key, a quota, a page of a proxy: it has not said anything of the texts.
                raise ConnectionError(str(error)) from error
            return f"{_CHANGED} ({error})"
        pairs = zip(self._probes, now, strict=True)
        found = next(filter(None, (difference(probe, *said) for probe, said in pairs)), None)
        return None if found is None else f"{_CHANGED} ({found})"

    def _said_of_probes(self) -> list[tuple[list[int] | None, LocalDecision]]:
        """Tokens and decision of each probe, come to as a gateway does."""
        if self.input_kind == "embedding":
            return [(None, self.decide(np.array(probe.input, np.float32))) for probe in self._probes]
        texts = [str(probe.input) for probe in self._probes]
        quick = [self.decide_quickly(text) for text in texts]
        asked: list[tuple[str, float | None]] = [
            (text, None) for text, decision in zip(texts, quick, strict=True) if decision is None
        ]
        encoder = self._encoder
        if asked and isinstance(encoder, EndpointEncoder):
            encoder = encoder.within(_PROBE_SECONDS)
        encoded = iter(self._decide_encoded(asked, encoder))
        decisions = [next(encoded) if decision is None else decision for decision in quick]
        return [(self._tokens_of(text), decision) for text, decision in zip(texts, decisions, strict=True)]

    def _tokens_of(self, text: str) -> list[int] | None:
        read = self._read(text)
        return None if isinstance(read, LocalDecision) else read[1]

    def examine(self, input: str | Embedding, vector: Embedding | None = None) -> Examined | None:  # noqa: A002
        """`decide`, and how far it was from going another way; None where nothing is scored.

        `vector` is the encoder's of a text, where it is known. It is slower than `decide`: for choosing probes.
        """
        given = None if isinstance(input, str) else {"embedding": np.ascontiguousarray(input, np.float32)}
        read = self._read(input) if isinstance(input, str) else ("", [])
        if isinstance(read, LocalDecision) or not self._stages:
            return None
        slack, last = inf, len(self._stages) - 1
        for number, stage in enumerate(self._stages):
            inputs: Mapping[str, NDArray[Any]] = given or self._inputs(number, read, vector)
            decision = self._judge(number, inputs, self._limits)
            label = None if decision.guess is None else self.labels.index(decision.guess)
            lowest, tolerance = self._limits.at(number, label), ENCODED if stage.entry.encoded else EXACT
            # The last stage's limit decides whether it is handled, and that is left open where it is near.
            moves = [] if number == last else [(decision.accept_score - lowest) / tolerance]
            for session, guarded in stage.heads:
                _, _, guard, shares = run_fully(session, inputs)
                second, first = np.sort(shares)[-2:] if len(shares) > 1 else (0.0, 1.0)
                moves += [(first - second) / (GAP_MOVES * tolerance), (guard - guarded) / (GUARD_MOVES * tolerance)]
            if any(map(isnan, moves)):
                return None
            slack = min(slack, *map(abs, moves))
            if decision.handled:
                break
        return Examined(decision, read[1] if given is None else None, lowest, tolerance, slack)

    def encodes(self, stage: int) -> bool:
        """Whether what a stage has decided (-1: none has) may have needed the encoder."""
        return self.slow and (stage < 0 or self._stages[stage].entry.encoded)

    def decide(
        self,
        input: str | Embedding,  # noqa: A002 - the house's word for it
        agreement: float | None = None,
    ) -> LocalDecision:
        """Decide on one text, or on one embedding of shape (d,).

        `agreement` asks for more than the certificate's target: the smallest certified target of the frontier that is
        at least as high then sets the thresholds, those of protected labels included; where there is none the call is
        deferred unscored.

        A target is about calls drawn like the traces: it holds for those that ask for it provided that what is asked
        for does not depend on the input. Who asks for more where a text looks hard selects the calls, and no target is
        about such a selection. The targets of the frontier hold jointly at the certificate's confidence, so callers may
        ask for different ones; that the certificate's own target holds as well is a second statement at that
        confidence (at 0.90 each, both hold at 0.80).

        Raises ValueError for an embedding of another shape than the policy's, and ConnectionError where an endpoint
        that the policy needs cannot be reached.
        """
        if not self._stages:
            return _REFUSED
        limits = self._limits if agreement is None else self._ladder.at(agreement)
        if limits is None:
            return _MIN_AGREEMENT
        if isinstance(input, str):
            return self._decide_text(input, len(self._stages), limits)
        if self.input_kind != "embedding":
            raise ValueError("this policy reads text, not embeddings")
        row = np.ascontiguousarray(input, dtype=np.float32)
        if row.shape != (self.embedding_dim,):
            raise ValueError(
                f"embedding dimension mismatch: expected {self.embedding_dim}, got {row.shape[-1] if row.ndim else 0}"
            )
        return self._judge(0, {"embedding": row}, limits)

    def probabilities(self, text: str, agreement: float | None = None) -> dict[str, float] | None:
        """How likely each label is the teacher's, the likeliest first; they add up to 1.

        By the stage that answers, else by the last one: what the surrogate says gets the accept score, the others share
        the rest in proportion to the surrogate's softmax (see `calibrated`). Where the answer has several fields, each
        is treated so, and a label's share is the product over them. None where nothing can be scored. Reads what
        `decide` reads with the same `agreement`, and raises what it raises.
        """
        limits = self._limits if agreement is None else self._ladder.at(agreement)
        read = self._read(text) if self._stages else _REFUSED
        if limits is None or isinstance(read, LocalDecision):
            return None
        for number in range(len(self._stages)):
            inputs = self._inputs(number, read)
            decision = self._judge(number, inputs, limits)
            if decision.handled:
                break
        return self._shared(number, inputs, decision)

    def decide_quickly(self, text: str, agreement: float | None = None) -> LocalDecision | None:
        """As `decide`, without an encoder: None where only that could tell."""
        if not self._stages:
            return _REFUSED
        limits = self._limits if agreement is None else self._ladder.at(agreement)
        if limits is None:
            return _MIN_AGREEMENT
        quick = sum(not stage.entry.encoded for stage in self._stages)
        if not quick:
            return None
        decision = self._decide_text(text, quick, limits)
        undecided = quick < len(self._stages) and decision.reason in (Reason.UNCERTAIN, Reason.NOVEL)
        return None if undecided else decision

    def decide_encoded(self, asked: Sequence[tuple[str, float | None]]) -> list[LocalDecision]:
        """`decide` of each text and agreement on which `decide_quickly` was None, the encoder called once for all.

        Raises as `decide` does: a text that cannot be encoded fails all.
        """
        return self._decide_encoded(asked, self._encoder)

    def _decide_encoded(
        self, asked: Sequence[tuple[str, float | None]], encoder: Encoder | None
    ) -> list[LocalDecision]:
        reads = [self._read(text) for text, _ in asked]
        texts = {i: read[0] for i, read in enumerate(reads) if not isinstance(read, LocalDecision)}
        vectors: dict[int, Embedding] = {}
        if texts and encoder is not None:
            vectors = dict(zip(texts, encoder.encode_many(list(texts.values())), strict=True))
        quick = sum(not stage.entry.encoded for stage in self._stages)
        decisions = []
        for i, ((_, agreement), read) in enumerate(zip(asked, reads, strict=True)):
            limits = self._limits if agreement is None else self._ladder.at(agreement)
            if isinstance(read, LocalDecision):
                decisions.append(read)
            elif limits is None:
                decisions.append(_MIN_AGREEMENT)
            else:
                decisions.append(self._decide_read(read, range(quick, len(self._stages)), limits, vectors.get(i)))
        return decisions

    def decide_many(self, inputs: Sequence[str] | NDArray[np.float32]) -> list[LocalDecision]:
        """`decide` of each text, or of each row of (n, d) embeddings."""
        return [self.decide(row) for row in inputs]

    def _decide_text(self, text: str, n_stages: int, limits: Limits) -> LocalDecision:
        read = self._read(text)
        if isinstance(read, LocalDecision):
            return read
        return self._decide_read(read, range(n_stages), limits)

    def _decide_read(
        self, read: _Read, stages: range, limits: Limits, vector: Embedding | None = None
    ) -> LocalDecision:
        decision = _REFUSED
        for number in stages:
            decision = self._judge(number, self._inputs(number, read, vector), limits)
            if decision.handled:
                return decision
        return decision

    def _read(self, text: str) -> _Read | LocalDecision:
        """The part of a message that is to be decided on and its tokens, or why there is nothing to score."""
        if self.input_kind != "text" or self._tokenizer is None:
            return _NO_EMBEDDING
        variable = text if self._input_form is None else self._input_form.variable(text)
        if variable is None:
            return _TEMPLATE
        if len(variable) > self.manifest.max_chars:
            return _TOO_LONG
        tokens = self._tokenizer.encode(variable)
        return (variable, tokens) if tokens else _EMPTY

    def _inputs(self, number: int, read: _Read, vector: Embedding | None = None) -> dict[str, NDArray[Any]]:
        """What a stage's graph is fed; `vector` is the encoder's, where it is known."""
        text, tokens = read
        entry = self._stages[number].entry
        inputs: dict[str, NDArray[Any]] = text_inputs(tokens, entry.n_lexical_tokens) if entry.tokens else {}
        if entry.words and self._words is not None:
            inputs["words"] = self._words
        if entry.encoded and self._encoder is not None:
            inputs["vector"] = self._encoder.encode(text) if vector is None else vector
        return inputs

    def _judge(self, number: int, inputs: Mapping[str, NDArray[Any]], limits: Limits) -> LocalDecision:
        classes, score, inside = [], 1.0, True
        for session, lowest in self._stages[number].heads:
            found, sure, guard = run_session(session, inputs)
            classes.append(found)
            score *= sure
            # Written so that a NaN fails, here and below.
            inside = inside and guard >= lowest
        label = self._label_of.get(tuple(classes))
        if label is None:
            # Each field is clear, but the teacher has never put them together; or the input is not of numbers.
            return _deferred(score, Reason.NOVEL, None)
        said = self.labels[label]
        if not inside:
            return _deferred(score, Reason.NOVEL, said)
        if not score >= limits.protected.get(label, limits.stages[number]):
            return _deferred(score, Reason.UNCERTAIN, said)
        return LocalDecision(said, True, score, None, number, said)

    def _shared(
        self, number: int, inputs: Mapping[str, NDArray[Any]], decision: LocalDecision
    ) -> dict[str, float] | None:
        """The probabilities of all labels where a stage has decided so on its inputs."""
        fields = []
        for session, _ in self._stages[number].heads:
            found, sure, _, shares = run_fully(session, inputs)
            if isnan(sure) or not np.isfinite(shares).all():
                return None
            fields.append(calibrated(shares, found, sure))
        first = None if decision.guess is None else self.labels.index(decision.guess)
        shares = jointly(fields, self._classes)
        likely = shares if first is None else calibrated(shares, first, decision.accept_score)
        # Of two that are equally likely, what the surrogate says comes first.
        order = sorted(range(len(likely)), key=lambda i: (-likely[i], i != first))
        return {self.labels[i]: float(likely[i]) for i in order}


def _deferred(score: float, reason: Reason, guess: str | None) -> LocalDecision:
    return LocalDecision(None, False, 0.0 if isnan(score) else score, reason, guess=guess)


def _combinations(manifest: Manifest) -> list[list[int]]:
    """Each label's class in each head."""
    return manifest.combinations or [[i] for i in range(len(manifest.labels))]


def read_encoder(path: str | Path, manifest: Manifest) -> Encoder | None:
    """The encoder kept in the policy folder; None where the policy has none. Raises PolicyDamaged."""
    roles = [role for role in manifest.files if role.startswith("encoder/")]
    if not roles:
        if any(entry.encoded for entry in manifest.stages):
            raise PolicyDamaged(f"{path}: a stage needs an encoder, and the manifest names none")
        return None
    files = {role.removeprefix("encoder/"): read_file(path, manifest, role) for role in roles}
    try:
        return load_encoder(files)
    except ValueError as error:
        raise PolicyDamaged(f"{path}: the encoder: {error}") from error
