"""Surrogate, acceptor and guard of one stage as one ONNX graph, checked decision by decision against the fitted models.

Inputs, as far as the stage reads them: `ids` int64 (tokens,) and `features` int64 (distinct ones,), both from
`features.py`; `words` float16 (V, d), the table of word vectors, which is large, the same for all graphs and so in none
of them; `vector` float32 (d,), the encoder's; or `embedding` float32 (d,), the user's. Outputs: `decision` float32
(1, 3), the label's index, the log-odds of the accept score and the guard's value; and `probabilities` float32 (R, K):
the softmax of each view, that of the logits first. The acceptor reads them anyway, so nothing is computed for who does
not fetch them. Thresholds stay outside, in the manifest, so that a frontier needs one graph.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from policies.acceptor import Acceptor, Table
from policies.blocks import Floats, Vocabulary
from policies.candidates import Surrogate
from policies.decision_graph import judge, read_views
from policies.errors import ExportError
from policies.forest import FLOOR, ForestModel
from policies.graph import FLOAT, FLOAT16, INT64, ML_DOMAIN, GraphWriter
from policies.guard import Guard
from policies.mlp import MlpModel
from policies.neighbours import ASKED, TIE, Neighbours
from policies.reading import StageReader
from policies.session import open_session, run_session
from policies.surrogates import SoftmaxModel, blocks_of

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
    tokens = "" if reader.table is None else writer.node("Shape", "ids")
    dense = _dense_blocks(writer, reader, tokens)
    views, n_views = _views(writer, fitted, dense)
    n_labels = len(fitted.acceptor.reliability)
    read = read_views(writer, views, n_views, n_labels)
    neighbours = fitted.surrogate.neighbours if isinstance(fitted.surrogate, SoftmaxModel) else None
    near = [] if neighbours is None else _near(writer, reader, dense, neighbours, read.predicted)
    outputs = {
        "decision": (judge(writer, read, fitted.acceptor, fitted.guard, near, tokens), FLOAT, [1, 3]),
        "probabilities": (read.probabilities, FLOAT, [n_views, n_labels]),
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


def _views(writer: GraphWriter, fitted: Fitted, dense: list[tuple[str, int]]) -> tuple[str, int]:
    """(R, K), the logits, each part of them where there are several, and the similarities; and R."""
    reader, surrogate = fitted.reader, fitted.surrogate
    if isinstance(surrogate, SoftmaxModel) and reader.scaling is None:
        return _linear_views(writer, reader, surrogate, dense)
    row = _row(writer, reader, dense)
    if isinstance(surrogate, SoftmaxModel):
        logits = writer.node("Gemm", row, writer.constant(surrogate.dense), writer.constant(surrogate.bias))
    elif isinstance(surrogate, MlpModel):
        logits = _mlp_row(writer, surrogate, row)
    else:
        logits = _forest_row(writer, surrogate, row)
    return writer.node("Concat", logits, _cosines(writer, reader, row, surrogate.centroids, len(dense)), axis=0), 2


def _dense_blocks(writer: GraphWriter, reader: StageReader, tokens: str) -> list[tuple[str, int]]:
    """(value, width) of each dense block: unit vectors, (width,), or the user's embedding as a row, (1, width)."""
    if reader.scaling is not None:
        shifted = writer.node("Sub", "embedding", writer.constant(reader.scaling.shift))
        scaled = writer.node("Mul", shifted, writer.constant(reader.scaling.scale[None]))
        return [(scaled, len(reader.scaling.shift))]
    blocks = []
    if reader.static and reader.table is not None:
        vectors = writer.node("Gather", "words", "ids")
        # A product with ones takes a quarter of the time of ReduceSum.
        ones = writer.node("ConstantOfShape", tokens, value=helper.make_tensor("one", FLOAT, [1], [1.0]))
        total = writer.node("MatMul", ones, writer.node("Cast", vectors, to=FLOAT))
        blocks.append((writer.node("LpNormalization", total, axis=0, p=2), reader.table.vectors.shape[1]))
    if reader.vector_size:
        blocks.append(("vector", reader.vector_size))
    return blocks


