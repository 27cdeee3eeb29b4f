"""Labels of answers: from what a teacher wrote to labels, their names, and what follows from what.

Plain data in and out; `answers.AnswerForms` is what the rest of the house sees.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from policies.answer_fields import MISSING, Fields, Row, flatten, learn_fields, shown
from policies.answer_keys import Normaliser, arguments_key, compact, folded, parse_object, spelling, told_apart
from policies.traces import storable
from policies.types import Answer, AnswerKind

# A tool's arguments are learned where this share of its calls has arguments that another call has, too; below that an
# LLM writes them. A gate for 0.95 could not pass with more calls than that whose arguments nobody can know.
_CLOSED = 0.95

_SHOWN = 3

# How the keys of texts begin.
_TEXTS = ("text ", "spelled ", "exact ")

_Groups = dict[str, Counter[Answer]]


@dataclass(frozen=True)
class Labelled:
    """What `label_answers` finds. `label_of_key`: the label of each key; `modal`: the most frequent form of each label;
    `labels` of the answers one by one (None: of no label); `counts` of each label; `merges`: label -> texts it also
    stands for; `classes`: each label's values of all fields to predict, empty where there is no more than one."""

    normaliser: Normaliser
    label_of_key: dict[str, str]
    modal: dict[str, Answer]
    labels: list[str | None]
    counts: dict[str, int]
    fields: tuple[str, ...]
    words: str
    merges: dict[str, dict[str, int]]
    notes: list[str]
    classes: dict[str, tuple[str, ...]]
    values: dict[str, tuple[str, ...]]


def label_answers(answers: Sequence[Answer], merge: bool) -> Labelled:
    """Labels of `answers`; without `merge` every spelling of a text is one of its own."""
    counts = Counter(answers)
    normaliser = Normaliser(merge, told_apart(counts) if merge else frozenset(), _open_tools(counts))
    groups = _grouped(counts, normaliser)
    structures = list(_structures(groups, normaliser))
    deviating = frozenset[str]().union(*(found.deviating for found in structures))
    label_of_key = _named([key for key in groups if key not in deviating], groups, structures)
    modal = {label: _modal(groups[key], normaliser) for key, label in label_of_key.items()}
    label_of_answer = {answer: label_of_key.get(key) for key, found in groups.items() for answer in found}
    return Labelled(
        normaliser=normaliser,
        label_of_key=label_of_key,
        modal=modal,
        labels=[label_of_answer.get(answer) for answer in answers],
        counts={label: groups[key].total() for key, label in label_of_key.items()},
        fields=tuple(name for found in structures for name in found.heads),
        words=_words(groups, structures, normaliser),
        merges=_merges(label_of_key, groups, modal),
        notes=[*_notes(counts, groups, structures), *_twins(modal, merge)],
        classes=_classes(label_of_key, structures),
        values={
            label: tuple(map(_plain, found.classes(key)))
            for found in structures
            for key in found.rows
            if (label := label_of_key.get(key)) is not None
        },
    )


@dataclass(frozen=True)
class _Structure:
    """Answers that have fields: the JSON objects, or the calls of one tool whose arguments are learned.

    `name` is the tool's, empty for the JSON objects. `rows` has the flat answers by key, `deviating` the keys of those
    that do not follow from their heads, `labels` the number of those that do; `calls` counts all of them.
    """

    name: str
    fields: Fields
    rows: Mapping[str, Row]
    deviating: frozenset[str]
    labels: int
    calls: int

    @property
    def heads(self) -> list[str]:
        """The names of the fields to predict."""
        return [shown(path) for path in self.fields.heads]

    def classes(self, key: str) -> tuple[str, ...]:
        """An answer's value of each field to predict."""
        return tuple(self.rows[key].get(path, MISSING) for path in self.fields.heads)


def _open_tools(counts: Counter[Answer]) -> tuple[str, ...]:
    """Names of the tools whose arguments are not among a few known ones."""
    tools: dict[str, Counter[str]] = {}
    for answer, count in counts.items():
        if answer.kind is AnswerKind.TOOL:
            tools.setdefault(answer.text, Counter())[arguments_key(answer)] += count
    closed = {
        name: sum(count for arguments, count in calls.items() if arguments and count > 1)
        for name, calls in tools.items()
    }
    return tuple(sorted(name for name, calls in tools.items() if closed[name] < _CLOSED * calls.total()))


