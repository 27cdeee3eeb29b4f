"""Values that are known by their looks, and what a value is made of."""

from itertools import pairwise
from time import process_time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.prompt_spans import KINDS, begins_sentence, end_of, is_listed, looks, normalised, split, tokens

_TEXTS = st.text(alphabet=st.sampled_from("ab Z19-:./@+\n王Nov T"), max_size=80)


@given(_TEXTS)
def test_the_pieces_are_the_text(text: str) -> None:
    """Nothing is lost, and no two texts between values are beside each other."""
    pieces = list(split(text))
    assert "".join(piece for _, piece in pieces) == text
    assert "".join(tokens(text)) == text
    kinds = [kind for kind, _ in pieces]
    assert all(first or second for first, second in pairwise(kinds))


@given(_TEXTS)
def test_a_value_that_is_found_can_be_found_again_where_it_stands(text: str) -> None:
    """A prompt's own template always has it."""
    at = 0
    for kind, piece in split(text):
        if kind:
            assert kind in KINDS
            assert end_of(kind, text, at) >= at + len(piece)
        at += len(piece)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("due 2026-11-24, at 12:30", "due \0date\0, at \0time\0"),
        ("on Tuesday, 24 November 2026, we", "on \0date\0, we"),
        ("user 123e4567-e89b-12d3-a456-426614174000 (bob@example.org)", "user \0uuid\0 (\0email\0)"),
        ("order 4711471 of cus_Nf8a7c6d9x", "order \0number\0 of cus_\0id\0"),
        ("version 1.2.3, 5 labels, 50 %, category10, May it be 3 of 10?", None),
        ("you may 3 times; 1/2 and 3-4; 10:99; 2026-13-01; x2026-11-24", None),
        ("x" * 39 + " 7 " + "y" * 36 + " 2026-11-24T12:19:07.841+01:00.", "x" * 39 + " 7 " + "y" * 36 + " \0date\0."),
        ("codes 10001, 10002 and 10003", None),
    ],
)
def test_values_have_the_name_of_their_kind(text: str, found: str | None) -> None:
    """Dates, times, addresses and ids; small numbers and codes stay."""
    assert normalised(text) == (text if found is None else found)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("Bob", "C"),
        ("Bank of Ruritania", "C"),
        ("O'Neil-Smith, Inc.", "Cm"),
        ("J. Smith", "Cm"),
        ("Dr. Bob Lee", "Cm"),
        ("Bob. French", "Cx"),
        ("bob", "w"),
        ("of Ruritania", "wC"),
        ("R2D2", "d"),
        ("王伟", "w"),
        ("Bob. Answer", "Cx"),
        ("Corp. Refund", "Cx"),
        ("Bob\nMary", "Cx"),
        ("NOT", "x"),
        ("Bob: refund", "Cwx"),
        ("\x02", "x"),
    ],
)
def test_looks_tell_names_from_instructions(value: str, found: str) -> None:
    """Capitals, digits, words, and what stands in no value."""
    assert looks(value, begins=False) == set(found)


def test_a_capital_at_the_begin_of_a_sentence_says_nothing() -> None:
    """Verbs have one there."""
    assert looks("Tag", begins=True) == {"w"}
    assert begins_sentence("Be kind. ")
    assert begins_sentence("labels:\n- ")
    assert not begins_sentence("You help ")
    assert not begins_sentence("Name: ")


@pytest.mark.parametrize(
    ("before", "after", "listed"),
    [
        ("labels: refund, ", ", transfer", True),
        ("labels: ", ", transfer", True),
        ('labels: "', '", "transfer"', True),
        ("labels:\n- ", ": money", True),
        ("labels:\n1. ", "\n2. b", True),
        ("either ", " or transfer", True),
        ("a | ", " | b", True),
        ("You help ", ", a customer", False),
        ("Name: ", "\nCompany", False),
        ("You help ", " today", False),
    ],
)
def test_items_of_lists_are_told(before: str, after: str, listed: bool) -> None:
    """They may be labels."""
    assert is_listed(before, after) is listed


def test_no_text_takes_long_to_read() -> None:
    """Digits, addresses and half of them without end."""
    started = process_time()
    for piece in ("1", "a1", "a.", "a@", "1:", "2026-", "Nov ", "12:30 ", "a1b2c3d4 ", "-1234", "a@b."):
        normalised(piece * (200_000 // len(piece)))
    assert process_time() - started < 5
