"""Words looked up give the tokens that the whole text has, and a tokenizer that reads beyond words has no cache."""

import random

import orjson
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from policies import word_cache as module
from policies.features import TextEncoder
from policies.static_table import load_static_table
from policies.word_cache import WordCache, word_cache

_JSON = load_static_table().tokenizer_json
# Words and what stands between them, with all that could join or part them: the mark itself, added tokens, odd spaces.
_PIECES = [*"abcdefghijklmnopqrstuvwxyz", "é", "ß", "🦀", "Σ", "İ", "不", "\x00", "?", "<0x41>"]
_PIECES += [" "] * 12 + ["  ", "▁", "\n", "\t", "\u00a0", "\u2028", "<s>", "</s>", "<unk>"]
_ADDED = {"id": 32_000, "single_word": False, "lstrip": False, "rstrip": False, "special": False}


@pytest.fixture
def tokenizer() -> Tokenizer:
    """The default tokenizer."""
    return Tokenizer.from_buffer(_JSON)


def _cache(tokenizer: Tokenizer) -> WordCache:
    found = word_cache(tokenizer)
    assert found is not None
    return found


def test_texts_have_the_same_tokens_word_by_word(tokenizer: Tokenizer) -> None:
    """At first sight and from memory, for words of every kind; where they are not enough the whole text is read."""
    generator = random.Random(0)
    encoder = TextEncoder(_JSON)
    for _ in range(3_000):
        text = "".join(generator.choices(_PIECES, k=generator.randint(0, 25)))
        lowered = text.lower()
        expected = [] if not lowered or lowered.isspace() else tokenizer.encode(lowered, add_special_tokens=False).ids
        assert encoder.encode(text) == expected
        assert encoder.encode(text) == expected


@pytest.mark.parametrize("text", ["", " ", "\n", "a  b", " a", "a ", "a▁ b", "▁", "<s> a", "a</s>b c", "a" * 1_501])
def test_what_depends_on_more_than_words_is_left_to_the_tokenizer(tokenizer: Tokenizer, text: str) -> None:
    """Two spaces, a mark in the text and added tokens join or part what words alone do not tell; and a long text."""
    assert _cache(tokenizer).encode(text) is None


def test_words_are_forgotten_when_there_are_too_many(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory stays bounded however many words come, and however long they are."""
    monkeypatch.setattr(module, "_MOST_WORDS", 10)
    cache = _cache(tokenizer)
    for i in range(100):
        cache.encode(f"w{i} {'x' * 1_000}{i}")
        assert len(cache._ids) <= 10
    assert max(map(len, cache._ids)) < 100


def _changed(**changes: object) -> bytes:
    found = orjson.loads(_JSON)
    model = {key: value for key, value in changes.items() if key in found["model"]}
    found["model"] |= model
    if "vocab" in changes:
        # Pairs of tokens that there are not make no tokenizer.
        found["model"] |= {"merges": [], "unk_token": None}
        found["added_tokens"] = []
    return orjson.dumps(found | {key: value for key, value in changes.items() if key not in model})


@pytest.mark.parametrize(
    "changes",
    [
        {"normalizer": None},
        {"normalizer": {"type": "Lowercase"}},
        {"pre_tokenizer": {"type": "WhitespaceSplit"}},
        {"dropout": 0.1},
        {"end_of_word_suffix": "</w>"},
        {"added_tokens": [_ADDED | {"content": "new york", "normalized": False}]},
        {"added_tokens": [_ADDED | {"content": "paris", "normalized": True}]},
        {"vocab": {"▁": 0, "a": 1, "a▁b": 2}},
        {"vocab": {"a": 0}},
    ],
)
def test_a_tokenizer_that_reads_beyond_words_has_no_cache(tokenizer: Tokenizer, changes: dict[str, object]) -> None:
    """Another normaliser, steps that see more than a word, tokens across words, or added ones that do."""
    assert word_cache(tokenizer) is not None
    assert word_cache(Tokenizer.from_buffer(_changed(**changes))) is None


def test_another_tokenizer_reads_whole_texts() -> None:
    """One of whole words works as before."""
    other = Tokenizer(WordLevel({"[UNK]": 0, "lost": 1, "card": 2}, unk_token="[UNK]"))
    other.pre_tokenizer = WhitespaceSplit()
    encoder = TextEncoder(other.to_str().encode())
    assert encoder.encode("Lost  my card\n") == [1, 0, 2]
    assert encoder.encode(" \n") == []
