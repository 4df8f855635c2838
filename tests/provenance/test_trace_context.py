"""W3C Trace Context Level 2: what may be read is read and passed on unchanged, and what may not be starts anew."""

import json
import os
import pickle
import re
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    TraceFlags,
    TraceState,
    get_current_span,
    set_span_in_context,
)

from provenance.trace_context import (
    MAX_MEMBERS,
    MAX_TRACESTATE_LENGTH,
    Level2TraceState,
    Traceparent,
    W3CTraceContextPropagator,
    parse_traceparent,
    parse_tracestate,
    render_traceparent,
)

ROOT = Path(__file__).parents[2]
DEADLINE_SECONDS = 45.0
GROUP, NAME = "opentelemetry_propagator", "w3c_strict"

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
VALID = f"00-{TRACE}-{PARENT}-01"
READ = Traceparent(int(TRACE, 16), int(PARENT, 16), 1)

PROPAGATOR = W3CTraceContextPropagator()
KEY_CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789_-*/@"
VALUE_CHARACTERS = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) not in ",=")

keys = st.builds(
    str.__add__, st.sampled_from(KEY_CHARACTERS[:36]), st.text(st.sampled_from(KEY_CHARACTERS), max_size=255)
)
values = st.builds(
    str.__add__,
    st.text(st.sampled_from(VALUE_CHARACTERS), max_size=255),
    st.sampled_from(VALUE_CHARACTERS.strip(" ")),
)
members = st.lists(st.tuples(keys, values), max_size=MAX_MEMBERS, unique_by=lambda member: member[0])
span_contexts = st.builds(
    SpanContext,
    trace_id=st.integers(1, 2**128 - 1),
    span_id=st.integers(1, 2**64 - 1),
    is_remote=st.just(True),
    trace_flags=st.integers(0, 3).map(TraceFlags),
    trace_state=members.map(Level2TraceState),
)
whitespace = st.text(" \t", max_size=3)
fragments = st.lists(
    st.sampled_from(["00", "cc", "ff", TRACE, PARENT, "0" * 32, "0" * 16, "-", "01", VALID, " ", "\t", "a=1", "=", ","])
    | st.characters(),
    max_size=8,
).map("".join)
headers = st.lists(st.text(max_size=20) | fragments, max_size=2)


def extract(traceparents: list[str], tracestates: list[str] | None = None) -> SpanContext:
    carrier = {"traceparent": traceparents, "tracestate": tracestates or []}
    return get_current_span(PROPAGATOR.extract(carrier)).get_span_context()


