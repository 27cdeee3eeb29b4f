"""docs/guarantees.md: what it promises is tested."""

import re

import pytest

from tests.serving import ROOT

PAGE = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")


def _named() -> list[tuple[str, str]]:
    """Every file of tests that the page names, with the test in it, "" for all of them."""
    found, file = [], ""
    for name in re.findall(r"`((?:[\w/]+\.py)?(?:::\w+)?)`", PAGE):
        path, _, test = name.partition("::")
        file = path or file
        if file.startswith(("guarantees/", "gateway/test_", "policies/test_", "e2e/")):
            found.append((file, test))
    return found


def test_the_page_names_tests() -> None:
    """Dozens of them."""
    assert len(_named()) > 30


@pytest.mark.parametrize(("file", "test"), _named())
def test_a_named_test_exists(file: str, test: str) -> None:
    """In the file that the page says, under that name."""
    source = (ROOT / "tests" / file).read_text(encoding="utf-8")
    assert f"def {test}(" in source if test else "def test_" in source
