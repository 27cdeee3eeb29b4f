"""Surrogate, acceptor and guard as one ONNX graph, checked decision by decision against the fitted models.

Inputs: `ids` int64 (tokens,) and `features` int64 (occurrences,), both from `features.py`; or `embedding` float32 (d,).
Outputs: `label` int64 (1,), `acceptor_probabilities` float32 (1, 2) whose second column is the accept score, `guard`
float32 (1, 1). Thresholds stay outside, in the manifest, so that a frontier needs one graph.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import compose, helper
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import FloatTensorType

from policies.acceptor import CLIP, Acceptor
from policies.blocks import Floats, Scaling, Vocabulary
from policies.errors import ExportError
from policies.graph import FLOAT, INT64, IR_VERSION, ML_OPSET, OPSET, GraphWriter
from policies.guard import Guard
from policies.session import open_session, run_session
from policies.static_table import StaticTable
from policies.surrogates import Scores, SoftmaxModel

_FLOOR = 1e-9
# float32 in another order of operations: scores this close to a threshold may fall on either side of it.
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class TextReader:
    """How the graph turns token ids into features. `vocabulary` is None where there is no lexical block."""

    table: StaticTable
    vocabulary: Vocabulary | None


@dataclass(frozen=True)
class Fitted:
    """Everything the graph is made of."""

    reader: TextReader | Scaling
    surrogate: SoftmaxModel
    acceptor: Acceptor
    guard: Guard


@dataclass(frozen=True)
class _Read:
    """Names of graph values: `rows` (parts + 1, K), each part's logits and then the similarities; `length` (1,)."""

    rows: str
    length: str
    parts: int = 1


def build_graph(fitted: Fitted) -> bytes:
    """The serialised ONNX model."""
    writer = GraphWriter()
    if isinstance(fitted.reader, TextReader):
        inputs = [helper.make_tensor_value_info("ids", INT64, ["tokens"])]
        if fitted.reader.vocabulary is not None:
            inputs.append(helper.make_tensor_value_info("features", INT64, ["features"]))
        read = _read_text(writer, fitted.reader, fitted.surrogate)
    else:
        inputs = [helper.make_tensor_value_info("embedding", FLOAT, [len(fitted.reader.shift)])]
        read = _read_embedding(writer, fitted.reader, fitted.surrogate)
    predicted, features = _accept_features(writer, read, fitted.acceptor.reliability)
    guard = _guard(writer, features, fitted, 4 if read.parts == 2 else 2)
    outputs = {
        "label": (predicted, INT64, [1]),
        "guard": (guard, FLOAT, [1, 1]),
        "accept_features": (features, FLOAT, [1, fitted.acceptor.model.n_features_in_]),
    }
    model = _join(writer.model(inputs, outputs), fitted.acceptor)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def check_graph(
    graph: bytes, inputs: Sequence[Mapping[str, NDArray[Any]]], fitted: Fitted, expected: Scores, threshold: float
) -> None:
    """Raise ExportError where the graph decides differently from the fitted model on any input.

    `inputs` is what the graph is fed, row by row, `expected` the fitted model's scores of the same rows.
    """
    session = open_session(graph)
    labels = expected.logits.argmax(axis=1)
    accept = fitted.acceptor.accept_scores(expected)
    guard = fitted.guard.values(expected)
    gaps = np.partition(expected.logits, -2, axis=1)
    gap = gaps[:, -1] - gaps[:, -2]
    for i, row in enumerate(inputs):
        label, score, value = run_session(session, row)
        if label != labels[i] and gap[i] > _TOLERANCE:
            raise ExportError(f"row {i}: the graph says label {label}, the model {labels[i]}")
        sides = (
            (score >= threshold) == (accept[i] >= threshold),
            (value >= fitted.guard.threshold) == (guard[i] >= fitted.guard.threshold),
        )
        near = abs(accept[i] - threshold) < _TOLERANCE, abs(guard[i] - fitted.guard.threshold) < _TOLERANCE
        if not all(side or close for side, close in zip(sides, near, strict=True)) and gap[i] > _TOLERANCE:
            raise ExportError(
                f"row {i}: the graph scores {score:.6f}, {value:.6f}; the model {accept[i]:.6f}, {guard[i]:.6f}"
            )


def _read_text(writer: GraphWriter, reader: TextReader, surrogate: SoftmaxModel) -> _Read:
    vectors = writer.node("Gather", writer.constant(reader.table.vectors), "ids")
    dense = writer.total(writer.node("Cast", vectors, to=FLOAT))
    unit = writer.node("Div", dense, _norm(writer, dense))
    count = writer.node("Cast", writer.node("Shape", "ids"), to=FLOAT)
    length = writer.node("Log", writer.node("Add", count, writer.constant(1.0)))
    both = _dense_rows(writer, unit, surrogate)
    if reader.vocabulary is None or surrogate.lexical is None:
        return _Read(both, length)
    lexical = _lexical_row(writer, reader.vocabulary, surrogate.lexical)
    return _Read(writer.node("Concat", lexical, both, axis=0), length, parts=2)


def _read_embedding(writer: GraphWriter, scaling: Scaling, surrogate: SoftmaxModel) -> _Read:
    shifted = writer.node("Sub", "embedding", writer.constant(scaling.shift))
    dense = writer.node("Mul", shifted, writer.constant(scaling.scale))
    both = _dense_rows(writer, dense, surrogate)
    ones = writer.constant(np.ones((1, 1), np.float32))
    norm = writer.node("Reshape", _norm(writer, dense), writer.constant([1, 1]))
    return _Read(writer.node("Div", both, writer.node("Concat", ones, norm, axis=0)), writer.constant(0.0))