def _linear_views(
    writer: GraphWriter, reader: StageReader, surrogate: SoftmaxModel, dense: list[tuple[str, int]]
) -> tuple[str, int]:
    """As `_views`. One product a block gives its logits and its share of the products with the centroids, a second one
    lays them out as views, a third adds what the lexical block says."""
    n_labels, lexical = len(surrogate.bias), surrogate.lexical
    n_blocks, n_lexical = len(dense), 0 if lexical is None else 1
    n_parts = n_blocks + n_lexical
    n_views = 2 if n_parts == 1 else n_parts + 2
    bias = np.zeros((n_views, n_labels), np.float32)
    # The last part, and with it the sum, has the bias.
    bias[[0, n_views - 2]] = surrogate.bias
    views = writer.constant(bias)
    if dense:
        layout = np.zeros((n_views, 2 * n_blocks), np.float32)
        layout[0, ::2] = 1
        for number in range(n_blocks if n_parts > 1 else 0):
            layout[1 + n_lexical + number, 2 * number] = 1
        layout[-1, 1::2] = 1 / np.sqrt(n_blocks)
        blocks = blocks_of(tuple(width for _, width in dense))
        weights = [np.hstack([surrogate.dense[block], surrogate.centroids[:, block].T]) for block in blocks]
        products = [
            writer.node("MatMul", value, writer.constant(both)) for (value, _), both in zip(dense, weights, strict=True)
        ]
        side = products[0] if n_blocks == 1 else writer.node("Concat", *products, axis=0)
        rows = writer.node("Reshape", side, writer.constant([2 * n_blocks, n_labels]))
        views = writer.node("Gemm", writer.constant(layout), rows, views)
    if reader.vocabulary is not None and lexical is not None:
        views = _with_lexical(writer, reader.vocabulary, lexical, views, (n_views, min(n_parts, 2)))
    return views, n_views


def _with_lexical(
    writer: GraphWriter, vocabulary: Vocabulary, weights: Floats, views: str, shape: tuple[int, int]
) -> str:
    """The R `views`, (R, K), with the lexical block's logits added to the first n of them; `shape` is (R, n)."""
    rows = writer.node("Gather", writer.constant(vocabulary.rows), "features")
    # The extra row stands for every feature that was not kept: it says nothing and adds its share to the norm.
    idf = np.append(vocabulary.idf, np.sqrt(vocabulary.unseen)).astype(np.float32)
    values = np.outer(idf, np.arange(shape[0]) < shape[1]).astype(np.float32)
    unit = writer.node("LpNormalization", writer.node("Gather", writer.constant(values), rows), axis=0, p=2)
    table = np.vstack([weights, np.zeros_like(weights[:1])])
    return writer.node("Gemm", unit, writer.node("Gather", writer.constant(table), rows), views, transA=1)


def _row(writer: GraphWriter, reader: StageReader, dense: list[tuple[str, int]]) -> str:
    """All dense blocks side by side, (1, d)."""
    values = [value for value, _ in dense]
    if reader.scaling is not None:
        return values[0]
    side = values[0] if len(values) == 1 else writer.node("Concat", *values, axis=0)
    return writer.node("Unsqueeze", side, writer.constant([0]))


def _cosines(writer: GraphWriter, reader: StageReader, row: str, directions: Floats, n_blocks: int) -> str:
    """(1, m) cosines of a row of dense blocks to `directions`, (m, d) unit rows."""
    if reader.scaling is not None:
        return writer.node("MatMul", writer.node("LpNormalization", row, axis=1, p=2), writer.constant(directions.T))
    # Each block is a unit vector.
    return writer.node("MatMul", row, writer.constant(directions.T / np.float32(np.sqrt(n_blocks))))


def _near(
    writer: GraphWriter, reader: StageReader, dense: list[tuple[str, int]], neighbours: Neighbours, predicted: str
) -> list[str]:
    """What `Neighbours.columns` gives, (1, 1) each."""
    cosines = _cosines(writer, reader, _row(writer, reader, dense), neighbours.vectors, len(dense))
    asked = min(ASKED, len(neighbours.labels))
    found, _ = writer.nodes("TopK", [cosines, writer.constant([asked])], 2, axis=1)
    tenth, largest = (writer.node("Gather", found, writer.constant([place]), axis=1) for place in (asked - 1, 0))
    is_near = writer.node("GreaterOrEqual", cosines, writer.node("Sub", tenth, writer.constant(TIE)))
    near = writer.node("Cast", is_near, to=FLOAT)
    said = writer.node("Cast", writer.node("Equal", writer.constant(neighbours.labels), predicted), to=FLOAT)
    number = writer.total(near, axis=1, keepdims=1)
    sums = [writer.total(writer.node("Mul", near, value), axis=1, keepdims=1) for value in (said, cosines)]
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
