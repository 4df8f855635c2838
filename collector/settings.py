"""The collector's settings: declared once, read from flags > environment > TOML > defaults, with where each came from.

    load(argv, environ) -> Loaded         raises ConfigError that names the source: "provenance.toml, [collector] grpc_port: ..."
    Loaded.settings                       the values
    Loaded.to_toml()                      the same as a TOML file, each line with its origin
    markdown_table()                      for docs/collector.md

A field of `Settings` is a row of the table: `grpc_port` is the flag --grpc-port, the variable PROVENANCE_COLLECT_GRPC_PORT
and the key grpc_port of [collector]. Nothing here opens a file but the TOML; no setting is a secret, only paths to some.
"""

# ruff: noqa: RUF009 - `_declared` is `dataclasses.field` with our columns, and just as immutable.

import argparse
import difflib
import json
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal

from collector.errors import ConfigError
from collector.units import parse_age, parse_size, show_age, show_size

SECTION: Final = "collector"
OTHER_SECTIONS: Final = frozenset({"egress"})
"""What else a provenance.toml may hold: see collector/policy.py."""

ENV_PREFIX: Final = "PROVENANCE_COLLECT_"
CONFIG_ENV: Final = ENV_PREFIX + "CONFIG"
_NEAR_PREFIX: Final = "PROVENANCE_COLLECT"
"""A variable that begins like this is meant for the collector: one that it does not know is a mistake, not someone else's."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What a setting's value may be.

    Attributes:
        expected: For messages: "expected a port from 0 to 65535".
        parse: From text; raises ValueError.
        toml: The types that TOML may give beside text; their `str()` is parsed.
        show: A value as the text that gives it again; None where `str` does.
        many: Whether it is a list: a repeated flag, a TOML array, commas in the environment.
    """

    expected: str
    parse: Callable[[str], Any]
    toml: tuple[type, ...] = ()
    show: Callable[[Any], str] | None = None
    many: bool = False


# --- the kinds ------------------------------------------------------------------------------------------------------------


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= 65535):
        raise ValueError
    return int(text)


def _path(text: str) -> Path:
    if not text.strip() or "\0" in text:
        raise ValueError
    return Path(text)


def _host(text: str) -> str:
    if not text.strip() or any(c.isspace() or c in "/[]" for c in text):
        raise ValueError
    return text


def _switch(text: str) -> bool:
    match text.strip().lower():
        case "true" | "1" | "yes" | "on":
            return True
        case "false" | "0" | "no" | "off":
            return False
    raise ValueError


def _access_log(text: str) -> str:
    access_log_parts(text)
    return text


def access_log_parts(text: str) -> tuple[str, str, str]:
    """Service, direction ('' where it is not said) and path of `SERVICE[:inbound|outbound]=PATH`; raises ValueError."""
    who, separator, path = text.partition("=")
    service, colon, direction = who.partition(":")
    if not (separator and service and path) or (colon and direction not in {"inbound", "outbound"}):
        raise ValueError(text)
    return service, direction, path


TAIL_FORMATS: Final = (
    "envoy",
    "istio",
    "envoy-gateway",
    "linkerd",
    "ztunnel",
    "hubble",
    "zeek",
    "vpcflow",
    "conntrack",
)
"""What `collector.witnesses.reading` reads; said again here, where nothing heavy is loaded."""


@dataclass(frozen=True, slots=True)
class Tail:
    """What `--tail` says of a file: its format, whose proxy writes it (None: nobody said), its direction ('': not said)."""

    format: str
    service: str | None
    direction: str
    path: str


def _tail(text: str) -> str:
    tail_parts(text)
    return text


def tail_parts(text: str) -> Tail:
    """The parts of `FORMAT[@SERVICE[/inbound|/outbound]]:PATH`; raises ValueError."""
    head, colon, path = text.partition(":")
    format_, at, who = head.partition("@")
    service, slash, direction = who.partition("/")
    is_known = format_ in TAIL_FORMATS and (not slash or direction in {"inbound", "outbound"})
    if not (colon and path and is_known) or (at and not service):
        raise ValueError(text)
    return Tail(format_, service or None, direction, path)


def _size(least: int, most: int, expected: str) -> Kind:
    def parse(text: str) -> int:
        size_bytes = parse_size(text)
        if not least <= size_bytes <= most:
            raise ValueError(text)
        return size_bytes

    return Kind(expected, parse, (int,), show_size)


def _one_of(*words: str) -> Kind:
    def parse(text: str) -> str:
        if text.lower() not in words:
            raise ValueError
        return text.lower()

    return Kind(f"one of {', '.join(words)}", parse)


_PORT: Final = Kind("a port from 0 to 65535", _port, (int,))
_PATH: Final = Kind("a path", _path)
_HOST: Final = Kind("an address or a host name, without brackets or a port", _host)
_SWITCH: Final = Kind("true or false", _switch, (bool,))
_MIB: Final = 1024**2
_GIB: Final = 1024**3
_AGES: Final = Kind("an age such as 7d, 12h or 90m", parse_age, show=show_age)
_FILE_SIZE: Final = _size(64 * _MIB, 2**60, "a size of 64MiB or more, such as 20GiB")
_REQUEST_SIZE: Final = _size(64 * 1024, _GIB, "a size from 64KiB to 1GiB, such as 16MiB")
_MEMORY_SIZE: Final = _size(128 * _MIB, 2**60, "a size of 128MiB or more, such as 2GiB")
_ACCESS_LOGS: Final = Kind("SERVICE[:inbound|outbound]=PATH", _access_log, many=True)
_TAILS: Final = Kind(
    f"FORMAT[@SERVICE[/inbound|/outbound]]:PATH, with FORMAT one of {', '.join(TAIL_FORMATS)}", _tail, many=True
)


def _declared(kind: Kind, default: Any, text: str, metavar: str = "") -> Any:
    """A row of the table: what is declared of one setting."""
    return field(default=default, metadata={"kind": kind, "help": text, "metavar": metavar})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a collector is told, with its defaults. Paths are relative to the working directory, also in a TOML file.

    `keep` is in ns; `max_size`, `max_request_bytes`, `max_grpc_request_bytes` and `memory` are in bytes.
    """

    db: Path = _declared(_PATH, None, "the evidence file; created if it does not exist", "PATH")
    host: str = _declared(_HOST, "127.0.0.1", "the address that both ports listen on", "HOST")
    grpc_port: int = _declared(_PORT, 4317, "OTLP/gRPC; 0 takes any free port", "PORT")
    http_port: int = _declared(
        _PORT, 4318, "OTLP/HTTP, queries, /healthz, /readyz and /metrics; 0 takes any free port", "PORT"
    )
    access_log: tuple[str, ...] = _declared(
        _ACCESS_LOGS,
        (),
        "an Envoy or Istio access log to follow, JSON or default text; may be given several times",
        "SERVICE[:inbound|outbound]=PATH",
    )
    tail: tuple[str, ...] = _declared(
        _TAILS,
        (),
        "another witness's log to follow: access logs of Envoy, Istio, Envoy Gateway and Linkerd, and flows of ztunnel, "
        "Hubble, Zeek, VPC flow logs and conntrack; may be given several times",
        "FORMAT[@SERVICE[/inbound|/outbound]]:PATH",
    )
    policy: Path | None = _declared(
        _PATH,
        None,
        "TOML whose [egress] allow replaces the stored rules, an empty list allows nothing (default: the --config "
        "file, where that has an [egress])",
        "FILE",
    )
    keep: int | None = _declared(
        _AGES,
        None,
        "what was received longer ago is deleted; units s, m, h, d, w (default: it is kept for ever)",
        "AGE",
    )
    max_size: int | None = _declared(
        _FILE_SIZE,
        None,
        "of the file, its write-ahead log and its journal together; the oldest evidence is deleted to keep below it; "
        "units KiB, MiB, GiB, TiB, KB, MB, GB, TB (default: no limit)",
        "SIZE",
    )
    max_request_bytes: int = _declared(
        _REQUEST_SIZE, 64 * _MIB, "of one request, on both ports, after decompression too", "SIZE"
    )
    max_grpc_request_bytes: int = _declared(
        _REQUEST_SIZE, 16 * _MIB, "of one request over gRPC, where that is less: gRPC holds each three times", "SIZE"
    )
    memory: int | None = _declared(
        _MEMORY_SIZE,
        None,
        "what the database may hold in memory while it answers questions; larger ones spill to the disk (default: "
        "1GiB, or a quarter of the machine's or container's if that is less)",
        "SIZE",
    )
    ready_file: Path | None = _declared(
        _PATH, None, "written once all is listening: pid, ports and database as JSON", "PATH"
    )
    tls_cert: Path | None = _declared(
        _PATH, None, "PEM: the certificate and its chain; both ports then speak TLS alone", "FILE"
    )
    tls_key: Path | None = _declared(_PATH, None, "PEM: the certificate's private key, without a passphrase", "FILE")
    tls_client_ca: Path | None = _declared(
        _PATH, None, "PEM: only clients with a certificate of one of these authorities are served (mTLS)", "FILE"
    )
    write_token_file: Path | None = _declared(
        _PATH, None, "bearer tokens that may send, one a line: required on /v1/* and gRPC once given", "FILE"
    )
    read_token_file: Path | None = _declared(
        _PATH, None, "bearer tokens that may ask, one a line: required on /api/* and /metrics once given", "FILE"
    )
    insecure: bool = _declared(
        _SWITCH, False, "listen beyond loopback although TLS or credentials are missing: whoever reaches it may use it"
    )
    log_format: Literal["text", "json"] = _declared(
        _one_of("text", "json"), "text", "how records are written to stderr, one a line", "FORMAT"
    )
    log_level: str = _declared(
        _one_of("debug", "info", "warning", "error"), "info", "the least severe records that are written", "LEVEL"
    )


REQUIRED: Final = ("db",)


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings, and where each of them came from.

    Attributes:
        settings: The values.
        origins: By name: "--grpc-port", "PROVENANCE_COLLECT_GRPC_PORT", "provenance.toml, [collector] grpc_port", "default".
        print_config: Whether they are to be printed rather than used.
    """

    settings: Settings
    origins: Mapping[str, str]
    print_config: bool = False

    def to_toml(self) -> str:
        """A TOML file with these settings, each with its origin as a comment."""
        lines = [f"[{SECTION}]"]
        for name in _DECLARED:
            value, origin = getattr(self.settings, name), self.origins[name]
            text = _toml(_shown(name, value))
            shown = f"# {name} is not set" if value is None else f"{name} = {text}  # {_printable(origin)}"
            lines.append(shown)
        return "\n".join(lines) + "\n"


_DECLARED: Final[dict[str, Field[Any]]] = {f.name: f for f in fields(Settings)}


def flag(name: str) -> str:
    """The command line's name of a setting."""
    return "--" + name.replace("_", "-")


def variable(name: str) -> str:
    """The environment's name of a setting."""
    return ENV_PREFIX + name.upper()


def load(argv: Sequence[str], environ: Mapping[str, str], *, description: str = "", epilog: str = "") -> Loaded:
    """The effective settings; raises ConfigError, and SystemExit where argparse ends: --help, an unknown flag."""
    given = vars(parser(description=description, epilog=epilog).parse_args(argv))
    config = _config_file(given.pop("config"), environ)
    print_config = given.pop("print_config")
    values: dict[str, Any] = {name: f.default for name, f in _DECLARED.items()}
    origins = dict.fromkeys(_DECLARED, "default")
    layers = (_from_toml(config), _from_environment(environ), _from_flags(given))
    for layer in layers:
        for name, (origin, value) in layer.items():
            values[name], origins[name] = value, origin
    for name in REQUIRED:
        if values[name] is None:
            raise ConfigError(
                f"{name} is not set: give {flag(name)}, {variable(name)} or {name} in [{SECTION}] of --config"
            )
    return Loaded(Settings(**values), origins, print_config)


# --- the layers: name -> (origin, value) ----------------------------------------------------------------------------------

_Layer = dict[str, tuple[str, Any]]


def _from_flags(given: Mapping[str, Any]) -> _Layer:
    layer: _Layer = {}
    for name, raw in given.items():
        if raw is not None:
            layer[name] = (flag(name), raw if isinstance(raw, bool) else _parsed(name, raw, flag(name)))
    return layer


def _from_environment(environ: Mapping[str, str]) -> _Layer:
    known = {variable(name): name for name in _DECLARED}
    layer: _Layer = {}
    for key in sorted(environ):
        if not key.startswith(_NEAR_PREFIX) or key == CONFIG_ENV:
            continue
        if key not in known:
            raise ConfigError(
                f"{key}: the environment sets what no setting is called{_meant(key, [*known, CONFIG_ENV])}"
            )
        name, text = known[key], environ[key]
        if not text:  # how a container's manifest says "not set"
            continue
        parts = [part.strip() for part in text.split(",") if part.strip()] if _kind(name).many else text
        layer[name] = (key, _parsed(name, parts, key))
    return layer


def _from_toml(path: Path | None) -> _Layer:
    if path is None:
        return {}
    document = _document(path)
    for section in document:
        if section != SECTION and section not in OTHER_SECTIONS:
            raise ConfigError(f"{path}: no section [{section}]{_meant(section, [SECTION, *OTHER_SECTIONS])}")
    table = document.get(SECTION, {})
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: {SECTION}: expected a table [{SECTION}], got {table!r}")
    layer: _Layer = {}
    if "egress" in document:
        layer["policy"] = (f"{path}, [egress]", path)
    for name, raw in table.items():
        origin = f"{path}, [{SECTION}] {name}"
        if name not in _DECLARED:
            raise ConfigError(f"{origin}: no such setting{_meant(name, _DECLARED)}")
        layer[name] = (origin, _parsed(name, _toml_text(name, raw, origin), origin))
    return layer


