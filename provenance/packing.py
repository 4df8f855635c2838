"""All that a span says of a call in one attribute, where `PROVENANCE_ATTRIBUTES=packed` asks for that; pure but for the setting.

    provenance.call = {provenance.stamp.kid=checkout/3 provenance.stamp.nonce=5bf9… provenance.request.size=2000 …}

OpenTelemetry takes its time over each attribute, and twice as long when it exports it. A collector of ours unpacks this one as it
arrives (`collector.otlp.packed`), into what the attributes would have been; other backends show it as it is.

What cannot be written so (a space in a value) is set as attributes. Attributes that stand beside are later and go before.
The brackets are there because OpenTelemetry may cut values off: what was cut is read as nothing, not as less than was said.
"""

import os
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

from provenance import names

ENVIRONMENT: Final = "PROVENANCE_ATTRIBUTES"
LIMITS: Final = ("OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT", "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT")

MAX_PACKED_LENGTH: Final = 4096
"""Characters: four times what all of it usually has; more is not packed, and not unpacked."""


class AttributesModeError(ValueError):
    """A setting that cannot be used."""


def pack(attributes: Mapping[str, str | int]) -> str | None:
    """The attributes as one text; None where they cannot be written so, or could not be read back."""
    text = _template(tuple(attributes)) % tuple(attributes.values())
    whole = text.count(" ") == len(attributes) - 1 and len(text) < MAX_PACKED_LENGTH - 1
    return f"{{{text}}}" if whole else None


@lru_cache(maxsize=256)  # a service's calls have the same names, nearly always
def _template(keys: tuple[str, ...]) -> str:
    return " ".join([f"{name.replace('%', '%%')}=%s" for name in keys])


def unpack(text: str) -> dict[str, str | int] | None:
    """What was packed; None where this is nothing that `pack` makes of attributes in `names.PACKABLE`."""
    if len(text) > MAX_PACKED_LENGTH or not (text.startswith("{") and text.endswith("}")):
        return None
    attributes: dict[str, str | int] = {}
    for item in text[1:-1].split(" "):
        name, equals, value = item.partition("=")
        kind = names.PACKABLE.get(name)
        is_number = value.isascii() and value.isdigit() and len(value) <= MAX_DIGITS
        if kind is None or not equals or name in attributes or (kind is int and not is_number):
            return None
        attributes[name] = int(value) if kind is int else value
    return attributes


MAX_DIGITS: Final = 18
"""Of a number that fits 64 bits whatever its digits are."""

_is_packed = False


def is_packed() -> bool:
    """Whether this process packs."""
    return _is_packed


def recorded(attributes: Mapping[str, Any] | None, name: str) -> Any:
    """What a span says already, packed or not; None where it says nothing of it."""
    known = attributes or {}
    if name in known:
        return known[name]
    text = known.get(names.PACKED)
    return (unpack(text) or {}).get(name) if isinstance(text, str) else None


def pack_as_the_environment_says() -> None:
    """Pack if `PROVENANCE_ATTRIBUTES` says so.

    Raises:
        AttributesModeError: It says something else; or it does, and OpenTelemetry is told to cut values shorter than these are.
    """
    global _is_packed  # noqa: PLW0603  (one process, one way to record)
    asked = os.environ.get(ENVIRONMENT, "").strip().lower() or "separate"
    if asked not in {"separate", "packed"}:
        message = f"{ENVIRONMENT}={asked!r}: expected separate or packed"
        raise AttributesModeError(message)
    for limit in LIMITS:
        text = os.environ.get(limit, "").strip()
        if asked == "packed" and text.isdigit() and int(text) < MAX_PACKED_LENGTH:
            message = (
                f"{ENVIRONMENT}=packed needs values of up to {MAX_PACKED_LENGTH} characters, and {limit} is {text}"
            )
            raise AttributesModeError(message)
    _is_packed = asked == "packed"
