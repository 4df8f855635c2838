"""One loader for flags, environment and TOML: what wins, where it came from, and what a mistake is told."""

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.errors import ConfigError
from collector.receiver.grpc_server import MAX_GRPC_REQUEST_BYTES
from collector.receiver.ingest import MAX_REQUEST_BYTES
from collector.settings import CONFIG_ENV, Loaded, Settings, flag, load, markdown_table, variable
from collector.units import MAX_AGE_NS, parse_age, parse_size, show_age, show_size


def loaded(*argv: str, **environ: str) -> Loaded:
    return load(argv, environ)


def write(directory: Path, text: str) -> str:
    path = directory / "provenance.toml"
    path.write_text(text)
    return str(path)


def test_the_defaults() -> None:
    settings = loaded("--db", "x").settings

    assert (settings.host, settings.grpc_port, settings.http_port) == ("127.0.0.1", 4317, 4318)
    assert (settings.access_log, settings.tls_cert, settings.insecure) == ((), None, False)


def test_flags_beat_the_environment_beats_toml_beats_defaults(tmp_path: Path) -> None:
    config = write(tmp_path, '[collector]\ndb = "toml"\nhost = "::1"\ngrpc_port = 1\nhttp_port = 2\n')
    environ = {"PROVENANCE_COLLECT_GRPC_PORT": "3", "PROVENANCE_COLLECT_HTTP_PORT": "4", CONFIG_ENV: config}
    got = loaded("--http-port", "5", **environ)

    settings, origins = got.settings, got.origins
    assert (settings.db, settings.host, settings.grpc_port, settings.http_port) == (Path("toml"), "::1", 3, 5)
    assert origins["db"] == f"{config}, [collector] db"
    assert origins["grpc_port"] == "PROVENANCE_COLLECT_GRPC_PORT"
    assert origins["http_port"] == "--http-port"
    assert origins["log_level"] == "default"
    assert loaded("--config", config).settings.grpc_port == 1


def test_switches_and_lists_from_every_source(tmp_path: Path) -> None:
    config = write(tmp_path, '[collector]\ninsecure = true\naccess_log = ["a=/1", "b:inbound=/2"]\n')

    assert loaded("--db", "x", "--config", config).settings.insecure
    assert not loaded("--db", "x", "--config", config, "--no-insecure").settings.insecure
    assert not loaded("--db", "x", "--config", config, PROVENANCE_COLLECT_INSECURE="off").settings.insecure
    assert loaded("--db", "x", "--config", config).settings.access_log == ("a=/1", "b:inbound=/2")
    assert loaded("--db", "x", PROVENANCE_COLLECT_ACCESS_LOG="a=/1, b=/2").settings.access_log == ("a=/1", "b=/2")
    assert loaded("--db", "x", "--access-log", "a=/1", "--access-log", "b=/2").settings.access_log == ("a=/1", "b=/2")


def test_ages_and_sizes_from_every_source(tmp_path: Path) -> None:
    config = write(tmp_path, '[collector]\nkeep = "90m"\nmax_size = "20 GiB"\nmemory = 268435456\n')
    got = loaded("--db", "x", "--config", config, "--memory", "2gib", PROVENANCE_COLLECT_KEEP="2w")

    assert got.settings.keep == 14 * 86_400 * 10**9
    assert (got.settings.max_size, got.settings.memory) == (20 * 2**30, 2 * 2**30)
    text = got.to_toml()
    for line in ('keep = "14d"  # PROVENANCE_COLLECT_KEEP', 'max_size = "20GiB"', 'memory = "2GiB"  # --memory'):
        assert line in text
    assert 'max_request_bytes = "64MiB"  # default' in text


def test_no_limit_is_a_limit_unless_it_is_given() -> None:
    settings = loaded("--db", "x").settings
    assert (settings.keep, settings.max_size, settings.memory) == (None, None, None)
    assert settings.max_request_bytes == MAX_REQUEST_BYTES
    assert settings.max_grpc_request_bytes == MAX_GRPC_REQUEST_BYTES


@given(size=st.integers(1, 2**60))
def test_a_size_is_shown_as_it_may_be_given(size: int) -> None:
    assert parse_size(show_size(size)) == size