def _grouped(counts: Counter[Answer], normaliser: Normaliser) -> _Groups:
    groups: _Groups = {}
    for answer, count in counts.items():
        key = normaliser.key(answer)
        if key is not None:
            groups.setdefault(storable(key), Counter())[answer] += count
    return groups


def _structures(groups: _Groups, normaliser: Normaliser) -> Iterator[_Structure]:
    """The JSON objects, and each tool of closed arguments."""
    keys: dict[str, list[str]] = {}
    rows: dict[str, Row] = {}
    for key, answers in groups.items():
        answer = _most_frequent(answers)
        if answer.kind is AnswerKind.TOOL and answer.text not in normaliser.open_tools:
            keys.setdefault(answer.text, []).append(key)
            # Arguments that are not known, or no JSON, belong to no label where a few known ones do.
            if arguments_key(answer):
                rows[key] = flatten(parse_object(answer.arguments or "{}") or {})
        elif key.startswith("json {"):
            keys.setdefault("", []).append(key)
            rows[key] = flatten(parse_object(answer.text) or {})
    for name in sorted(keys):
        known = {key: rows[key] for key in keys[name] if key in rows}
        fields = learn_fields([(row, groups[key].total()) for key, row in known.items()])
        regular = {key for key, ok in zip(known, fields.regular, strict=True) if ok}
        calls = sum(groups[key].total() for key in keys[name])
        yield _Structure(name, fields, known, frozenset(keys[name]) - regular, len(regular), calls)


def _named(keys: Iterable[str], groups: _Groups, structures: Sequence[_Structure]) -> dict[str, str]:
    """A name of its own for every key: the more frequent answer chooses first."""
    of_key = {key: found for found in structures for key in found.rows}
    several = {found.name for found in structures if found.labels > 1}
    names: dict[str, str] = {}
    taken: set[str] = set()
    for key in sorted(keys, key=lambda key: (-groups[key].total(), key)):
        candidates = [
            name
            for name in _candidates(_most_frequent(groups[key]), key, of_key.get(key), several)
            if name and not name.isspace()
        ] or ["(empty)"]
        name = next((name for name in candidates if name not in taken), None)
        number = 2
        while name is None or name in taken:
            name, number = f"{candidates[0]} ({number})", number + 1
        taken.add(name)
        names[key] = name
    return names


def _candidates(answer: Answer, key: str, found: _Structure | None, several: set[str]) -> list[str]:
    """What a label may be called, the best first."""
    if answer.kind is AnswerKind.TOOL:
        written = storable(compact(parse_object(answer.arguments or "{}") or {}))
        longer = f"{storable(answer.text)} {written}"
        return [longer] if found is not None and found.name in several else [storable(answer.text), longer]
    if found is None:
        return [storable(answer.text).strip(), storable(answer.text)]
    whole = storable(compact(parse_object(answer.text) or {}))
    if len(found.fields.heads) != 1:
        return [whole]
    (value,) = found.classes(key)
    return [whole] if value == MISSING else [storable(_plain(value)), whole]


def _plain(value: str) -> str:
    """A canonical JSON leaf for people: a string without its quotes."""
    found = parse_object(f'{{"value":{value}}}')
    plain = None if found is None else found["value"]
    return plain if isinstance(plain, str) else value


def _most_frequent(answers: Counter[Answer]) -> Answer:
    """Of equally frequent forms the first in order."""
    return min(answers, key=lambda answer: (-answers[answer], answer.text, answer.arguments or ""))


def _modal(answers: Counter[Answer], normaliser: Normaliser) -> Answer:
    answer = _most_frequent(answers)
    unknown = answer.arguments is None or answer.text in normaliser.open_tools
    arguments = None if unknown else storable(answer.arguments or "")
    return Answer(storable(answer.text), answer.kind, arguments)


def _merges(label_of_key: Mapping[str, str], groups: _Groups, modal: Mapping[str, Answer]) -> dict[str, dict[str, int]]:
    """Label -> other texts and tool calls it stands for, the most frequent first.

    Objects that are equal are no merge; nor are the calls of a tool whose arguments an LLM writes.
    """
    merges = {}
    for key, label in label_of_key.items():
        tool = modal[label].kind is AnswerKind.TOOL
        known = key.startswith(_TEXTS) or (tool and modal[label].arguments is not None)
        if known and len(groups[key]) > 1:
            others = [(_written(answer), count) for answer, count in groups[key].items() if answer != modal[label]]
            merges[label] = dict(sorted(others, key=lambda pair: (-pair[1], pair[0])))
    return merges


