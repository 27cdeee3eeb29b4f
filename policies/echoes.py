"""Answers that quote what they answer: prose, however often it comes, and somebody's own words."""

from collections import Counter
from collections.abc import Mapping, Sequence

from policies.types import Answer, Trace

# Characters in a row that an answer and its input have in common: more than the words of a label's name.
_QUOTED = 20
# A label that stands for so many is no one person's: then the words are its name, or everybody's.
_MANY = 20
# Share of a label's traces that are quoted in it. Where it is less, the words are the label's and met by chance.
_USUAL = 0.9


def echoing(
    traces: Sequence[Trace],
    labels: Sequence[str | None],
    inputs: Sequence[str | None],
    answers: Mapping[str, Answer],
) -> set[str]:
    """The labels whose answers repeat the very inputs they answer.

    `labels` and `inputs` (the part of each message that is read) belong to `traces`; None where there is none.
    `answers` has what is given for each label: arguments that an LLM is to write may say what they like. Such a label
    given to another caller would hand on what the first one wrote.
    """
    seen: Counter[str] = Counter()
    quoted: Counter[str] = Counter()
    for trace, label, text in zip(traces, labels, inputs, strict=True):
        if label is None or text is None:
            continue
        answer = trace.teacher + ((trace.arguments or "") if answers[label].arguments is not None else "")
        if len(answer) < _QUOTED:
            continue
        seen[label] += 1
        quoted[label] += _share_words(answer.casefold(), text.casefold())
    return {label for label, count in quoted.items() if seen[label] < _MANY and count >= _USUAL * seen[label] > 0}


def _share_words(answer: str, text: str) -> bool:
    """Whether a run of characters, white space inside it, stands in both."""
    if len(text) < _QUOTED:
        return False
    runs = {answer[i : i + _QUOTED] for i in range(len(answer) - _QUOTED + 1)}
    runs = {run for run in runs if " " in run.strip()}
    return bool(runs) and any(text[i : i + _QUOTED] in runs for i in range(len(text) - _QUOTED + 1))
