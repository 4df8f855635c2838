"""provenance.toml's [egress]: what it allows, and what it says of mistakes."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.errors import ConfigError
from collector.policy import EgressPolicy, EgressRule, parse_policy, read_policy, to_batch

EXAMPLE = """
[egress]
allow = [
  "api.stripe.com:443", "*.amazonaws.com", "10.1.0.0/16", "192.0.2.7", "[2001:db8::1]:8443", "2001:DB8:1::/48",
  {service = "payment", destination = "127.0.0.7:9000"},
]
"""


@pytest.fixture(scope="module")
def policy() -> EgressPolicy:
    return parse_policy(EXAMPLE, name="provenance.toml")


@pytest.mark.parametrize(
    ("service", "host", "port", "allowed"),
    [
        ("any", "api.stripe.com", 443, True),
        ("any", "API.Stripe.com.", 443, True),
        ("any", "api.stripe.com", 80, False),
        ("any", "api.stripe.com", None, False),
        ("any", "evil-api.stripe.com", 443, False),
        ("any", "api.stripe.com.evil.example", 443, False),
        ("any", "s3.amazonaws.com", 443, True),
        ("any", "a.b.amazonaws.com", None, True),
        ("any", "amazonaws.com", 443, False),
        ("any", "notamazonaws.com", 443, False),
        ("any", "10.1.255.255", 1, True),
        ("any", "::ffff:10.1.2.3", 1, True),
        ("any", "10.2.0.0", 1, False),
        ("any", "192.0.2.7", 5, True),
        ("any", "192.0.2.8", 5, False),
        ("any", "2001:db8::1", 8443, True),
        ("any", "[2001:db8:0::1]", 8443, True),
        ("any", "2001:db8::1", 443, False),
        ("any", "2001:db8:1:2::3", 443, True),
        ("payment", "127.0.0.7", 9000, True),
        ("checkout", "127.0.0.7", 9000, False),
        ("payment", "127.0.0.7", 9001, False),
        ("any", "", 443, False),
    ],
)
def test_what_is_allowed(policy: EgressPolicy, service: str, host: str, port: int | None, *, allowed: bool) -> None:
    assert policy.allows(service, host, port) is allowed


def test_the_table_holds_the_same_policy(policy: EgressPolicy) -> None:
    again = EgressPolicy.from_rows(to_batch(policy).to_pylist())

    assert again == policy
    assert EgressRule("payment", "127.0.0.7", 9000) in again.rules


@pytest.mark.parametrize(
    ("text", "given", "rows"), [("", False, 0), ("[egress]", False, 0), ("[egress]\nallow = []", True, 1)]
)
def test_an_empty_list_is_a_list_and_allows_nothing(text: str, rows: int, *, given: bool) -> None:
    policy = parse_policy(text, name="x")

    assert policy.is_given is given
    assert not policy.allows("any", "example.com", 443)
    assert not policy.allows("any", "", None)
    assert to_batch(policy).num_rows == rows
    assert EgressPolicy.from_rows(to_batch(policy).to_pylist()) == policy


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("egress = 5", "egress: expected a table"),
        ("[egres]\nallow = []", "unknown key egres;"),
        ("[egress]\ndeny = []", r"unknown key egress\.deny; there is egress\.allow"),
        ('[egress]\nallow = "a"', r"egress\.allow: expected a list, got str 'a'"),
        ("[egress]\nallow = [5]", r"egress\.allow\[0\]: expected a text .*, got int 5"),
        ('[egress]\nallow = ["ok.example", "a b"]', r"egress\.allow\[1\]: 'a b' is neither"),
        ('[egress]\nallow = [""]', "neither a host name"),
        ('[egress]\nallow = ["*"]', "neither a host name"),
        ('[egress]\nallow = ["a.*.com"]', "neither a host name"),
        ('[egress]\nallow = ["a.com:"]', "port from 1 to 65535"),
        ('[egress]\nallow = ["a.com:0"]', "port from 1 to 65535"),
        ('[egress]\nallow = ["a.com:65536"]', "port from 1 to 65535"),
        ('[egress]\nallow = ["a.com:http"]', "got 'http'"),
        ('[egress]\nallow = ["10.1.0.1/16"]', "host bits set"),
        ('[egress]\nallow = ["10.1.0.0/33"]', "no block"),
        ('[egress]\nallow = ["10.1.0.256"]', "neither a host name"),
        ('[egress]\nallow = ["[::1"]', r"expected \[IPv6 address\]:port"),
        ('[egress]\nallow = ["[a.com]:1"]', r"expected \[IPv6 address\]:port"),
        ('[egress]\nallow = ["https://a.com"]', "got '//a.com'"),
        ('[egress]\nallow = [{destination = "a.com"}]', r"allow\[0\]: service: expected"),
        ('[egress]\nallow = [{service = "x"}]', r"allow\[0\]: destination: expected"),
        ('[egress]\nallow = [{service = "x", destination = "a.com", port = 1}]', r"allow\[0\]: unknown key port"),
        ("not toml", "not TOML"),
    ],
)
def test_mistakes_are_named_with_their_file_and_key(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as refused:
        parse_policy(text, name="provenance.toml")
    assert str(refused.value).startswith("provenance.toml: ")


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "provenance.toml"
    path.write_text(EXAMPLE)

    assert len(read_policy(path).rules) == 7


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "provenance.toml"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(ConfigError, match=r"provenance\.toml: the policy cannot be read"):
        read_policy(path)


@pytest.mark.parametrize(
    "row",
    [
        {"service_name": 1, "destination": "a.com", "port": None},
        {"service_name": None, "destination": None, "port": None},
        {"service_name": None, "destination": "a.com", "port": "443"},
        {"service_name": None, "destination": "a b", "port": None},
    ],
)
def test_rows_that_are_no_rules_are_refused(row: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        EgressPolicy.from_rows([row])


@given(st.text(), st.text(), st.none() | st.integers(0, 65535))
def test_any_host_gets_an_answer(service: str, host: str, port: int | None) -> None:
    assert parse_policy(EXAMPLE, name="x").allows(service, host, port) in {True, False}


@given(st.text())
def test_any_text_is_a_policy_or_a_config_error(text: str) -> None:
    try:
        policy = parse_policy(f"[egress]\nallow = [{text!r}]", name="x")
    except ConfigError:
        return
    assert EgressPolicy.from_rows(to_batch(policy).to_pylist()) == policy
