"""The part of Go's templates that annotations and labels of rules use.

``{{ $labels.name }}``, ``{{ $value }}``, their old names ``.Labels`` and ``.Value``, and the
functions of :data:`FUNCTIONS`, in a pipe or before their argument. Anything else is refused when a
rule is loaded, not when it fires.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from decimal import Decimal

_ACTION = re.compile(r"\{\{-?\s*(.*?)\s*-?\}\}", re.DOTALL)
_WORD = re.compile(r'"(?:[^"\\]|\\.)*"|`[^`]*`|[^\s|]+')
_LABEL = re.compile(r"(?:\$labels|\.Labels)\.([a-zA-Z_][a-zA-Z0-9_]*)\Z")
_SMALL = ("m", "u", "n", "p", "f", "a", "z", "y")
_LARGE = ("k", "M", "G", "T", "P", "E", "Z", "Y")
_BINARY = ("ki", "Mi", "Gi", "Ti", "Pi", "Ei", "Zi", "Yi")

Value = str | float


class BadTemplate(ValueError):
    """A template with something that is not known here."""


def check(template: str) -> None:
    """Refuse what could not be rendered.

    Raises:
        BadTemplate: it has an action that is not known.
    """
    for action in _ACTION.findall(template):
        _evaluated(action, {}, 0.0)
    if "{{" in _ACTION.sub("", template):
        raise BadTemplate(f"{template!r}: an action that does not end")


def render(template: str, labels: Mapping[str, str], value: float) -> str:
    """The template with its actions replaced."""
    return _ACTION.sub(lambda found: text(_evaluated(found[1], labels, value)), template)


def text(value: Value) -> str:
    """A value as Go prints it."""
    return value if isinstance(value, str) else go_number(value)


def go_number(value: float) -> str:
    """A float64 as Go's ``%v``: the shortest digits, an exponent from a million on."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    power = Decimal(repr(value)).adjusted()
    if value == 0 or -4 <= power < 6:
        return f"{Decimal(repr(value)).normalize():f}"
    return go_exponent(value)


def go_exponent(value: float) -> str:
    """A float64 as Go's ``%e`` with the shortest digits."""
    if not math.isfinite(value):
        return go_number(value)
    sign, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
    power = len(digits) + int(exponent) - 1
    shown = "".join(map(str, digits))
    mantissa = shown[0] + ("." + shown[1:] if len(shown) > 1 else "")
    return f"{'-' if sign else ''}{mantissa}e{power:+03d}"


def _evaluated(action: str, labels: Mapping[str, str], value: float) -> Value:
    result: Value | None = None
    for stage in _stages(action):
        name, *words = stage
        arguments = [_operand(word, labels, value) for word in words]
        if result is not None:
            arguments.append(result)
        if name in FUNCTIONS:
            try:
                result = FUNCTIONS[name](*arguments)
            except (TypeError, ValueError):
                raise BadTemplate(f"{{{{ {action} }}}}: {name} cannot take these") from None
        elif result is None and not words:
            result = _operand(name, labels, value)
        else:
            raise BadTemplate(f"{{{{ {action} }}}}: {name!r} is not known here")
    if result is None:
        raise BadTemplate("{{ }}: an action that says nothing")
    return result


def _stages(action: str) -> list[list[str]]:
    stages: list[list[str]] = [[]]
    rest = action
    while rest := rest.lstrip():
        if rest[0] == "|":
            stages.append([])
            rest = rest[1:]
            continue
        found = _WORD.match(rest)
        assert found is not None
        stages[-1].append(found[0])
        rest = rest[found.end() :]
    return [stage for stage in stages if stage]


def _operand(word: str, labels: Mapping[str, str], value: float) -> Value:
    if word in ("$value", ".Value"):
        return value
    label = _LABEL.match(word)
    if label is not None:
        return labels.get(label[1], "")
    if word[0] in '"`' and word[-1] == word[0]:
        return re.sub(r"\\(.)", r"\1", word[1:-1]) if word[0] == '"' else word[1:-1]
    try:
        return float(word)
    except ValueError:
        raise BadTemplate(f"{word!r} is not known here") from None


def _number(value: Value) -> float:
    return float(value)


def _scaled(value: float, base: float, units: tuple[str, ...]) -> str:
    unit = ""
    for name in units:
        if abs(value) < base:
            break
        unit, value = name, value / base
    return f"{_four(value)}{unit}"


def _four(value: float) -> str:
    """Go's ``%.4g``."""
    if not math.isfinite(value):
        return go_number(value)
    return f"{value:.4g}"


def humanize(value: Value) -> str:
    """With a metric prefix."""
    number = _number(value)
    if number == 0 or not math.isfinite(number):
        return _four(number)
    if abs(number) >= 1:
        return _scaled(number, 1000, _LARGE)
    unit = ""
    for name in _SMALL:
        if abs(number) >= 1:
            break
        unit, number = name, number * 1000
    return f"{_four(number)}{unit}"


def humanize1024(value: Value) -> str:
    """With a binary prefix."""
    number = _number(value)
    if abs(number) <= 1 or not math.isfinite(number):
        return _four(number)
    return _scaled(number, 1024, _BINARY)


def humanize_duration(value: Value) -> str:
    """Seconds as days, hours, minutes and seconds."""
    number = _number(value)
    if not math.isfinite(number):
        return _four(number)
    if number == 0:
        return "0s"
    sign, number = ("-", -number) if number < 0 else ("", number)
    if number < 1:
        unit = ""
        for name in _SMALL:
            if number >= 1:
                break
            unit, number = name, number * 1000
        return f"{sign}{_four(number)}{unit}s"
    whole = int(number)
    seconds, minutes, hours, days = whole % 60, whole // 60 % 60, whole // 3600 % 24, whole // 86400
    if days:
        return f"{sign}{days}d {hours}h {minutes}m {seconds}s"
    if hours:
        return f"{sign}{hours}h {minutes}m {seconds}s"
    if minutes:
        return f"{sign}{minutes}m {seconds}s"
    return f"{sign}{_four(number)}s"


def _printf(form: Value, *values: Value) -> str:
    return str(form) % tuple(text(v) if "%s" in str(form) else _number(v) for v in values)


FUNCTIONS: Mapping[str, Callable[..., Value]] = {
    "humanize": humanize,
    "humanize1024": humanize1024,
    "humanizeDuration": humanize_duration,
    "humanizePercentage": lambda value: f"{_four(_number(value) * 100)}%",
    "printf": _printf,
    "title": lambda value: str(value).title(),
    "toLower": lambda value: str(value).lower(),
    "toUpper": lambda value: str(value).upper(),
}
