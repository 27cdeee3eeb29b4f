"""Static word vectors and their tokenizer: the table inside the wordllama wheel, or a folder of the user's.

The wheel's own loader looks for a folder that does not exist and then tries to download, so its two data files are read
directly. They derive from Llama 2's token table (see the licence section of the README).
"""

import hashlib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from policies.errors import FitError

_DEFAULT_TABLE = ("weights", "l2_supercat_256.safetensors")
_DEFAULT_TOKENIZER = ("tokenizers", "l2_supercat_tokenizer_config.json")


@dataclass(frozen=True)
class StaticTable:
    """`vectors` has shape (vocabulary, dimensions), float16; row i belongs to token id i."""

    name: str
    vectors: NDArray[np.float16]
    tokenizer_json: bytes
    sha256: str


def load_static_table(folder: Path | None = None) -> StaticTable:
    """The default table, or the one in `folder` (one `*.safetensors` with one matrix, and `tokenizer.json`).

    Raises FitError where a file is missing or does not hold what it should.
    """
    if folder is None:
        table, tokenizer = _default_files()
    else:
        tables = sorted(folder.glob("*.safetensors"))
        if len(tables) != 1 or not (folder / "tokenizer.json").is_file():
            raise FitError(f"static table {folder}: needs one *.safetensors file and tokenizer.json")
        table, tokenizer = tables[0], folder / "tokenizer.json"
    try:
        matrices = [m for m in load_file(table).values() if m.ndim == 2]
    except (OSError, SafetensorError) as error:
        raise FitError(f"static table {table.name}: {error}") from error
    if len(matrices) != 1:
        raise FitError(f"static table {table.name}: holds {len(matrices)} matrices, not one")
    tokenizer_json = tokenizer.read_bytes()
    digest = hashlib.sha256(table.read_bytes() + tokenizer_json).hexdigest()
    name = "wordllama-l2-supercat-256" if folder is None else folder.name
    return StaticTable(name, matrices[0].astype(np.float16), tokenizer_json, digest)


def _default_files() -> tuple[Path, Path]:
    spec = find_spec("wordllama")
    if spec is None or spec.origin is None:
        raise FitError("the static word vectors are missing: pip install wordllama")
    root = Path(spec.origin).parent
    table, tokenizer = root.joinpath(*_DEFAULT_TABLE), root.joinpath(*_DEFAULT_TOKENIZER)
    if not table.is_file() or not tokenizer.is_file():
        raise FitError(f"wordllama at {root} holds no {table.name}: install a version >= 0.3.9 of the wheel")
    return table, tokenizer