def _lexical_row(writer: GraphWriter, vocabulary: Vocabulary, weights: Floats) -> str:
    """(1, K). idf is folded into the rows; the last column carries idf^2, whose sum gives the norm. The extra row of
    zeros stands for every feature that was not kept."""
    idf = vocabulary.idf[:, None]
    table = np.vstack([np.hstack([weights * idf, idf * idf]), np.zeros((1, weights.shape[1] + 1))]).astype(np.float32)
    rows = writer.node("Gather", writer.constant(vocabulary.rows), "features")
    sums = writer.total(writer.node("Gather", writer.constant(table), rows), keepdims=1)
    logits, squares = writer.nodes("Split", [sums, writer.constant([weights.shape[1], 1])], 2, axis=1)
    return writer.node("Div", logits, writer.node("Max", writer.node("Sqrt", squares), writer.constant(_FLOOR)))


def _dense_rows(writer: GraphWriter, dense: str, surrogate: SoftmaxModel) -> str:
    """(2, K): dense logits, and products with the centroids."""
    weights = np.hstack([surrogate.dense, surrogate.centroids.T])
    bias = np.concatenate([surrogate.bias, np.zeros_like(surrogate.bias)])
    product = writer.node("Add", writer.node("MatMul", dense, writer.constant(weights)), writer.constant(bias))
    return writer.node("Reshape", product, writer.constant([2, len(surrogate.bias)]))


def _norm(writer: GraphWriter, vector: str) -> str:
    return writer.node("Max", writer.node("ReduceL2", vector, axes=[0], keepdims=1), writer.constant(_FLOOR))


def _accept_features(writer: GraphWriter, read: _Read, reliability: Floats) -> tuple[str, str]:
    """The predicted label, (1,), and `acceptor.accept_features`, (1, F), node by node."""
    n_views, wide = (4, len(reliability)) if read.parts == 2 else (2, len(reliability))
    views = read.rows
    if read.parts == 2:
        mix = np.array([[1, 1, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32)
        views = writer.node("MatMul", writer.constant(mix), views)
    highest_rows = writer.node("ArgMax", views, axis=1, keepdims=0)
    predicted = writer.node("Slice", highest_rows, writer.constant([0]), writer.constant([1]), writer.constant([0]))
    probabilities = writer.node("Softmax", views, axis=1)
    top, _ = writer.nodes("TopK", [probabilities, writer.constant([min(3, wide)])], 2, axis=1)
    own_probability = writer.node("Gather", probabilities, predicted, axis=1)
    odds = _log_odds(writer, writer.node("Concat", top, own_probability, axis=1))
    own = writer.node("Gather", views, predicted, axis=1)
    everywhere = writer.node("Expand", predicted, writer.constant([n_views, 1]))
    lowest = writer.constant(np.full((n_views, 1), -3.0e38, np.float32))
    rivals = writer.node("ScatterElements", views, everywhere, lowest, axis=1)
    gap = writer.node("Sub", own, writer.node("ReduceMax", rivals, axes=[1], keepdims=1))
    highest = writer.node("ReduceMax", views, axes=[1], keepdims=1)
    energy = writer.node("ReduceLogSumExp", views, axes=[1], keepdims=1)
    expected = writer.total(writer.node("Mul", probabilities, views), axis=1, keepdims=1)
    entropy = writer.node("Sub", energy, expected)
    table = writer.node("Concat", odds, own, gap, writer.node("Sign", gap), energy, highest, entropy, axis=1)
    past = writer.node("Gather", writer.constant(reliability), predicted)
    flat = writer.node("Concat", writer.node("Reshape", table, writer.constant([-1])), past, read.length, axis=0)
    return predicted, writer.node("Unsqueeze", flat, writer.constant([0]))


def _log_odds(writer: GraphWriter, probability: str) -> str:
    low, high = (writer.constant(np.array(value, np.float32)) for value in (CLIP, 1 - CLIP))
    clipped = writer.node("Clip", probability, low, high)
    return writer.node("Log", writer.node("Div", clipped, writer.node("Sub", writer.constant(1.0), clipped)))


def _guard(writer: GraphWriter, features: str, fitted: Fitted, n_views: int) -> str:
    """(1, 1). Both signals stand in the accept features: log-sum-exp of the logits, maximum of the similarities."""
    guard = fitted.guard
    a_view = min(3, len(fitted.acceptor.reliability)) + 7
    weights = np.zeros((fitted.acceptor.model.n_features_in_, 1), np.float32)
    weights[a_view - 3] = 1 / guard.energy_std
    weights[(n_views - 1) * a_view + a_view - 2] = 1 / guard.similarity_std
    shift = -guard.energy_mean / guard.energy_std - guard.similarity_mean / guard.similarity_std
    return writer.node("Gemm", features, writer.constant(weights), writer.constant(shift))


def _join(scorer: onnx.ModelProto, acceptor: Acceptor) -> onnx.ModelProto:
    """Append the acceptor, as skl2onnx writes it, to the scorer."""
    inputs = [("accept_features", FloatTensorType([1, acceptor.model.n_features_in_]))]
    opsets = {"": OPSET, "ai.onnx.ml": ML_OPSET}
    model = convert_sklearn(acceptor.model, "acceptor", inputs, target_opset=opsets, options={"zipmap": False})
    model.ir_version = IR_VERSION
    # skl2onnx declares the oldest opsets that hold its operators; a merge wants the same ones on both sides.
    del model.opset_import[:]
    model.opset_import.extend(scorer.opset_import)
    return compose.merge_models(
        scorer,
        compose.add_prefix(model, "acceptor_"),
        io_map=[("accept_features", "acceptor_accept_features")],
        outputs=["label", "guard", "acceptor_probabilities"],
    )
