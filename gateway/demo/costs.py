"""What a call to the teacher costs. Both halves are assumptions: a price list, and four characters to a token."""

from dataclasses import dataclass

CHARS_PER_TOKEN = 4
_TOKENS_AROUND_A_MESSAGE = 4


@dataclass(frozen=True, slots=True)
class Price:
    """Dollars for a million tokens."""

    name: str
    prompt: float
    completion: float


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one call."""

    prompt: int = 0
    completion: int = 0


LIST_PRICE = Price("gpt-4.1-mini list price", prompt=0.40, completion=1.60)


def estimate(messages: list[str], answer: str) -> Usage:
    """Tokens that a teacher would bill for `messages`, system prompt included, and `answer`."""
    prompt = sum(_tokens(text) + _TOKENS_AROUND_A_MESSAGE for text in messages)
    return Usage(prompt, _tokens(answer))


def dollars(usage: Usage, price: Price = LIST_PRICE) -> float:
    """The price of one call."""
    return (usage.prompt * price.prompt + usage.completion * price.completion) / 1e6


def _tokens(text: str) -> int:
    return -(-len(text) // CHARS_PER_TOKEN)
