"""Texts become vectors: the same one by one, in bulk, and after a policy folder has kept the encoder."""

import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing

from policies.encoders import Encoder, EndpointEncoder, TransformerEncoder, load_encoder
from policies.errors import FitError
from tests.scripted_embeddings import Script, ScriptedEmbeddings, embeddings_of

MODELS = Path(os.environ.get("TRACER_MODELS", Path(__file__).resolve().parents[2] / ".." / "shared" / "models"))
VOCABULARY = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "card": 3, "lost": 4, "my": 5, "Card": 6, "query:": 7}
TABLE = np.random.default_rng(0).normal(size=(len(VOCABULARY), 4)).astype(np.float32)
HARD_TEXTS = ["", "   ", "\n\t", "\ud800 lost", "a\x00b", "🦀 ωδ", "my card " * 3_000, "[CLS] lost [SEP]"]


# Folders -------------------------------------------------------------------------------------------------------------


def _tokenizer(words: dict[str, int] = VOCABULARY, *, special: bool = True) -> bytes:
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    if special:
        tokenizer.post_processor = TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", words["[CLS]"]), ("[SEP]", words["[SEP]"])]
        )
    return tokenizer.to_str().encode()


def _graph(
    nodes: list[Any],
    outputs: dict[str, list[Any]],
    inputs: Mapping[str, int] | None = None,
    table: NDArray[Any] = TABLE,
    kind: int = TensorProto.FLOAT,
) -> Any:
    taken = inputs or {"input_ids": TensorProto.INT64, "attention_mask": TensorProto.INT64}
    axis = numpy_helper.from_array(np.array([1], np.int64), "axis")
    return helper.make_model(
        helper.make_graph(
            nodes,
            "tiny",
            [helper.make_tensor_value_info(name, dtype, ["batch", "sequence"]) for name, dtype in taken.items()],
            [helper.make_tensor_value_info(name, kind, shape) for name, shape in outputs.items()],
            [numpy_helper.from_array(table, "table"), axis],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )


def _token_model(output: str = "last_hidden_state", **more: Any) -> Any:
    nodes = [helper.make_node("Gather", ["table", "input_ids"], [output])]
    return _graph(nodes, {output: ["batch", "sequence", "d"]}, **more)


def _text_model(output: str, *, with_tokens: bool = False) -> Any:
    """A model that pools by itself, by the sum over tokens, negated: a direction that no other pooling gives."""
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["last_hidden_state"]),
        helper.make_node("ReduceSum", ["last_hidden_state", "axis"], ["summed"], keepdims=0),
        helper.make_node("Neg", ["summed"], [output]),
    ]
    outputs = {"last_hidden_state": ["batch", "sequence", "d"]} if with_tokens else {}
    return _graph(nodes, outputs | {output: ["batch", "d"]})