def inject(span_context: SpanContext) -> dict[str, str]:
    carrier: dict[str, str] = {}
    PROPAGATOR.inject(carrier, set_span_in_context(NonRecordingSpan(span_context), Context()))
    return carrier


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(VALID, READ, id="sampled"),
        pytest.param(VALID[:-2] + "00", READ._replace(flags=0), id="not sampled"),
        pytest.param(VALID[:-2] + "02", READ._replace(flags=2), id="random"),
        pytest.param(VALID[:-2] + "03", READ._replace(flags=3), id="sampled and random"),
        pytest.param(VALID[:-2] + "ff", READ._replace(flags=3), id="unknown flags are set to zero"),
        pytest.param(f" \t{VALID}\t ", READ, id="whitespace around it"),
        pytest.param(f"cc{VALID[2:]}", READ, id="a later version"),
        pytest.param(f"01{VALID[2:]}-", READ, id="a later version with an empty rest"),
        pytest.param(f"fe{VALID[2:]}-\x00, anything " + "x" * 9_000, READ, id="a later version with a long rest"),
        pytest.param(f"cc{VALID[2:]}.x", None, id="a later version with flags of more than two characters"),
        pytest.param(f"cc{VALID[2:]} -x", None, id="a later version with a space after the flags"),
        pytest.param(f"cc{VALID[2:-1]}", None, id="a later version, too short"),
        pytest.param(f"cc{VALID[2:-2]}0g", None, id="a later version, flags that are not hex"),
        pytest.param(f"cc-{'0' * 32}{VALID[35:]}", None, id="a later version, trace id of zeros"),
        pytest.param(f"ff{VALID[2:]}", None, id="the forbidden version"),
        pytest.param(f"ff{VALID[2:]}-x", None, id="the forbidden version with a rest"),
        pytest.param(f"0{VALID}", None, id="version of three digits"),
        pytest.param(VALID[1:], None, id="version of one digit"),
        pytest.param(f"0x{VALID[2:]}", None, id="version not hex"),
        pytest.param(f"CC{VALID[2:]}", None, id="version in upper case"),
        pytest.param(f"{VALID}-", None, id="version 00 with a rest"),
        pytest.param(f"{VALID}-00", None, id="version 00 with another field"),
        pytest.param(f"{VALID}0", None, id="flags of three digits"),
        pytest.param(VALID[:-1], None, id="flags of one digit"),
        pytest.param(VALID[:-2], None, id="no flags"),
        pytest.param(VALID[:-1] + "G", None, id="flags not hex"),
        pytest.param(VALID[:-2] + "0A", None, id="flags in upper case"),
        pytest.param(VALID.replace(TRACE, TRACE.upper()), None, id="trace id in upper case"),
        pytest.param(VALID.replace(TRACE, TRACE[1:]), None, id="trace id too short"),
        pytest.param(VALID.replace(TRACE, TRACE + "0"), None, id="trace id too long"),
        pytest.param(VALID.replace(TRACE, "0" * 32), None, id="trace id of zeros"),
        pytest.param(
            VALID.replace(TRACE, "\N{ARABIC-INDIC DIGIT ZERO}" + TRACE[1:]), None, id="a digit that is not ASCII"
        ),
        pytest.param(VALID.replace(PARENT, PARENT.upper()), None, id="parent id in upper case"),
        pytest.param(VALID.replace(PARENT, PARENT[1:]), None, id="parent id too short"),
        pytest.param(VALID.replace(PARENT, PARENT + "0"), None, id="parent id too long"),
        pytest.param(VALID.replace(PARENT, "0" * 16), None, id="parent id of zeros"),
        pytest.param(VALID.replace("-", "_"), None, id="no dashes"),
        pytest.param(VALID + "\n", None, id="a line feed is no optional whitespace"),
        pytest.param(f"{VALID},{VALID}", None, id="two that a server joined"),
        pytest.param(f"cc{VALID[2:]},{VALID}", None, id="two of a later version that a server joined"),
        pytest.param("", None, id="empty"),
    ],
)
def test_a_traceparent(text: str, expected: Traceparent | None) -> None:
    assert parse_traceparent([text]) == expected


def test_one_traceparent_is_read_and_several_are_not() -> None:
    assert parse_traceparent([]) is None
    assert parse_traceparent([VALID, VALID]) is None
    assert not extract([VALID, VALID.replace(TRACE, "1" * 32)], ["a=1"]).is_valid