def _written(answer: Answer) -> str:
    """A text, or a tool call with its arguments as they came."""
    return answer.text if not answer.arguments else f"{answer.text} {answer.arguments}"


def _classes(label_of_key: Mapping[str, str], structures: Sequence[_Structure]) -> dict[str, tuple[str, ...]]:
    """Each label's values of all fields to predict; none at all where there is no more than one field.

    Labels without such fields are told apart in the first.
    """
    several = [found for found in structures if len(found.fields.heads) > 1]
    if not several:
        return {}
    classes = {}
    for key, label in label_of_key.items():
        values: list[str] = []
        for found in several:
            values += found.classes(key) if key in found.rows else [MISSING] * len(found.fields.heads)
        if not any(key in found.rows for found in several):
            values[0] = key
        classes[label] = tuple(values)
    return classes if len(set(classes.values())) == len(classes) else {}


def _words(groups: _Groups, structures: Sequence[_Structure], normaliser: Normaliser) -> str:
    """What the answers are, the most frequent kind first."""
    parts: Counter[str] = Counter()
    single = [found.name for found in structures if found.name and found.labels < 2]
    for key, answers in groups.items():
        tool = next(iter(answers)).text
        if key.startswith(_TEXTS):
            parts["plain text"] += answers.total()
        elif key.startswith("json ["):
            parts["JSON arrays"] += answers.total()
        elif tool in normaliser.open_tools and key.startswith("tool "):
            parts[f"calls of {_listed(normaliser.open_tools)} with arguments that an LLM must write"] += answers.total()
    for found in structures:
        if found.name in single:
            parts[f"calls of {_listed(single)}"] += found.calls
        else:
            what = f"calls of {found.name!r}" if found.name else "JSON objects"
            parts[f"{what}{_fields_in_words(found)}"] += found.calls
    if len(parts) < 2:
        return next(iter(parts), "none that can be learned")
    total = parts.total()
    shown = [
        f"{words} ({count / total:.1%})" for words, count in sorted(parts.items(), key=lambda pair: (-pair[1], pair[0]))
    ]
    return "; ".join(shown[:_SHOWN]) + ("" if len(parts) <= _SHOWN else f"; and {len(parts) - _SHOWN} more kinds")


def _fields_in_words(found: _Structure) -> str:
    if found.labels < 2 or not found.fields.heads:
        return "" if not found.fields.free else ", without a form"
    label = "labels" if len(found.heads) > 1 else "label"
    rest = ", other fields constant" if found.fields.follows else ""
    return f", {label} at {_listed(found.heads)}{rest}"


def _listed(names: Sequence[str]) -> str:
    quoted = [repr(name) for name in names]
    if len(quoted) > _SHOWN + 1:
        return f"{', '.join(quoted[:_SHOWN])} and {len(quoted) - _SHOWN} more"
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} and {quoted[-1]}"


def _notes(counts: Counter[Answer], groups: _Groups, structures: Sequence[_Structure]) -> list[str]:
    """What has no form, and why."""
    notes = []
    other = sum(count for answer, count in counts.items() if answer.kind is AnswerKind.OTHER)
    if other:
        notes.append(
            f"{other} answers are no label (prose, a refusal, several calls): they are not learned, and count as "
            "disagreement"
        )
    for found in structures:
        of = f" of {found.name!r}" if found.name else ""
        for path, values in found.fields.free.items():
            notes.append(
                f"field {shown(path)!r}{of} is free text ({values:,} values in {found.calls:,} answers): such answers "
                "cannot be given locally"
            )
        deviating = sum(groups[key].total() for key in found.deviating)
        if deviating and not found.fields.free:
            what = f"calls of {found.name!r}" if found.name else "JSON answers"
            notes.append(f"{deviating} {what} do not follow the form of the others, and count as disagreement")
    return notes


def _twins(labels: Iterable[str], merge: bool) -> list[str]:
    """A note where a person would take labels for one."""
    spellings: dict[str, list[str]] = {}
    for label in labels:
        spelled = spelling(label) if merge else None
        same = " ".join(label.casefold().split()) if spelled is None else folded(spelled)
        spellings.setdefault(same, []).append(label)
    twins = [" and ".join(map(repr, sorted(names))) for _, names in sorted(spellings.items()) if len(names) > 1]
    if not twins:
        return []
    more = f" and {len(twins) - _SHOWN} more" if len(twins) > _SHOWN else ""
    return [
        f"labels differ by case, white space or quotes alone, and are told apart: {'; '.join(twins[:_SHOWN])}{more}"
    ]