def _write(folder: Path, model: Any = None, tokenizer: bytes | None = None, **configs: Any) -> Path:
    """A folder with `model`, a tokenizer and `configs`: name without .json, `__` for a slash."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes((model or _token_model()).SerializeToString())
    (folder / "tokenizer.json").write_bytes(tokenizer or _tokenizer())
    for name, config in configs.items():
        path = folder / f"{name.replace('__', '/')}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(config))
    return folder


def _unit(vector: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(vector / np.linalg.norm(vector))


def _rows(*words: str) -> NDArray[np.float32]:
    return TABLE[[VOCABULARY[word] for word in ("[CLS]", *words, "[SEP]")]]


def _refusal(folder: Path) -> str:
    with pytest.raises(FitError) as caught:
        TransformerEncoder.from_folder(folder)
    message = str(caught.value)
    assert str(folder) in message
    assert "\n" not in message
    return message


# Pooling, prefix, length ---------------------------------------------------------------------------------------------


def test_token_vectors_are_averaged_by_default(tmp_path: Path) -> None:
    """The mean over [CLS], the words and [SEP], brought to unit length."""
    encoder = TransformerEncoder.from_folder(_write(tmp_path))
    assert np.allclose(encoder.encode("lost my card"), _unit(_rows("lost", "my", "card").mean(axis=0)), atol=1e-6)
    assert encoder.encode("my").dtype == np.float32
    assert encoder.dimensions == 4


@pytest.mark.parametrize(
    ("mode", "pool"),
    [
        ("mean_tokens", lambda rows: rows.mean(axis=0)),
        ("mean_sqrt_len_tokens", lambda rows: rows.mean(axis=0)),
        ("cls_token", lambda rows: rows[0]),
        ("max_tokens", lambda rows: rows.max(axis=0)),
    ],
)
def test_the_folders_pooling_is_followed(tmp_path: Path, mode: str, pool: Callable[[Any], Any]) -> None:
    """1_Pooling/config.json decides, with or without modules.json."""
    config: dict[str, Any] = {
        "word_embedding_dimension": 4,
        "pooling_mode_cls_token": False,
        f"pooling_mode_{mode}": True,
    }
    encoder = TransformerEncoder.from_folder(_write(tmp_path, None, None, **{"1_Pooling__config": config}))
    assert np.allclose(encoder.encode("lost card"), _unit(pool(_rows("lost", "card"))), atol=1e-6)
    moved = [{"type": "sentence_transformers.models.Pooling", "path": "pool"}]
    elsewhere = _write(tmp_path / "b", modules=moved, pool__config=config)
    assert (TransformerEncoder.from_folder(elsewhere).encode("lost") == encoder.encode("lost")).all()


@pytest.mark.parametrize("output", ["sentence_embedding", "pooler_output", "anything"])
def test_a_model_that_pools_by_itself_is_left_to_it(tmp_path: Path, output: str) -> None:
    """An output of one vector a text is taken as it is, but for its length."""
    encoder = TransformerEncoder.from_folder(_write(tmp_path, _text_model(output)))
    assert encoder.identity["pooling"] == "own"
    assert np.allclose(encoder.encode("lost card"), -_unit(_rows("lost", "card").sum(axis=0)), atol=1e-6)


def test_beside_token_vectors_only_a_sentence_embedding_is_the_models_own(tmp_path: Path) -> None:
    """BERT's pooler output, trained for something else, does not replace the mean of the token vectors."""
    own = TransformerEncoder.from_folder(_write(tmp_path / "a", _text_model("sentence_embedding", with_tokens=True)))
    bert = TransformerEncoder.from_folder(_write(tmp_path / "b", _text_model("pooler_output", with_tokens=True)))
    assert (own.identity["pooling"], bert.identity["pooling"]) == ("own", "mean")


def test_the_default_prompt_is_put_before_every_text(tmp_path: Path) -> None:
    """The prefix is part of the identity, and of the vector."""
    prompts = {"prompts": {"query": "query: ", "passage": "passage: "}, "default_prompt_name": "query"}
    encoder = TransformerEncoder.from_folder(_write(tmp_path, config_sentence_transformers=prompts))
    assert encoder.identity["prefix"] == "query: "
    assert np.allclose(encoder.encode("lost"), _unit(_rows("query:", "lost").mean(axis=0)), atol=1e-6)


def test_prompts_without_a_default_are_not_used(tmp_path: Path) -> None:
    """A model with prompts to choose from is used without one."""
    prompts = {"prompts": {"query": "query: "}, "default_prompt_name": None}
    encoder = TransformerEncoder.from_folder(_write(tmp_path, config_sentence_transformers=prompts))
    assert encoder.identity["prefix"] == ""


def test_lower_casing_is_done_where_the_folder_says_so(tmp_path: Path) -> None:
    """do_lower_case lowers the text before its tokens are looked up."""
    plain = TransformerEncoder.from_folder(_write(tmp_path / "a"))
    lowering = TransformerEncoder.from_folder(_write(tmp_path / "b", sentence_bert_config={"do_lower_case": True}))
    assert (plain.encode("Card") != plain.encode("card")).any()
    assert (lowering.encode("Card") == lowering.encode("card")).all()


@pytest.mark.parametrize(
    ("configs", "expected"),
    [
        ({"sentence_bert_config": {"max_seq_length": 5}, "tokenizer_config": {"model_max_length": 9}}, 5),
        ({"sentence_bert_config": {"max_seq_length": None}, "tokenizer_config": {"model_max_length": 9}}, 9),
        ({"tokenizer_config": {"model_max_length": 10**30}, "config": {"max_position_embeddings": 7}}, 7),
        ({"tokenizer_config": {"model_max_length": 99}, "config": {"max_position_embeddings": 7}}, 7),
        ({"config": {"max_position_embeddings": 514, "model_type": "xlm-roberta", "pad_token_id": 1}}, 512),
        ({"config": {"max_position_embeddings": -1}}, 512),
        ({}, 512),
    ],
)
def test_the_length_limit_is_the_first_that_makes_sense(tmp_path: Path, configs: dict[str, Any], expected: int) -> None:
    """sentence_bert_config, tokenizer_config, config, 512; never more than there are positions; the rest is cut off."""
    encoder = TransformerEncoder.from_folder(_write(tmp_path, **configs))
    assert encoder.identity["max_tokens"] == expected
    kept = ["lost"] * (expected - 2)
    assert np.allclose(encoder.encode("lost " * 600 + "card"), _unit(_rows(*kept).mean(axis=0)), atol=1e-5)


