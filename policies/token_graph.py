"""An onnxruntime session over the token ids of one text: which inputs its graph wants, which output is the text."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

_DTYPES: dict[str, type] = {"tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(float)": np.float32}
_FLOATS = {"tensor(float)", "tensor(float16)", "tensor(double)"}
_TOKEN_OUTPUTS = ("last_hidden_state", "token_embeddings")
_TEXT_OUTPUTS = ("sentence_embedding", "sentence_embeddings")
# The one StringStringEntryProto key by which a tensor names the file that its data lies in (onnx.proto, external_data).
_EXTERNAL_DATA = b"\x0a\x08location\x12"
_NOTHING_LOGGED = 4

# Every input a text encoder may want, from its token ids (1, n): one text, no padding.
_MAKERS: dict[str, Callable[[NDArray[np.int64]], NDArray[np.int64]]] = {
    "input_ids": lambda ids: ids,
    "attention_mask": np.ones_like,
    "token_type_ids": np.zeros_like,
    "position_ids": lambda ids: np.arange(ids.shape[1])[None],
}


class TokenGraph:
    """A model from token ids to vectors. Safe to use from several threads, one core each."""

    def __init__(self, model: bytes) -> None:
        """Raises ValueError where `model` is not an ONNX graph over token ids in one file."""
        # Looked for first: onnxruntime would take such data from the working directory, without a word.
        if _EXTERNAL_DATA in model:
            raise ValueError("the model keeps its weights in a second file (*.onnx_data): save it as a single file")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = _NOTHING_LOGGED
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own classes are not importable by name across versions
            raise ValueError(f"the model is not a usable ONNX graph: {one_line(error)}") from error
        self._inputs = {given.name: _DTYPES.get(given.type) for given in self._session.get_inputs()}
        self._outputs = {output.name: output.type for output in self._session.get_outputs()}
        unknown = [name for name, dtype in self._inputs.items() if name not in _MAKERS or dtype is None]
        if unknown:
            raise ValueError(f"the model is not a text encoder: it wants an input {unknown[0]!r}")
        if "input_ids" not in self._inputs:
            raise ValueError("the model is not a text encoder: it has no input 'input_ids'")

    def run(self, outputs: Sequence[str], ids: Sequence[int]) -> list[NDArray[Any]]:
        """`outputs` for one text. Raises ValueError where onnxruntime fails."""
        row = np.array([ids], np.int64)
        fed = {name: _MAKERS[name](row).astype(dtype, copy=False) for name, dtype in self._inputs.items()}
        try:
            found: list[NDArray[Any]] = self._session.run(list(outputs), fed)
        except Exception as error:  # as above
            raise ValueError(f"the model fails on a text of {len(ids)} tokens: {one_line(error)}") from error
        return found

    def choose_output(self, largest_id: int, pooling: str | None) -> tuple[str, str, int]:
        """(output, pooling, dimensions), judged by what the graph gives for one token and for three.

        A graph that names a sentence embedding pools by itself; else token vectors are pooled as `pooling` says, mean
        where it says nothing; else any output of one vector a text is taken. Raises ValueError where there is none.
        """
        names = [name for name, kind in self._outputs.items() if kind in _FLOATS and not name.startswith("logits")]
        if not names:
            raise ValueError(f"the model is not a text encoder: its outputs are {', '.join(self._outputs)}")
        one, three = (self.run(names, ids) for ids in ([largest_id], [largest_id, 0, largest_id]))
        shapes = {name: (a.shape, b.shape) for name, a, b in zip(names, one, three, strict=True)}
        texts = [name for name, (a, b) in shapes.items() if len(a) == 2 and a == b and a[0] == 1 < a[1]]
        tokens = [n for n, (a, b) in shapes.items() if len(a) == 3 and a[:2] == (1, 1) and b == (1, 3, a[2])]
        for preferred, kind in ((_TEXT_OUTPUTS, "own"), (_TOKEN_OUTPUTS, pooling or "mean")):
            for name in preferred:
                if name in (texts if kind == "own" else tokens):
                    return name, kind, shapes[name][0][-1]
        if tokens:
            return tokens[0], pooling or "mean", shapes[tokens[0]][0][2]
        if texts:
            name = "pooler_output" if "pooler_output" in texts else texts[0]
            return name, "own", shapes[name][0][1]
        listed = ", ".join(f"{name} {list(shape)}" for name, (_, shape) in shapes.items())
        raise ValueError(f"the model is not a text encoder: for three tokens it gives {listed}")


def one_line(error: Exception) -> str:
    """What a library says, on one line of at most 300 characters."""
    return " ".join(str(error).split())[:300]
