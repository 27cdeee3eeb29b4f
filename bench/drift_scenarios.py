"""What changes under a live policy in `drift.py`."""

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from bench.life import Teaching
from policies.traces import read_traces
from policies.types import Trace

# clinc150's intents that a bank's customer may have; the others are off topic.
_BANK = frozenset(
    {
        "transfer",
        "transactions",
        "balance",
        "freeze_account",
        "pay_bill",
        "bill_balance",
        "bill_due",
        "interest_rate",
        "routing",
        "min_payment",
        "order_checks",
        "pin_change",
        "spending_history",
        "report_fraud",
        "account_blocked",
        "damaged_card",
        "card_declined",
        "report_lost_card",
        "expiration_date",
        "improve_credit_score",
        "apr",
        "redeem_rewards",
        "credit_limit",
        "rewards_balance",
        "application_status",
        "new_card",
        "credit_score",
        "international_fees",
        "credit_limit_change",
        "replacement_card_duration",
        "exchange_rate",
        "direct_deposit",
        "taxes",
        "payday",
    }
)
OUT_OF_SCOPE, NEW_LABEL = "out_of_scope", "needs_a_specialist"
_INSTRUCTION = " If a message names two problems, take the first."


@dataclass(frozen=True, slots=True)
class Data:
    """Texts: `history` is fitted on, `live` comes as calls, `traffic` after a refit; `others` are off topic.

    `truth` has the labels of all of the bank's, by the text in small letters: see `in_other_capitals`.
    """

    history: Sequence[Trace]
    live: Sequence[str]
    traffic: Sequence[str]
    others: Sequence[str]
    truth: Mapping[str, str]

    def label(self, text: str) -> str:
        """What the teacher says of a bank's message before anything has changed."""
        return self.truth[text.lower()]

    def share(self, labels: Container[str]) -> float:
        """Of the live calls that have one of these labels."""
        return sum(self.label(text) in labels for text in self.live) / len(self.live)

    @property
    def labels(self) -> list[str]:
        """Of the bank's messages."""
        return sorted({trace.teacher for trace in self.history})


@dataclass(frozen=True, slots=True)
class Event:
    """From some moment on: what the teacher says, what the prompt is, and how many of the calls are off topic."""

    teach: Teaching
    prompt: Callable[[str], str] = str
    others: Sequence[str] = ()
    share_of_others: float = 0.0
    note: str = ""


@dataclass(frozen=True, slots=True)
class Scenario:
    """One change. `refit`: what it takes to recover; `quiet`: nothing must come of it."""

    title: str
    event: Callable[[Data, Random], Event]
    refit: bool = False
    quiet: bool = False


def read_data(folder: Path) -> Data:
    """Halves of banking77's traces, its traffic, and what of clinc150 has nothing to do with a bank."""
    traces = read_traces(folder / "banking77" / "traces.jsonl").traces
    Random(0).shuffle(traces)
    traffic = read_traces(folder / "banking77" / "traffic.jsonl").traces
    history, live = traces[: len(traces) // 2], traces[len(traces) // 2 :]
    strange = [trace.input for trace in read_traces(folder / "clinc150" / "traces.jsonl").traces if _is_strange(trace)]
    truth = {trace.input.lower(): trace.teacher for trace in (*traces, *traffic)}
    return Data(
        history,
        list(dict.fromkeys(trace.input for trace in live)),
        list(dict.fromkeys(trace.input for trace in traffic)),
        [text for text in strange if text.lower() not in truth],
        truth,
    )


def _is_strange(trace: Trace) -> bool:
    return trace.teacher not in _BANK


def in_other_capitals(text: str, draw: Random) -> str:
    """The same message to a policy, which knows no capitals; another call to whoever tells calls from their retries."""
    return "".join(letter.upper() if draw.random() < 0.3 else letter for letter in text)


def swap(pairs: int) -> Callable[[Data, Random], Event]:
    """The teacher says one group's labels where it said the other's, and the other way round."""

    def event(data: Data, draw: Random) -> Event:
        chosen = draw.sample(data.labels, 2 * pairs)
        other = dict(zip(chosen, chosen[pairs:] + chosen[:pairs], strict=True))
        note = f"{2 * pairs} of {len(data.labels)} labels, {data.share(other):.1%} of the calls"
        return Event(lambda text: other.get(data.label(text), data.label(text)), note=note)

    return event


def new_label(data: Data, draw: Random) -> Event:
    """Calls of some intents get an answer that was never seen."""
    chosen = frozenset(draw.sample(data.labels, 3))
    note = f"{', '.join(sorted(chosen))}: {data.share(chosen):.1%} of the calls"
    return Event(lambda text: NEW_LABEL if data.label(text) in chosen else data.label(text), note=note)


def instruction(data: Data, _: Random) -> Event:
    """One more sentence in the system prompt; the teacher's answers stay what they are."""
    return Event(data.label, prompt=lambda prompt: prompt + _INSTRUCTION)


def date(data: Data, _: Random) -> Event:
    """Another day."""
    return Event(data.label, prompt=lambda prompt: prompt.replace("2026-11-23", "2026-11-24"))


def off_topic(unseen: bool) -> Callable[[Data, Random], Event]:
    """Three in ten calls have nothing to do with a bank: the teacher says so, or forces them into labels at random."""

    def event(data: Data, draw: Random) -> Event:
        said = {text.lower(): OUT_OF_SCOPE if unseen else draw.choice(data.labels) for text in data.others}
        said |= data.truth
        return Event(lambda text: said[text.lower()], others=data.others, share_of_others=0.3)

    return event


SCENARIOS = {
    "swap": Scenario("the teacher swaps 2 x 4 labels", swap(4), refit=True),
    "swap-many": Scenario("the teacher swaps 2 x 15 labels", swap(15), refit=True),
    "label": Scenario("a new label takes three intents", new_label, refit=True),
    "prompt": Scenario("the prompt gets another sentence", instruction),
    "date": Scenario("the date in the prompt changes", date, quiet=True),
    "off-topic": Scenario('30 % of calls off topic, "out_of_scope"', off_topic(unseen=True)),
    "off-topic-forced": Scenario("30 % of calls off topic, labels at random", off_topic(unseen=False)),
}
