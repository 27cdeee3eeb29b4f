"""Whether a value has the types that its annotation promises: JSON read into dataclasses has none of its own."""

import types
from collections.abc import Collection, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints


def misfit(value: object, hint: Any, place: str) -> str | None:
    """What in `value` is not as `hint` has it, by its place; None where all is.

    Knows dataclasses, unions, mappings, lists, tuples of one type, sets, and plain classes. An integer is a float, too;
    a boolean is no number.
    """
    if is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, hint):
            return f"{place}: not as written"
        hints = get_type_hints(hint)
        parts = [(getattr(value, item.name), hints[item.name], f"{place}.{item.name}") for item in fields(hint)]
    elif hint is Any:
        return None
    elif get_origin(hint) in (Union, types.UnionType):
        found = [misfit(value, option, place) for option in get_args(hint)]
        return None if None in found else found[0]
    elif get_origin(hint) is not None:
        return _misfit_within(value, hint, place)
    else:
        accepted = (int, float) if hint is float else hint
        fits = isinstance(value, accepted) and (hint is bool or not isinstance(value, bool))
        return None if fits else f"{place}: {type(value).__name__} instead of {hint.__name__}"
    return next(filter(None, (misfit(*part) for part in parts)), None)


def _misfit_within(value: object, hint: Any, place: str) -> str | None:
    kind, inner = get_origin(hint), get_args(hint)
    if not isinstance(value, kind):
        return f"{place}: {type(value).__name__} instead of {kind.__name__}"
    if isinstance(value, Mapping):
        parts = [(key, inner[0], f"{place}, a key") for key in value]
        parts += [(item, inner[1], f"{place}[{key!r}]") for key, item in value.items()]
    elif isinstance(value, Collection):
        parts = [(item, inner[0], f"{place}, an entry") for item in value]
    else:
        parts = []
    return next(filter(None, (misfit(*part) for part in parts)), None)
