"""Reading: from traces to feature blocks, stage by stage, and to what a served graph is fed."""

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from numpy.typing import NDArray

from policies.blocks import (
    Features,
    Floats,
    Scaling,
    Vocabulary,
    fit_scaling,
    fit_vocabulary,
    given_features,
    text_features,
)
from policies.encoders import Encoder, EndpointEncoder, TransformerEncoder
from policies.endpoint_encoder import API_KEY_VARIABLE
from policies.errors import FitError
from policies.features import MAX_CHARS, TextEncoder, Tokens, text_inputs
from policies.settings import EncoderSpec, FeatureSpec
from policies.static_table import StaticTable, load_static_table
from policies.types import Trace


@dataclass(frozen=True)
class StageReader:
    """How one stage's graph turns its inputs into features.

    Text stages read token ids (`table`, and `vocabulary` unless there is no lexical block; `static` says whether word
    vectors are a block), an encoder's vector of `vector_size` numbers (0: none), or both. A stage with `scaling` reads
    the user's embedding instead.
    """

    table: StaticTable | None = None
    vocabulary: Vocabulary | None = None
    static: bool = False
    vector_size: int = 0
    scaling: Scaling | None = None


@dataclass(frozen=True)
class StageInput:
    """One stage: what it reads, and its features of all traces. `encoded`: whether it needs the encoder's vector."""

    reader: StageReader
    features: Features
    encoded: bool


@dataclass(frozen=True)
class Reading:
    """All traces, read. `stages` cheapest first; `readable` (n,) rows with features; `near` (n, d) unit rows by whose
    cosine near-duplicates are found; `vectors` (n, d) the encoder's; `embeddings` (n, d) the user's."""

    stages: tuple[StageInput, ...]
    readable: NDArray[np.bool_]
    near: Floats
    identity: dict[str, object]
    tokens: Tokens | None = None
    tokenizer_json: bytes | None = None
    encoder: Encoder | None = None
    vectors: Floats | None = None
    embeddings: Floats | None = None

    @property
    def words(self) -> NDArray[np.float16] | None:
        """The table of word vectors, (V, d), where any stage reads it."""
        readers = (stage.reader for stage in self.stages)
        return next((reader.table.vectors for reader in readers if reader.static and reader.table is not None), None)

    def graph_input(self, row: int, stage: StageInput) -> Mapping[str, NDArray[Any]]:
        """What a stage's graph is fed for one trace."""
        if self.embeddings is not None:
            return {"embedding": self.embeddings[row]}
        found: dict[str, NDArray[Any]] = {}
        if self.tokens is not None:
            table, vocabulary = stage.reader.table, stage.reader.vocabulary
            assert table is not None  # noqa: S101 - tokens come from the table's tokenizer
            found |= text_inputs(self.tokens.row(row), None if vocabulary is None else len(table.vectors))
            if stage.reader.static:
                found["words"] = table.vectors
        if stage.encoded and self.vectors is not None:
            found["vector"] = self.vectors[row]
        return found


def read_given(embeddings: Floats) -> Reading:
    """The user's embeddings, (n, d)."""
    scaling = fit_scaling(embeddings)
    features = given_features(embeddings, scaling)
    norms = np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-9)
    stage = StageInput(StageReader(scaling=scaling), features, encoded=False)
    readable = np.ones(len(embeddings), np.bool_)
    identity: dict[str, object] = {"spec": "given", "dimensions": embeddings.shape[1]}
    return Reading((stage,), readable, embeddings / norms, identity, embeddings=embeddings)


def read_texts(
    traces: list[Trace],
    spec: FeatureSpec,
    cascade: bool,
    on_encoded: Callable[[float], None],
    encoder: Encoder | None = None,
) -> Reading:
    """The blocks of `spec` of every trace's text.

    An encoder beside cheap blocks makes a second stage unless `cascade` is False, which puts all blocks into one.
    `on_encoded` is called with the share of texts encoded; `encoder` takes the place of the one the spec names. Raises
    FitError.
    """
    # Tokens are also what near-duplicates are found by, so they are read whatever the spec.
    table = load_static_table(spec.static_folder)
    try:
        tokenizer = TextEncoder(table.tokenizer_json)
    except ValueError as error:
        raise FitError(f"static table {table.name}: {error}") from error
    texts = [trace.input if len(trace.input) <= MAX_CHARS else "" for trace in traces]
    tokens = tokenizer.encode_many(texts)
    if tokens.ids.max(initial=0) >= len(table.vectors):
        raise FitError(f"static table {table.name}: its tokenizer gives ids beyond its {len(table.vectors)} rows")
    vocabulary = fit_vocabulary(tokens, len(table.vectors)) if spec.lexical else None
    features = text_features(tokens, table, vocabulary, spec.static)
    near = features.dense if spec.static else text_features(tokens, table, None).dense
    identity: dict[str, object] = {"spec": str(spec)} | _table_identity(table, vocabulary)
    reader = StageReader(table, vocabulary, spec.static)
    cheap = [StageInput(reader, features, encoded=False)] if spec.lexical or spec.static else []
    readable = tokens.counts > 0
    if spec.encoder is None:
        return Reading(tuple(cheap), readable, near, identity, tokens, table.tokenizer_json)
    encoder = encoder or open_encoder(spec.encoder)
    vectors = _encode(encoder, texts, on_encoded)
    both = StageReader(table, vocabulary, spec.static, vectors.shape[1])
    full = StageInput(both, features.beside(vectors), encoded=True)
    stages = (*cheap, full) if cascade else (full,)
    identity["encoder"] = encoder.identity
    return Reading(stages, readable, near, identity, tokens, table.tokenizer_json, encoder, vectors)


def open_encoder(spec: EncoderSpec) -> Encoder:
    """The encoder a spec names. The endpoint's key, if it needs one, is in TRACER_EMBEDDINGS_API_KEY.

    Raises FitError where there is none at that place.
    """
    if spec.kind == "transformer":
        return TransformerEncoder.from_folder(Path(spec.where))
    url, _, model = spec.where.partition("#")
    if not url.startswith(("http://", "https://")):
        raise FitError(f"endpoint:{spec.where}: write endpoint:https://HOST/v1/embeddings#MODEL")
    # Servers of one model take any name; the others say that they know no such model.
    return EndpointEncoder(url, model or "default", os.environ.get(API_KEY_VARIABLE))


def _encode(encoder: Encoder, texts: list[str], on_encoded: Callable[[float], None]) -> Floats:
    try:
        return encoder.encode_many(texts, lambda done: on_encoded(done / len(texts)), threads=joblib.cpu_count())
    except (ConnectionError, ValueError) as error:
        raise FitError(str(error)) from error


def _table_identity(table: StaticTable, vocabulary: Vocabulary | None) -> dict[str, object]:
    return {
        "n_tokens": len(table.vectors),
        "n_lexical": 0 if vocabulary is None else vocabulary.size,
        "static_table": table.name,
        "static_table_sha256": table.sha256,
        "tokenizer_sha256": hashlib.sha256(table.tokenizer_json).hexdigest(),
    }
