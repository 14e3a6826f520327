"""DocumentStore: what goes in comes out, and searches find what they should."""

from __future__ import annotations

import shutil
import sqlite3
import sys
import threading

import numpy as np
import pytest
import torch
from document_texts import words_codes, words_embedding

from csrkern import InvertedIndex, ModelMismatchError, fuse
from csrkern.documents import Document, DocumentStore
from csrkern.documents.table import packed, unpacked
from csrkern.index.rows import read_rows
from csrkern.nn import SparseAutoencoder

TEXTS = ["red fox", "red fox jumps", "blue fish", "green tree", "red tree falls"]
IDS = ["a", "b", "c", "d", "e"]


def model(seed=0, k=8):
    torch.manual_seed(seed)
    return SparseAutoencoder(32, 128, k).eval()


@pytest.fixture(params=["memory", "folder"])
def store(request, tmp_path):
    path = None if request.param == "memory" else tmp_path / "store"
    with DocumentStore(path, embed=words_codes) as store:
        store.add(TEXTS, ids=IDS, metadata=[{"n": n} for n in range(5)])
        yield store


def ids_of(hits):
    return [document.id for document, _ in hits]


def test_documents_come_back(store):
    assert store.get(["c", "nobody", "a"]) == [
        Document("c", "blue fish", {"n": 2}),
        Document("a", "red fox", {"n": 0}),
    ]
    assert [document.id for document in store.find()] == IDS
    assert len(store) == 5
    assert store.count({"n": {"$gte": 3}}) == 2


def test_search_by_codes_is_the_search_of_an_index(store):
    index = InvertedIndex.build(words_codes(TEXTS))
    scores, numbers = index.search(words_codes(["red tree"]), 3)
    hits = store.search("red tree", 3)
    assert ids_of(hits) == [IDS[number] for number in numbers[0]]
    assert [score for _, score in hits] == scores[0].tolist()
    assert store.search(embedding=words_codes(["red tree"]), top_k=3) == hits


def test_search_by_words_ranks_by_bm25(store):
    """SQLite's formula: k1 1.2, b 0.75, and the inverse document frequency of Okapi."""
    lengths = np.array([len(text.split()) for text in TEXTS])
    expected = {}
    for name, text, length in zip(IDS, TEXTS, lengths, strict=True):
        for word in ("green", "fish"):
            if word in text.split():
                frequency = sum(word in other.split() for other in TEXTS)
                weight = np.log((5 - frequency + 0.5) / (frequency + 0.5))
                norm = 1 + 1.2 * (0.25 + 0.75 * length / lengths.mean())
                expected[name] = weight * 2.2 / norm
    hits = store.search("green, FISH?", by="words")
    assert {d.id: score for d, score in hits} == pytest.approx(expected, rel=1e-5)
    assert ids_of(hits) == sorted(expected, key=lambda name: (-expected[name], name))
    assert store.search("?!", by="words") == []
    assert ids_of(store.search('fox" OR NEAR(* green_tree', by="words")) == ["d", "a", "b"]


def test_words_are_found_however_their_accents_are_written():
    store = DocumentStore()
    store.add(
        ["re\u0301sume\u0301s x\u0302y", "r\u00e9sum\u00e9s"], ids=["a", "b"], embeddings=[None] * 2
    )
    for word in ("re\u0301sume\u0301s", "r\u00e9sum\u00e9s", "resumes"):
        assert sorted(ids_of(store.search(word, by="words"))) == ["a", "b"]
    assert ids_of(store.search("x\u0302y", by="words")) == ["a"]


def test_hybrid_search_fuses_both(store):
    words = store.search("red tree fish", 100, by="words")
    codes = store.search("red tree fish", 100)
    place = {name: number for number, name in enumerate(IDS)}
    results = [
        (np.array([[s for _, s in hits]]), np.array([[place[d.id] for d, _ in hits]]))
        for hits in (codes, words)
    ]
    for options in ({}, {"weights": [1, 0.2]}, {"method": "scores", "weights": [0.5, 2]}):
        scores, numbers = fuse(results, 3, **options)
        hits = store.search("red tree fish", 3, by="hybrid", **options)
        assert ids_of(hits) == [IDS[number] for number in numbers[0]]
        assert [score for _, score in hits] == scores[0].tolist()


@pytest.mark.parametrize("by", ["codes", "words", "hybrid"])
def test_filters_hold_in_every_search(store, by):
    assert ids_of(store.search("red", filter={"n": {"$gt": 0}}, by=by)) == ["b", "e"]
    assert store.search("red", filter={"n": 77}, by=by) == []
    assert len(store.search("red", filter={}, by=by)) == 3


