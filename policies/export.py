"""Surrogate, acceptor and guard of one stage as one ONNX graph, checked decision by decision against the fitted models.

Inputs, as far as the stage reads them: `ids` int64 (tokens,) and `features` int64 (distinct ones,), both from
`features.py`; `words` float16 (V, d), the table of word vectors, which is large, the same for all graphs and so in none
of them; `vector` float32 (d,), the encoder's; or `embedding` float32 (d,), the user's. Outputs: `label` int64 (1,),
`accept_score` float32 (1, 1), `guard` float32 (1, 1), and `probabilities` float32 (R, K): the softmax of each view,
that of the logits first. The acceptor reads them anyway, so nothing is computed for who does not fetch them. Thresholds
stay outside, in the manifest, so that a frontier needs one graph.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from policies.acceptor import (
    CAUTION,
    CAUTION_FROM,
    CLIP,
    Acceptor,
    Table,
    energy_column,
    similarity_column,
    view_width,
)
from policies.blocks import Floats, Vocabulary
from policies.candidates import Surrogate
from policies.errors import ExportError
from policies.forest import FLOOR, ForestModel
from policies.graph import FLOAT, FLOAT16, INT64, ML_DOMAIN, GraphWriter
from policies.guard import SIMILARITY_SHARE, Guard
from policies.mlp import MlpModel
from policies.neighbours import ASKED, COLUMNS, TIE, Neighbours
from policies.reading import StageReader
from policies.session import open_session, run_session
from policies.surrogates import SoftmaxModel, blocks_of

_FLOOR = 1e-9
# float32 in another order of operations: log-odds and guard values this close to a threshold may fall on either side.
_TOLERANCE = 5e-3


@dataclass(frozen=True)
class Fitted:
    """Everything a stage's graph is made of."""

    reader: StageReader
    surrogate: Surrogate
    acceptor: Acceptor
    guard: Guard


def build_graph(fitted: Fitted) -> bytes:
    """The serialised ONNX model."""
    writer = GraphWriter()
    reader, inputs = fitted.reader, []
    if reader.table is not None:
        inputs.append(helper.make_tensor_value_info("ids", INT64, ["tokens"]))
        if reader.static:
            inputs.append(helper.make_tensor_value_info("words", FLOAT16, list(reader.table.vectors.shape)))
    if reader.vocabulary is not None:
        inputs.append(helper.make_tensor_value_info("features", INT64, ["features"]))
    if reader.vector_size:
        inputs.append(helper.make_tensor_value_info("vector", FLOAT, [reader.vector_size]))
    if reader.scaling is not None:
        inputs.append(helper.make_tensor_value_info("embedding", FLOAT, [len(reader.scaling.shift)]))
    dense = _dense_blocks(writer, reader)
    rows, length = _rows(writer, fitted, dense)
    n_labels = len(fitted.acceptor.reliability)
    n_views = len(rows) if len(rows) == 2 else len(rows) + 1
    predicted, table, probabilities = _views_table(writer, _views(writer, rows), (n_views, n_labels))
    neighbours = fitted.surrogate.neighbours if isinstance(fitted.surrogate, SoftmaxModel) else None
    near = [] if neighbours is None else _near(writer, reader, dense, neighbours, predicted)
    past = writer.node("Gather", writer.constant(fitted.acceptor.reliability), predicted)
    bounds = (writer.constant(np.array(b, np.float32)) for b in (fitted.acceptor.shortest, fitted.acceptor.longest))
    flat = writer.node("Concat", table, *near, writer.node("Clip", length, *bounds), past, axis=0)
    features = writer.node("Unsqueeze", flat, writer.constant([0]))
    accept_score, guard = _judgement(writer, features, fitted)
    outputs = {
        "label": (predicted, INT64, [1]),
        "accept_score": (accept_score, FLOAT, [1, 1]),
        "guard": (guard, FLOAT, [1, 1]),
        "probabilities": (probabilities, FLOAT, [n_views, n_labels]),
    }
    model = writer.model(inputs, outputs)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def check_graphs(
    graphs: Sequence[bytes],
    inputs: Iterable[Mapping[str, NDArray[Any]]],
    fitted: Sequence[Fitted],
    expected: Sequence[tuple[Table, Floats]],
    thresholds: Sequence[float],
) -> None:
    """Raise ExportError where a stage's graphs, one a field, decide differently from the fitted models on any input.

    `inputs` is what the graphs are fed, row by row; `expected` are each fitted model's table and logit gap of the same
    rows; `thresholds` the accept scores of the whole answer that matter.
    """
    sessions = [open_session(graph) for graph in graphs]
    tables = [table for table, _ in expected]
    guards = [head.guard.values(table) for head, table in zip(fitted, tables, strict=True)]
    odds = np.array([head.acceptor.log_odds(table) for head, table in zip(fitted, tables, strict=True)])
    accept = _odds_of_all(odds)
    limits = [float(np.log(limit / (1 - limit))) for limit in thresholds if 0 < limit < 1]
    # The log-odds of a product move by no more than those of its factors together.
    tolerance = _TOLERANCE * len(sessions)
    for i, row in enumerate(inputs):
        said = [run_session(session, row) for session in sessions]
        if any(gap[i] <= _TOLERANCE for _, gap in expected):
            continue
        labels, known = [label for label, _, _ in said], [int(table.predicted[i]) for table in tables]
        if labels != known:
            raise ExportError(f"row {i}: the graph says label {_shown(labels)}, the model {_shown(known)}")
        score = float(np.prod([score for _, score, _ in said]))
        found = np.log(score / (1 - score)) if 0 < score < 1 else np.copysign(np.inf, score - 0.5)
        sides = [((found >= limit) == (accept[i] >= limit), abs(accept[i] - limit) / tolerance) for limit in limits]
        for (_, _, value), guard, head in zip(said, guards, fitted, strict=True):
            limit = head.guard.threshold
            sides.append(((value >= limit) == (guard[i] >= limit), abs(guard[i] - limit) / _TOLERANCE))
        if any(not same and distance > 1 for same, distance in sides):
            values = _shown([f"{value:.6f}" for _, _, value in said])
            own = _shown([f"{guard[i]:.6f}" for guard in guards])
            raise ExportError(f"row {i}: the graph scores {found:.6f}, {values}; the model {accept[i]:.6f}, {own}")


