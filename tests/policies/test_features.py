"""Texts become the same features at fit and at serve."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from policies.blocks import fit_vocabulary, text_features
from policies.errors import FitError
from policies.features import BIGRAM_BUCKETS, TextEncoder, Tokens, raw_features, raw_features_of, text_inputs
from policies.static_table import load_static_table


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    """The default tokenizer."""
    return TextEncoder(load_static_table().tokenizer_json)


def test_one_text_and_many_give_the_same_ids(encoder: TextEncoder) -> None:
    """Also for emoji, lone surrogates, NUL, mixed case and nothing at all."""
    texts = ["Where is my CARD?", "", "   ", "\ud800x", "a\x00b", "🦀 ωδ", "i" * 5_000]
    tokens = encoder.encode_many(texts)
    assert [tokens.row(i) for i in range(len(texts))] == [encoder.encode(text) for text in texts]


def test_bigrams_are_hashed_behind_the_vocabulary() -> None:
    """n tokens give n unigrams and n - 1 bigrams, each in its own range."""
    features = raw_features([5, 6, 7], 100)
    assert features[:3].tolist() == [5, 6, 7]
    assert ((features[3:] >= 100) & (features[3:] < 100 + BIGRAM_BUCKETS)).all()
    assert raw_features([5], 100).tolist() == [5]
    assert raw_features([5, 6], 100)[2] != raw_features([6, 5], 100)[2]


def test_saying_it_again_adds_no_feature() -> None:
    """Each feature counts once; only the joint between the copies is a new bigram."""
    once, often = raw_features([5, 6, 7], 100), raw_features([5, 6, 7] * 20, 100)
    assert len(often) == len(once) + 1
    assert set(once) < set(often)


def test_features_of_many_texts_are_those_of_each() -> None:
    """At fit and at serve a text has the same features, also beside texts without tokens or with one."""
    rows = [[5, 6, 7, 5, 6], [], [9], [1, 2]]
    raw, owner = raw_features_of(Tokens.of(rows), 100)
    for i, row in enumerate(rows):
        assert sorted(set(raw[owner == i])) == sorted(raw_features(row, 100) if row else [])


def test_the_graph_is_fed_ids_and_features() -> None:
    """`ids` is the head of `features`; without a lexical block there are only ids."""
    fed = text_inputs([5, 6], 100)
    assert fed["ids"].tolist() == [5, 6]
    assert len(fed["features"]) == 3
    assert set(text_inputs([5, 6], None)) == {"ids"}
    assert text_inputs([5, 6, 5, 6], 100)["ids"].tolist() == [5, 6, 5, 6]
    assert text_inputs([5, 5, 5], 100)["ids"].tolist() == [5, 5, 5]
    assert text_inputs([5], 100)["ids"].tolist() == [5]


def test_rows_have_unit_norm_and_rare_features_are_dropped(encoder: TextEncoder) -> None:
    """TF-IDF and static rows are L2-normalised; a feature seen in one of 3,000 texts is not kept."""
    table = load_static_table()
    ids = encoder.encode_many(["where is my card"] * 1_500 + ["how much money"] * 1_499 + ["zebra"])
    vocabulary = fit_vocabulary(ids, len(table.vectors))
    features = text_features(ids, table, vocabulary)
    assert features.lexical is not None
    assert np.allclose(np.sqrt(features.lexical[:2_999].multiply(features.lexical[:2_999]).sum(axis=1)), 1, atol=1e-4)
    assert np.allclose(np.linalg.norm(features.dense, axis=1), 1, atol=1e-4)
    assert (vocabulary.rows[encoder.encode("zebra")] == vocabulary.size).all()


def test_a_table_of_ones_own_replaces_the_default(tmp_path: Path) -> None:
    """A folder with one matrix and a tokenizer is a static table; anything else is named."""
    default = load_static_table()
    with pytest.raises(FitError, match="needs one"):
        load_static_table(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(default.tokenizer_json)
    save_file({"embedding.weight": np.ascontiguousarray(default.vectors[:, :32])}, tmp_path / "table.safetensors")
    own = load_static_table(tmp_path)
    assert own.vectors.shape[1] == 32
    assert own.sha256 != default.sha256
    (tmp_path / "table.safetensors").write_bytes(b"broken")
    with pytest.raises(FitError, match="table"):
        load_static_table(tmp_path)


def test_bytes_that_are_no_tokenizer_are_an_error() -> None:
    """A broken tokenizer.json is a ValueError, not a panic."""
    with pytest.raises(ValueError, match="not a tokenizer"):
        TextEncoder(b"{}")
