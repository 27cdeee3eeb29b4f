"""What every text encoder shares: the interface, unit vectors, and many texts on a few threads. A leaf."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
Progress = Callable[[int], None]


class DimensionError(ValueError):
    """A vector of another length than the encoder's: it is not the model that it was."""


def silent(done: int) -> None:
    """Progress that nobody watches."""


class Encoder(Protocol):
    """Text to a dense vector of unit length; a text that says nothing may be the zero vector."""

    @property
    def dimensions(self) -> int:
        """Length d of a vector."""
        ...

    @property
    def identity(self) -> dict[str, object]:
        """What decides the vectors, as JSON: kind, model, digests, pooling. Two encoders with equal identity agree."""
        ...

    @property
    def at_once(self) -> int:
        """How many texts are encoded in about the time of one; 1 where each takes its time."""
        ...

    def encode(self, text: str) -> Vectors:
        """The vector of one text, (d,). Raises ValueError or ConnectionError where there is none."""
        ...

    def encode_many(self, texts: Sequence[str], on_done: Progress = silent, threads: int = 1) -> Vectors:
        """The vectors of `texts`, (n, d); `on_done` hears now and then, on this thread, how many are done."""
        ...

    def files(self) -> dict[str, bytes]:
        """What a policy folder keeps to rebuild the encoder, by file name."""
        ...


def unit(vectors: NDArray[np.floating]) -> Vectors:
    """`vectors` (n, d) with rows of L2 norm 1; a row of zeros stays. Raises ValueError for NaN or infinity."""
    with np.errstate(over="ignore", invalid="ignore"):
        rows = np.asarray(vectors, np.float32)
        norms = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
    if not np.isfinite(norms).all():
        raise ValueError("a vector is not finite")
    norms[norms == 0] = 1
    scaled: Vectors = (rows / norms[:, None]).astype(np.float32)
    return scaled


def clean(text: str) -> str:
    """`text` without lone surrogates: they cross neither into a tokenizer nor into JSON."""
    return text.encode("utf-8", "replace").decode("utf-8")


def encode_chunks(
    encode: Callable[[Sequence[str]], Vectors],
    texts: Sequence[str],
    out: Vectors,
    chunk: int,
    on_done: Progress,
    threads: int,
) -> Vectors:
    """Fills `out` (n, d) by calls of `encode` with up to `chunk` texts each, on `threads` threads; returns it.

    The first error of a chunk is raised, and the chunks not yet begun are dropped.
    """
    starts = range(0, len(texts), chunk)

    def fill(start: int) -> int:
        part = texts[start : start + chunk]
        out[start : start + len(part)] = encode(part)
        return start + len(part)

    if threads <= 1:
        for start in starts:
            on_done(fill(start))
        return out
    with ThreadPoolExecutor(threads) as pool:
        for done in pool.map(fill, starts):
            on_done(done)
    return out
