import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from appliance.errors import MalformedInput
from appliance.store import fields, language

NOW = 1_763_880_000_000_000_000
PLACEHOLDER = re.compile(r"\{q\d+:[A-Za-z0-9]+\}")

names = st.sampled_from([*fields.FIELDS, "nosuch", "TEXT", ""])
atoms = st.one_of(
    st.text(max_size=12),
    st.text("abc*?\\\"'/:()[]{}<>=~^+-!&|% \t\n", max_size=12),
    st.sampled_from(
        ["10.0.0.0/8", "fd00::1", "2025-11-23", "15m", "[1 TO 9]", "{a TO *}", ">=5", "<2", "*", "a*b?", '"x y"']
    ),
)
queries = st.recursive(
    atoms,
    lambda inner: st.one_of(
        st.tuples(names, inner).map(lambda pair: f"{pair[0]}:{pair[1]}"),
        st.tuples(inner, st.sampled_from([" AND ", " OR ", " ", " NOT ", " -"]), inner).map("".join),
        inner.map(lambda one: f"({one})"),
        inner.map(lambda one: f"NOT {one}"),
    ),
    max_leaves=12,
)


@given(queries)
@example("'; DROP TABLE messages --")
@example("subject:x') OR 1=1 --")
@example("(" * 2000)
@example("NOT " * 900 + "a")
@example(" OR ".join("a" * 500))
@example("a\\")
@example('"')
@example("\0")
@example("text:{q0:String}")
@example("[" * 50 + "]" * 50)
def test_any_query_compiles_or_is_malformed_and_its_words_are_parameters(query: str) -> None:
    try:
        found = language.compile_query(query, NOW)
    except MalformedInput:
        return
    # What stays of the SQL without placeholders is made of the constants of the field table, whatever was typed.
    rest = PLACEHOLDER.sub("", found.sql)
    assert set(re.findall(r"'[^']*'", rest)) <= CONSTANTS
    outside = re.sub(r"'[^']*'", "", rest)
    assert not set(outside) & set(';"`\\{}?#%')
    assert "--" not in outside
    assert len(found.sql) < 200 * language.MAX_TERMS * 10
    assert set(re.findall(r"\{(q\d+):", found.sql)) == set(found.parameters)


CONSTANTS = {
    *("''", "'host'", "'method'", "'status'", "'target'", "'sql'", "'database'", "'user'", "'sni'"),
    "'^[A-Za-z][A-Za-z0-9+.-]*://[^/]*'",
}


# The prefix keeps the words apart from those of the SQL itself.
@given(st.text(st.characters(categories=["L", "N"]), min_size=8, max_size=20).map("zq{}".format))
def test_no_word_of_the_input_is_in_the_sql(word: str) -> None:
    for query in (word, f'"{word} {word}"', f"subject:{word}", f"finding:{word}*", f"text:(a OR {word}x)"):
        found = language.compile_query(query, NOW)
        assert word not in found.sql
        assert any(word.lower() in str(value) for value in found.parameters.values())


@pytest.mark.parametrize(
    ("query", "where"),
    [
        ("alice nosuch:x", r"'nosuch' at position 7 is not a field; use one of act, address"),
        ("nosuch:x", r"or put the words in double quotes"),
        ("a/b c/d nosuch:x", r"at position 9 "),
        ('say "this', r"query cannot be read at position 5"),
        ("(a", r"query cannot be read at its end"),
        ("a b)", r"query cannot be read at position 4"),
        ("a/b b)", r"query cannot be read at position 6"),
        ("fuzzy~", r"~ at position 1 is not supported"),
        ("a boost^2", r"\^ at position 3 is not supported"),
        ("a && b", r"&& at position 3: write AND instead"),
        ("port:http", r"port at position 1: takes whole numbers"),
        ("status:[a TO 5]", r"status at position 1: takes whole numbers"),
        ("x address:10.0.0", r"address at position 3: '10.0.0' is neither an IP address nor a network"),
        ("time:soon", r"time at position 1: 'soon' is not a time"),
        ("session:1", r"session at position 1: takes a session id"),
        ("subject:[a TO b]", r"subject at position 1: takes no range"),
        ("text:>=5", r"takes words, not a range"),
        ("a?b?c?d?e?f?g?h?i?", r"more than 8 wildcards"),
        ("", r"query is empty; \* matches everything"),
        ("  ", r"query is empty"),
        ("a" * 5000, r"query has 5000 characters; shorten it to 4096"),
        (" ".join("a" * 65), r"more than 64 terms"),
        ("NOT " * 60 + "a", r"nested more than 48 deep"),
    ],
)
def test_faults_say_where_and_what_to_do(query: str, where: str) -> None:
    with pytest.raises(MalformedInput, match=where):
        language.compile_query(query, NOW)


@pytest.mark.parametrize(
    ("query", "same"),
    [
        ("a b", "a AND b"),
        ("a -b", "a AND NOT b"),
        ("+a b", "a AND b"),
        ("text:a", "a"),
        ("TEXT:a", "a"),
        ("path:/v1/x", 'path:"/v1/x"'),
        ("server_address:fd00::1", 'server_address:"fd00::1"'),
        ("address:(fd00::1 OR fd00::2)", "address:fd00::1 OR address:fd00::2"),
        ("it's", r"it\'s"),
        ("a\\*b", '"a*b"'),
        ("time:[2025-11-23T06:40:00Z TO *]", 'time:["2025-11-23T06:40:00Z" TO *]'),
    ],
)
def test_two_ways_to_say_the_same(query: str, same: str) -> None:
    one, other = (language.compile_query(text, NOW) for text in (query, same))
    assert one.parameters == other.parameters
    assert one.sql.replace("(", "").replace(")", "") == other.sql.replace("(", "").replace(")", "")


def test_a_colon_within_a_field_belongs_to_the_word() -> None:
    assert language.compile_query("method:(subject:x)", NOW).parameters == {"q0": "subject:x"}


def test_needles_are_the_words_that_a_match_contains() -> None:
    found = language.compile_query('Alice AND cust* NOT bob subject:carol OR "Drop Table" *', NOW)
    assert found.needles == ("alice", "cust", "drop table")


def test_wildcards_are_regular_expressions_of_escaped_words() -> None:
    found = language.compile_query("a.c*d?", NOW)
    assert list(found.parameters.values()) == ["%a.c%", r"(?:^|[^0-9a-z])a\.c\S*d[\pL\pN_](?:$|[^0-9a-z])"]
