"""Filters by metadata against the same in Python."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csrkern.documents import DocumentStore
from csrkern.documents.filter import condition

ROWS = [
    {"n": 1, "s": "b", "flag": True, "tags": ["x", "y"]},
    {"n": 2.5, "s": "a", "flag": False, "tags": []},
    {"n": -3, "s": None, "deep": {"n": 1, "tags": [1, "1", True]}},
    {"n": "1", "s": "ä'; DROP TABLE documents; --", "tags": "x"},
    {"with space": 1, "n": [1, 2]},
    {},
]


FIELDS = ("n", "s", "flag", "tags", "deep.n", "deep.tags", "with space")


@pytest.fixture(scope="module", params=[False, True], ids=["all rows", "indexed fields"])
def store(request):
    with DocumentStore() as store:
        if request.param:
            for name in FIELDS:
                store.index_field(name)
        store.add(["text"] * len(ROWS), ids=list("abcdef"), metadata=ROWS, embeddings=[None] * 6)
        yield store


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({}, "abcdef"),
        ({"n": 1}, "a"),
        ({"n": 1.0}, "a"),
        ({"n": "1"}, "d"),
        ({"n": [1, 2]}, "e"),
        ({"n": None}, "f"),
        ({"n": {"$ne": 1}}, "bcdef"),
        ({"n": {"$ne": None}}, "abcde"),
        ({"n": {"$in": [1, "1"]}}, "ad"),
        ({"n": {"$in": [1, None]}}, "af"),
        ({"n": {"$in": []}}, ""),
        ({"n": {"$nin": [1, "1"]}}, "bcef"),
        ({"n": {"$nin": [1, None]}}, "bcde"),
        ({"n": {"$gt": -3}}, "ab"),
        ({"n": {"$gte": -3, "$lt": 2.5}}, "ac"),
        ({"n": {"$lte": 2**70}}, "abc"),
        ({"s": {"$gt": "a"}}, "ad"),
        ({"s": {"$lte": "b"}}, "ab"),
        ({"s": None}, "cef"),
        ({"s": "ä'; DROP TABLE documents; --"}, "d"),
        ({"flag": True}, "a"),
        ({"flag": {"$ne": True}}, "bcdef"),
        ({"tags": []}, "b"),
        ({"tags": "x"}, "d"),
        ({"tags": {"$contains": "x"}}, "a"),
        ({"deep.n": 1}, "c"),
        ({"deep.tags": {"$contains": "1"}}, "c"),
        ({"with space": 1}, "e"),
        ({"n": 1, "s": "a"}, ""),
        ({"$and": [{"n": 1}, {"s": "b"}]}, "a"),
        ({"$or": [{"n": 1}, {"s": "a"}]}, "ab"),
        ({"$or": []}, ""),
        ({"$not": {"n": 1, "s": "b"}}, "bcdef"),
        ({"$not": {"n": {"$gt": 0}}}, "cdef"),
        ({"$not": {"tags": {"$contains": "x"}}}, "bcdef"),
        ({"$not": {"$not": {"n": 1}}}, "a"),
        ({"s": {"$substring": "DROP"}}, "d"),
        ({"s": {"$substring": "drop"}}, ""),
        ({"s": {"$substring": ""}}, "abd"),  # codespell:ignore
        ({"tags": {"$substring": "x"}}, "d"),
        ({"$not": {"s": {"$substring": "b"}}}, "bcdef"),
        ({"$text": "text"}, "abcdef"),
        ({"$text": {"$substring": "ex"}}, "abcdef"),
        ({"$text": {"$in": ["other"]}}, ""),
        ({"$id": "b"}, "b"),
        ({"$id": {"$nin": ["b", "c"]}}, "adef"),
        ({"$id": {"$gt": "d"}}, "ef"),
    ],
)
def test_what_a_filter_lets_pass(store, chosen, expected):
    assert "".join(document.id for document in store.find(chosen)) == expected
    assert store.count(chosen) == len(expected)
    assert "".join(d.id for d, _ in store.search("text", filter=chosen, by="words")) == expected


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=3)
VALUES = st.one_of(st.none(), st.integers(-(2**60), 2**60), st.floats(-5, 5), TEXTS)
TESTS = {
    "$eq": lambda have, value: have == value,
    "$ne": lambda have, value: have != value,
    "$gt": lambda have, value: have > value,
    "$lte": lambda have, value: have <= value,
}


def holds(operator, have, value):
    if operator in ("$gt", "$lte"):
        kinds = [str if isinstance(each, str) else float for each in (have, value)]
        if have is None or kinds[0] != kinds[1]:
            return False
        if isinstance(have, str):  # SQLite compares bytes
            have, value = have.encode(), value.encode()
    return TESTS[operator](have, value)


@settings(max_examples=200)
@given(st.lists(VALUES, max_size=6), st.sampled_from(sorted(TESTS)), VALUES, st.booleans())
def test_filters_compare_as_python_does(values, operator, value, indexed):
    if operator in ("$gt", "$lte") and value is None:
        value = 0
    with DocumentStore() as store:
        metadata = [{"x": each} for each in values]
        ids = [str(n) for n in range(len(values))]
        store.add([""] * len(values), ids=ids, metadata=metadata, embeddings=[None] * len(values))
        if indexed:
            store.index_field("x")
        found = [int(document.id) for document in store.find({"x": {operator: value}})]
        expected = [n for n, have in enumerate(values) if holds(operator, have, value)]
        assert found == expected
        rest = [int(document.id) for document in store.find({"$not": {"x": {operator: value}}})]
        assert sorted(found + rest) == list(range(len(values)))


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ([], "expected a mapping of fields, got list"),
        ({1: 2}, "expected strings as fields, got int"),
        ({"$nor": []}, r"expected a field, \$id, \$text, \$and, \$or or \$not, got '\$nor'"),
        ({"$or": {"n": 1}}, r"\$or: expected a list of filters"),
        ({"$not": []}, "expected a mapping of fields, got list"),
        ({"n": {}}, r"n: expected one of \$eq"),
        ({"n": {"gt": 1}}, r"n: expected one of \$eq, .*, got 'gt'"),
        ({"n": {"$in": 3}}, r"n: \$in: expected a list, got 3"),
        ({"n": {"$in": [[1]]}}, "n: expected a string, a number, a bool or None, got list"),
        ({"n": {"$gt": None}}, r"n: \$gt: expected a number or a string, got None"),
        ({"n": {"$lt": True}}, r"n: \$lt: expected a number or a string, got True"),
        ({"n": float("nan")}, "n: expected a string, a number, a bool or None, got nan"),
        ({"n": 10**400}, "n: expected a number that floats reach"),
        ({"n": {"$in": [-(10**400)]}}, "n: expected a number that floats reach"),
        ({"\ud800": 1}, "expected the name of a field, .* halves of characters"),
        ({"n": object()}, "n: expected a string, a number, a bool or None, got object"),
        ({'a"b': 1}, "expected the name of a field, without quotes"),
        ({"a..b": 1}, "expected the name of a field"),
        ({"$id": {"$contains": "a"}}, r"\$id: a string is no list"),
        ({"n": {"$substring": 3}}, r"n: \$substring: expected a string, got 3"),
    ],
)
def test_what_is_no_filter_is_refused(store, chosen, message):
    with pytest.raises((TypeError, ValueError), match=f"filter: {message}"):
        store.find(chosen)


def plan(store, chosen) -> str:
    sql, parameters = condition(chosen)
    query = f"EXPLAIN QUERY PLAN SELECT number FROM documents WHERE {sql}"
    return " ".join(row[3] for row in store._table._db.execute(query, parameters))


def test_an_indexed_field_is_not_looked_for_in_all_documents(tmp_path):
    with DocumentStore(tmp_path) as store:
        for name in ("n", "it's", "a.b", "n"):
            store.index_field(name)
    with DocumentStore(tmp_path) as store:  # the index is in the file
        for name in ("n", "it's", "a.b"):
            for value in (3, "x", {"$in": [1, 2]}, {"$gt": 3}, {"$gte": "a", "$lt": "b"}):
                assert plan(store, {name: value}).startswith("SEARCH documents USING"), value
        assert plan(store, {"n": 1, "other": 2}).startswith("SEARCH documents USING")
        assert plan(store, {"N": 1}).startswith("SCAN")
        store.index_field("N")  # is another field
        assert plan(store, {"N": 1}).startswith("SEARCH documents USING")


@pytest.mark.parametrize("name", ["", "a..b", 'a"b', "$and", 3])
def test_names_that_no_field_has_are_not_indexed(store, name):
    with pytest.raises((TypeError, ValueError), match="filter: "):
        store.index_field(name)
