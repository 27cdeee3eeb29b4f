"""The ONNX session of a policy: one thread, three numbers out, and the labels' probabilities for who asks."""

from collections.abc import Mapping
from math import tanh
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from policies.errors import PolicyDamaged

_OUTPUTS = ["decision"]
_ALL_OUTPUTS = [*_OUTPUTS, "probabilities"]
_ONLY_ERRORS = 3


def open_session(graph: bytes) -> onnxruntime.InferenceSession:
    """A session on the calling thread. Raises PolicyDamaged where onnxruntime does not take the graph."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = _ONLY_ERRORS
    # An arena gives nothing back: one long text would cost tens of megabytes for ever. It is no quicker here.
    options.enable_cpu_mem_arena = False
    try:
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own classes are not importable by name across versions
        raise PolicyDamaged(f"model.onnx: {error}") from error
    if sorted(output.name for output in session.get_outputs()) != sorted(_ALL_OUTPUTS):
        raise PolicyDamaged("model.onnx: not a policy graph")
    # It keeps the graph in order to start again with another provider, which there is not.
    session._model_bytes = b""
    return session


def check_words(session: onnxruntime.InferenceSession, words: NDArray[np.float16] | None) -> None:
    """Raise PolicyDamaged unless `words` is a table that the session's graph reads, or None and it reads none."""
    wanted = next((given.shape for given in session.get_inputs() if given.name == "words"), None)
    found = None if words is None else list(words.shape)
    if wanted != found:
        raise PolicyDamaged(f"manifest.json: a stage gets word vectors of shape {found}, its graph reads {wanted}")


def run_session(session: onnxruntime.InferenceSession, inputs: Mapping[str, NDArray[Any]]) -> tuple[int, float, float]:
    """(label, accept score, guard value) of one input: -1 and twice NaN for one that is not of numbers."""
    # What `InferenceSession.run` asks first takes a microsecond, and has the same answers every time.
    decision = session._sess.run(_OUTPUTS, inputs, None)[0]
    return _read(decision)


def run_fully(
    session: onnxruntime.InferenceSession, inputs: Mapping[str, NDArray[Any]]
) -> tuple[int, float, float, NDArray[np.float64]]:
    """As `run_session`, and the surrogate's probability of each label, (K,)."""
    decision, probabilities = session.run(_ALL_OUTPUTS, inputs)
    return *_read(decision), probabilities[0].astype(np.float64)


def _read(decision: NDArray[np.float32]) -> tuple[int, float, float]:
    ((label, odds, guard),) = decision.tolist()
    # The logistic function, written so that nothing overflows.
    return (int(label) if label == label else -1), 0.5 + 0.5 * tanh(0.5 * odds), guard  # noqa: PLR0124 - NaN