@pytest.mark.parametrize("by", ["codes", "words", "hybrid"])
def test_distinct_keeps_the_best_of_each_value(by):
    random = np.random.default_rng(0)
    values = [None, "a", "b", 1, 1.5, True, {"deep": 1}, ["a"]]
    some = [values[i] for i in random.integers(0, len(values), 300)]
    facts = [{"of": {"source": value}} for value in some]
    texts = [" ".join(random.choice(list("abcdefgh"), 4)) for _ in some]
    with DocumentStore(embed=words_codes) as store:
        store.add(texts, ids=[f"d{n}" for n in range(300)], metadata=facts)
        ranked = store.search("a b c", 300, by=by)
        expected = []
        for document, score in ranked:
            value = document.metadata["of"]["source"]
            before = [d.metadata["of"]["source"] for d, _ in expected]
            if value is None or not any(
                value is b or (value == b and type(value) is type(b)) for b in before
            ):
                expected.append((document, score))
        found = store.search("a b c", 300, by=by, distinct="of.source")
        assert found == expected
        assert len(found) > len(values)
        # Fewer ask the store for as many as it takes; with ranks fused, scores depend on depth.
        if by != "hybrid":
            assert store.search("a b c", 5, by=by, distinct="of.source") == expected[:5]
        assert len(store.search("a b c", 5, by=by, distinct="of.source")) == 5
        assert store.search("a b c", 7, by=by, distinct="other") == store.search("a b c", 7, by=by)
        assert store.search("nothing", 5, by="words", distinct="of.source") == []


def test_a_document_is_replaced_by_its_id(store):
    assert store.add(["yellow sun"], ids=["a"]) == ["a"]
    assert len(store) == 5
    assert store.get(["a"]) == [Document("a", "yellow sun", {})]
    assert ids_of(store.search("red fox")) == ["b", "e"]
    assert ids_of(store.search("red fox", by="words")) == ["b", "e"]
    assert ids_of(store.search("yellow")) == ids_of(store.search("yellow", by="words")) == ["a"]
    values, indices = store.codes(["a", "c"])
    expected = read_rows("codes", words_codes(["yellow sun", "blue fish"]), None)
    np.testing.assert_array_equal(np.sort(indices[:, :2]).ravel(), expected.indices)
    np.testing.assert_array_equal(values[:, 2:], 0)


def test_deleting(store):
    assert store.delete(["a", "nobody"]) == 1
    assert store.delete(filter={"n": {"$lt": 3}}) == 2
    assert [document.id for document in store.find()] == ["d", "e"]
    assert ids_of(store.search("red fox")) == ids_of(store.search("red fox", by="words")) == ["e"]
    assert store.delete(filter={}) == 2
    assert store.search("red") == store.search("red", by="words") == []
    store.add(["red again"])
    assert [d.text for d, _ in store.search("red")] == ["red again"]


def test_ids_are_made_if_none_are_given(store):
    first, second = store.add(["one", "two"])
    assert first != second
    assert store.get([first])[0].text == "one"
    assert store.add([]) == []


def test_documents_without_an_embedding_are_found_by_words(store):
    store.add(["red dwarf"], ids=["w"], embeddings=[None])
    assert "w" not in ids_of(store.search("red"))
    assert "w" in ids_of(store.search("red", by="words"))
    with pytest.raises(ValueError, match="'w' is none"):
        store.codes(["w"])
    store.add(["red dwarf"], ids=["w"])
    assert "w" in ids_of(store.search("red"))
    store.add(["red dwarf"], ids=["w"], embeddings=[None])
    assert "w" not in ids_of(store.search("red"))


def test_a_store_is_opened_again_with_its_model(tmp_path):
    with DocumentStore(tmp_path, model(), embed=words_embedding) as store:
        store.add(TEXTS[:3], ids=IDS[:3])
        store.add(TEXTS[3:], ids=IDS[3:], embeddings=words_embedding(TEXTS[3:]).tolist())
        expected = [store.search(text, by=by) for text in TEXTS for by in ("codes", "hybrid")]
    saved = InvertedIndex.load(tmp_path)
    assert len(saved) == 5
    assert saved.fingerprint == model().fingerprint
    for given in (None, model()):
        with DocumentStore(tmp_path, given, embed=words_embedding) as store:
            again = [store.search(text, by=by) for text in TEXTS for by in ("codes", "hybrid")]
            assert again == expected
            query = words_embedding(["red fox"])[0]
            assert store.search(embedding=query.tolist()) == store.search("red fox")
    assert expected[0][0][0].id == "a"


