"""A small encoder folder that knows the words of `traces_maker`: a real ONNX graph and tokenizer, made at once."""

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from tests.traces_maker import topic_words


def make_encoder(folder: Path, dimensions: int = 16) -> Path:
    """Token vectors that point to their topic; mean pooling by default."""
    generator = np.random.default_rng(0)
    words = sorted({word for topic in topic_words().values() for word in topic})
    vocabulary = {"[UNK]": 0} | {word: i + 1 for i, word in enumerate(words)}
    topics = generator.normal(size=(len(topic_words()), dimensions))
    table = 0.05 * generator.normal(size=(len(vocabulary), dimensions))
    for topic, members in enumerate(topic_words().values()):
        for word in members:
            table[vocabulary[word]] += topics[topic]
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer.to_str())
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "input_ids"], ["last_hidden_state"])],
        "tiny",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])],
        [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["batch", "sequence", dimensions])],
        [numpy_helper.from_array(table.astype(np.float32), "table")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder
