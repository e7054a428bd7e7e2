"""Scenarios: which mechanisms are on, with which parameters; from a line of text, a TOML file, or Python."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tracekit.errors import UsageError
from tracekit.replay.mechanisms import Mechanism, Param, ParamValue, known_mechanisms
from tracekit.replay.toml_lines import line_of, nearest

__all__ = [
    "Scenario",
    "load_scenarios",
    "parse_scenario",
    "parse_settings",
    "read_scenarios",
    "with_parameters",
]

MOST: Final[Mapping[str, float]] = {"ms": 1e12, "s": 1e9, "": 2.0**53}
"""The largest number of each unit (\"\": of any other): beyond, times in ns would not fit into 64 bits."""


@dataclass(frozen=True)
class Scenario:
    """Mechanisms that are on together; `params[mechanism][parameter]` holds every parameter with its value.

    Raises UsageError for an unknown parameter or a value outside its range.

    >>> mechanism = known_mechanisms()["hot_hint"]
    >>> Scenario("mine", (mechanism,), {"hot_hint": {"lead_ms": 5}}).params["hot_hint"]["policy"]
    'oracle'
    """

    name: str
    mechanisms: tuple[Mechanism, ...] = ()
    params: Mapping[str, Mapping[str, ParamValue]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Fill in the defaults and check every value."""
        names = [m.name for m in self.mechanisms]
        if len(set(names)) != len(names):
            raise UsageError(f"scenario {self.name}: a mechanism is named twice")
        if unknown := self.params.keys() - set(names):
            raise UsageError(
                f"scenario {self.name}: parameters for {sorted(unknown)[0]}, which is not in it",
                hint="+".join(names),
            )
        for m in self.mechanisms:
            for param in m.params:
                if param.required:
                    self._show(m, param)
        full = {m.name: {**m.defaults(), **_checked(m, self.params.get(m.name, {}))} for m in self.mechanisms}
        object.__setattr__(self, "params", full)

    def _show(self, mechanism: Mechanism, param: Param) -> None:
        """Insist on a required parameter, and name it: a figure that depends on it never goes without."""
        given = self.params.get(mechanism.name, {})
        if param.name not in given:
            raise UsageError(_missing(mechanism, param), hint=f"{mechanism.name},{param.name}=1")
        setting = f"{param.name}={given[param.name]}"
        if setting not in [part.strip().removeprefix(f"{mechanism.name}.") for part in self.name.split(",")]:
            object.__setattr__(self, "name", f"{self.name},{mechanism.name}.{setting}")


def _checked(mechanism: Mechanism, given: Mapping[str, Any]) -> dict[str, ParamValue]:
    known = {p.name: p for p in mechanism.params}
    for name in given:
        if name not in known:
            raise UsageError(
                f"{mechanism.name} has no parameter {name}",
                hint=f"{mechanism.name}.{nearest(name, known)}" if known else f"{mechanism.name} has none",
            )
    return {name: _value(mechanism, known[name], value) for name, value in given.items()}


def _value(mechanism: Mechanism, param: Param, value: Any) -> ParamValue:
    what = f"{mechanism.name}.{param.name}"
    if value in param.words:
        return str(value)
    if isinstance(param.default, str):
        if param.choices and value not in param.choices:
            raise UsageError(f"{what} cannot be {value}", hint=f"{what}={nearest(str(value), param.choices)}")
        return str(value)
    if isinstance(param.default, bool):
        words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        if str(value).lower() not in words:
            raise UsageError(f"{what} must be true or false, not {value}")
        return words[str(value).lower()]
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    most = MOST.get(param.unit, MOST[""])
    if not abs(number) <= most:
        instead = "".join(f" or {word}" for word in param.words)
        room = f" of at most {most:g}" if math.isfinite(number) else ""
        raise UsageError(f"{what} must be a number{room}{_unit(param)}{instead}, not {value}")
    if isinstance(param.default, int):
        if number != int(number):
            raise UsageError(f"{what} must be a whole number{_unit(param)}, not {value}")
        number = int(number)
    if (param.low is not None and number < param.low) or (param.high is not None and number > param.high):
        top = "" if param.high is None else f" and at most {param.high:g}"
        raise UsageError(f"{what} must be at least {param.low or 0:g}{top}{_unit(param)}, not {value}")
    return number


def _missing(mechanism: Mechanism, param: Param) -> str:
    return f"{mechanism.name} needs {param.name}: {param.help}"


def _unit(param: Param) -> str:
    return f" ({param.unit})" if param.unit else ""


def parse_scenario(text: str, extra: Iterable[Mechanism] = ()) -> Scenario:
    """Read `NAME[+NAME…][,parameter=value…]`; a parameter that two mechanisms have needs `mechanism.`.

    `baseline` means nothing is on. `extra` are mechanisms of the caller's own.

    >>> parse_scenario("zeroing+hot_hint,policy=stride,n=4").params["hot_hint"]["n"]
    4
    >>> parse_scenario("hothint")
    Traceback (most recent call last):
    tracekit.errors.UsageError: no scenario or mechanism called hothint
    """
    known = {**known_mechanisms(), **{m.name: m for m in extra}}
    head, *settings = [part.strip() for part in text.split(",")]
    names = [name.strip() for name in head.split("+")]
    if names == ["baseline"]:
        names = []
    for name in names:
        if name not in known:
            raise UsageError(
                f"no scenario or mechanism called {name or 'nothing'}",
                hint=nearest(name, [*known, "baseline"]),
            )
    chosen = tuple(known[name] for name in names)
    params: dict[str, dict[str, ParamValue]] = {}
    for key, value in parse_settings(settings).items():
        owner, name = _owner(key, chosen)
        params.setdefault(owner, {})[name] = value
    return Scenario(text, chosen, params)


def parse_settings(texts: Iterable[str]) -> dict[str, str]:
    """Read `parameter=value` texts; UsageError where the equals sign is missing.

    >>> parse_settings(["hot_hint.n = 4"])
    {'hot_hint.n': '4'}
    """
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"a parameter is given as name=value, not {text!r}")
        found[key.strip()] = value.strip()
    return found


def with_parameters(scenario: Scenario, settings: Mapping[str, Any]) -> Scenario:
    """Return the scenario with some parameters set anew; its name says which.

    Keys are `mechanism.parameter`, or the parameter alone where only one mechanism has it. Numbers for a
    parameter that counts things are rounded. Raises UsageError for an unknown name or a value out of range.

    >>> with_parameters(parse_scenario("zeroing+hot_hint"), {"lead_ms": 5}).name
    'zeroing+hot_hint,lead_ms=5'
    """
    params: dict[str, dict[str, ParamValue]] = {name: dict(of) for name, of in scenario.params.items()}
    said = []
    for key, value in settings.items():
        owner, name = _owner(key, scenario.mechanisms)
        default = params[owner].get(name)
        counts = isinstance(default, int) and not isinstance(default, bool)
        params[owner][name] = round(value) if counts and isinstance(value, float) else value
        shown = params[owner][name]
        said.append(f"{key}={shown:g}" if isinstance(shown, float) else f"{key}={shown}")
    return Scenario(_with_settings(scenario.name, said), scenario.mechanisms, params)


def _with_settings(name: str, settings: Sequence[str]) -> str:
    """Return a scenario's name with these `parameter=value`; an earlier value of one does not stay in it."""

    def key_of(setting: str) -> str:
        return setting.partition("=")[0].strip()

    def same(one: str, other: str) -> bool:
        # A parameter may be named without its mechanism where no other has it.
        return one == other or one.endswith(f".{other}") or other.endswith(f".{one}")

    head, *parts = name.split(",")
    kept = [part for part in parts if not any(same(key_of(part), key_of(one)) for one in settings)]
    return ",".join([head, *kept, *settings])


def _owner(key: str, chosen: Sequence[Mechanism]) -> tuple[str, str]:
    owner, dot, name = key.rpartition(".")
    if dot:
        if owner not in [m.name for m in chosen]:
            raise UsageError(
                f"{key}: the scenario has no mechanism {owner}", hint=nearest(owner, [m.name for m in chosen])
            )
        return owner, name
    owners = [m.name for m in chosen if name in m.defaults()]
    if len(owners) == 1:
        return owners[0], name
    if not owners:
        names = [f"{m.name}.{p.name}" for m in chosen for p in m.params]
        raise UsageError(f"no mechanism of the scenario has a parameter {name}", hint=nearest(name, names))
    raise UsageError(
        f"{name} is a parameter of {' and '.join(owners)}: say which", hint=f"{owners[0]}.{name}=…"
    )


def read_scenarios(
    texts: Iterable[str], extra: Iterable[Mechanism] = (), *, settings: Mapping[str, str] | None = None
) -> list[Scenario]:
    """Read scenarios from lines of text; one that ends in `.toml` is a scenario file.

    `settings` are set in each of them, before it is asked whether it has all that it needs.

    >>> read_scenarios(["epf"], settings={"runnable": "2"})[0].name
    'epf,runnable=2'
    """
    found: list[Scenario] = []
    more = [f"{key}={value}" for key, value in (settings or {}).items()]
    for text in texts:
        if text.endswith(".toml"):
            found += load_scenarios(text, extra, settings=settings)
        else:
            found.append(parse_scenario(_with_settings(text, more), extra))
    return found


def load_scenarios(
    path: str | Path, extra: Iterable[Mechanism] = (), *, settings: Mapping[str, str] | None = None
) -> list[Scenario]:
    """Read scenarios from a TOML file: tables `[[scenario]]` with a `name` and a table per mechanism.

    `settings` (`mechanism.parameter` or `parameter`: value) win over the file's. A file without
    `[[scenario]]` is one scenario. Raises UsageError with the file's line.
    """
    path = Path(path)
    try:
        text = path.read_text()
        raw = tomllib.loads(text)
    except OSError as error:
        raise UsageError(f"cannot read the scenario file {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # also numbers of thousands of digits, endless nesting
        raise UsageError(f"{path}: {error}") from None
    many = "scenario" in raw
    tables = raw.get("scenario", [raw])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise UsageError(f"{path}, line {line_of(text, 'scenario')}: scenarios are tables [[scenario]]")
    if many and (outside := [key for key in raw if key != "scenario"]):
        # Read as no scenario's, it would be left out without a word.
        line = line_of(text, outside[0])
        raise UsageError(
            f"{path}, line {line}: {outside[0]} is in no scenario", hint=f"[scenario.{outside[0]}]"
        )
    found: list[Scenario] = []
    for nth, table in enumerate(tables):
        place = _Place(path, text, many, nth)
        one = _from_table(table, place, extra, settings or {})
        if one.name in [earlier.name for earlier in found]:
            raise UsageError(f"{place.of('name')}: a second scenario called {one.name}", hint='name = "…"')
        found.append(one)
    return found


@dataclass(frozen=True)
class _Place:
    """Where a scenario stands in its file: which of the tables [[scenario]], if there are any."""

    path: Path
    text: str
    many: bool
    nth: int

    def of(self, key: str) -> str:
        """Return the file and line of a key of the scenario, as messages begin."""
        full = f"scenario.{key}" if self.many else key
        return f"{self.path}, line {line_of(self.text, full, self.nth)}"


def _from_table(
    table: Mapping[str, Any], place: _Place, extra: Iterable[Mechanism], settings: Mapping[str, str]
) -> Scenario:
    known = {**known_mechanisms(), **{m.name: m for m in extra}}
    chosen: list[Mechanism] = []
    params: dict[str, Mapping[str, ParamValue]] = {}
    for key, value in table.items():
        if key in ("name", "description"):
            if not isinstance(value, str):
                hint = f'{key} = "{value}"'
                raise UsageError(f"{place.of(key)}: {key} must be text, not {value}", hint=hint)
            continue
        if key not in known:
            raise UsageError(f"{place.of(key)}: no mechanism called {key}", hint=nearest(key, known))
        if not isinstance(value, dict):
            header = f"[scenario.{key}]" if place.many else f"[{key}]"
            raise UsageError(f"{place.of(key)}: {key} must be a table of parameters", hint=header)
        for name in value:
            try:
                _checked(known[key], {name: value[name]})
            except UsageError as error:
                raise UsageError(f"{place.of(f'{key}.{name}')}: {error.message}", hint=error.hint) from None
        chosen.append(known[key])
        params[key] = value
    for key, setting in settings.items():
        owner, name = _owner(key, chosen)
        params[owner] = {**params[owner], name: setting}
    for m in chosen:
        for param in m.params:
            if param.required and param.name not in params[m.name]:
                raise UsageError(
                    f"{place.of(m.name)}: {_missing(m, param)}", hint=f"{param.name} = 1 below [{m.name}]"
                )
    name = table.get("name", place.path.stem)
    return Scenario(
        _with_settings(name, [f"{k}={v}" for k, v in settings.items()]) if settings else name,
        tuple(chosen),
        params,
    )