@pytest.mark.parametrize("place", ["onnx/model.onnx", "onnx/model_quantized.onnx", "model_int8.onnx"])
def test_the_model_is_found_in_its_usual_places(tmp_path: Path, place: str) -> None:
    """At the root or in onnx/, under another name where it is the only one."""
    folder = _write(tmp_path)
    (folder / "onnx").mkdir()
    (folder / "model.onnx").rename(folder / place)
    assert TransformerEncoder.from_folder(folder).dimensions == 4


def test_the_graph_is_fed_what_it_declares(tmp_path: Path) -> None:
    """Token types and positions where they are wanted, as 32-bit integers where those are wanted."""
    inputs = dict.fromkeys(("input_ids", "attention_mask", "token_type_ids", "position_ids"), TensorProto.INT32)
    nodes = [
        helper.make_node("Add", ["input_ids", "position_ids"], ["shifted"]),
        helper.make_node("Add", ["shifted", "token_type_ids"], ["same"]),
        helper.make_node("Gather", ["table", "same"], ["last_hidden_state"]),
    ]
    table = np.vstack([TABLE, np.zeros((600, 4), np.float32)])
    model = _graph(nodes, {"last_hidden_state": ["batch", "sequence", "d"]}, inputs=inputs, table=table)
    encoder = TransformerEncoder.from_folder(_write(tmp_path, model))
    expected = table[[1 + 0, VOCABULARY["card"] + 1, 2 + 2]].mean(axis=0)
    assert np.allclose(encoder.encode("card"), _unit(expected), atol=1e-6)


def test_half_precision_outputs_become_float32(tmp_path: Path) -> None:
    """A float16 model serves float32 vectors."""
    model = _token_model(table=TABLE.astype(np.float16), kind=TensorProto.FLOAT16)
    vector = TransformerEncoder.from_folder(_write(tmp_path, model)).encode("lost card")
    assert vector.dtype == np.float32
    assert np.allclose(vector, _unit(_rows("lost", "card").mean(axis=0)), atol=1e-2)


# One, many, kept -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 3])
def test_one_and_many_give_the_same_bits(tmp_path: Path, threads: int) -> None:
    """On any number of threads; every vector is finite, also that of nothing at all."""
    encoder = TransformerEncoder.from_folder(_write(tmp_path))
    texts = [*HARD_TEXTS, *(f"lost {'my ' * i}card" for i in range(100))]
    heard: list[int] = []
    many = encoder.encode_many(texts, heard.append, threads)
    assert many.tobytes() == np.stack([encoder.encode(text) for text in texts]).tobytes()
    assert np.isfinite(many).all()
    assert heard == sorted(heard)
    assert heard[-1] == len(texts)


def test_no_texts_give_no_rows(tmp_path: Path) -> None:
    """The shape of nothing is (0, d)."""
    assert TransformerEncoder.from_folder(_write(tmp_path)).encode_many([]).shape == (0, 4)


def test_a_text_without_tokens_is_the_zero_vector(tmp_path: Path) -> None:
    """Where the tokenizer adds no special tokens, an empty text has none."""
    encoder = TransformerEncoder.from_folder(_write(tmp_path, tokenizer=_tokenizer(special=False)))
    assert encoder.encode(" ").tolist() == [0, 0, 0, 0]


def test_the_kept_files_rebuild_the_encoder(tmp_path: Path) -> None:
    """Same identity, same bits; the identity is JSON."""
    prompts = {"prompts": {"query": "query: "}, "default_prompt_name": "query"}
    encoder = TransformerEncoder.from_folder(_write(tmp_path / "tiny", config_sentence_transformers=prompts))
    files = encoder.files()
    assert set(files) == {"model.onnx", "tokenizer.json", "encoder.json"}
    again = load_encoder(files)
    assert again.identity == encoder.identity == json.loads(files["encoder.json"])
    assert encoder.identity["name"] == "tiny"
    assert again.files() == files
    assert again.encode("my card").tobytes() == encoder.encode("my card").tobytes()


