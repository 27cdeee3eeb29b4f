"""What audits may cost: calls that were granted, and money counted from what the teacher says an answer took."""

from collections.abc import Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Any

# Where an answer does not tell: about what English takes.
_BYTES_PER_TOKEN = 4
_MILLION = 1e6
# What chat completions call them, and what responses do.
_INPUT = ("prompt_tokens", "input_tokens")
_OUTPUT = ("completion_tokens", "output_tokens")


class Budget:
    """The audits that this process may still make of one project, and what those that it made have cost.

    Any thread may call it. Calls are granted by whoever shares out the project's daily budget among all processes. One
    is reserved where an audit is taken on; it is then either spent, or released where the teacher was not asked.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._left = self._spent_calls = 0
        self._spent_usd = 0.0

    @property
    def left(self) -> int:
        """Calls that are neither reserved nor spent."""
        return self._left

    def grant(self, calls: int) -> None:
        """Allow so many more."""
        with self._lock:
            self._left += calls

    def withdraw(self) -> int:
        """Take back what is left; how many calls that is. What has been reserved may still be spent."""
        with self._lock:
            left, self._left = self._left, 0
            return left

    def reserve(self) -> bool:
        """Take one call out of those that are left; whether there was one."""
        with self._lock:
            if self._left < 1:
                return False
            self._left -= 1
            return True

    def release(self) -> None:
        """Give a reserved call back."""
        with self._lock:
            self._left += 1

    def spend(self, usd: float) -> None:
        """A reserved call was made, and cost so much."""
        with self._lock:
            self._spent_calls += 1
            self._spent_usd += usd

    def take(self) -> tuple[int, float]:
        """What has been spent since this was last asked: calls, and US dollars."""
        with self._lock:
            spent = self._spent_calls, self._spent_usd
            self._spent_calls, self._spent_usd = 0, 0.0
            return spent


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars per million tokens."""

    input: float = 0.0
    output: float = 0.0

    def of(self, usage: Any, sent: int, received: int) -> float:
        """What one call cost. `usage` is what the answer says it took; where it says nothing, bytes are counted."""
        found = usage if isinstance(usage, Mapping) else {}
        read = _tokens(found, _INPUT, sent)
        written = _tokens(found, _OUTPUT, received)
        return (read * self.input + written * self.output) / _MILLION


def _tokens(usage: Mapping[str, Any], names: tuple[str, ...], size: int) -> float:
    told = next((usage[name] for name in names if type(usage.get(name)) is int and usage[name] >= 0), None)
    return size / _BYTES_PER_TOKEN if told is None else float(told)