MANY = [(f"k{n}", str(n)) for n in range(MAX_MEMBERS + 1)]
FULL = ",".join(f"{key}={value}" for key, value in MANY[:MAX_MEMBERS])
LONGEST = ",".join(f"{n:02}{'k' * 254}={'v' * 256}" for n in range(MAX_MEMBERS))


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        pytest.param(["a=1,b=2"], [("a", "1"), ("b", "2")], id="two members"),
        pytest.param(["b=2", "a=1,c=3"], [("b", "2"), ("a", "1"), ("c", "3")], id="two headers, in their order"),
        pytest.param([" a=1 \t,\tb=2\t"], [("a", "1"), ("b", "2")], id="whitespace around members"),
        pytest.param(["a=  1 2 "], [("a", "  1 2")], id="spaces of a value are kept, but for the last"),
        pytest.param(["", "a=1", " \t"], [("a", "1")], id="empty headers"),
        pytest.param([",a=1,, ,\t,b=2,"], [("a", "1"), ("b", "2")], id="empty members"),
        pytest.param([], [], id="no header"),
        pytest.param(["a=1,b=2,a=1"], [("a", "1"), ("b", "2")], id="the same member twice"),
        pytest.param(["a=new,b=2", "a=old"], [("a", "new"), ("b", "2")], id="the most recent of a key"),
        pytest.param(["0=1"], [("0", "1")], id="key of a digit"),
        pytest.param(["1a@b=1"], [("1a@b", "1")], id="key with a tenant"),
        pytest.param(["a@=1"], [("a@", "1")], id="key with an @ at its end"),
        pytest.param(["a@@b@c=1"], [("a@@b@c", "1")], id="key with many @"),
        pytest.param([f"{KEY_CHARACTERS}=1"], [(KEY_CHARACTERS, "1")], id="all characters of a key"),
        pytest.param(["a=" + VALUE_CHARACTERS], [("a", VALUE_CHARACTERS)], id="all characters of a value"),
        pytest.param(["k" * 256 + "=1"], [("k" * 256, "1")], id="the longest key"),
        pytest.param(["k" * 250 + "@tenan=1"], [("k" * 250 + "@tenan", "1")], id="the longest key, with a tenant"),
        pytest.param(["a=" + "v" * 256], [("a", "v" * 256)], id="the longest value"),
        pytest.param([FULL], MANY[:MAX_MEMBERS], id="32 members"),
        pytest.param([FULL + "," * 50], MANY[:MAX_MEMBERS], id="32 members and empty ones"),
        pytest.param(["b=2,@a=1"], [], id="key that begins with an @"),
        pytest.param(["b=2,_a=1"], [], id="key that begins with an underscore"),
        pytest.param(["b=2,A=1"], [], id="key in upper case"),
        pytest.param(["b=2,a.b=1"], [], id="key with a dot"),
        pytest.param(["b=2,é=1"], [], id="key that is not ASCII"),
        pytest.param(["b=2,a =1"], [], id="space before the equals sign"),
        pytest.param(["b=2,=1"], [], id="no key"),
        pytest.param(["b=2", "k" * 257 + "=1"], [], id="key too long"),
        pytest.param(["b=2,a"], [], id="no equals sign"),
        pytest.param(["b=2,a="], [], id="no value"),
        pytest.param(["b=2,a=  "], [], id="value of spaces"),
        pytest.param(["b=2,a=1=2"], [], id="value with an equals sign"),
        pytest.param(["b=2,a=1\t2"], [], id="value with a tab"),
        pytest.param(["b=2,a=1\n"], [], id="value with a line feed"),
        pytest.param(["b=2,a=\x7f"], [], id="value with a control character"),
        pytest.param(["b=2,a=é"], [], id="value that is not ASCII"),
        pytest.param(["b=2,a=" + "v" * 257], [], id="value too long"),
        pytest.param([FULL, "k32=32"], [], id="33 members"),
        pytest.param([FULL, "k0=0"], [], id="33 members, a duplicate among them"),
        pytest.param([FULL, " " * MAX_TRACESTATE_LENGTH], [], id="longer than is read"),
    ],
)
def test_a_tracestate(texts: list[str], expected: list[tuple[str, str]]) -> None:
    assert parse_tracestate(texts) == expected


def test_the_longest_tracestate_is_read_and_passed_on() -> None:
    assert len(LONGEST) == MAX_TRACESTATE_LENGTH
    assert len(parse_tracestate([LONGEST])) == MAX_MEMBERS
    assert parse_tracestate([LONGEST, ""]) == []
    assert inject(extract([VALID], [LONGEST])) == {"traceparent": VALID, "tracestate": LONGEST}


def test_a_tracestate_that_cannot_be_read_leaves_the_traceparent() -> None:
    assert inject(extract([VALID], ["a=1,B=2"])) == {"traceparent": VALID}


def test_without_a_traceparent_the_context_is_as_it_was() -> None:
    ours = set_span_in_context(NonRecordingSpan(SpanContext(1, 2, is_remote=False)), Context())

    for carrier in ({}, {"tracestate": "a=1"}, {"traceparent": "00-x", "tracestate": "a=1"}):
        assert PROPAGATOR.extract(carrier) == Context()
        assert PROPAGATOR.extract(carrier, ours) == ours


def test_without_a_span_nothing_is_injected() -> None:
    carrier: dict[str, str] = {}
    PROPAGATOR.inject(carrier, Context())

    assert carrier == {}


def test_a_later_version_is_passed_on_as_version_00() -> None:
    assert inject(extract([f"cc{VALID[2:-2]}ff-more"], ["a=1"])) == {
        "traceparent": f"{VALID[:-2]}03",
        "tracestate": "a=1",
    }


def test_fields_are_what_is_injected() -> None:
    assert set(inject(extract([VALID], ["a=1"]))) == PROPAGATOR.fields == {"traceparent", "tracestate"}


@given(span_contexts)
def test_what_is_injected_is_extracted(span_context: SpanContext) -> None:
    carrier = inject(span_context)
    extracted = extract([carrier["traceparent"]], [carrier["tracestate"]] if "tracestate" in carrier else [])

    assert extracted == span_context
    assert list(extracted.trace_state.items()) == list(span_context.trace_state.items()), "in their order"
    assert ("tracestate" in carrier) == (len(span_context.trace_state) > 0)


@given(members.map(Level2TraceState), st.data())
def test_how_a_tracestate_is_divided_does_not_matter(state: Level2TraceState, data: st.DataObject) -> None:
    texts = [""]
    for member in state.to_header().split(","):
        padded = data.draw(whitespace) + member + data.draw(whitespace)
        if data.draw(st.booleans()):
            texts.append(padded)
        else:
            texts[-1] += f",{padded}"

    length = sum(map(len, texts)) + len(texts) - 1
    expected = list(state.items()) if length <= MAX_TRACESTATE_LENGTH else []
    assert parse_tracestate(texts) == expected


@given(headers, headers)
def test_any_text_is_read_or_refused_and_nothing_is_raised(traceparents: list[str], tracestates: list[str]) -> None:
    span_context = extract(traceparents, tracestates)
    carrier = inject(span_context)

    assert span_context.is_valid == bool(carrier)
    if carrier:
        assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-0[0-3]", carrier["traceparent"])
        assert carrier["traceparent"][3:52] in traceparents[0]
    assert all(member.strip() in ",".join(tracestates) for member in carrier.get("tracestate", "").split(","))


@given(st.integers(0, len(VALID) - 1), st.characters())
def test_one_wrong_character_is_seen(at: int, character: str) -> None:
    changed = VALID[:at] + character + VALID[at + 1 :]
    read = parse_traceparent([changed])

    expected = re.fullmatch(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", changed) is not None
    assert (read is not None) == expected
    if read is not None:
        assert render_traceparent(read)[3:-2] == changed[3:-2]


def test_reading_takes_as_many_steps_as_there_are_characters() -> None:
    hostile = ["a=" + " " * 16_000 + "=", "a" * 16_000, "," * 16_000, " \t" * 8_000 + "x", "a= " * 5_000]
    start = time.process_time()
    for text in hostile:
        parse_tracestate([text])
        parse_traceparent([text * 100])

    assert time.process_time() - start < 1.0


def test_a_state_is_changed_as_the_specification_says() -> None:
    state = Level2TraceState([("a@@b", "1"), ("b", "2")])

    assert state.add("0", "3").to_header() == "0=3,a@@b=1,b=2"
    assert state.add("b", "3") is state
    assert state.update("b", "3").to_header() == "b=3,a@@b=1"
    assert state.delete("b").to_header() == "a@@b=1"
    assert state.delete("c") == state
    for key, value in [("B", "1"), ("@b", "1"), ("c", ""), ("c", "1 "), ("c", "1,2")]:
        assert state.add(key, value) is state.update(key, value) is state
    assert state.to_header() == "a@@b=1,b=2", "the first is as it was"


def test_the_33rd_member_pushes_out_the_rightmost() -> None:
    full = Level2TraceState(MANY)

    assert list(full.items()) == MANY[:MAX_MEMBERS]
    assert list(full.add("new", "1").items()) == [("new", "1"), *MANY[: MAX_MEMBERS - 1]]
    assert list(full.update("k31", "1").items()) == [("k31", "1"), *MANY[: MAX_MEMBERS - 1]]


def test_a_state_leaves_out_what_the_grammar_does_not_allow() -> None:
    assert Level2TraceState([("A", "1"), ("a", "1"), ("a", "2"), ("b", "1 ")]).to_header() == "a=1"


def test_a_state_is_a_mapping() -> None:
    state = Level2TraceState.from_header(["a@=1", "b=2"])

    assert isinstance(state, TraceState)
    assert dict(state) == {"a@": "1", "b": "2"}
    assert (list(state.keys()), list(state.values()), len(state)) == (["a@", "b"], ["1", "2"], 2)
    assert "a@" in state
    assert "c" not in state
    assert state.get("c") is None
    assert repr(state) == "Level2TraceState([('a@', '1'), ('b', '2')])"
    assert pickle.loads(pickle.dumps(state)) == state
    assert not Level2TraceState.get_default()


def test_a_span_of_the_sdk_takes_everything_along() -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    context = PROPAGATOR.extract({"traceparent": f"{VALID[:-2]}03", "tracestate": "a@@b=1,0=2"})
    with provider.get_tracer("test").start_as_current_span("call", context) as span:
        carrier: dict[str, str] = {}
        PROPAGATOR.inject(carrier)

    assert carrier == {
        "traceparent": f"00-{TRACE}-{span.get_span_context().span_id:016x}-03",
        "tracestate": "a@@b=1,0=2",
    }
    provider.shutdown()


def entry_point() -> EntryPoint:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return EntryPoint(NAME, project["entry-points"][GROUP][NAME], GROUP)


def environment(*path: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("OTEL_")}
    return kept | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, *path)))}


