"""Text to token ids: the one path that fit and serve share. numpy and tokenizers only.

A text is lower-cased and tokenised once; the same ids index the lexical rows (unigrams and hashed bigrams) and the
static word vectors.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

Ids = NDArray[np.int64]

# A text longer than this is deferred unread: tokenising it would hold up every other call.
MAX_CHARS = 16_384
# Bigrams share this many buckets; two that collide share a weight.
BIGRAM_BUCKETS = 2**18
_BIGRAM_FACTOR = 31_337


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
        if not text or text.isspace():
            return []
        try:
            return self._tokenizer.encode(text.lower(), add_special_tokens=False).ids
        except TypeError:  # a lone surrogate cannot cross into Rust
            return self._tokenizer.encode(_without_surrogates(text).lower(), add_special_tokens=False).ids

    def encode_many(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, the same ids that `encode` gives."""
        clean = [_without_surrogates(text).lower() if not text.isspace() else "" for text in texts]
        encodings: list[Any] = self._tokenizer.encode_batch_fast(clean, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]


def raw_features(tokens: Sequence[int], vocabulary_size: int) -> Ids:
    """Lexical features of a text, one an occurrence: its token ids, then its hashed bigrams.

    Shape (2 len(tokens) - 1,). Plain Python: for a text of usual length it takes half as long as numpy.
    """
    bigrams = [(a * _BIGRAM_FACTOR + b) % BIGRAM_BUCKETS + vocabulary_size for a, b in pairwise(tokens)]
    return np.array([*tokens, *bigrams], np.int64)


def text_inputs(tokens: Sequence[int], n_lexical_tokens: int | None) -> dict[str, Ids]:
    """What a graph is fed for a text: `ids`, and `features` unless it has no lexical block (None)."""
    if n_lexical_tokens is None:
        return {"ids": np.array(tokens, np.int64)}
    features = raw_features(tokens, n_lexical_tokens)
    return {"ids": features[: len(tokens)], "features": features}


def _without_surrogates(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")