def test_another_model_is_refused(tmp_path):
    with DocumentStore(tmp_path, model(), embed=words_embedding) as store:
        store.add(TEXTS)
    with pytest.raises(ModelMismatchError, match="model: made by another model"):
        DocumentStore(tmp_path, model(1))
    with DocumentStore(tmp_path) as store:
        store.delete(filter={})
    with DocumentStore(tmp_path, model(1), embed=words_embedding) as store:
        store.add(TEXTS)
    with DocumentStore(tmp_path, embed=words_embedding) as store:
        assert store._index.fingerprint == model(1).fingerprint
        assert store.search("red fox")[0][0].text == "red fox"


def test_codes_of_another_model_are_refused(tmp_path):
    with DocumentStore(embed=lambda texts: model().encode(words_embedding(texts))) as store:
        store.add(TEXTS, ids=IDS)
        before = store.search("red")
        with pytest.raises(ModelMismatchError):
            store.add(["red"], ids=["a"], embeddings=model(1).encode(words_embedding(["red"])))
        assert store.search("red") == before
        assert store.get(["a"])[0].text == "red fox"
        store.add(["red"], ids=["a"])
        assert store.get(["a"])[0].text == "red"


def test_the_metric_is_the_stores(tmp_path):
    with DocumentStore(tmp_path, embed=words_codes, metric="ip") as store:
        store.add(TEXTS)
    with DocumentStore(tmp_path, embed=words_codes) as store:
        assert store.search("red fox")[0][1] == 2
    with pytest.raises(ValueError, match="metric: this store has 'ip', got 'cosine'"):
        DocumentStore(tmp_path, metric="cosine")


def test_two_stores_of_one_folder_see_each_other(tmp_path):
    with (
        DocumentStore(tmp_path, embed=words_codes) as one,
        DocumentStore(tmp_path, embed=words_codes) as other,
    ):
        one.add(TEXTS, ids=IDS)
        assert ids_of(other.search("blue")) == ["c"]
        other.add(["blue sky"], ids=["f"])
        other.delete(["c"])
        one.add(["blue sea"], ids=["g"])
        for store in (one, other):
            assert ids_of(store.search("blue")) == ids_of(store.search("blue", by="words"))
            assert ids_of(store.search("blue")) == ["f", "g"]
        one.save()
        other.add(["blue moon"], ids=["f"])
    with DocumentStore(tmp_path, embed=words_codes) as store:
        assert ids_of(store.search("moon")) == ["f"]
        assert len(store) == 6