def test_the_entry_point_names_the_propagator() -> None:
    assert isinstance(entry_point().load()(), W3CTraceContextPropagator)


@pytest.mark.slow
def test_opentelemetry_finds_the_propagator_by_its_name(tmp_path: Path) -> None:
    metadata = tmp_path / "mesh_provenance-0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: mesh-provenance\nVersion: 0\n")
    (metadata / "entry_points.txt").write_text(f"[{GROUP}]\n{NAME} = {entry_point().value}\n")
    code = "from opentelemetry import propagate; print(sorted(propagate.get_global_textmap().fields))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(tmp_path) | {"OTEL_PROPAGATORS": f"{NAME},baggage"},
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )

    assert (done.stdout, done.stderr) == ("['baggage', 'traceparent', 'tracestate']\n", "")


class Callbacks(ThreadingHTTPServer):
    """Answers every POST, and keeps what arrived: path, headers, body."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Callback)
        self.arrived: list[tuple[str, dict[str, list[str]], Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Callback(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        names = {name.lower() for name in self.headers}
        assert isinstance(self.server, Callbacks)
        self.server.arrived.append((self.path, {name: self.headers.get_all(name, []) for name in names}, body))
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (the base class calls it that)
        pass


@pytest.fixture
def callbacks() -> Iterator[Callbacks]:
    with Callbacks() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@contextmanager
def example() -> Iterator[str]:
    """The URL of the example, which runs as a process of its own and ends well when it is told to."""
    command = [sys.executable, str(ROOT / "examples" / "w3c_trace_context.py"), "--port=0"]
    with subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            match = re.fullmatch(r"listening on (\S+)\n", line)
            assert match is not None, line
            yield f"http://{match[1]}/test"
            process.terminate()
            assert process.communicate(timeout=DEADLINE_SECONDS) == ("", "")
        finally:
            process.kill()


@pytest.mark.slow
def test_the_example_takes_the_trace_along(callbacks: Callbacks) -> None:
    calls: list[dict[str, Any]] = [
        {"url": f"{callbacks.url}/one", "arguments": [{"url": "x", "arguments": []}]},
        {"url": f"{callbacks.url}/two", "arguments": []},
    ]
    valid = [
        ("traceparent", f"{VALID[:-2]}03"),
        ("tracestate", "a@@b=1, a=new"),
        ("tracestate", ""),
        ("tracestate", "a=old"),
    ]
    refused = [("traceparent", VALID), ("traceparent", VALID), ("tracestate", "a=1")]
    with example() as url, httpx.Client(trust_env=False, timeout=DEADLINE_SECONDS) as client:
        assert client.post(url, json=calls, headers=valid).json() == [204, 204]
        assert client.post(url, json=calls[1:], headers=refused).json() == [204]

    assert [(path, body) for path, _, body in callbacks.arrived] == [
        ("/one", calls[0]["arguments"]),
        ("/two", []),
        ("/two", []),
    ]
    (one, two, fresh) = (arrived for _, arrived, _ in callbacks.arrived)
    parents = set()
    for each in (one, two):
        assert each["tracestate"] == ["a@@b=1,a=new"]
        (traceparent,) = each["traceparent"]
        assert re.fullmatch(rf"00-{TRACE}-[0-9a-f]{{16}}-03", traceparent)
        parents.add(traceparent[36:52])
    assert len(parents - {PARENT}) == 2, "a client span for each call"
    (traceparent,) = fresh["traceparent"]
    assert parse_traceparent([traceparent]) is not None
    assert TRACE not in traceparent
    assert "tracestate" not in fresh
