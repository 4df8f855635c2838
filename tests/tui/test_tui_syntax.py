import pytest
from hypothesis import given
from hypothesis import strategies as st

from tui.snapshots import TraceQuery
from tui.syntax import EXAMPLE, SearchSyntaxError, parse, render


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("", TraceQuery()),
        ("   ", TraceQuery()),
        ("service:checkout", TraceQuery(service="checkout")),
        ('op:"POST /buy"', TraceQuery(operation="POST /buy")),
        ("operation:Quote error:true", TraceQuery(operation="Quote", errors_only=True)),
        ("dur>100ms", TraceQuery(min_duration_ns=100_000_000)),
        ("dur>=1.5s dur<2m", TraceQuery(min_duration_ns=1_500_000_000, max_duration_ns=120_000_000_000)),
        ("sort:slowest", TraceQuery(order="slowest")),
        ("card declined", TraceQuery(text="card declined")),
        ('"service:x"', TraceQuery(text="service:x")),
        ("http://shop:80/x", TraceQuery(text="http://shop:80/x")),
        ("127.0.0.9:8443", TraceQuery(text="127.0.0.9:8443")),
        ("a<b", TraceQuery(text="a<b")),
        (
            EXAMPLE,
            TraceQuery(service="checkout", operation="POST /buy", errors_only=True, min_duration_ns=100_000_000),
        ),
    ],
)
def test_what_a_line_means(text, query):
    assert parse(text) == query


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("servce:x", "expected service:, op:, error:"),
        ("service:", "expected for example"),
        ("service>x", "expected service:VALUE"),
        ("error:false", "expected error:true"),
        ("dur>fast", "expected for example dur>100ms"),
        ("dur:100ms", "expected for example dur>100ms"),
        ("dur>99999999999m", "longer than 292 years"),
        ("dur>2s dur<1s", "nothing can be both"),
        ("sort:up", "expected sort:newest"),
        ('op:"POST', "a quote is not closed"),
    ],
)
def test_a_slip_says_what_was_expected(text, expected):
    with pytest.raises(SearchSyntaxError, match="expected") as error:
        parse(text)
    assert expected in str(error.value)


@given(st.text())
def test_any_line_is_a_query_or_a_syntax_error(text):
    try:
        assert isinstance(parse(text), TraceQuery)
    except SearchSyntaxError as error:
        said = str(error)
    else:
        return
    assert "expected" in said


names = st.text(st.characters(exclude_characters='"', exclude_categories=["C", "Z"]), min_size=1, max_size=20)
texts = st.lists(names, min_size=1, max_size=3).map(" ".join)
durations = st.integers(0, 2**62)


@given(
    st.builds(
        TraceQuery,
        service=st.none() | names,
        operation=st.none() | texts,
        text=st.none() | texts,
        min_duration_ns=st.none() | durations,
        errors_only=st.booleans(),
        order=st.sampled_from(["newest", "slowest"]),
    )
)
def test_a_rendered_query_means_itself(query):
    again = parse(render(query))
    assert again == query


def test_a_value_may_begin_with_an_equals_sign():
    assert parse("op:=").operation == "="


def test_long_durations_keep_their_last_digits():
    assert parse("dur>9007199254740993ns").min_duration_ns == 9_007_199_254_740_993


def test_an_operation_with_a_quote_in_it_still_renders_to_something_that_parses():
    assert parse(render(TraceQuery(operation='a "b" c'))).operation == "a b c"