def _odds_of_all(odds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log-odds (n,) of the product of the probabilities whose log-odds (H, n) are given."""
    if len(odds) == 1:
        return np.asarray(odds[0])
    logs = -np.logaddexp(0, -odds).sum(axis=0)
    return np.asarray(logs - np.log(-np.expm1(np.minimum(logs, -1e-300))))


def _shown(values: Sequence[object]) -> str:
    return ", ".join(map(str, values))


def _rows(writer: GraphWriter, fitted: Fitted, dense: list[tuple[str, int]]) -> tuple[list[str], str]:
    """Names of (1, K) values: each part's logits, then the similarities; and the length, (1,)."""
    reader = fitted.reader
    length = writer.constant(0.0)
    if reader.table is not None:
        count = writer.node("Cast", writer.node("Shape", "ids"), to=FLOAT)
        length = writer.node("Log", writer.node("Add", count, writer.constant(1.0)))
    surrogate = fitted.surrogate
    if isinstance(surrogate, SoftmaxModel):
        return _linear_rows(writer, reader, surrogate, dense), length
    row = _row(writer, dense)
    similarity = _cosines(writer, reader, dense, writer.node("MatMul", row, writer.constant(surrogate.centroids.T)))
    if isinstance(surrogate, MlpModel):
        return [_mlp_row(writer, surrogate, row), similarity], length
    return [_forest_row(writer, surrogate, row), similarity], length


def _dense_blocks(writer: GraphWriter, reader: StageReader) -> list[tuple[str, int]]:
    """(value, width) of each dense block, (1, width)."""
    if reader.scaling is not None:
        shifted = writer.node("Sub", "embedding", writer.constant(reader.scaling.shift))
        scaled = writer.node("Mul", shifted, writer.constant(reader.scaling.scale[None]))
        return [(scaled, len(reader.scaling.shift))]
    blocks = []
    if reader.static and reader.table is not None:
        vectors = writer.node("Gather", "words", "ids")
        total = writer.total(writer.node("Cast", vectors, to=FLOAT), keepdims=1)
        blocks.append((writer.node("LpNormalization", total, axis=1), reader.table.vectors.shape[1]))
    if reader.vector_size:
        blocks.append((writer.node("Unsqueeze", "vector", writer.constant([0])), reader.vector_size))
    return blocks


def _linear_rows(
    writer: GraphWriter, reader: StageReader, surrogate: SoftmaxModel, dense: list[tuple[str, int]]
) -> list[str]:
    """One product a block gives its logits and its share of the products with the centroids."""
    n_labels = len(surrogate.bias)
    rows, similarities = [], []
    lexical = reader.vocabulary is not None and surrogate.lexical is not None
    if lexical and reader.vocabulary is not None and surrogate.lexical is not None:
        rows.append(_lexical_row(writer, reader.vocabulary, surrogate.lexical))
    blocks = blocks_of(tuple(width for _, width in dense))
    for number, ((value, _), block) in enumerate(zip(dense, blocks, strict=True)):
        weights = np.hstack([surrogate.dense[block], surrogate.centroids[:, block].T])
        product = writer.node("MatMul", value, writer.constant(weights))
        if number == len(dense) - 1:
            bias = np.concatenate([surrogate.bias, np.zeros_like(surrogate.bias)])[None]
            product = writer.node("Add", product, writer.constant(bias))
        logits, similarity = writer.nodes("Split", [product, writer.constant([n_labels, n_labels])], 2, axis=1)
        rows.append(logits)
        similarities.append(similarity)
    if not dense:
        rows[0] = writer.node("Add", rows[0], writer.constant(surrogate.bias[None]))
        return [*rows, writer.constant(np.zeros((1, n_labels), np.float32))]
    total = similarities[0] if len(similarities) == 1 else writer.node("Sum", *similarities)
    return [*rows, _cosines(writer, reader, dense, total)]


def _cosines(writer: GraphWriter, reader: StageReader, dense: list[tuple[str, int]], products: str) -> str:
    """(1, K) cosines to the centroids, from the products of all dense blocks with them."""
    # Word vectors and an encoder's vector are unit rows; only the norm of what is not has to be computed.
    if reader.scaling is not None:
        return writer.node("Div", products, _norm(writer, dense[0][0]))
    scale = float(1 / np.sqrt(len(dense)))
    return products if len(dense) == 1 else writer.node("Mul", products, writer.constant(scale))


def _row(writer: GraphWriter, dense: list[tuple[str, int]]) -> str:
    """All dense blocks side by side, (1, d)."""
    values = [value for value, _ in dense]
    return values[0] if len(values) == 1 else writer.node("Concat", *values, axis=1)


def _near(
    writer: GraphWriter, reader: StageReader, dense: list[tuple[str, int]], neighbours: Neighbours, predicted: str
) -> list[str]:
    """What `Neighbours.columns` gives, (1,) each."""
    products = writer.node("MatMul", _row(writer, dense), writer.constant(neighbours.vectors.T))
    cosines = writer.node("Squeeze", _cosines(writer, reader, dense, products), writer.constant([0]))
    asked = min(ASKED, len(neighbours.labels))
    found, _ = writer.nodes("TopK", [cosines, writer.constant([asked])], 2, axis=0)
    tenth = writer.node("Slice", found, writer.constant([asked - 1]), writer.constant([asked]))
    largest = writer.node("Slice", found, writer.constant([0]), writer.constant([1]))
    is_near = writer.node("GreaterOrEqual", cosines, writer.node("Sub", tenth, writer.constant(TIE)))
    near = writer.node("Cast", is_near, to=FLOAT)
    said = writer.node("Cast", writer.node("Equal", writer.constant(neighbours.labels), predicted), to=FLOAT)
    number = writer.total(near, keepdims=1)
    sums = [writer.total(writer.node("Mul", near, value), keepdims=1) for value in (said, cosines)]
    return [*(writer.node("Div", total, number) for total in sums), largest]


def _mlp_row(writer: GraphWriter, surrogate: MlpModel, row: str) -> str:
    """(1, K) logits of the hidden layer's model; `row` holds the dense blocks, (1, d)."""
    hidden = writer.node("Gemm", row, writer.constant(surrogate.hidden), writer.constant(surrogate.hidden_bias))
    active = writer.node("Relu", hidden)
    return writer.node("Gemm", active, writer.constant(surrogate.out), writer.constant(surrogate.bias))


def _forest_row(writer: GraphWriter, surrogate: ForestModel, row: str) -> str:
    """(1, K) logits of the forest; `row` holds the dense blocks, (1, d)."""
    forest = surrogate.forest
    n_nodes, n_trees = len(forest.feature), len(forest.roots)
    is_leaf = forest.left == np.arange(n_nodes)
    # Trees stand one after the other, each from its root.
    tree = np.repeat(np.arange(n_trees), np.diff(np.append(forest.roots, n_nodes)))
    number = np.arange(n_nodes) - forest.roots[tree]
    shares = forest.shares.tocoo()
    probabilities = writer.node(
        "TreeEnsembleRegressor",
        row,
        domain=ML_DOMAIN,
        n_targets=shares.shape[1],
        nodes_treeids=tree.tolist(),
        nodes_nodeids=number.tolist(),
        nodes_featureids=forest.feature.tolist(),
        nodes_modes=np.where(is_leaf, "LEAF", "BRANCH_LEQ").tolist(),
        nodes_values=forest.threshold.tolist(),
        nodes_truenodeids=np.where(is_leaf, 0, forest.left - forest.roots[tree]).tolist(),
        nodes_falsenodeids=np.where(is_leaf, 0, forest.right - forest.roots[tree]).tolist(),
        target_treeids=tree[shares.row].tolist(),
        target_nodeids=number[shares.row].tolist(),
        target_ids=shares.col.tolist(),
        target_weights=(shares.data / np.float32(n_trees)).tolist(),
    )
    logits = writer.node("Log", writer.node("Max", probabilities, writer.constant(FLOOR)))
    return writer.node("Sub", logits, writer.node("ReduceMean", logits, axes=[1], keepdims=1))


def _views(writer: GraphWriter, rows: list[str]) -> str:
    """(R, K): the logits, each part where there are several, the similarities."""
    if len(rows) == 2:
        return writer.node("Concat", *rows, axis=0)
    return writer.node("Concat", writer.node("Sum", *rows[:-1]), *rows, axis=0)


def _lexical_row(writer: GraphWriter, vocabulary: Vocabulary, weights: Floats) -> str:
    """(1, K). idf is folded into the rows; the last column carries idf^2, whose sum gives the norm. The extra row
    stands for every feature that was not kept: it says nothing and adds its share to the norm."""
    idf = vocabulary.idf[:, None]
    unseen = np.append(np.zeros(weights.shape[1]), vocabulary.unseen)
    table = np.vstack([np.hstack([weights * idf, idf * idf]), unseen]).astype(np.float32)
    rows = writer.node("Gather", writer.constant(vocabulary.rows), "features")
    sums = writer.total(writer.node("Gather", writer.constant(table), rows), keepdims=1)
    logits, squares = writer.nodes("Split", [sums, writer.constant([weights.shape[1], 1])], 2, axis=1)
    return writer.node("Div", logits, writer.node("Max", writer.node("Sqrt", squares), writer.constant(_FLOOR)))


def _norm(writer: GraphWriter, vector: str) -> str:
    return writer.node("Max", writer.node("ReduceL2", vector, axes=[1], keepdims=1), writer.constant(_FLOOR))


def _views_table(writer: GraphWriter, views: str, shape: tuple[int, int]) -> tuple[str, str, str]:
    """The predicted label, (1,); the columns of all views one after the other, as `acceptor.describe` has them; the
    softmax of each view, of the `shape` that the views have."""
    n_views, wide = shape
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
    return predicted, writer.node("Reshape", table, writer.constant([-1])), probabilities


def _log_odds(writer: GraphWriter, probability: str) -> str:
    low, high = (writer.constant(np.array(value, np.float32)) for value in (CLIP, 1 - CLIP))
    clipped = writer.node("Clip", probability, low, high)
    return writer.node("Log", writer.node("Div", clipped, writer.node("Sub", writer.constant(1.0), clipped)))


def _judgement(writer: GraphWriter, features: str, fitted: Fitted) -> tuple[str, str]:
    """The accept score and the guard's value, (1, 1) each: one product gives all that is linear in the features."""
    acceptor, guard = fitted.acceptor, fitted.guard
    n_features, width = len(acceptor.weights), view_width(len(acceptor.reliability))
    weights = np.zeros((n_features, 4))
    weights[:, 0] = acceptor.weights
    weights[energy_column(width), 1] = CAUTION / acceptor.energy_std
    weights[energy_column(width), 2] = 1 / guard.energy_std
    weights[energy_column(width), 3] = -1 / guard.energy_std
    surrogate = fitted.surrogate
    extra = COLUMNS if isinstance(surrogate, SoftmaxModel) and surrogate.neighbours is not None else 0
    weights[similarity_column(n_features, extra), 2] = SIMILARITY_SHARE / guard.similarity_std
    bias = np.array(
        [
            acceptor.bias,
            CAUTION * (CAUTION_FROM - acceptor.energy_mean / acceptor.energy_std),
            -guard.energy_mean / guard.energy_std - SIMILARITY_SHARE * guard.similarity_mean / guard.similarity_std,
            guard.threshold + guard.highest + guard.energy_mean / guard.energy_std,
        ]
    )
    linear = writer.node(
        "Gemm", features, writer.constant(weights.astype(np.float32)), writer.constant(bias.astype(np.float32))
    )
    plain, caution, low, high = writer.nodes("Split", [linear, writer.constant([1, 1, 1, 1])], 4, axis=1)
    lowered = writer.node("Add", plain, writer.node("Min", caution, writer.constant(0.0)))
    return writer.node("Sigmoid", lowered), writer.node("Min", low, high)