@given(seconds=st.integers(1, MAX_AGE_NS // 10**9))
def test_an_age_is_shown_as_it_may_be_given(seconds: int) -> None:
    assert parse_age(show_age(seconds * 10**9)) == seconds * 10**9


@given(text=st.text(max_size=8) | st.from_regex(r"[0-9]{1,3} ?[kmgtKMGT]?i?[bB]?", fullmatch=True))
def test_any_text_is_a_size_or_an_age_or_a_value_error(text: str) -> None:
    for parse in (parse_size, parse_age):
        try:
            assert parse(text) >= 0
        except ValueError:
            continue


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1KiB", 1024),
        ("1kb", 1000),
        ("500MB", 500_000_000),
        ("2 TiB", 2 * 2**40),
        ("7", 7),
        ("7B", 7),
        (" 3mib ", 3 * 2**20),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


def test_an_empty_variable_is_not_set() -> None:
    assert loaded("--db", "x", PROVENANCE_COLLECT_HOST="").settings.host == "127.0.0.1"


@pytest.mark.parametrize(
    ("toml", "complaint"),
    [
        ("grpc_port = 'x'", r"provenance.toml, \[collector\] grpc_port: expected a port from 0 to 65535, got 'x'"),
        ("grpc_port = 65536", "grpc_port: expected a port"),
        ("grpc_port = -1", "grpc_port: expected a port"),
        ("grpc_port = true", "grpc_port: expected a port from 0 to 65535, got True"),
        ("grpc_port = 1.0", "grpc_port: expected a port"),
        ("db = 5", "db: expected a path, got 5"),
        ("db = ''", "db: expected a path, got ''"),
        ("insecure = 1", "insecure: expected true or false, got 1"),
        ("access_log = 'a=b'", "access_log: expected a list of SERVICE"),
        ("access_log = [5]", "access_log: expected a list of SERVICE"),
        ("access_log = ['a']", r"access_log: expected SERVICE\[:inbound\|outbound\]=PATH, got 'a'"),
        ("host = '[::1]:80'", "host: expected an address or a host name, without brackets"),
        ("log_format = 'xml'", "log_format: expected one of text, json, got 'xml'"),
        ("grcp_port = 1", "grcp_port: no such setting; did you mean grpc_port"),
        ("keep = '7'", "keep: expected an age such as 7d, 12h or 90m, got '7'"),
        ("keep = 7", "keep: expected an age such as 7d, 12h or 90m, got 7"),
        ("keep = '0d'", "keep: expected an age"),
        ("keep = '-7d'", "keep: expected an age"),
        ("keep = '99999w'", "keep: expected an age"),
        ("max_size = '20'", "max_size: expected a size of 64MiB or more, such as 20GiB, got '20'"),
        ("max_size = '20G'", "max_size: expected a size of 64MiB or more, such as 20GiB, got '20G'"),
        ("max_size = '63MiB'", "max_size: expected a size of 64MiB or more"),
        ("max_size = '-1GiB'", "max_size: expected a size"),
        ("max_size = '1.5GiB'", "max_size: expected a size"),
        ("max_size = 'GiB'", "max_size: expected a size"),
        ("max_request_bytes = '2GiB'", "max_request_bytes: expected a size from 64KiB to 1GiB, such as 16MiB"),
        (
            "max_request_bytes = 1000",
            "max_request_bytes: expected a size from 64KiB to 1GiB, such as 16MiB, got '1000'",
        ),
        ("memory = '64MiB'", "memory: expected a size of 128MiB or more"),
        ("memory = true", "memory: expected a size of 128MiB or more, such as 2GiB, got True"),
        ("qqq = 1", "qqq: no such setting; there are db, host"),
        ("[colector]", r"no section \[colector\]; did you mean collector"),
        ("= 5", "not TOML"),
    ],
)
def test_a_mistake_in_toml_names_the_file_and_the_key(tmp_path: Path, toml: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        loaded("--db", "x", "--config", write(tmp_path, f"[collector]\n{toml}\n"))


@pytest.mark.parametrize(
    ("environ", "complaint"),
    [
        (
            {"PROVENANCE_COLLECT_GRPC_PORT": "x"},
            "^PROVENANCE_COLLECT_GRPC_PORT: expected a port from 0 to 65535, got 'x'",
        ),
        ({"PROVENANCE_COLLECT_INSECURE": "perhaps"}, "^PROVENANCE_COLLECT_INSECURE: expected true or false"),
        ({"PROVENANCE_COLLECTOR_DB": "x"}, "PROVENANCE_COLLECTOR_DB: .* did you mean PROVENANCE_COLLECT_DB"),
        ({"PROVENANCE_COLLECT_CONFIGURATION": "x"}, "did you mean PROVENANCE_COLLECT_CONFIG"),
        ({CONFIG_ENV: "/nowhere/provenance.toml"}, "/nowhere/provenance.toml cannot be read: No such file"),
    ],
)
def test_a_mistake_in_the_environment_names_the_variable(environ: dict[str, str], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        loaded("--db", "x", **environ)


def test_other_variables_are_other_programs() -> None:
    loaded("--db", "x", PROVENANCE_READ_TOKEN_FILE="x", OTEL_SERVICE_NAME="x", PROVENANCE="x")


@pytest.mark.parametrize(
    "argv", [("--grpc-port", "70000"), ("--http-port", "-1"), ("--log-level", "loud"), ("--host", " ")]
)
def test_a_mistake_in_a_flag_names_the_flag(argv: tuple[str, str]) -> None:
    with pytest.raises(ConfigError, match=f"^{argv[0].partition('=')[0]}: expected"):
        loaded("--db", "x", *argv)


@pytest.mark.parametrize("argv", [("--nosuch",), ("--grpc",), ("--db",), ("extra",)])
def test_what_is_no_flag_exits_2(argv: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as left:
        loaded(*argv)
    assert left.value.code == 2


def test_a_missing_database_says_where_to_name_it() -> None:
    with pytest.raises(ConfigError, match=r"--db, PROVENANCE_COLLECT_DB or db in \[collector\]"):
        loaded()


def test_an_egress_section_is_the_policy_unless_another_is_named(tmp_path: Path) -> None:
    config = write(tmp_path, "[collector]\ndb = 'x'\n[egress]\nallow = []\n")
    assert loaded("--config", config).settings.policy == Path(config)
    assert loaded("--config", config, "--policy", "p").settings.policy == Path("p")

    other = write(tmp_path, "[collector]\ndb = 'x'\npolicy = 'q'\n[egress]\nallow = []\n")
    assert loaded("--config", other).settings.policy == Path("q")


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="not UTF-8"):
        loaded("--db", "x", "--config", str(tmp_path / "x.toml"))


def test_what_is_printed_has_its_origin_beside_it(tmp_path: Path) -> None:
    text = loaded("--db", "x.duckdb", "--read-token-file", "/run/tokens", PROVENANCE_COLLECT_GRPC_PORT="0").to_toml()

    assert 'db = "x.duckdb"  # --db' in text
    assert "grpc_port = 0  # PROVENANCE_COLLECT_GRPC_PORT" in text
    assert 'host = "127.0.0.1"  # default' in text
    assert 'read_token_file = "/run/tokens"  # --read-token-file' in text
    assert "# tls_cert is not set" in text


_PATHS = st.text(min_size=1).filter(lambda t: t.strip() and "\0" not in t and t.isprintable() and t != "--")


@given(db=_PATHS, logs=st.lists(_PATHS, max_size=3), port=st.integers(0, 65535), insecure=st.booleans())
def test_what_is_printed_is_read_again_as_the_same(db: str, logs: list[str], port: int, *, insecure: bool, tmp_path_factory: pytest.TempPathFactory) -> None:  # fmt: skip
    argv = [f"--db={db}", f"--grpc-port={port}", "--insecure" if insecure else "--no-insecure"]
    first = loaded(*argv, *(f"--access-log=cart={path}" for path in logs))
    path = tmp_path_factory.getbasetemp() / "printed.toml"
    path.write_text(first.to_toml(), encoding="utf-8")

    assert loaded("--config", str(path)).settings == first.settings


def test_control_characters_in_a_path_stay_in_their_line() -> None:
    text = loaded("--db", 'a\nb = 5 # \x7f"').to_toml()

    assert tomllib.loads(text)["collector"]["db"] == 'a\nb = 5 # \x7f"'


def test_every_setting_is_in_the_help_and_in_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        loaded("--help")
    text, table = capsys.readouterr().out, markdown_table()

    for name in Settings.__dataclass_fields__:
        assert flag(name) in text
        assert f"`{variable(name)}`" in table
