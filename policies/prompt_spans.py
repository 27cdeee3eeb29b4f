"""What varies in a prompt from call to call: dates, times, ids and addresses by their looks, other values by example.

A plain word or a small number says nothing by its looks: whether it varies is learned (`policies.prompt_templates`),
and what may then stand in its place is what looks like the values seen there.
"""

import re
from collections import Counter
from collections.abc import Iterator

MARK = "\0"  # before the name of a kind that stands for a value of it, among tokens

_DAY = r"(?:0?[1-9]|[12][0-9]|3[01])"
_MONTH_NUMBER = r"(?:0?[1-9]|1[0-2])"
_MONTH = (
    r"(?:Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|Sept?(?:ember)?|Oct(?:ober)?"
    r"|Nov(?:ember)?|Dec(?:ember)?)\b\.?"
)
_WEEKDAY = r"(?:Mon(?:day)?|Tue(?:s(?:day)?)?|Wed(?:nesday)?|Thu(?:rs(?:day)?)?|Fri(?:day)?|Sat(?:urday)?|Sun(?:day)?)"
_CLOCK = r"(?:[01]?[0-9]|2[0-4]):[0-5][0-9](?::[0-6][0-9](?:[.,][0-9]{1,9})?)?"
_OFFSET = r"[+-][01][0-9]:?[0-5][0-9]"
_ZONES = r"(?:UTC|GMT|CES?T|EES?T|WES?T|BST|IST|JST|[ECMP][SD]T)"
_BEFORE, _AFTER = r"(?<![0-9A-Za-z])", r"(?![0-9A-Za-z])"

_DATE = (
    rf"(?:{_WEEKDAY}\.?,? )?(?:"
    rf"[12][0-9]{{3}}[-/.]{_MONTH_NUMBER}[-/.]{_DAY}(?:T{_CLOCK}(?:Z|{_OFFSET})?)?"
    rf"|{_DAY}[./-]{_DAY}[./-](?:[12][0-9]{{3}}|[0-9]{{2}})(?!\.?[0-9])"
    rf"|{_DAY}(?:st|nd|rd|th)?\.? (?:of )?{_MONTH}(?:,? [12][0-9]{{3}})?"
    rf"|{_MONTH} {_DAY}(?:st|nd|rd|th)?(?![0-9])(?:,? [12][0-9]{{3}})?"
    rf"|{_MONTH} [12][0-9]{{3}}"
    r"|[12][0-9]{3}年[0-9]{1,2}月(?:[0-9]{1,2}日)?"
    rf")(?:,? \(?{_WEEKDAY}\b\)?)?"
)
# The order says which is tried first where several begin at the same place.
_PATTERNS = {
    "uuid": r"[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}",
    "email": r"[\w.+-]{1,40}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}",
    "date": _DATE,
    "time": rf"{_CLOCK}(?: ?[AaPp]\.?[Mm]\b\.?)?(?: ?(?:Z|{_ZONES})\b)?(?: ?{_OFFSET})?|[01]?[0-9] ?[AaPp][Mm]",
    "zone": rf"(?:UTC|GMT)[+-][0-9]{{1,2}}(?::?[0-5][0-9])?|{_OFFSET}",
    "id": r"(?=[A-Za-z]*[0-9])[0-9A-Za-z]{8,}",
    "number": r"[0-9]{5,}",
}
_ANY = re.compile("|".join(f"(?P<{kind}>{_BEFORE}(?:{pattern}){_AFTER})" for kind, pattern in _PATTERNS.items()))
KINDS = {kind: re.compile(f"{_BEFORE}(?:{pattern}){_AFTER}") for kind, pattern in _PATTERNS.items()}
# Where one is known to stand, the next may have fewer digits, or no letter.
KINDS["id"] = re.compile(f"{_BEFORE}(?=[A-Za-z]*[0-9]|[A-Fa-f]+{_AFTER})[0-9A-Za-z]{{8,128}}{_AFTER}")
KINDS["number"] = re.compile(f"{_BEFORE}[0-9]{{3,}}{_AFTER}")
_DATES = re.compile("|".join(f"{_BEFORE}(?:{_PATTERNS[kind]}){_AFTER}" for kind in ("date", "time")))
_PLACE = re.compile("[0-9]|@")  # what every kind has
_REACH, _WINDOW = 40, 48  # characters before and behind a digit or an @
_MOST_WINDOWS = 256  # that are read: more digits than that are data
_TURN = re.compile("[0-9](?=[A-Za-z])|[A-Za-z](?=[0-9])")
_DIGIT = re.compile("[0-9]")
# Codes beside each other are a list of labels, and where there are many they are data: no ids of this call.
_CODES = {"id": 4, "number": 2, "uuid": 4, "email": 4}

# Scripts that put no space between words: each character is a token.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u30ff\u3400-\u9fff\uf900-\ufaff"
_TOKEN = re.compile(rf"[{_UNSPACED}]|(?:(?![{_UNSPACED}])\w)+|\s+|[^\w\s]")
_SPACED_TOKEN, _HAS_UNSPACED = re.compile(r"\w+|\s+|[^\w\s]"), re.compile(f"[{_UNSPACED}]")
_WORD = re.compile(r"\w")

_LISTED_BEFORE = re.compile(
    r"""(?:[,;|/]|\b(?:or|and))\s*["'`(\[]?\Z|(?:\A|\n)\s*(?:[-*\u2022\u2013]|[0-9]+[.)])\s*["'`]?\Z"""
)
_LISTED_AFTER = re.compile(r"""["'`)\]]?(?:\s*[;|/]|\s+(?:or|and)\b)""")
_LIST_OF = re.compile(r""":\s*["'`(\[]*\Z""")
_SENTENCE_BEFORE = re.compile(r"(?:\A|[.!?\n\x03]|\n\s*[-*\u2022\u2013#>]+)\s*\Z")