@pytest.mark.parametrize(
    "damage",
    [
        {"model.onnx": None},
        {"tokenizer.json": None},
        {"encoder.json": None},
        {"model.onnx": b"other"},
        {"tokenizer.json": b"{}"},
        {"encoder.json": b"{"},
        {"encoder.json": b"[]"},
        {"encoder.json": b'{"kind": "oracle"}'},
        {"encoder.json": b'{"kind": "transformer", "name": "x"}'},
    ],
    ids=str,
)
def test_damaged_files_are_a_value_error(tmp_path: Path, damage: dict[str, bytes | None]) -> None:
    """A file that is missing or altered is never served."""
    files = TransformerEncoder.from_folder(_write(tmp_path)).files() | damage
    with pytest.raises(ValueError, match="encoder"):
        load_encoder({name: data for name, data in files.items() if data is not None})


@pytest.mark.parametrize(
    "change", [{"pooling": "sum"}, {"dimensions": 5}, {"output": "x"}, {"max_tokens": "9"}], ids=str
)
def test_a_recipe_that_does_not_fit_its_model_is_a_value_error(tmp_path: Path, change: dict[str, object]) -> None:
    """encoder.json is checked against the model it names."""
    files = TransformerEncoder.from_folder(_write(tmp_path)).files()
    files["encoder.json"] = json.dumps(json.loads(files["encoder.json"]) | change).encode()
    with pytest.raises(ValueError):  # noqa: PT011 - each change has its own words
        load_encoder(files)


# Folders that are none -----------------------------------------------------------------------------------------------


