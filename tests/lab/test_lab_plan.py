"""The lab without root: what it would play, redirect and configure, and how it grades."""

import json
from contextlib import closing
from pathlib import Path

import polars as pl
import pytest

from collector.errors import ConfigError
from collector.lab import __main__ as lab
from collector.lab import matrix
from collector.lab.certificates import Authority, Identity
from collector.lab.envoy_config import bootstrap, cluster_name
from collector.lab.network import missing, missing_message, redirection
from collector.lab.plan import BATCH, LEDGER, ORDERS, PODS, PROXY_UID, STYLES, WAYS, WEB, script
from collector.store.database import Store


def test_the_script_has_every_way_in_every_style_and_repeats_by_its_seed():
    calls = script(200, 30, 7)
    assert len(calls) == 200 + 30 * (len(WAYS) - 1)
    assert {c.way for c in calls} == set(WAYS)
    assert {(c.way, c.style) for c in calls if c.way != "udp"} == {(w, s) for w in WAYS if w != "udp" for s in STYLES}
    assert calls == script(200, 30, 7) != script(200, 30, 8)


def test_each_way_differs_from_a_clean_call_as_it_should():
    by_way = {c.way: c for c in script(50, 5, 1)}
    assert by_way["clean"].address.startswith("10.78.0.")
    assert by_way["no_sidecar"].address == LEDGER.service_address
    assert by_way["proxy_uid"].caller == BATCH.name
    assert BATCH.uid == PROXY_UID
    assert by_way["excluded_port"].port in WEB.exclude_outbound_ports
    assert f"{by_way['excluded_ip_range'].address}/32" in WEB.exclude_outbound_ranges
    assert by_way["forged_xfcc"].port in ORDERS.exclude_inbound_ports
    assert dict(by_way["forged_xfcc"].headers)["x-forwarded-client-cert"].endswith(f"URI={WEB.principal}")
    assert by_way["direct_pod_ip"].address == ORDERS.address


def test_redirection_is_in_the_order_in_which_istio_writes_it():
    rules = redirection(WEB).splitlines()
    assert rules[0] == "*nat"
    assert rules[-1] == "COMMIT"
    excluded = rules.index("-A ISTIO_OUTPUT -p tcp --dport 9080 -j RETURN")
    proxy = rules.index("-A ISTIO_OUTPUT -m owner --uid-owner 1337 -j RETURN")
    block = rules.index("-A ISTIO_OUTPUT -d 10.77.0.30/32 -j RETURN")
    everything = rules.index("-A ISTIO_OUTPUT -j ISTIO_REDIRECT")
    assert excluded < proxy < block < everything
    inbound = redirection(ORDERS).splitlines()
    assert inbound.index("-A ISTIO_INBOUND -p tcp --dport 8082 -j RETURN") < inbound.index(
        "-A ISTIO_INBOUND -p tcp -j ISTIO_IN_REDIRECT"
    )


def test_a_sidecar_is_permissive_and_keeps_what_was_forwarded():
    identity = Identity(Path("c.pem"), Path("c.key"), Path("ca.pem"))
    services = [pod for pod in PODS if pod.serves]
    config = json.loads(json.dumps(bootstrap(ORDERS, services, identity, collector_port=4317, access_log="/a.json")))
    outbound, inbound = config["static_resources"]["listeners"]
    assert inbound["address"]["socket_address"]["port_value"] == 15006
    kinds = {c["filter_chain_match"]["transport_protocol"]: "transport_socket" in c for c in inbound["filter_chains"]}
    assert kinds == {"tls": True, "raw_buffer": False}
    manager = inbound["filter_chains"][0]["filters"][0]["typed_config"]
    assert manager["forward_client_cert_details"] == "APPEND_FORWARD"
    assert "forward_client_cert_details" not in outbound["filter_chains"][0]["filters"][0]["typed_config"]
    clusters = {c["name"]: c for c in config["static_resources"]["clusters"]}
    assert "transport_socket" in clusters[cluster_name(ORDERS)]
    assert "transport_socket" not in clusters[cluster_name(LEDGER)], "without a sidecar nobody ends TLS"
    assert clusters["PassthroughCluster"]["type"] == "ORIGINAL_DST"


