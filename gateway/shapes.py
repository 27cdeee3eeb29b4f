"""Calls that differ in nothing but the text to decide on: read once, then known by their bytes.

An application sends the same prompt, parameters and tools with every call. A body is then `before + text + after`, with
the text a JSON string, and where both ends are those of a body that has been read, all that was read of it but the text
holds for this one as well: JSON is read from left to right, and a string cannot change what stands around it.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import orjson

from gateway.prompts import prompt_of
from gateway.recognise import Recognised
from gateway.wanted import Wanted, wanted
from gateway.wire import ModelRequest
from policies.prompts import Prompt

# Of one surface: applications with as many prompts in turn are read anew each time, as they were before.
_MOST = 8
_LONGEST = 65_536  # bytes of a body that is remembered
_LONGEST_PAUSE = 1_024
# Put in the text's place to find out what a body says without it. Unlikely in a text, and looked for before.
_MARK = "\ue000tracer-mark\ue001"
_MARK_BYTES = _MARK.encode()

Recognise = Callable[[bytes, str | None], tuple[ModelRequest, Recognised | None]]


class Shape:
    """All that one call, and every other of its shape, asks for beside its text."""

    def __init__(self, request: ModelRequest, project: str) -> None:
        self.model = request.model
        self.project = project
        self._request = request  # of the first such call: its text is not that of the others
        self._prompts: dict[str, Prompt] = {}

    @property
    def model_spans(self) -> tuple[tuple[int, int], ...] | None:
        """Where the model's name stands in a large body; None in any other."""
        return self._request.model_spans

    @cached_property
    def wanted(self) -> Wanted:
        """What the answer must be; only for a call whose parameters a local answer honours, as the next two."""
        return wanted(self._request)

    @cached_property
    def streamed(self) -> bool:
        """Whether the answer is to be a stream."""
        return bool(self._request.body.get("stream"))

    @cached_property
    def include_usage(self) -> bool:
        """Whether the stream is to tell the usage."""
        return (self._request.body.get("stream_options") or {}).get("include_usage") is True

    @cached_property
    def chosen_freely(self) -> bool:
        """Whether the teacher may choose among what it knows: not where the client named a tool, or allowed none."""
        choice, tools = self._request.body.get("tool_choice"), self._request.body.get("tools") or ()
        return (choice != "none" or not tools) and (type(choice) is not dict or len(tools) <= 1)

    def prompt(self, model: str) -> Prompt:
        """Everything but the input, asked of `model`."""
        found = self._prompts.get(model)
        if found is None:
            found = self._prompts[model] = prompt_of(self._request, model)
        return found

    def fingerprint(self, model: str) -> str:
        """Identity of everything but the input, asked of `model`."""
        return self.prompt(model).fingerprint


class _Known:
    """A shape, the bytes on both sides of its text, and the project that a header named with them."""

    def __init__(self, shape: Shape, before: bytes, after: bytes, named: str | None) -> None:
        self.shape, self.before, self.after, self.named = shape, before, after, named
        self.used = False


class Shapes:
    """The shapes of the last calls of one surface, the one seen last in front. Forgets what others push out."""

    def __init__(self, recognise: Recognise) -> None:
        """`recognise` reads a body from scratch; `named` is what the header x-tracer-project says."""
        self._recognise = recognise
        self._known: list[_Known] = []
        self._pause = self._skipped = 0

    def find(self, raw: bytes, named: str | None) -> tuple[Shape, str] | None:
        """The shape of a body and its text; None where its like has not been seen."""
        if len(raw) > _LONGEST:
            return None
        for index, known in enumerate(self._known):
            if raw.startswith(known.before) and raw.endswith(known.after) and known.named == named:
                try:
                    text: Any = orjson.loads(raw[len(known.before) : len(raw) - len(known.after)])
                except orjson.JSONDecodeError:
                    continue
                if type(text) is not str:
                    continue
                known.used = True
                if index:
                    self._known.insert(0, self._known.pop(index))
                return known.shape, text
        return None

    def remember(self, raw: bytes, named: str | None, shape: Shape, text: str) -> None:
        """Remember the shape of a body that has been read, where its text can be told apart."""
        if self._skipped < self._pause:
            # Where no call is ever like an earlier one, remembering is wasted work.
            self._skipped += 1
            return
        ends = None if len(raw) > _LONGEST else self._around(raw, named, text)
        if ends is None:
            return
        self._known.insert(0, _Known(shape, *ends, named))
        if len(self._known) > _MOST:
            wasted = not self._known.pop().used
            self._pause = min(2 * self._pause + 1, _LONGEST_PAUSE) if wasted else 0
            self._skipped = 0

    def _around(self, raw: bytes, named: str | None, text: str) -> tuple[bytes, bytes] | None:
        """What stands before and after the text, if it stands there once and another text there would be the text."""
        try:
            token = orjson.dumps(text)
        except TypeError:  # a lone surrogate
            return None
        if raw.count(token) != 1 or _MARK_BYTES in raw:
            return None
        before, _, after = raw.partition(token)
        _, found = self._recognise(b'%b"%b"%b' % (before, _MARK_BYTES, after), named)
        return (before, after) if found is not None and found.text == _MARK else None
