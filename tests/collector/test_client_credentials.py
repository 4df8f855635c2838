"""Sources behind TLS and tokens: what a reader shows, and what it is told where that is not enough."""

import argparse
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from collector.client import Access, CollectorSource, add_access_arguments, open_source
from collector.commands.sql import main as sql_main
from collector.errors import SourceUnreachableError
from tests.collector.receiver.guarded_collector import DEADLINE, READ, WRITE, Files, Guarded, running


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("guarded"))


@pytest.fixture(scope="module")
def collector(files: Files) -> Iterator[Guarded]:
    with running(files.directory, **files.tls(), **files.tokens()) as started:
        yield started


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("READ_TOKEN_FILE", "CA_FILE", "CLIENT_CERT_FILE", "CLIENT_KEY_FILE"):
        monkeypatch.delenv(f"PROVENANCE_{name}", raising=False)


def refusal(url: str, access: Access | None = None) -> str:
    with pytest.raises(SourceUnreachableError) as refused:
        open_source(url, access)
    text = str(refused.value)
    assert READ not in text
    assert WRITE not in text
    return text


def test_a_token_and_an_authority_from_the_environment(
    collector: Guarded, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROVENANCE_READ_TOKEN_FILE", str(files.read_tokens))
    monkeypatch.setenv("PROVENANCE_CA_FILE", str(files.authority))
    source = open_source(collector.url)

    assert source.query("SELECT 1 AS one").item() == 1
    source.close()


def test_flags_of_a_command(collector: Guarded, files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [collector.url, "SELECT 7 AS seven", "--format", "csv"]
    given = ["--token-file", str(files.read_tokens), "--ca-file", str(files.authority)]

    assert sql_main(argv + given) == 0
    assert capsys.readouterr().out.split() == ["seven", "7"]
    assert sql_main(argv) == 3
    assert "--ca-file or PROVENANCE_CA_FILE" in capsys.readouterr().err


def test_a_flag_beats_the_environment() -> None:
    parser = argparse.ArgumentParser()
    add_access_arguments(parser)
    environ = {"PROVENANCE_READ_TOKEN_FILE": "/e/token", "PROVENANCE_CA_FILE": "/e/ca"}
    access = Access.of(parser.parse_args(["--token-file", "/f/token"]), environ)

    assert access == Access(token_file=Path("/f/token"), ca_file=Path("/e/ca"))


def test_what_is_not_enough_says_what_is_missing(collector: Guarded, files: Files, tmp_path: Path) -> None:
    ca, foreign = files.authority, tmp_path / "foreign.crt"
    trustme.CA().cert_pem.write_to_path(foreign)

    assert "--token-file or PROVENANCE_READ_TOKEN_FILE" in refusal(collector.url, Access(ca_file=ca))
    assert "not trusted" in refusal(collector.url, Access(files.read_tokens, foreign))
    assert "not trusted" in refusal(collector.url, Access(files.read_tokens))
    assert "try https://" in refusal(collector.url.replace("https", "http"), Access(files.read_tokens))
    written = refusal(collector.url, Access(files.write_tokens, ca))
    assert "does not take the token of" in written
    assert "for sending, not for asking" in written
    (tmp_path / "old").write_text("old-token-" + "x" * 20)
    assert "not known here" in refusal(collector.url, Access(tmp_path / "old", ca))


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("token_file", None, "the token file .* cannot be read: No such file"),
        ("token_file", b"\xff\xfe", "not ASCII"),
        ("token_file", b"# none\n\n", "no token in it"),
        ("token_file", b"a\x00b", "no token in it"),
        ("ca_file", None, "the CA file .* cannot be used: No such file"),
        ("ca_file", b"no certificate", "the CA file .* cannot be used"),
        ("client_cert_file", None, "the client certificate .* cannot be used: No such file"),
        ("client_cert_file", b"no certificate", "the client certificate .* cannot be used"),
    ],
)
def test_files_that_cannot_be_used(
    collector: Guarded, files: Files, tmp_path: Path, name: str, content: bytes | None, complaint: str
) -> None:
    path = tmp_path / "file"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SourceUnreachableError, match=complaint):
        open_source(collector.url, Access(**{"ca_file": files.authority, name: path}))  # type: ignore[arg-type]


def test_a_plain_port_is_no_tls_port(files: Files, tmp_path: Path) -> None:
    with running(tmp_path) as plain:
        assert "try http://" in refusal(plain.url.replace("http", "https"), Access(ca_file=files.authority))


def test_mutual_tls(files: Files, tmp_path: Path) -> None:
    leaf = files.clients.issue_cert("reader.example")
    shown = tmp_path / "client.pem"
    shown.write_bytes(leaf.private_key_and_cert_chain_pem.bytes())
    with running(tmp_path, **files.tls(mutual=True)) as mutual:
        source = open_source(mutual.url, Access(ca_file=files.authority, client_cert_file=shown))
        assert source.query("SELECT 1 AS one").item() == 1
        source.close()
        assert "--client-cert-file" in refusal(mutual.url, Access(ca_file=files.authority))


def test_a_reader_survives_the_rotation_of_its_token(files: Files, tmp_path: Path) -> None:
    tokens, mine, fresh = tmp_path / "tokens", tmp_path / "mine", "fresh-" + "f" * 20
    files.put(tokens, READ)
    files.put(mine, READ)
    with running(tmp_path, read_token_file=tokens) as collector:
        source = open_source(collector.url, Access(mine))
        files.put(tokens, fresh)
        collector.trust.refresh()
        with pytest.raises(SourceUnreachableError, match="not known here: was it replaced"):
            source.query("SELECT 1")
        files.put(mine, "# the newest first", fresh, READ)

        assert source.query("SELECT 1 AS one").item() == 1
        source.close()


def test_an_interrupt_carries_the_token(collector: Guarded, files: Files) -> None:
    source = open_source(collector.url, Access(files.read_tokens, files.authority))
    assert isinstance(source, CollectorSource)
    raised: list[Exception] = []

    def ask() -> None:
        try:
            source.query("SELECT count(*) FROM range(1000000000000) a, range(1000) b")
        except Exception as e:  # noqa: BLE001 - told to the test
            raised.append(e)

    thread = threading.Thread(target=ask)
    thread.start()
    while not source._running._interrupts:
        assert thread.is_alive()
    source.interrupt()
    thread.join(DEADLINE)

    assert "interrupted" in str(raised[0])
    source.close()


def test_a_server_that_hangs_up_is_no_collector() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept_and_close() -> None:
            listener.accept()[0].close()

        hang_up = threading.Thread(target=accept_and_close)
        hang_up.start()
        assert "try https://" in refusal(f"http://127.0.0.1:{listener.getsockname()[1]}")
        hang_up.join(DEADLINE)