def _config_file(flag_value: str | None, environ: Mapping[str, str]) -> Path | None:
    text = flag_value or environ.get(CONFIG_ENV)
    return Path(text) if text else None


def _document(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise ConfigError(f"--config {path} cannot be read: {e.strerror}") from e
    except UnicodeDecodeError as e:
        raise ConfigError(f"--config {path} cannot be read: not UTF-8") from e
    except tomllib.TOMLDecodeError as e:
        raise ConfigError(f"{path}: not TOML: {e}") from e


def _toml_text(name: str, raw: object, origin: str) -> str | list[str]:
    """A TOML value as the text that the other sources would give."""
    kind = _kind(name)
    if kind.many:
        if not isinstance(raw, list) or not all(isinstance(item, str) for item in raw):
            raise ConfigError(f"{origin}: expected a list of {kind.expected}, got {raw!r}")
        return [str(item) for item in raw]
    # A bool is an int to Python, and no port.
    if type(raw) is not str and type(raw) not in kind.toml:
        raise ConfigError(f"{origin}: expected {kind.expected}, got {raw!r}")
    return str(raw)


def _parsed(name: str, raw: str | Sequence[str], origin: str) -> Any:
    """The value; raises ConfigError that says where the text was found."""
    kind = _kind(name)
    if isinstance(raw, str):
        return _parsed_one(kind, raw, origin)
    if not kind.many:  # argparse's reading of `--db=--`
        raise ConfigError(f"{origin}: expected {kind.expected}, got none")
    return tuple(_parsed_one(kind, item, origin) for item in raw)


def _parsed_one(kind: Kind, text: str, origin: str) -> Any:
    try:
        return kind.parse(text)
    except ValueError as e:
        raise ConfigError(f"{origin}: expected {kind.expected}, got {text!r}") from e


def _kind(name: str) -> Kind:
    kind: Kind = _DECLARED[name].metadata["kind"]
    return kind


def _meant(word: str, known: Sequence[str] | Mapping[str, object]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else f"; there are {', '.join(known)}"


# --- how they are shown ---------------------------------------------------------------------------------------------------


def parser(*, description: str = "", epilog: str = "") -> argparse.ArgumentParser:
    """The command line. Values stay text here: `load` parses all sources alike, so that their errors read alike."""
    made = argparse.ArgumentParser(
        prog="provenance collect",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for name, declared in _DECLARED.items():
        kind, metavar = _kind(name), declared.metadata["metavar"]
        text = f"{declared.metadata['help']}{_default(declared)}".replace("%", "%%")
        if kind is _SWITCH:
            made.add_argument(flag(name), action=argparse.BooleanOptionalAction, default=None, help=text)
        elif kind.many:
            made.add_argument(flag(name), action="append", metavar=metavar, help=text)
        else:
            made.add_argument(flag(name), metavar=metavar, help=text)
    made.add_argument(
        "--config", metavar="FILE", help=f"TOML with the same settings under [{SECTION}], as --print-config writes it"
    )
    made.add_argument("--print-config", action="store_true", help="print the effective settings as TOML, and exit")
    return made


def markdown_table() -> str:
    """The settings as docs/collector.md shows them."""
    rows = ["| flag | environment | TOML, `[collector]` | default | |", "|---|---|---|---|---|"]
    for name, declared in _DECLARED.items():
        default = "required" if name in REQUIRED else _plain_default(_shown(name, declared.default))
        text = str(declared.metadata["help"]).replace("|", "\\|")
        rows.append(f"| `{flag(name)}` | `{variable(name)}` | `{name}` | {default} | {text} |")
    rows.append(f"| `--config` | `{CONFIG_ENV}` | | | the TOML file |")
    return "\n".join(rows) + "\n"


def _default(declared: Field[Any]) -> str:
    value = _shown(declared.name, declared.default)
    if declared.name in REQUIRED:
        return " (required)"
    return "" if value in (None, (), False, MISSING) else f" (default: {value})"


def _shown(name: str, value: Any) -> Any:
    """The value, or the text that gives it again where it has a unit."""
    show = _kind(name).show
    return value if show is None or value is None else show(value)


def _plain_default(value: object) -> str:
    match value:
        case None | ():
            return "none"
        case bool():
            return f"`{str(value).lower()}`"
        case _:
            return f"`{value}`"


def _toml(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case int():
            return str(value)
        case tuple():
            return f"[{', '.join(_toml(item) for item in value)}]"
        case _:
            # A JSON string is a TOML basic string, except for DEL, which TOML wants escaped; and a path may be no text.
            text = str(value).encode("utf-8", "replace").decode()
            return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)