def test_certificates_name_a_spiffe_id_and_keys_are_private(tmp_path):
    import os

    from cryptography import x509

    identity = Authority(tmp_path).issue("web", WEB.principal, os.geteuid())
    certificate = x509.load_pem_x509_certificate(identity.certificate.read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [WEB.principal]
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(identity.authority.read_bytes()))
    assert identity.key.stat().st_mode & 0o777 == 0o600


def test_missing_programs_are_named_with_their_packages():
    assert "iptables" in missing(path="/nonexistent")
    assert "apt-get install iproute2 iptables" in missing_message(["ip", "iptables"])


@pytest.mark.parametrize("argv", [["--calls", "1"], ["--rate", "0"], ["--odd", "0"], ["--nonsense"]])
def test_a_usage_error_ends_with_two(argv):
    with pytest.raises(SystemExit, match="2"):
        lab.parse(argv)


def test_without_root_it_says_so(monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(ConfigError, match="sudo make lab"):
        lab.check()


# --- grading ----------------------------------------------------------------------------------------------------------------


def truth(way, trace, local="10.77.0.10:40000", remote="10.77.0.20:9080", **overrides):
    return {"way": way, "trace_id": trace, "local": local, "remote": remote, "error": None} | overrides


def test_verdicts_are_counted_by_way():
    verdicts = {"a": ("meshed", ""), "b": ("bypassed", "excluded_port")}
    frame = matrix._calls(
        "all", verdicts, [truth("clean", "a"), truth("excluded_port", "b"), truth("excluded_port", "c")]
    )
    assert frame.to_dicts() == [
        {
            "witnesses": "all",
            "way": "clean",
            "calls": 1,
            "bypassed": 0,
            "meshed": 1,
            "unknown": 0,
            "unseen": 0,
            "named": 0,
        },
        {
            "witnesses": "all",
            "way": "excluded_port",
            "calls": 2,
            "bypassed": 1,
            "meshed": 0,
            "unknown": 0,
            "unseen": 1,
            "named": 1,
        },
    ]


def test_connections_are_told_apart_by_both_ends_at_the_caller_and_by_the_callers_end_at_the_callee():
    rows = [
        ("10.77.0.10:40000", "10.77.0.20:9080", "bypassed", "outbound"),
        ("10.77.0.10:40000", "10.77.0.30:9080", "captured", "outbound"),
        ("10.77.0.20:15006", "10.77.0.10:40000", "captured", "inbound"),
    ]
    sockets = pl.DataFrame(rows, schema=["near", "far", "capture", "direction"], orient="row")
    caller, callee = matrix._connections(sockets, [truth("excluded_port", "a")]).to_dicts()
    assert (caller["side"], caller["bypassed"], callee["side"], callee["captured"]) == ("caller", 1, "callee", 1)


def test_an_accused_clean_call_and_a_bypass_called_meshed_are_counted():
    wrong = {"a": ("bypassed", ""), "b": ("meshed", ""), "c": ("unknown", "")}
    calls = matrix._calls("all", wrong, [truth("clean", "a"), truth("plaintext", "b"), truth("proxy_uid", "c")])
    result = matrix.Result(calls, pl.DataFrame(), pl.DataFrame(), {})
    assert (result.accused, result.missed) == (1, 1)


def test_witnesses_are_removed_from_a_copy_and_not_from_the_evidence(tmp_path):
    database = tmp_path / "evidence.duckdb"
    with Store.open(database) as store, closing(store.cursor()) as cursor:
        cursor.execute(
            "INSERT INTO socket_watches (source, service_name, since_unix_nano, until_unix_nano, received_unix_nano) VALUES ('w', 'w', 1, 2, 3)"
        )
    work = tmp_path / "work"
    work.mkdir()
    with matrix.copy_without(database, ("socket_watches",), work) as query:
        assert query("SELECT count(*) AS n FROM socket_watches").item() == 0
    assert not list(work.iterdir())
    with Store.open(database) as store, closing(store.cursor()) as cursor:
        assert cursor.execute("SELECT count(*) FROM socket_watches").fetchone() == (1,)
