"""Answer forms: which answers are one label, and how the teacher writes it.

An answer is a text, a JSON object or a tool call. Texts that differ by case, white space, quotes or a full stop are one
label, unless two spellings that differ by case are both frequent and few labels have such. So are JSON values that are
equal, and tool calls with the same arguments, or with any where an LLM writes them. Light: the gateway loads this.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from policies.answer_keys import Normaliser
from policies.answer_labels import label_answers
from policies.traces import storable
from policies.types import Answer, AnswerKind


@dataclass(frozen=True)
class AnswerForms:
    """The forms of a project's answers.

    `answers` maps a label to the teacher's answer in its most frequent form; a tool whose arguments an LLM must write
    has `arguments` None. `keys` maps an answer's key to its label. `fields` names the fields to predict where answers
    are structured, `words` says all of it for people.

    Only what `learn` returns has: `labels` of the answers one by one (None: of no label), `merges` (label -> texts it
    also stands for, each with its count), `notes`, the labels' `counts`, `classes`, of which `heads` is made, and
    `values` (label -> what it says in each field to predict).
    """

    answers: Mapping[str, Answer] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)
    normaliser: Normaliser = field(default_factory=Normaliser)
    fields: tuple[str, ...] = ()
    words: str = "plain text"
    labels: list[str | None] = field(default_factory=list, repr=False)
    merges: Mapping[str, Mapping[str, int]] = field(default_factory=dict, repr=False)
    notes: list[str] = field(default_factory=list, repr=False)
    counts: Mapping[str, int] = field(default_factory=dict, repr=False)
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False)
    values: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False)

    @classmethod
    def learn(cls, answers: Sequence[Answer], merge: bool = True) -> "AnswerForms":
        """The forms of `answers`; without `merge` every spelling of a text is a label of its own."""
        found = label_answers(answers, merge)
        return cls(
            answers=found.modal,
            keys=found.label_of_key,
            normaliser=found.normaliser,
            fields=found.fields,
            words=found.words,
            labels=found.labels,
            merges=found.merges,
            notes=found.notes,
            counts=found.counts,
            classes=found.classes,
            values=found.values,
        )

    def label_of(self, answer: Answer) -> str | None:
        """The label of an answer, through the normaliser; None where it is none of them."""
        key = self.normaliser.key(answer)
        return None if key is None else self.keys.get(storable(key))

    def named(self, word: str) -> list[str]:
        """Labels that a word may mean: their name, their text in any spelling, their tool, or what a field says."""
        spelled = self.label_of(Answer(word))
        return [
            label
            for label, answer in self.answers.items()
            if word in (label, answer.text) or label == spelled or word in self.values.get(label, ())
        ]

    def heads(self) -> dict[str, tuple[int, ...]] | None:
        """Each label's class in each field to predict; None where there is no more than one such field.

        Classes of labels seen twice come first in each field's numbers.
        """
        if not self.classes:
            return None
        frequent = sorted(self.classes, key=lambda label: self.counts[label] < 2)
        numbers: list[dict[str, int]] = [{} for _ in self.classes[frequent[0]]]
        return {
            label: tuple(
                known.setdefault(value, len(known)) for known, value in zip(numbers, self.classes[label], strict=True)
            )
            for label in frequent
        }

    def only(self, labels: Iterable[str]) -> "AnswerForms":
        """What serving needs, for some of the labels."""
        kept = set(labels)
        answers = {label: answer for label, answer in self.answers.items() if label in kept}
        keys = {key: label for key, label in self.keys.items() if label in kept}
        return AnswerForms(answers, keys, self.normaliser, self.fields, self.words)

    def to_dict(self) -> dict[str, Any]:
        """What serving needs, as JSON values."""
        return {
            "answers": {
                label: {"text": answer.text, "kind": answer.kind.value, "arguments": answer.arguments}
                for label, answer in self.answers.items()
            },
            "keys": dict(self.keys),
            "merging": self.normaliser.merging,
            "apart": sorted(self.normaliser.apart),
            "open_tools": list(self.normaliser.open_tools),
            "fields": list(self.fields),
            "words": self.words,
        }

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> "AnswerForms":
        """The forms of which `to_dict` was made. Raises KeyError, TypeError or ValueError where it was not."""
        answers = {
            label: Answer(row["text"], AnswerKind(row["kind"]), row["arguments"])
            for label, row in found["answers"].items()
        }
        apart, open_tools, fields = (_listed(found[name]) for name in ("apart", "open_tools", "fields"))
        normaliser = Normaliser(found["merging"], frozenset(apart), open_tools)
        return cls(answers, dict(found["keys"]), normaliser, fields, found["words"])


def _listed(found: object) -> tuple[Any, ...]:
    if type(found) is not list:
        raise TypeError(f"{type(found).__name__} instead of a list")
    return tuple(found)