def test_threads_add_and_search_at_once(tmp_path):
    wrong = []
    with DocumentStore(tmp_path, embed=words_codes) as store:

        def work(name):
            try:
                for i in range(20):
                    store.add([f"red {name} {i}"], ids=[f"{name}{i % 5}"])
                    found = store.search(f"{name}", 20)
                    own = {document.text for document, _ in found}
                    if f"red {name} {i}" not in own or len(own) > 6:
                        wrong.append(own)
            except BaseException as error:
                wrong.append(error)

        threads = [threading.Thread(target=work, args=(f"t{n}",)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert len(store) == len(store._index) == 20


def test_an_index_of_another_file_is_not_taken_for_its_own(tmp_path):
    with DocumentStore(tmp_path, embed=words_codes) as store:
        store.add(TEXTS, ids=IDS)
    (tmp_path / "documents.sqlite").unlink()
    with DocumentStore(tmp_path, embed=words_codes) as store:
        store.add(TEXTS[::-1], ids=IDS)
        store._table.close()  # a crash: the index of the other file stays
        store.close = lambda: None
    with DocumentStore(tmp_path, embed=words_codes) as store:
        assert ids_of(store.search("blue fish", 1)) == ["c"]
        assert ids_of(store.search("red fox", 1)) == ["e"]


def test_bytes_of_codes():
    rows = read_rows("codes", words_codes(["one two three", "", "four"]), None)
    again = unpacked(packed(rows), rows.dim)
    for one, other in zip(rows, again, strict=True):
        np.testing.assert_array_equal(one, other)
    fixed = read_rows("codes", (np.float32([[3, 0, 1], [0, 0, 0]]), [[5, 0, 2], [0, 0, 0]]), 9)
    again = unpacked(packed(fixed), 9)
    assert (again.values.tolist(), again.indices.tolist()) == ([3, 1], [5, 2])
    assert again.starts.tolist() == [0, 2, 2]
    assert unpacked([], 9).n == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.add("text"), "texts: expected a list of str, got one str"),
        (lambda s: s.add([b"text"]), "texts: expected a list of str, got a bytes"),
        (lambda s: s.add(["a"], ids=["a", "b"]), "ids: expected one for each of 1, got 2"),
        (lambda s: s.add(["x", "y"], ids=["n", "n"]), "expected distinct ids, got 'n' twice"),
        (lambda s: s.add(["a"], metadata=[3]), r"metadata\[0\]: expected a mapping or None"),
        (
            lambda s: s.add(["a"], metadata=[{1: "x"}]),
            r"metadata\[0\]: expected names that are",
        ),
        (lambda s: s.add(["a"], metadata=[{"x": {1}}]), r"metadata\[0\]: expected what JSON"),
        (lambda s: s.add(["a"], metadata=[{"x": np.nan}]), r"metadata\[0\]: expected what JSON"),
        (lambda s: s.add(["a"], embeddings=words_codes(["a", "b"])), "expected 1, got 2"),
        (lambda s: s.add(["a"], embeddings=[[1.0, 2.0]]), "open the store with model="),
        (lambda s: s.add(["a"], embeddings=words_codes(["a"])._replace(dim=9)), "latents"),
        (lambda s: s.search(), "text: expected a text to search for by codes, got None"),
        (lambda s: s.search(embedding=[1], by="hybrid"), "expected a text to search for by hybrid"),
        (lambda s: s.search(3), "text: expected a str, got int"),
        (lambda s: s.search("a", 0), "top_k: expected 1 <= top_k"),
        (lambda s: s.search("a", by="magic"), "by: expected"),
        (lambda s: s.search("a", by="hybrid", method="magic"), "method: expected"),
        (lambda s: s.search("a", filter=["n"]), "filter: expected a mapping of fields, got list"),
        (lambda s: s.search("a", distinct="a..b"), "expected the name of a field"),
        (lambda s: s.search(embedding=words_codes(["a", "b"])), "embedding: expected one, got 2"),
        (lambda s: s.delete(), "expected ids or a filter"),
        (lambda s: s.delete(["a"], filter={}), "expected ids or a filter"),
        (lambda s: s.get("a"), "ids: expected a list of str, got one str"),
        (lambda s: s.get(None), "ids: expected a list of str, got NoneType"),
        (lambda s: s.add(7), "texts: expected a list of str, got int"),
    ],
)
def test_what_is_wrong_is_said_and_changes_nothing(store, call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call(store)
    assert [document.id for document in store.find()] == IDS
    assert len(store._index) == 5
    assert ids_of(store.search("blue")) == ["c"]


def test_a_store_without_embed_needs_embeddings():
    with DocumentStore() as store:
        with pytest.raises(ValueError, match="embeddings: expected those of the texts"):
            store.add(["a"])
        store.add(["a"], embeddings=words_codes(["a"]))
        with pytest.raises(ValueError, match="embedding: expected that of the text"):
            store.search("a")
        assert len(store.search("a", by="words")) == 1


def test_an_embedding_must_have_the_models_width():
    with DocumentStore(model=model()) as store:
        with pytest.raises(ValueError, match=r"embeddings: expected shape \[n, 32\], got \[1, 3\]"):
            store.add(["a"], embeddings=[[1, 2, 3]])
        assert store.search(embedding=np.ones(32)) == []


def test_a_file_that_is_none_of_ours_is_refused(tmp_path):
    (tmp_path / "documents.sqlite").write_bytes(b"nothing of SQLite's" * 100)
    with pytest.raises(ValueError, match=r"documents.sqlite is damaged"):
        DocumentStore(tmp_path)
    (tmp_path / "documents.sqlite").unlink()
    with sqlite3.connect(tmp_path / "documents.sqlite") as db:
        db.execute("CREATE TABLE songs (title)")
    with pytest.raises(ValueError, match="expected a file of a DocumentStore, found other tables"):
        DocumentStore(tmp_path)


def test_a_newer_file_is_refused(tmp_path):
    DocumentStore(tmp_path).close()
    with sqlite3.connect(tmp_path / "documents.sqlite") as db:
        db.execute("PRAGMA user_version = 7")
    with pytest.raises(ValueError, match="has format version 7; this release reads version 1"):
        DocumentStore(tmp_path)


# ---- odd input and odd times ------------------------------------------------------------------


def test_characters_that_sqlite_would_end_strings_at_are_refused():
    store = DocumentStore()
    with pytest.raises(ValueError, match="ids: expected ids without the character NUL"):
        store.add(["t"], ids=["a\0b"], embeddings=[None])
    with pytest.raises(ValueError, match=r"metadata\[0\].*NUL"):
        store.add(["t"], metadata=[{"k": ["a\0b"]}], embeddings=[None])
    with pytest.raises(ValueError, match="NUL"):
        store.find({"k": "a\0b"})
    store.add(["t"], ids=["a"], metadata=[{"k": "a\\u0000b"}], embeddings=[None])
    assert len(store.find({"k": "a\\u0000b"})) == 1
    with pytest.raises(ValueError, match="NUL"):
        store.delete(["a\0b"])
    with pytest.raises(ValueError, match="ids: expected Unicode"):
        store.get(["\ud800"])
    assert len(store) == 1


@pytest.mark.parametrize("name", ["a\\b", "a\nb", "tab\t", "\x01", 'a"b'])
def test_names_that_a_path_cannot_have_are_refused(name):
    store = DocumentStore()
    store.add(["t"], metadata=[{name: 1}], embeddings=[None])
    with pytest.raises(ValueError, match="without quotes, backslashes, control"):
        store.delete(filter={name: {"$ne": 1}})
    assert store.find()[0].metadata == {name: 1}


def test_none_within_a_filter_is_no_filter():
    store = DocumentStore()
    store.add(["t", "u"], embeddings=[None] * 2)
    for wrong in ({"$or": [None]}, {"$and": [None]}, {"$not": None}):
        with pytest.raises(TypeError, match="expected a mapping"):
            store.delete(filter=wrong)
    assert len(store) == 2


def test_filters_may_be_long_but_not_deep():
    store = DocumentStore()
    store.add(["t", "u"], metadata=[{"v": 1}, {"v": 5000}], embeddings=[None] * 2)
    assert len(store.find({"$or": [{"v": i} for i in range(3000)]})) == 1
    deep: dict = {"v": 1}
    for _ in range(3000):
        deep = {"$not": deep}
    with pytest.raises(ValueError, match="nested"):
        store.find(deep)


def test_metadata_may_not_be_so_deep_that_no_filter_could_read_it():
    store = DocumentStore()
    store.add(["t"], ids=["t"], metadata=[{"v": 1}], embeddings=[None])
    deep: dict = {}
    for _ in range(2500):
        deep = {"a": deep}
    usual = sys.getrecursionlimit()
    sys.setrecursionlimit(10_000)
    try:
        with pytest.raises(ValueError, match=r"metadata\[1\]: expected .*nested"):
            store.add(["u", "v"], metadata=[{}, deep], embeddings=[None] * 2)
    finally:
        sys.setrecursionlimit(usual)
    assert [document.id for document in store.find({"v": 1})] == ["t"]


def test_a_document_that_is_being_replaced_is_found():
    store = DocumentStore(embed=words_codes)
    store.add(["alpha beta"], ids=["a"])
    stop = threading.Event()

    def replace() -> None:
        while not stop.is_set():
            store.add(["alpha beta"], ids=["a"])

    writer = threading.Thread(target=replace)
    writer.start()
    found = [store.search("alpha beta") for _ in range(300)]
    stop.set()
    writer.join()
    assert all(len(hits) == 1 for hits in found)


def test_a_store_whose_file_is_gone_takes_nothing_more(tmp_path):
    store = DocumentStore(tmp_path / "store", embed=words_codes)
    store.add(["alpha"], ids=["a"])
    shutil.rmtree(tmp_path / "store")
    for call in (lambda: store.add(["beta"]), lambda: store.search("alpha"), store.save):
        with pytest.raises(FileNotFoundError, match="the store's file is gone"):
            call()
    assert not (tmp_path / "store").exists()


def test_closing_twice_is_closing_once(tmp_path):
    with DocumentStore(tmp_path / "store", embed=words_codes) as store:
        store.add(["alpha"])
        store.close()
    with pytest.raises(ValueError, match="this store is closed"):
        store.get(["a"])


def test_a_damaged_index_is_built_again(tmp_path):
    with DocumentStore(tmp_path / "store", embed=words_codes) as store:
        store.add(["alpha", "beta"], ids=["a", "b"])
    (tmp_path / "store/index.json").write_text("{")
    with pytest.warns(UserWarning, match="built again"):
        store = DocumentStore(tmp_path / "store", embed=words_codes)
    assert [hit.id for hit, _ in store.search("beta")] == ["b"]
