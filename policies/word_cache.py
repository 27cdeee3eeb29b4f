"""Words whose tokens are known already: most of a text is, and to look a word up takes a fiftieth of tokenising it.

It works for a tokenizer that reads words apart: one of pairs (BPE) that turns every space into a mark and puts one in
front, and none of whose tokens goes on behind such a mark. No pair then reaches from one word into the next.
"""

from typing import Any

import orjson
from tokenizers import Tokenizer
from tokenizers.models import BPE

# Some 250 bytes a word. When there are more, all are forgotten: what is frequent is soon back.
_MOST_WORDS = 16_384
_LONGEST = 32
# Longer texts are for the tokenizer, which lets other threads run meanwhile.
_LONGEST_TEXT = 1_500


class WordCache:
    """Tokens by word. Safe to use from many threads: a word that two of them add gets the same tokens."""

    def __init__(self, tokenizer: Tokenizer, mark: str, added: list[str]) -> None:
        """Use `word_cache`. `mark` stands for a space, `added` are strings that the tokenizer takes out first."""
        self._tokenizer = tokenizer
        self._unlike_words = (mark, *added)
        self._ids: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int] | None:
        """Token ids of a text; None where they depend on more than its words, and for a long one."""
        if len(text) > _LONGEST_TEXT:
            return None
        words = text.split(" ")
        ids: list[int] = []
        try:
            for word in words:
                ids += self._ids[word]
        except KeyError:
            return self._encode_new(words)
        return ids

    def _encode_new(self, words: list[str]) -> list[int] | None:
        if not all(map(self._is_plain, words)):
            return None
        ids: list[int] = []
        for word in words:
            found = self._ids.get(word)
            if found is None:
                found = self._tokenizer.encode(word, add_special_tokens=False).ids
                self._keep(word, found)
            ids += found
        return ids

    def _is_plain(self, word: str) -> bool:
        """Whether a word is tokenised beside others as it is alone. White space alone is nothing to decide on."""
        return word in self._ids or not (not word or word.isspace() or any(part in word for part in self._unlike_words))

    def _keep(self, word: str, ids: list[int]) -> None:
        if len(word) > _LONGEST:
            return
        if len(self._ids) >= _MOST_WORDS:
            self._ids.clear()
        self._ids[word] = ids


def word_cache(tokenizer: Tokenizer) -> WordCache | None:
    """A cache for this tokenizer; None unless it reads words apart."""
    mark = _mark(tokenizer.normalizer)
    if mark is None or tokenizer.pre_tokenizer is not None or not _merges_within_words(tokenizer, mark):
        return None
    added = tokenizer.get_added_tokens_decoder().values()
    if any(token.normalized or " " in token.content for token in added):
        return None
    return WordCache(tokenizer, mark, [token.content for token in added])


def _mark(normalizer: Any) -> str | None:
    """The character that stands for each space and is put in front of a text, where that is all that is done to it."""
    # What pickle would ask for: as it stands in tokenizer.json.
    match None if normalizer is None else orjson.loads(normalizer.__getstate__()):
        case {
            "normalizers": [
                {"type": "Prepend", "prepend": str(front)},
                {"type": "Replace", "pattern": {"String": " "}, "content": str(mark)},
            ]
        } if front == mark and len(mark) == 1:
            return mark
    return None


def _merges_within_words(tokenizer: Tokenizer, mark: str) -> bool:
    model = tokenizer.model
    if not isinstance(model, BPE) or tokenizer.token_to_id(mark) is None:
        return False
    # They would tell a word's end, or make the tokens a matter of chance.
    if model.dropout or model.continuing_subword_prefix or model.end_of_word_suffix:
        return False
    # One by one: the whole vocabulary as Python's objects, or the file read, would leave 10 MB of holes behind.
    tokens = map(tokenizer.id_to_token, range(tokenizer.get_vocab_size(with_added_tokens=True)))
    return not any(mark in token.lstrip(mark) for token in tokens if token is not None)
