"""Text encoders for serving: a sentence-transformers ONNX export, or an endpoint.

Every text runs through the model alone. A dynamically quantised model takes its scales from the whole batch, so that in
a batch, even of texts of one length, a text would get another vector than when it is served. Little is lost: on one
core a batch of eight short texts takes four fifths of the time of the eight one after the other.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from tokenizers import Tokenizer

from policies.encoder_folder import EncoderFolder, read_encoder_folder
from policies.encoding import DimensionError, Encoder, Progress, Vectors, clean, encode_chunks, silent, unit
from policies.endpoint_encoder import EndpointEncoder
from policies.errors import FitError
from policies.token_graph import TokenGraph, one_line

__all__ = ["DimensionError", "Encoder", "EndpointEncoder", "TransformerEncoder", "load_encoder"]

_MODEL, _TOKENIZER, _RECIPE = "model.onnx", "tokenizer.json", "encoder.json"
_PROBE_TEXTS = ("", "a", "Where is my card?", "\u00e9\u4e2d 123 !")
_PROBE_TOKENS = 512
_CHUNK = 32
_POOLINGS = {"mean", "cls", "max", "own"}


@dataclass(frozen=True)
class _Recipe:
    """The identity of a transformer encoder, and all of encoder.json. `output` is the graph output that is read."""

    kind: str
    name: str
    model_sha256: str
    tokenizer_sha256: str
    dimensions: int
    pooling: str
    output: str
    prefix: str
    lower_case: bool
    max_tokens: int
    normalize: bool


class TransformerEncoder:
    """An ONNX graph from token ids to one vector a text, with its tokenizer. Safe to use from several threads."""

    def __init__(self, recipe: _Recipe, model: bytes, tokenizer_json: bytes, graph: TokenGraph) -> None:
        """`graph` is the session of `model`. `from_folder` and `from_files` are the ways in."""
        self._recipe, self._graph = recipe, graph
        self._model, self._tokenizer_json = model, tokenizer_json
        self._tokenizer = _open_tokenizer(tokenizer_json, recipe.max_tokens)

    @classmethod
    def from_folder(cls, folder: Path) -> "TransformerEncoder":
        """The encoder in a sentence-transformers-style folder (see `encoder_folder`), tried on a few texts.

        Raises FitError, in one line, where the folder holds no encoder or a tokenizer that does not match.
        """
        try:
            return cls._from_contents(read_encoder_folder(folder))
        except (ValueError, OSError) as error:
            raise FitError(f"transformer folder {folder}: {error}") from error

    @classmethod
    def _from_contents(cls, found: EncoderFolder) -> "TransformerEncoder":
        largest_id = _largest_id(_open_tokenizer(found.tokenizer, found.max_tokens), found.vocab_size)
        graph = TokenGraph(found.model)
        output, pooling, dimensions = graph.choose_output(largest_id, found.pooling)
        if found.more_modules and pooling != "own":
            raise ValueError(f"its module {found.more_modules[0]} comes after pooling and is not in the ONNX graph")
        if dimensions == found.vocab_size:
            raise ValueError(f"the model is not a text encoder: {output} scores the tokens of its vocabulary")
        recipe = _Recipe(
            kind="transformer",
            name=found.name,
            model_sha256=_sha256(found.model),
            tokenizer_sha256=_sha256(found.tokenizer),
            dimensions=dimensions,
            pooling=pooling,
            output=output,
            prefix=found.prefix,
            lower_case=found.lower_case,
            max_tokens=found.max_tokens,
            normalize=True,
        )
        encoder = cls(recipe, found.model, found.tokenizer, graph)
        encoder._probe(largest_id)
        return encoder

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> "TransformerEncoder":
        """The encoder whose `files()` these are. Raises ValueError where one is missing or altered."""
        recipe = _read_recipe(_file(files, _RECIPE))
        model, tokenizer = _file(files, _MODEL), _file(files, _TOKENIZER)
        if _sha256(model) != recipe.model_sha256 or _sha256(tokenizer) != recipe.tokenizer_sha256:
            raise ValueError(f"{_MODEL} or {_TOKENIZER} of the encoder is not the one that {_RECIPE} names")
        encoder = cls(recipe, model, tokenizer, TokenGraph(model))
        encoder.encode(_PROBE_TEXTS[1])
        return encoder

    @property
    def dimensions(self) -> int:
        """Length d of a vector."""
        return self._recipe.dimensions

    @property
    def identity(self) -> dict[str, object]:
        """What decides the vectors, as JSON."""
        return asdict(self._recipe)

    @property
    def at_once(self) -> int:
        """1: what waits gains nothing by being encoded together."""
        return 1

    def encode(self, text: str) -> Vectors:
        """The unit vector of one text, (d,). Raises ValueError where the model fails or gives NaN or infinity."""
        return self._vector(self._ids(text))

    def encode_many(self, texts: Sequence[str], on_done: Progress = silent, threads: int = 1) -> Vectors:
        """The vectors of `texts`, (n, d), to the bit those of `encode`. Raises ValueError as `encode` does."""
        out = np.empty((len(texts), self.dimensions), np.float32)
        return encode_chunks(self._stack, texts, out, _CHUNK, on_done, threads)

    def files(self) -> dict[str, bytes]:
        """Model, tokenizer and recipe, by the name of the file to keep them in."""
        recipe = orjson.dumps(self.identity, option=orjson.OPT_INDENT_2)
        return {_MODEL: self._model, _TOKENIZER: self._tokenizer_json, _RECIPE: recipe}

    def _probe(self, largest_id: int) -> None:
        """Raises ValueError unless a few texts, the longest text and the largest token id give vectors."""
        for text in _PROBE_TEXTS:
            self.encode(text)
        self._vector([largest_id] * min(self._recipe.max_tokens, _PROBE_TOKENS))

    def _stack(self, texts: Sequence[str]) -> Vectors:
        return np.stack([self.encode(text) for text in texts])

    def _ids(self, text: str) -> list[int]:
        # sentence-transformers strips the text together with its prompt.
        whole = (self._recipe.prefix + text).strip()
        if self._recipe.lower_case:
            whole = whole.lower()
        try:
            # `encode` would hold up every other thread; the way for many texts does not, and is no slower.
            ids: list[int] = self._tokenizer.encode_batch_fast([clean(whole)])[0].ids
        except Exception as error:  # tokenizers raises bare Exception from Rust
            raise ValueError(f"the tokenizer fails: {one_line(error)}") from error
        return ids

    def _vector(self, ids: Sequence[int]) -> Vectors:
        if not ids:  # a tokenizer without special tokens knows none of the words
            return np.zeros(self.dimensions, np.float32)
        found = self._graph.run([self._recipe.output], ids)[0]
        row = _pool(found, self._recipe.pooling)
        if row.shape != (1, self.dimensions):
            raise ValueError(f"the encoder gave shape {found.shape} for {len(ids)} tokens")
        vector: Vectors = unit(row)[0]
        return vector


def load_encoder(files: Mapping[str, bytes]) -> Encoder:
    """The encoder whose `files()` these are, by the kind in encoder.json.

    An endpoint's key is read from the environment (TRACER_EMBEDDINGS_API_KEY). Raises ValueError where damaged.
    """
    recipe = _object(_file(files, _RECIPE))
    if recipe.get("kind") == "transformer":
        return TransformerEncoder.from_files(files)
    if recipe.get("kind") == "endpoint":
        return EndpointEncoder.from_recipe(recipe)
    raise ValueError(f"{_RECIPE}: unknown kind {recipe.get('kind')!r}")


def _pool(found: NDArray[Any], pooling: str) -> NDArray[Any]:
    """One row (1, d) from token vectors (1, n, d); there is no padding, so the attention mask is all ones."""
    if pooling == "own" or found.ndim != 3:
        return found
    if pooling == "cls":
        return found[:, 0]
    vectors = found.astype(np.float32, copy=False)
    pooled: NDArray[Any] = vectors.max(axis=1) if pooling == "max" else vectors.mean(axis=1)
    return pooled


def _open_tokenizer(tokenizer_json: bytes, max_tokens: int) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_buffer(tokenizer_json)
    except Exception as error:  # tokenizers raises bare Exception from Rust
        raise ValueError(f"{_TOKENIZER} is not a tokenizer: {one_line(error)}") from error
    tokenizer.no_padding()
    if max_tokens <= tokenizer.num_special_tokens_to_add(is_pair=False):
        raise ValueError(f"its limit of {max_tokens} tokens leaves no room for a text")
    tokenizer.enable_truncation(max_tokens)
    return tokenizer


def _largest_id(tokenizer: Tokenizer, vocab_size: int | None) -> int:
    ids = tokenizer.get_vocab(with_added_tokens=True).values()
    if not ids:
        raise ValueError(f"{_TOKENIZER} knows no token")
    largest = int(max(ids))
    # Models round the size of their table up; one that knows twice as many tokens had another tokenizer.
    if vocab_size is not None and not vocab_size / 2 <= largest + 1 <= vocab_size:
        raise ValueError(
            f"{_TOKENIZER} does not match the model: it has {largest + 1} token ids, config.json says {vocab_size}"
        )
    return largest


def _read_recipe(data: bytes) -> _Recipe:
    found = _object(data)
    kinds = {field.name: field.type for field in fields(_Recipe)}
    sound = found.keys() == kinds.keys() and all(type(found[name]) is kind for name, kind in kinds.items())
    if not sound or found["pooling"] not in _POOLINGS:
        raise ValueError(f"{_RECIPE}: not the recipe of a transformer encoder")
    return _Recipe(**found)


def _object(data: bytes) -> dict[str, Any]:
    try:
        found = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"{_RECIPE} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{_RECIPE} is not a JSON object")
    return found


def _file(files: Mapping[str, bytes], name: str) -> bytes:
    if name not in files:
        raise ValueError(f"the encoder has no {name}")
    return files[name]


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
