"""Text to token ids: the one path that fit and serve share. numpy and tokenizers only.

A text is lower-cased and tokenised once; the same ids index the lexical rows (unigrams and hashed bigrams) and the
static word vectors.
"""

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from policies.word_cache import word_cache

Ids = NDArray[np.int64]

# A text longer than this is deferred unread: tokenising it would hold up every other call.
MAX_CHARS = 16_384
# Bigrams share this many buckets; two that collide share a weight.
BIGRAM_BUCKETS = 2**18
_BIGRAM_FACTOR = 31_337
# Texts whose tokens the tokenizer remembers. It forgets none, so the ten thousand it would take are tens of megabytes
# for the first ten thousand texts; of those that come again and again most are among the first few.
_REMEMBERED = 256
# Texts tokenised at a time: the token lists of a million texts would not fit in memory.
_TEXTS_AT_ONCE = 20_000


@dataclass(frozen=True)
class Tokens:
    """Token ids of n texts, one after the other: text i has `ids[starts[i] : starts[i + 1]]`; `starts` is (n + 1,)."""

    ids: NDArray[np.int32]
    starts: NDArray[np.int64]

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> "Tokens":
        """From one sequence a text."""
        starts = np.concatenate([[0], np.cumsum([len(row) for row in rows], dtype=np.int64)])
        return cls(np.fromiter((token for row in rows for token in row), np.int32, int(starts[-1])), starts)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def row(self, i: int) -> list[int]:
        """The ids of text i."""
        return list(self.ids[self.starts[i] : self.starts[i + 1]].tolist())

    @property
    def counts(self) -> NDArray[np.int64]:
        """Tokens a text, (n,)."""
        return np.diff(self.starts)


class TextEncoder:
    """A tokenizer read from the `tokenizer.json` of a policy folder or of a static table."""

    def __init__(self, tokenizer_json: bytes) -> None:
        """Raises ValueError where `tokenizer_json` is not a tokenizer."""
        try:
            self._tokenizer = Tokenizer.from_buffer(tokenizer_json)
        except Exception as error:  # tokenizers raises bare Exception from Rust
            raise ValueError(f"not a tokenizer: {error}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._words = word_cache(self._tokenizer)
        # A private name, and not every kind of model has it.
        if resize := getattr(self._tokenizer.model, "_resize_cache", None):
            resize(_REMEMBERED)

    @classmethod
    def shared(cls, tokenizer_json: bytes) -> "TextEncoder":
        """As the constructor; who asks for the same tokenizer again while it is in use gets the one there is."""
        digest = hashlib.sha256(tokenizer_json).digest()
        with _SHARING:
            found = _SHARED.get(digest)
            if found is None:
                found = _SHARED[digest] = cls(tokenizer_json)
            return found

    @classmethod
    def read(cls, path: Path) -> "TextEncoder":
        """The encoder stored at `path`."""
        return cls(path.read_bytes())

    @property
    def vocabulary_size(self) -> int:
        """Number of token ids."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str) -> list[int]:
        """Token ids of one text; empty for a text that holds nothing but white space."""
        lowered = text.lower()
        try:
            ids = None if self._words is None else self._words.encode(lowered)
            return self._encode_whole(lowered) if ids is None else ids
        except TypeError:  # a lone surrogate cannot cross into Rust
            return self._encode_whole(_without_surrogates(lowered))

    def _encode_whole(self, text: str) -> list[int]:
        if not text or text.isspace():
            return []
        # The way for many texts is the quicker one for one text, too, and lets other threads run meanwhile.
        return self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids

    def encode_many(self, texts: Sequence[str]) -> Tokens:
        """Token ids of each text, the same ids that `encode` gives."""
        parts = [self._encode_part(texts[i : i + _TEXTS_AT_ONCE]) for i in range(0, len(texts), _TEXTS_AT_ONCE)]
        if not parts:
            return Tokens.of([])
        offsets = np.cumsum([0, *(len(part.ids) for part in parts)])
        starts = [part.starts[:-1] + offset for part, offset in zip(parts, offsets, strict=False)]
        return Tokens(np.concatenate([part.ids for part in parts]), np.concatenate([*starts, offsets[-1:]]))

    def _encode_part(self, texts: Sequence[str]) -> Tokens:
        clean = [_without_surrogates(text).lower() if not text.isspace() else "" for text in texts]
        return Tokens.of([row.ids for row in self._tokenizer.encode_batch_fast(clean, add_special_tokens=False)])


_SHARED: WeakValueDictionary[bytes, TextEncoder] = WeakValueDictionary()
_SHARING = threading.Lock()


def raw_features(tokens: Sequence[int], vocabulary_size: int) -> Ids:
    """Lexical features of a text, each once however often it occurs: its token ids, then its hashed bigrams.

    Each once, so that saying a thing twenty times says no more than saying it once. Plain Python: for a text of usual
    length it takes half as long as numpy.
    """
    bigrams = [(a * _BIGRAM_FACTOR + b) % BIGRAM_BUCKETS + vocabulary_size for a, b in pairwise(tokens)]
    features = [*tokens, *bigrams]
    return np.array(features if len(set(features)) == len(features) else list(dict.fromkeys(features)), np.int64)


def raw_features_of(tokens: Tokens, vocabulary_size: int) -> tuple[Ids, Ids]:
    """Token ids and bigrams of every text at once, one an occurrence: (m,), and the text that each belongs to, (m,)."""
    ids = tokens.ids.astype(np.int64)
    owner = np.repeat(np.arange(len(tokens)), tokens.counts)
    inside = owner[1:] == owner[:-1]
    bigrams = (ids[:-1] * _BIGRAM_FACTOR + ids[1:]) % BIGRAM_BUCKETS + vocabulary_size
    return np.concatenate([ids, bigrams[inside]]), np.concatenate([owner, owner[1:][inside]])


def text_inputs(tokens: Sequence[int], n_lexical_tokens: int | None) -> dict[str, Ids]:
    """What a graph is fed for a text: `ids`, and `features` unless it has no lexical block (None)."""
    if n_lexical_tokens is None:
        return {"ids": np.array(tokens, np.int64)}
    features = raw_features(tokens, n_lexical_tokens)
    n = len(tokens)
    # Where nothing comes twice, as in most texts, the features begin with the ids.
    return {"ids": features[:n] if len(features) == 2 * n - 1 else np.array(tokens, np.int64), "features": features}


def _without_surrogates(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")