def test_a_missing_folder_and_missing_files_are_named(tmp_path: Path) -> None:
    """Each is one line that says what is not there."""
    assert "no such folder" in _refusal(tmp_path / "nowhere")
    (tmp_path / "model.onnx").write_bytes(_token_model().SerializeToString())
    assert "no tokenizer.json" in _refusal(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(_tokenizer())
    (tmp_path / "model.onnx").rename(tmp_path / "model_a.onnx")
    (tmp_path / "model_b.onnx").write_bytes(b"")
    assert "several models (model_a.onnx, model_b.onnx)" in _refusal(tmp_path)
    (tmp_path / "model_a.onnx").unlink()
    (tmp_path / "model_b.onnx").unlink()
    assert "no model.onnx" in _refusal(tmp_path)


@pytest.mark.parametrize("junk", [b"", b"junk", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"])
def test_a_model_that_is_not_onnx_is_refused(tmp_path: Path, junk: bytes) -> None:
    """Also an empty file and a pointer left by git-lfs."""
    (_write(tmp_path) / "model.onnx").write_bytes(junk)
    assert "not a usable ONNX graph" in _refusal(tmp_path)


@pytest.mark.parametrize("junk", [b"", b"{}", b"[1, 2]", b"\xff\xfe"])
def test_a_tokenizer_that_is_none_is_refused(tmp_path: Path, junk: bytes) -> None:
    """tokenizer.json is read by tokenizers or not at all."""
    (_write(tmp_path) / "tokenizer.json").write_bytes(junk)
    assert "tokenizer.json is not a tokenizer" in _refusal(tmp_path)


def test_weights_in_a_second_file_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A policy folder keeps one model file; onnxruntime would find the other one only by chance."""
    _write(tmp_path)
    onnx.save(
        _token_model(),
        tmp_path / "model.onnx",
        save_as_external_data=True,
        location="model.onnx_data",
        size_threshold=0,
    )
    monkeypatch.chdir(tmp_path)
    assert "second file" in _refusal(tmp_path)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(tmp_path: Path) -> None:
    """By config.json where it says how many there are, else by asking the model for the largest id."""
    more = _tokenizer(VOCABULARY | {"extra": len(VOCABULARY)})
    config = {"vocab_size": len(VOCABULARY)}
    assert "does not match" in _refusal(_write(tmp_path / "a", tokenizer=more, config=config))
    assert "fails" in _refusal(_write(tmp_path / "b", tokenizer=more))


def test_a_tokenizer_with_far_fewer_tokens_than_the_model_is_refused(tmp_path: Path) -> None:
    """Half the vocabulary is another model's tokenizer; a table rounded up is not."""
    table = np.vstack([TABLE, TABLE, TABLE])
    model = _token_model(table=table)
    assert "does not match" in _refusal(_write(tmp_path / "a", model, config={"vocab_size": len(table)}))
    TransformerEncoder.from_folder(_write(tmp_path / "b", model, config={"vocab_size": len(VOCABULARY) + 2}))


def test_a_tokenizer_that_cannot_encode_is_refused(tmp_path: Path) -> None:
    """One whose unknown token is not in its own vocabulary fails at the first strange word."""
    broken = json.loads(_tokenizer())
    broken["model"]["unk_token"] = "[NONE]"
    assert "tokenizer fails" in _refusal(_write(tmp_path, tokenizer=json.dumps(broken).encode()))


def _node_model(op: str, output: str, shape: list[Any], kind: int = TensorProto.FLOAT) -> Any:
    nodes = [helper.make_node("Cast", ["input_ids"], ["cast"], to=kind), helper.make_node(op, ["cast"], [output])]
    return _graph(nodes, {output: shape}, kind=kind)


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        (_token_model(inputs={"pixel_values": TensorProto.FLOAT, "input_ids": TensorProto.INT64}), "'pixel_values'"),
        (_token_model(inputs={"input_ids": TensorProto.INT64, "attention_mask": TensorProto.STRING}), "attention_mask"),
        (_graph([helper.make_node("Identity", ["attention_mask"], ["y"])], {"y": [None, None]},
                inputs={"attention_mask": TensorProto.FLOAT}), "no input 'input_ids'"),
        (_node_model("Identity", "ids", ["batch", "sequence"], TensorProto.INT64), "its outputs are ids"),
        (_node_model("Sigmoid", "token_scores", ["batch", "sequence"]), "token_scores [1, 3]"),
        (_token_model("logits"), "its outputs are logits"),
        (_text_model("logits"), "its outputs are logits"),
        (_token_model(table=TABLE[:, 0]), "for three tokens it gives last_hidden_state [1, 3]"),
        (_token_model(table=TABLE[:, None, :]), "for three tokens it gives last_hidden_state [1, 3, 1, 4]"),
        (_token_model(table=TABLE * np.float32("nan")), "not finite"),
    ],
    ids=["image", "odd type", "no tokens", "integers", "per token", "decoder", "classifier", "rank", "rank 4", "NaN"],
)  # fmt: skip
def test_a_model_that_is_no_text_encoder_is_refused(tmp_path: Path, model: Any, complaint: str) -> None:
    """By what it wants and by what it gives."""
    assert complaint in _refusal(_write(tmp_path, model))


def test_a_model_that_scores_its_vocabulary_is_refused(tmp_path: Path) -> None:
    """A language model's head, whatever its output is called."""
    model = _token_model("output", table=np.eye(len(VOCABULARY), dtype=np.float32))
    assert "its vocabulary" in _refusal(_write(tmp_path, model, config={"vocab_size": len(VOCABULARY)}))


@pytest.mark.parametrize(
    ("configs", "complaint"),
    [
        ({"1_Pooling__config": {"pooling_mode_lasttoken": True}}, "pooling_mode_lasttoken"),
        ({"1_Pooling__config": {"pooling_mode_cls_token": True, "pooling_mode_max_tokens": True}}, " and "),
        ({"modules": [{"type": "sentence_transformers.models.Dense", "path": "2_Dense"}]}, "module Dense"),
        ({"modules": {}}, "modules.json"),
        ({"config_sentence_transformers": {"default_prompt_name": "query"}}, "no prompt 'query'"),
        ({"sentence_bert_config": {"max_seq_length": 2}}, "no room"),
        ({"config": [1]}, "config.json is not a JSON object"),
    ],
)
def test_a_recipe_that_cannot_be_followed_is_refused(tmp_path: Path, configs: dict[str, Any], complaint: str) -> None:
    """Rather a refusal than vectors that the model's makers did not mean."""
    assert complaint in _refusal(_write(tmp_path, **configs))


def test_a_config_that_is_not_json_is_refused(tmp_path: Path) -> None:
    """The file is named."""
    (_write(tmp_path) / "tokenizer_config.json").write_text("{")
    assert "tokenizer_config.json is not JSON" in _refusal(tmp_path)


def test_a_vector_that_is_not_finite_is_a_value_error(tmp_path: Path) -> None:
    """Also where only one word, met after the folder was tried, makes it so."""
    table = TABLE.copy()
    table[VOCABULARY["lost"]] = np.inf
    encoder = TransformerEncoder.from_folder(_write(tmp_path, _token_model(table=table)))
    assert np.isfinite(encoder.encode("my card")).all()
    with pytest.raises(ValueError, match="not finite"):
        encoder.encode("lost")
    with pytest.raises(ValueError, match="not finite"):
        encoder.encode_many(["my"] * 100 + ["lost"], threads=2)


# A real model --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def minilm() -> Encoder:
    """all-MiniLM-L6-v2, quantised."""
    folder = MODELS / "all-minilm-l6-v2"
    if not (folder / "model.onnx").is_file():
        pytest.skip(f"no all-minilm-l6-v2 in TRACER_MODELS ({MODELS})")
    return TransformerEncoder.from_folder(folder)


def test_a_real_model_puts_like_beside_like(minilm: Encoder) -> None:
    """384 dimensions, unit length, and a paraphrase is nearer than another subject."""
    lost, gone, rate = minilm.encode_many(["I lost my card", "my card is gone", "what is the exchange rate?"])
    assert minilm.dimensions == 384
    assert minilm.identity["max_tokens"] == 512
    assert np.linalg.norm(lost) == pytest.approx(1, abs=1e-5)
    assert lost @ gone > lost @ rate + 0.2


@pytest.mark.parametrize("threads", [1, 2])
def test_a_quantised_model_gives_the_same_bits_alone_and_in_bulk(minilm: Encoder, threads: int) -> None:
    """Its scales depend on what runs together, so every text runs alone."""
    texts = [*HARD_TEXTS, *(f"where is {'my new ' * (i % 9)}card number {i}" for i in range(60))]
    many = minilm.encode_many(texts, threads=threads)
    assert many.tobytes() == np.stack([minilm.encode(text) for text in texts]).tobytes()


def test_a_real_model_survives_its_policy_folder(minilm: Encoder) -> None:
    """Same bits after files() and load_encoder()."""
    again = load_encoder(minilm.files())
    assert again.encode("where is my card?").tobytes() == minilm.encode("where is my card?").tobytes()


# Endpoints -----------------------------------------------------------------------------------------------------------

KEY = "sk-very-secret-0123"


@pytest.fixture
def endpoint() -> Iterator[ScriptedEmbeddings]:
    """An endpoint that answers correctly unless told otherwise."""
    with ScriptedEmbeddings() as running:
        yield running


def _always(status: int, answer: Any) -> Script:
    return lambda _texts: (status, answer)


def test_an_endpoint_gives_unit_vectors(endpoint: ScriptedEmbeddings) -> None:
    """Asked in OpenAI's form, with the key in the header, below the URL."""
    encoder = EndpointEncoder(endpoint.url, "small", KEY)
    assert np.allclose(encoder.encode("abc"), _unit(np.array([3, 1, -2])), atol=1e-6)
    assert endpoint.requests == [{"model": "small", "input": ["abc"], "encoding_format": "float"}]
    assert endpoint.paths == ["/v1/embeddings"]
    assert endpoint.keys == [f"Bearer {KEY}"]
    assert encoder.dimensions == 3


def test_the_path_of_the_url_is_completed_once(endpoint: ScriptedEmbeddings) -> None:
    """With or without /embeddings and a last slash; a query stays behind the path."""
    for url in (f"{endpoint.url}/embeddings", f"{endpoint.url}/", f"{endpoint.url}?api-version=1"):
        EndpointEncoder(url, "small").encode("abc")
    assert endpoint.paths == ["/v1/embeddings", "/v1/embeddings", "/v1/embeddings?api-version=1"]
    assert endpoint.keys == [None] * 3


@pytest.mark.parametrize("threads", [1, 3])
def test_many_texts_are_asked_for_in_batches(endpoint: ScriptedEmbeddings, threads: int) -> None:
    """64 a request, the same vectors as one by one, on as many connections as threads."""
    encoder = EndpointEncoder(endpoint.url, "small")
    texts = [*HARD_TEXTS, *("x" * i for i in range(150))]
    heard: list[int] = []
    many = encoder.encode_many(texts, heard.append, threads)
    assert max(len(request["input"]) for request in endpoint.requests) <= 64
    assert len(endpoint.connections) <= threads
    assert heard[-1] == len(texts)
    assert np.allclose(many, np.stack([encoder.encode(text) for text in texts]))
    assert encoder.encode_many([]).shape == (0, 3)
    encoder.close()
    assert encoder.encode("abc").shape == (3,)


def test_white_space_costs_no_call(endpoint: ScriptedEmbeddings) -> None:
    """Endpoints refuse empty texts: they are the zero vector."""
    encoder = EndpointEncoder(endpoint.url, "small", dimensions=3)
    assert encoder.encode_many(["", " \n"]).tolist() == [[0, 0, 0], [0, 0, 0]]
    assert not endpoint.requests


def test_embeddings_are_put_in_the_order_of_their_index(endpoint: ScriptedEmbeddings) -> None:
    """An endpoint may answer in any order."""
    endpoint.scripts = [lambda texts: (200, {"data": embeddings_of(texts)["data"][::-1]})]
    many = EndpointEncoder(endpoint.url, "small", dimensions=3).encode_many(["a", "abcdef"])
    assert np.allclose(many[1], _unit(np.array([6, 1, -2])), atol=1e-6)


@pytest.mark.parametrize("status", [429, 500, 503, 0, 206])
def test_overload_and_a_lost_connection_are_tried_again(endpoint: ScriptedEmbeddings, status: int) -> None:
    """Twice; 0 hangs up before the answer, 206 in the middle of it."""
    endpoint.scripts = [_always(status, {"error": {}})] * 2
    assert EndpointEncoder(endpoint.url, "small").encode("abc").shape == (3,)
    assert len(endpoint.requests) == 3


def test_after_three_tries_the_call_fails(endpoint: ScriptedEmbeddings) -> None:
    """With the last status, and as a connection that failed: the input is not at fault."""
    endpoint.scripts = [_always(503, b"busy")] * 3
    with pytest.raises(ConnectionError, match="answered 503"):
        EndpointEncoder(endpoint.url, "small", KEY).encode("abc")


def test_a_connection_closed_while_idle_is_replaced(endpoint: ScriptedEmbeddings) -> None:
    """Servers close what is not used; the next call does not notice, and has all its tries left."""
    endpoint.hang_up_after_answer = True
    encoder = EndpointEncoder(endpoint.url, "small")
    encoder.encode("abc")
    endpoint.hang_up_after_answer, endpoint.close_each = False, True
    endpoint.scripts = [_always(503, b"busy")] * 2
    for _ in range(3):
        encoder.encode("abc")
    assert len(endpoint.requests) == 6


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (b"<html>", "not an OpenAI list"),
        ({"embedding": [1, 2, 3]}, "not an OpenAI list"),
        ({"data": [{"index": 0}]}, "not an OpenAI list"),
        ({"data": []}, "for 1 texts"),
        ({"data": [{"index": 1, "embedding": [1, 2, 3]}]}, "wrong indices"),
        ({"data": [{"index": 0, "embedding": "AAAA"}]}, "not numbers"),
        ({"data": [{"index": 0, "embedding": [1, None, 3]}]}, "not finite|not numbers"),
        ({"data": [{"index": 0, "embedding": [[1], [2]]}]}, "list of numbers"),
        ({"data": [{"index": 0, "embedding": []}]}, "list of numbers"),
        (b'{"data": [{"index": 0, "embedding": [1, NaN, 3]}]}', "not an OpenAI list"),
        ({"data": [{"index": 0, "embedding": [1, 1e300, 3]}]}, "not finite"),
        ({"data": [{"index": 0, "embedding": [1, 2]}]}, "2 dimensions where 3"),
    ],
    ids=str,
)
def test_an_answer_without_usable_vectors_is_a_value_error(
    endpoint: ScriptedEmbeddings, answer: Any, complaint: str
) -> None:
    """One line that names the endpoint; never a vector."""
    encoder = EndpointEncoder(endpoint.url, "small")
    encoder.encode("abc")
    endpoint.scripts = [_always(200, answer)]
    with pytest.raises(ValueError, match=complaint) as caught:
        encoder.encode("abc")
    assert endpoint.url in str(caught.value)


