"""What goes to stdout in each format, and what the services are told about incidents."""

import csv
import importlib.util
import io
import json
import sys
from pathlib import Path

import pytest

from collector.commands.demo import parse, print_result
from collector.demo.incidents import NANOSECONDS, Planted, grade, signatures
from collector.demo.plan import INCIDENTS, SERVICES, Plan, Ports
from collector.demo.resources import mesh_directory
from collector.demo.running import incident_script
from collector.forensics.findings import Finding, to_frame

PLAN = Plan(
    seed=1,
    duration_seconds=60.0,
    ports={service.name: Ports(100 + i, 200 + i, 300 + i) for i, service in enumerate(SERVICES)},
    card_network="127.0.0.7:9000",
    drop="127.0.0.9:9001",
)
BEGIN = 1_795_400_000 * NANOSECONDS
FINDING = Finding(
    kind="egress",
    reasons=("unlisted", "beacon"),
    severity="critical",
    score=0.98,
    first_seen_unix_nano=BEGIN,
    last_seen_unix_nano=BEGIN + 20 * NANOSECONDS,
    count=11,
    explanation="inventory called 127.0.0.9:9001 11 times every 2 s",
    caller="inventory",
    destination="127.0.0.9:9001",
)


def printed(format_name, capsys):
    findings = to_frame([FINDING])
    result = grade([Planted("egress", BEGIN, signatures(PLAN)["egress"])], findings)
    print_result(result, parse(["--format", format_name], terminal=False), Path("/e.duckdb"), findings)
    return capsys.readouterr()


def test_table_has_the_finding_and_a_verdict_for_each_incident(capsys):
    out = printed("table", capsys).out
    assert "inventory called 127.0.0.9:9001 11 times every 2 s" in out
    assert f"found as {FINDING.finding_id}" in out
    assert out.endswith("1 of 1 planted incidents found, and nothing else\n")


def test_json_is_one_document_and_verdicts_go_to_stderr(capsys):
    output = printed("json", capsys)
    document = json.loads(output.out)
    assert document["ok"] is True
    assert document["database"] == "/e.duckdb"
    assert "1 of 1 planted incidents found" in output.err


def test_ndjson_and_csv_are_findings_alone(capsys):
    rows = [json.loads(line) for line in printed("ndjson", capsys).out.splitlines()]
    assert [row["finding_id"] for row in rows] == [FINDING.finding_id]
    rows = list(csv.DictReader(io.StringIO(printed("csv", capsys).out)))
    assert [row["destination"] for row in rows] == ["127.0.0.9:9001"]


def test_the_script_names_when_and_against_which_application_port():
    script = incident_script(PLAN, started_unix_seconds=1000.0)
    assert set(script) == set(INCIDENTS)
    assert script["rogue"]["target"] == f"127.0.0.1:{PLAN.ports['payment'].app}"
    assert script["bypass"]["target"] == f"127.0.0.1:{PLAN.ports['inventory'].app}"
    assert script["egress"]["target"] == PLAN.drop
    assert all(1024.0 <= float(planned["begins_at_unix_seconds"]) <= 1034.0 for planned in script.values())


@pytest.fixture
def services_mesh(monkeypatch):
    """The services' own helper module; it is a script's neighbour, no package."""
    spec = importlib.util.spec_from_file_location("example_mesh", mesh_directory() / "mesh.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "example_mesh", module)
    spec.loader.exec_module(module)
    return module


def test_services_see_an_incident_once_the_script_is_there_and_its_time_has_come(services_mesh, monkeypatch, tmp_path):
    file = tmp_path / "incidents.json"
    monkeypatch.setenv("INCIDENTS", str(file))
    assert services_mesh.incident("slow") is None
    file.write_text(json.dumps(incident_script(PLAN, started_unix_seconds=1000.0)))
    begins = services_mesh.script()["slow"].begins_at_unix_seconds
    monkeypatch.setattr(services_mesh.time, "time", lambda: begins - 0.001)
    assert services_mesh.incident("slow") is None
    monkeypatch.setattr(services_mesh.time, "time", lambda: begins)
    assert services_mesh.incident("slow") is not None
    assert services_mesh.incident("unheard of") is None