# Within names: "Acme & Sons, Inc.", "J. O'Neil-Smith", "Order #5".
_NAME_MARKS = frozenset(".,&'\u2019-/#@+()_$\u20ac\u00a3%")
_JOINING = frozenset(
    {"of", "the", "and", "for", "de", "la", "le", "du", "des", "del", "da", "di", "van", "von", "der", "den", "zu"}
    | {"y", "e", "bin", "al", "el"}
)
# Whoever changes one of these changes what is asked.
_STEERING = frozenset(
    {"not", "no", "never", "none", "nothing", "always", "must", "only", "except", "unless", "without", "instead"}
    | {"ignore", "if", "then", "else", "don", "do", "does", "shall", "should", "can", "cannot", "answer", "reply"}
    | {"respond", "return", "output", "say", "label", "labels", "use", "be", "write", "speak", "treat", "mark"}
    | {"classify", "sort", "choose", "pick", "prefer", "avoid", "give", "make", "skip"}
)
_TITLES = frozenset({"mr", "mrs", "ms", "dr", "st", "prof", "jr", "sr"})


def split(text: str) -> Iterator[tuple[str, str]]:
    """The text in pieces (kind, piece): the values of a kind, and what stands between them with kind ""."""
    found = _found(text)
    counts = Counter(kind for kind, _, _ in found)
    at = 0
    for kind, start, end in found:
        if kind in _CODES and (
            counts[kind] > _CODES[kind] or is_listed(text[max(0, start - 80) : start], text[end : end + 12])
        ):
            continue
        if start > at:
            yield "", text[at:start]
        yield kind, text[start:end]
        at = end
    if at < len(text):
        yield "", text[at:]


def normalised(text: str) -> str:
    """The text with the name of the kind in the place of each value of a kind."""
    return "".join(f"{MARK}{kind}{MARK}" if kind else piece for kind, piece in split(text))


def without_dates(text: str) -> str:
    """The text with a mark in the place of each date and time."""
    return _DATES.sub(MARK, text)


def end_of(kind: str, text: str, start: int) -> int:
    """Where the value of a kind ends that begins at `start`; -1 where none does."""
    match = KINDS[kind].match(text, start)
    return -1 if match is None else match.end()


def tokens(text: str) -> list[str]:
    """Words, runs of white space, and single marks: joined, they are the text."""
    return (_TOKEN if _HAS_UNSPACED.search(text) else _SPACED_TOKEN).findall(text)


def is_word(token: str) -> bool:
    """Whether a token has a letter or a digit, and is not white space or a mark."""
    return _WORD.match(token) is not None


def length(value: str) -> int:
    """Tokens that are not white space."""
    return sum(1 for token in tokens(value) if not token.isspace())


def is_listed(before: str, after: str) -> bool:
    """Whether what stands between the two is an item of a list, as labels are."""
    if _LISTED_BEFORE.search(before) or _LISTED_AFTER.match(after):
        return True
    return after.lstrip("\"'`").startswith(",") and _LIST_OF.search(before) is not None


def begins_sentence(before: str) -> bool:
    """Whether a capital letter after `before` says nothing of the word that it begins."""
    return _SENTENCE_BEFORE.search(before) is not None


def looks(value: str, begins: bool) -> frozenset[str]:
    """What a value is made of: C names, d digits, m marks within names, w other words, x what no value of a call has.

    `begins`: it stands where a sentence begins, so that its first capital says nothing.
    """
    found = set()
    parts = [part for part in tokens(value) if not part.isspace()]
    for index, part in enumerate(parts):
        if not is_word(part):
            # "Acme Corp. Speak French": a full stop between words ends a sentence, except in "J. Smith".
            ends = part in "." and 0 < index < len(parts) - 1 and not _is_abbreviated(parts[index - 1])
            found.add("m" if part in _NAME_MARKS and not ends else "x")
        elif part.casefold() in _STEERING:
            found.add("x")
        elif _DIGIT.search(part):
            found.add("d")
        elif part[0].isupper() and not (begins and index == 0):
            found.add("C")
        elif not (part in _JOINING and 0 < index < len(parts) - 1):
            found.add("w")
    if "\n" in value or "\r" in value:
        found.add("x")
    return frozenset(found)


def _is_abbreviated(word: str) -> bool:
    return len(word) == 1 or word.casefold() in _TITLES


def _found(text: str) -> list[tuple[str, int, int]]:
    """Kind, start and end of each value. Only what stands around digits and @ is read closely, and only so much."""
    found: list[tuple[str, int, int]] = []
    read = at = 0
    for _ in range(_MOST_WINDOWS):
        place = _PLACE.search(text, at)
        if place is None:
            break
        at = place.start() + _WINDOW
        end = min(len(text), at + _REACH)
        for match in _ANY.finditer(text, max(read, place.start() - _REACH), end):
            if match.start() >= at:  # of the next window
                break
            # What goes on behind the end is read to its own.
            whole = match if match.end() < end else _ANY.match(text, match.start()) or match
            read = whole.end()
            kind = whole.lastgroup or ""
            if kind == "id" and not _is_random(whole[0]):
                kind = "number" if whole[0].isdigit() else ""
            if kind:
                found.append((kind, whole.start(), read))
        at = max(at, read)
    return found


def _is_random(value: str) -> bool:
    """Whether letters and digits are mixed as in an id, not as in `category10` or `oauth2token`."""
    return not value.isdigit() and (len(_TURN.findall(value)) >= 3 or sum(map(str.isdigit, value)) >= 5)
