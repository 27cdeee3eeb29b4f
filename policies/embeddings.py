"""Embeddings the user brings in a file."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from policies.errors import FitError


def read_embeddings(path: str | Path) -> NDArray[np.float32]:
    """A matrix of embeddings from a .npy file; never unpickles. Raises FitError."""
    try:
        return np.asarray(np.load(path, allow_pickle=False), np.float32)
    except OSError as error:
        raise FitError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        # numpy's own words advise to unpickle, which would run whatever the file holds.
        raise FitError(f"{path}: not a .npy matrix of numbers") from error
