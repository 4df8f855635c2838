"""`provenance egress` on files: what it prints, what it exits with, what it suggests."""

import json

import pytest

from collector.commands.egress import main
from collector.policy.documents import parse_documents
from collector.policy.policies import policies_of
from collector.store.database import Store
from tests.collector.forensics.factories import to_arrow
from tests.collector.forensics.outbound import DAY0, HOUR, clock, make_flow


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("egress") / "zeek.duckdb"
    rows = [
        *clock(300),
        *(
            make_flow(destination_address="203.0.113.9", start_time_unix_nano=DAY0 + i * i * HOUR // 9)
            for i in range(12)
        ),
    ]
    with Store.open(path) as store:
        connection = store.cursor()
        connection.register("incoming", to_arrow("flows", rows))
        connection.execute("INSERT INTO flows BY NAME SELECT * FROM incoming")
        connection.commit()
    return str(path)


def run(capsys, *argv):
    code = main(argv, now=lambda: DAY0 + 25 * HOUR)
    return code, capsys.readouterr()


def test_json_has_a_row_a_destination(source, capsys):
    code, said = run(capsys, source, "--format", "json")
    first, second = json.loads(said.out)
    assert code == 1
    assert first["source"] == "10.0.0.5"
    assert (first["destination"], first["connections"], first["allowed_by"]) == ("198.51.100.7", 288, None)
    assert first["first_seen"].startswith("2026-")
    assert first["first_seen"].endswith("Z")
    assert first["beacon"].keys() >= {"score", "ts", "ds", "hist", "dur"}
    assert (first["reasons"], first["flagged"], second["flagged"]) == (["beacon"], True, False)
    assert "no policy is given" in said.err


def test_a_policy_tells_what_is_allowed(source, tmp_path, capsys):
    (tmp_path / "p.toml").write_text('[egress]\nallow = ["198.51.100.0/24", "203.0.113.9:443"]')
    code, said = run(capsys, source, "--policy", str(tmp_path), "--format", "ndjson")
    rows = [json.loads(line) for line in said.out.splitlines()]
    assert code == 0
    assert {row["allowed_by"] for row in rows} == {"egress.allow: 198.51.100.0/24", "egress.allow: 203.0.113.9:443"}


def test_the_table_is_for_people(source, capsys):
    code, said = run(capsys, source, "--flagged", "--since", "2d")
    assert code == 1
    assert "198.51.100.7:443" in said.out
    assert "203.0.113.9" not in said.out
    assert "345.6 kB" in said.out


@pytest.mark.parametrize("kind", ["istio", "linkerd", "networkpolicy"])
def test_what_is_suggested_can_be_read_back(source, kind, capsys):
    code, said = run(capsys, source, "--suggest", kind)
    assert code == 0
    assert policies_of(parse_documents(said.out, name="x.yaml")).is_given
    assert "203.0.113.9" in said.out
    assert "198.51.100.7" not in said.out


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["--since", "1h", "--until", "2h"], 2, "--since is not before --until"),
        (["--baseline", "1d"], 2, "--baseline needs --since"),
        (["--internal", "10.0.0.0/99"], 2, "--internal: '10.0.0.0/99' is no block"),
        (["--policy", "nowhere.yaml"], 2, "nowhere.yaml: the policy cannot be read"),
    ],
)
def test_mistakes(source, argv, code, message, capsys):
    got, said = run(capsys, source, *argv)
    assert got == code
    assert message in said.err
    assert not said.out


def test_nothing_there_to_ask(capsys):
    assert run(capsys, "nowhere.duckdb")[0] == 3