def test_vectors_of_different_length_in_one_answer_are_a_value_error(endpoint: ScriptedEmbeddings) -> None:
    """Every row has d numbers."""
    data = [{"index": 0, "embedding": [1, 2, 3]}, {"index": 1, "embedding": [1, 2]}]
    endpoint.scripts = [_always(200, {"data": data})]
    with pytest.raises(ValueError, match="one length"):
        EndpointEncoder(endpoint.url, "small", dimensions=3).encode_many(["a", "b"])


def test_a_refused_call_says_why_without_the_key(endpoint: ScriptedEmbeddings) -> None:
    """The endpoint's words for a wrong model; for a wrong key not even those, since some repeat it."""
    echo = {"error": {"message": f"no such model\nfor {KEY}"}}
    endpoint.scripts = [_always(404, echo), _always(401, echo), _always(307, b"")]
    encoder = EndpointEncoder(endpoint.url, "small", KEY)
    messages = []
    for _ in range(3):
        with pytest.raises(ValueError, match="answered") as caught:
            encoder.encode("abc")
        messages.append(str(caught.value))
    assert "404: no such model for ***" in messages[0]
    assert "TRACER_EMBEDDINGS_API_KEY" in messages[1]
    assert "307" in messages[2]
    assert not [message for message in messages if KEY in message or "\n" in message]
    assert len(endpoint.requests) == 3


