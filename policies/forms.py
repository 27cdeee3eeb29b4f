"""Traces as they are learned from: the variable part of each input, and the label of each answer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from policies.answers import AnswerForms
from policies.echoes import echoing
from policies.input_form import InputForm, learn_input_form
from policies.settings import FitConfig
from policies.types import AnswerKind, Trace

_SHOWN = 5


@dataclass(frozen=True)
class Forms:
    """The forms of a set of traces, and the traces read by them, in the same order.

    In `traces` an input is the variable part, empty where the message is not built like the others (there are
    `off_template` of them); `teacher` is the label, and the kind `other` where the answer is of no label, or one of
    `echoes`: it quotes the input it answers, and is nobody else's.
    """

    traces: list[Trace]
    answers: AnswerForms
    input_form: InputForm | None
    off_template: int = 0
    echoes: list[str] = field(default_factory=list)

    @classmethod
    def learn(cls, traces: Sequence[Trace], merge: bool = True, read_inputs: bool = True) -> "Forms":
        """The forms of traces. Without `merge`, spellings stay apart; without `read_inputs`, inputs stay whole."""
        answers = AnswerForms.learn([trace.answer for trace in traces], merge)
        form = learn_input_form([trace.input for trace in traces]) if read_inputs else None
        if form is None:
            inputs: list[str | None] = [trace.input for trace in traces]
        else:
            inputs = [form.variable(trace.input) for trace in traces]
        echoes = echoing(traces, answers.labels, inputs, answers.answers)
        labels = [None if label in echoes else label for label in answers.labels]
        read = [_read(*row) for row in zip(traces, labels, inputs, strict=True)]
        return cls(read, answers, form, inputs.count(None), sorted(echoes))

    def protected(self, config: FitConfig) -> dict[str, list[str]]:
        """The labels that each protected word means; the word itself where it means none."""
        return {word: self.answers.named(word) or [word] for word in config.protect}

    def settings(self, config: FitConfig) -> FitConfig:
        """`config` with the labels it protects under their names here."""
        protect = [label for labels in self.protected(config).values() for label in labels]
        return replace(config, protect=tuple(dict.fromkeys(protect)))

    def notes(self, config: FitConfig) -> Iterator[str]:
        """What a certificate should say of them and of what `config` protects, a line each."""
        for word, labels in self.protected(config).items():
            if labels != [word]:
                yield f"protected {word!r} means {len(labels)} of the labels: {_listed(labels)}"
        yield from self.answers.notes
        merges = sorted(self.answers.merges.items(), key=lambda pair: (-sum(pair[1].values()), pair[0]))
        for label, others in merges[:_SHOWN]:
            shown = [f"{text!r} ({count:,})" for text, count in list(others.items())[:_SHOWN]]
            more = f" and {len(others) - _SHOWN} more spellings" if len(others) > _SHOWN else ""
            yield f"{label!r} also stands for {', '.join(shown)}{more}"
        if len(merges) > _SHOWN:
            yield f"{len(merges) - _SHOWN} more labels have several spellings: `tracer report --json` has all of them"
        if self.echoes:
            yield (
                f"{len(self.echoes)} answers quote the inputs they answer ({_listed(self.echoes)}): they are never "
                "given, and count as disagreement"
            )
        if self.input_form is None:
            return
        words = self.input_form.words
        yield f"inputs are built from a template: only {words} is read{self.input_form.caveat}"
        if self.off_template:
            yield (
                f"{self.off_template} inputs are not built like the others ({words}): they are not read, and "
                "such calls are deferred"
            )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(map(repr, names[:_SHOWN]))}{more}"


def _read(trace: Trace, label: str | None, text: str | None) -> Trace:
    if label is None:
        return replace(trace, input=text or "", kind=AnswerKind.OTHER)
    if label == trace.teacher and text == trace.input and trace.kind is AnswerKind.TEXT:
        return trace  # as most are; a million need no second copy
    return replace(trace, input=text or "", teacher=label, kind=AnswerKind.TEXT, arguments=None)
