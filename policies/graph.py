"""A small writer of ONNX graphs: nodes get names, constants become initializers, values are passed by name."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
# The domain of tree nodes, imported where there is one.
ML_DOMAIN = "ai.onnx.ml"
_ML_OPSET = 3
# onnxruntime refuses newer IR versions than it knows; this one goes with the opset.
IR_VERSION = 8


class GraphWriter:
    """Collects nodes; every method returns the name of the value it made."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []

    def constant(self, value: NDArray[np.generic] | float | list[int]) -> str:
        """An initializer; floats become float32, lists int64."""
        if isinstance(value, list):
            value = np.array(value, np.int64)
        elif isinstance(value, float):
            value = np.array([value], np.float32)
        name = f"c{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """One node with one output."""
        return self.nodes(kind, inputs, 1, **attributes)[0]

    def nodes(self, kind: str, inputs: Sequence[str], n_outputs: int, **attributes: Any) -> list[str]:
        """One node with several outputs."""
        index = len(self._nodes)
        outputs = [f"v{index}_{i}" for i in range(n_outputs)]
        self._nodes.append(helper.make_node(kind, list(inputs), outputs, name=f"{kind}_{index}", **attributes))
        return outputs

    def total(self, value: str, axis: int = 0, keepdims: int = 0) -> str:
        """Sum over one axis."""
        return self.node("ReduceSum", value, self.constant([axis]), keepdims=keepdims)

    def model(
        self, inputs: Sequence[onnx.ValueInfoProto], outputs: Mapping[str, tuple[str, int, list[int]]]
    ) -> onnx.ModelProto:
        """The finished model; `outputs` maps a public name to (value, element type, shape); nodes made the values."""
        infos = [helper.make_tensor_value_info(name, kind, shape) for name, (_, kind, shape) in outputs.items()]
        # Renamed where they are made: a node that only renames would cost every decision some of its time.
        public = {value: name for name, (value, _, _) in outputs.items()}
        for node in self._nodes:
            node.input[:] = [public.get(value, value) for value in node.input]
            node.output[:] = [public.get(value, value) for value in node.output]
        graph = helper.make_graph(self._nodes, "policy", list(inputs), infos, self._constants)
        opsets = [helper.make_opsetid("", OPSET)]
        if any(node.domain == ML_DOMAIN for node in self._nodes):
            opsets.append(helper.make_opsetid(ML_DOMAIN, _ML_OPSET))
        model = helper.make_model(graph, opset_imports=opsets, producer_name="tracer")
        model.ir_version = IR_VERSION
        return model


INT64, FLOAT, FLOAT16 = TensorProto.INT64, TensorProto.FLOAT, TensorProto.FLOAT16