def test_a_silent_endpoint_is_given_up_after_the_timeout(endpoint: ScriptedEmbeddings) -> None:
    """Once: a second try would double the wait."""
    released = threading.Event()

    def wait(texts: list[str]) -> tuple[int, Any]:
        released.wait(10)
        return 200, embeddings_of(texts)

    endpoint.scripts = [wait]
    try:
        with pytest.raises(ConnectionError, match=r"no answer in 0\.2 s"):
            EndpointEncoder(endpoint.url, "small", timeout=0.2).encode("abc")
    finally:
        released.set()
    assert len(endpoint.requests) == 1


def test_an_endpoint_that_is_not_there_is_a_connection_error() -> None:
    """Nobody listens on the port."""
    with ScriptedEmbeddings() as gone:
        url = gone.url
    with pytest.raises(ConnectionError, match="no connection"):
        EndpointEncoder(url, "small", KEY).encode("abc")


def test_an_endpoint_is_kept_without_its_key(endpoint: ScriptedEmbeddings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only encoder.json is kept; the key comes from the environment, and loading asks nothing."""
    encoder = EndpointEncoder(endpoint.url, "small", KEY)
    files = encoder.files()
    assert set(files) == {"encoder.json"}
    assert KEY not in f"{files}{encoder.identity}{encoder!r}"
    asked = len(endpoint.requests)
    monkeypatch.setenv("TRACER_EMBEDDINGS_API_KEY", "other-key")
    again = load_encoder(files)
    assert again.identity == encoder.identity
    assert again.dimensions == 3
    assert len(endpoint.requests) == asked
    again.encode("abc")
    assert endpoint.keys[-1] == "Bearer other-key"


@pytest.mark.parametrize(
    "change", [{"url": "ftp://x"}, {"url": 5}, {"model": None}, {"dimensions": 0}, {"dimensions": "3"}], ids=str
)
def test_a_damaged_endpoint_recipe_is_a_value_error(change: dict[str, object]) -> None:
    """Nothing is asked for it."""
    recipe = {"kind": "endpoint", "url": "http://localhost/v1", "model": "small", "dimensions": 3} | change
    with pytest.raises(ValueError, match=r"encoder\.json"):
        load_encoder({"encoder.json": json.dumps(recipe).encode()})


@pytest.mark.parametrize(
    "url", ["", "localhost/v1", "ftp://host/v1", "file:///etc/passwd", "http://", "http://h:99999", "http://h/a b"]
)
def test_only_http_urls_are_endpoints(url: str) -> None:
    """Anything else is a FitError before anything is sent."""
    with pytest.raises(FitError, match="http or https"):
        EndpointEncoder(url, "small")


def test_secrets_in_the_wrong_place_are_refused_without_repeating_them() -> None:
    """A password in the URL would be kept in the policy; a key with a line break cannot be sent."""
    with pytest.raises(FitError, match="no password") as in_url:
        EndpointEncoder(f"https://user:{KEY}@host/v1", "small")
    with pytest.raises(FitError, match="no header") as broken:
        EndpointEncoder("https://host/v1", "small", f"{KEY}\n{KEY}")
    assert KEY not in str(in_url.value) + str(broken.value)
