"""Lines of text and of JSON, as the commands read and write them."""

from __future__ import annotations

import io
import json
import os
import threading
from pathlib import Path

import pytest
from command_line import (  # noqa: F401
    Words,
    error_of,
    exit_code,
    inside_the_folder,
    json_lines,
    make_untrained,
    strict,
    type_in,
    words,
)

from csrkern import InvertedIndex, SparseCodes
from csrtrain import lines


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("lines")
    make_untrained(folder)
    return folder


def read(raw: bytes, **options) -> list[dict]:
    return [record.fields for record in lines.read_records(io.BytesIO(raw), "it", **options)]


# ---- the reader -----------------------------------------------------------------------

BOM = b"\xef\xbb\xbf"
A = {"text": "a lamp", "id": 7}
JSON_A = json.dumps(A).encode()


@pytest.mark.parametrize("beginning", [b"", BOM, b"\n", b" \t\r\n\n", BOM + b"\r\n"])
@pytest.mark.parametrize("as_json", [True, None])
def test_json_begins_after_a_mark_and_blank_lines(beginning, as_json):
    raw = beginning + JSON_A + b"\r\n\n" + JSON_A
    assert read(raw, as_json=as_json) == [A, A]


@pytest.mark.parametrize(
    ("raw", "texts"),
    [
        (BOM + b"one\ntwo", ["one", "two"]),
        (b"\n one \r\n\n", ["", " one ", ""]),
        (b"\r\r\n", ["\r"]),
        ("a\u2028b\x0cc\x0bd\x85e\x1cf\rg\n".encode(), ["a\u2028b\x0cc\x0bd\x85e\x1cf\rg"]),
        (b"{x} is a set\n", ["{x} is a set"]),
        (b'[1, 2]\n"quoted"\n5\n', ["[1, 2]", '"quoted"', "5"]),
        (b'plain\n{"text": "stays plain"}\n', ["plain", '{"text": "stays plain"}']),
        (b"", []),
        (BOM, []),
        (b"\n\n", ["", ""]),
    ],
)
def test_plain_text_stays_plain(raw, texts):
    assert [record["text"] for record in read(raw)] == texts


@pytest.mark.parametrize(
    ("raw", "as_json", "message"),
    [
        (b'{"text":"a lamp}\n', None, "it: line 1: expected a JSON object, got"),
        (b'\n\n{"text":"a lamp}\n', None, "it: line 3: expected a JSON object"),
        (b"words\n", True, "it: line 1: expected a JSON object, got 'words'"),
        (b"[1, 2]\n", True, "line 1: expected a JSON object, got '[1, 2]' (it is a list)"),
        (b"null\n", True, "(it is null)"),
        (b"1.5\n", True, "(it is a number)"),
        (JSON_A + b"\n" + JSON_A + JSON_A, None, "line 2: expected a JSON object"),
        (JSON_A + b"\n" + BOM + JSON_A, None, "line 2: expected a JSON object"),
        (b'{"a": ' + b"[" * 100_000, None, "line 1: expected a JSON object of at most 100"),
        (b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}", None, "of at most 100 nested"),
        (b'{"a": ' + b"9" * 5000 + b"}", None, "line 1: expected a JSON object"),
        ('{"text": "a"}'.encode("utf-16"), None, "line 1 is not UTF-8 but UTF-16"),
        ('{"text": "a"}'.encode("utf-16-be"), None, "line 1 holds a NUL byte"),
        (b"one\ntw\0o\n", None, "line 2 holds a NUL byte"),
        (b"one\ntwo\nthr\xffee\n", None, "line 3 is not UTF-8"),
    ],
)
def test_a_line_that_is_not_as_it_must_be_is_named(raw, as_json, message):
    with pytest.raises(ValueError) as caught:
        read(raw, as_json=as_json)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nesting_up_to_the_limit_is_read():
    raw = b'{"a": ' + b"[" * 99 + b"]" * 99 + b"}"
    assert read(raw) == [json.loads(raw)]
    assert read(b'{"text": "' + b"[" * 500 + b'"}') == [{"text": "[" * 500}]


# ---- JSON out -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "wanted"),
    [
        ({"a": float("nan"), "b": [1e400, {"c": -1e400}]}, {"a": None, "b": [None, {"c": None}]}),
        ({"a": "\ud83d", "ß": "é"}, {"a": "\ud83d", "ß": "é"}),
        ({"a": 2**70, "b": "\u2028\x85\x1b[31m\x9b"}, {"a": 2**70, "b": "\u2028\x85\x1b[31m\x9b"}),
    ],
)
def test_json_out_is_json_on_one_line_of_utf_8(record, wanted):
    for ascii_only in (False, True):
        line = lines.to_json(record, ascii_only=ascii_only)
        assert strict(line.encode()) == wanted
        assert line.splitlines() == [line]
        assert line.isascii() or not ascii_only
        assert "\x1b" not in line
        assert "\x9b" not in line


@pytest.mark.parametrize(
    ("fields", "names", "kept"),
    [
        ({"query": "mine", "a": 1}, ("query", "hits"), {"query_": "mine", "a": 1}),
        ({"query": 1, "query_": 2}, ("query",), {"query__": 1, "query_": 2}),
        ({"a": 1}, ("query",), {"a": 1}),
    ],
)
def test_a_field_of_the_users_own_is_set_aside(fields, names, kept):
    assert lines.set_aside(fields, names) == kept


def test_what_a_terminal_would_obey_is_shown():
    assert lines.printable("a\x1b[31m\x9b\r\u202eb\udcff ß👩‍💻") == (
        "a\\x1b[31m\\x9b\\r\\u202eb\\xff ß👩‍💻"
    )


# ---- embed ----------------------------------------------------------------------------


@pytest.fixture
def jsonl(tmp_path):
    def write(*rows: bytes | dict, name: str = "in.jsonl") -> str:
        raw = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
        path = tmp_path / name
        path.write_bytes(b"\n".join(raw) + b"\n")
        return str(path)

    return write


@pytest.mark.usefixtures("words")
def test_embed_reads_json_behind_a_mark(folder, capsys, jsonl):
    assert exit_code("embed", jsonl(BOM + JSON_A, b"", JSON_A)) == 0
    assert [(r["text"], r["id"]) for r in json_lines(capsys)] == [("a lamp", 7)] * 2
    assert Words.read == ["a lamp"] * 2


@pytest.mark.usefixtures("words")
@pytest.mark.parametrize("name", ["in.jsonl", "in.ndjson", "in.JSONL"])
def test_embed_refuses_what_is_named_json_and_is_not(folder, capsys, jsonl, name):
    assert exit_code("embed", jsonl(b'{"text":"a lamp}', JSON_A, name=name)) == 2
    assert f"{name}: line 1: expected a JSON object" in error_of(capsys)


@pytest.mark.usefixtures("words")
def test_a_line_of_odd_characters_is_one_text_everywhere(folder, capsys, tmp_path):
    path = tmp_path / "ls.txt"
    texts = [f"a\u2028b{i}\x0c\x0b\x85c" for i in range(40)]
    path.write_bytes("\r\n".join(texts).encode())
    assert exit_code("embed", str(path)) == 0
    assert [record["text"] for record in json_lines(capsys)] == texts
    assert exit_code(f"search index codes.safetensors --texts {path} --json --top-k 1") == 0
    for query, record in enumerate(json_lines(capsys)):
        assert record["hits"][0] | {"score": 0} == {"id": query, "score": 0, "text": texts[query]}


@pytest.mark.usefixtures("words")
@pytest.mark.parametrize("way", ["stdout", "jsonl"])
def test_halves_of_surrogate_pairs_lose_no_line(folder, capsys, jsonl, tmp_path, way):
    rows = [
        {"text": f"t{i}", "note": "\ud83d" if i == 1 else "ß", "x": float("nan")} for i in "012"
    ]
    rows[1]["note"] = "\ud83d"
    source, made = jsonl(*rows), tmp_path / "out.jsonl"
    assert exit_code("embed", source, *(("-o", str(made)) if way == "jsonl" else ())) == 0
    if way == "stdout":
        records = json_lines(capsys)
    else:
        raw = made.read_bytes()
        assert raw.decode().count("ß") == 2
        records = [strict(line) for line in raw.splitlines()]
    assert [(r["text"], r["note"], r["x"]) for r in records] == [
        ("t0", "ß", None),
        ("t1", "\ud83d", None),
        ("t2", "ß", None),
    ]


@pytest.mark.usefixtures("words")
def test_half_of_a_surrogate_pair_in_the_text_is_named(folder, capsys, jsonl, tmp_path):
    made = tmp_path / "out.npy"
    assert exit_code("embed", jsonl(A, {"text": "a \ud83d"}), "-o", str(made)) == 2
    message = error_of(capsys)
    assert "in.jsonl: line 2: expected a text of characters, got one with '\\ud83d' at 3" in message
    assert not made.exists()


@pytest.mark.usefixtures("words")
def test_embed_keeps_fields_of_its_own_names(folder, capsys, jsonl):
    own = {"text": "a", "indices": "mine", "values": 5, "dim": "x", "csrkern": 1, "embedding": []}
    assert exit_code("embed", jsonl(own), "--model", "model") == 0
    (record,) = json_lines(capsys)
    assert record["dim"] == 64
    assert len(record["indices"]) == len(record["values"]) == 4
    kept = {"indices_": "mine", "values_": 5, "dim_": "x", "csrkern_": 1, "embedding": []}
    assert record.items() >= kept.items()
    assert exit_code("embed", jsonl(own)) == 0
    (record,) = json_lines(capsys)
    assert len(record["embedding"]) == 24
    assert record.items() >= {"embedding_": [], "indices": "mine", "dim": "x"}.items()


# ---- search and index -----------------------------------------------------------------

CODE = {"indices": [1, 2], "values": [0.5, 0.25], "dim": 64}
HUGE = 2**70
BAD_CODES = {
    "float latents": ({"indices": [1.0, 2.9]}, "indices: expected integers, got 1.0"),
    "text latents": ({"indices": ["1", 2]}, 'indices: expected integers, got "1"'),
    "true latents": ({"indices": [True, 2]}, "indices: expected integers, got true"),
    "no latents": ({"indices": None}, "expected a list under 'indices'"),
    "nested latents": ({"indices": [[1], [2]]}, "indices: expected integers, got [1]"),
    "huge latents": ({"indices": [1, HUGE]}, f"expected integers in 0..2^63-1, got {HUGE}"),
    "infinite latents": ({"indices": [1, 1e400]}, "indices: expected integers, got Infinity"),
    "latents too large": ({"indices": [1, 64]}, "latents in 0..63, got 64"),
    "negative latents": ({"indices": [1, -1]}, "latents in 0..63, got -1"),
    "latents twice": ({"indices": [2, 2]}, "latent 2 occurs twice"),
    "text values": ({"values": ["0.5", 1]}, 'values: expected numbers, got "0.5"'),
    "true values": ({"values": [1, True]}, "values: expected numbers, got true"),
    "NaN": (
        {"values": [1, float("nan")]},
        "expected finite weights of at least 0, which codes have, got nan",
    ),
    "infinite values": ({"values": [1, float("inf")]}, "expected finite weights of at least 0"),
    "values too large": ({"values": [1, 1e39]}, "expected finite weights of at least 0"),
    "huge values": ({"values": [1, HUGE]}, "values: expected float32 numbers"),
    "negative values": (
        {"values": [1, -0.5]},
        "expected finite weights of at least 0, which codes have, got -0.5",
    ),
    "fewer values": ({"values": [1]}, "as many values as latents, got shapes [1] and [2]"),
    "another dim": ({"dim": 9}, "expected codes over 64 latents, got 9"),
    "text dim": ({"dim": "64"}, "expected an integer under 'dim'"),
    "true dim": ({"dim": True}, "dim: expected an int, got bool"),
    "huge dim": ({"dim": HUGE}, "dim: expected 1 <= "),
}


@pytest.mark.parametrize("case", BAD_CODES)
@pytest.mark.parametrize("line", ["search index -", "index - -o new"])
def test_bad_codes_are_named(folder, capsys, monkeypatch, case, line):
    change, message = BAD_CODES[case]
    type_in(monkeypatch, f"{json.dumps(CODE)}\n\n{json.dumps(CODE | change)}\n")
    assert exit_code(line) == 2
    found = error_of(capsys)
    assert found.startswith("standard input: line 3")
    assert message in found
    assert not Path("new").exists()


@pytest.mark.parametrize(
    ("embedding", "message"),
    [
        ([0.5] * 23 + ["1"], 'embedding: expected numbers, got "1"'),
        ([0.5] * 23 + [True], "embedding: expected numbers, got true"),
        ([0.5] * 23 + [None], "embedding: expected numbers, got null"),
        ([0.5] * 23 + [float("nan")], "embedding: expected finite float32 numbers, got nan"),
        ([0.5] * 23 + [10**400], "embedding: expected "),
        ([0.5] * 23, "embedding: expected 24 numbers, as in the first line, got 23"),
        ("0.5", "expected a list under 'embedding'"),
    ],
)
def test_bad_embeddings_are_named(folder, capsys, jsonl, embedding, message):
    path = jsonl({"embedding": [1] * 24}, {"embedding": embedding})
    assert exit_code(f"search index {path} --model model") == 2
    found = error_of(capsys)
    assert "in.jsonl: line 2" in found
    assert message in found


@pytest.mark.usefixtures("words")
def test_search_keeps_fields_of_its_own_names(folder, capsys, jsonl):
    own = {"query": "mine", "hits": 3, "values": "x", "dim": 1, "indices": 2, "embedding": "none"}
    line = ("--json", "--top-k", "1", "--model", "model", "--text-model", "any")
    assert exit_code("search", "index", jsonl({"text": "a", **own}), *line) == 0
    (record,) = json_lines(capsys)
    assert record["query"] == 0
    assert len(record["hits"]) == 1
    assert Words.read == ["a"]
    kept = own | {"query_": "mine", "hits_": 3} | {"query": 0, "hits": record["hits"]}
    assert record == {"text": "a", **kept}
    coded = {"text": "a", "name": "b", **CODE, "csrkern": {"text_model": "x"}, "x": float("nan")}
    assert exit_code("search", "index", jsonl(coded), "--json", "--top-k", "1") == 0
    (record,) = json_lines(capsys)
    assert {**record, "hits": 0} == {"query": 0, "text": "a", "name": "b", "x": None, "hits": 0}


@pytest.mark.usefixtures("words")
def test_the_pipe_of_the_docs_works_as_typed(folder, tmp_path, capsys, monkeypatch):
    """cat … | embed --model model | index - -o index; cat … | search index - --json"""
    monkeypatch.chdir(tmp_path)
    asked = "".join(f"line {i}\n" for i in range(5))
    type_in(monkeypatch, asked)
    assert exit_code("embed", "--model", str(folder / "model")) == 0
    coded = capsys.readouterr().out
    type_in(monkeypatch, coded)
    assert exit_code("index", "-", "-o", "index") == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == "Next: csrkern search index 'some words'"
    type_in(monkeypatch, asked)
    assert exit_code("search", "index", "-", "--json") == 0
    assert [record["hits"][0]["id"] for record in json_lines(capsys)] == list(range(5))
    type_in(monkeypatch, coded)
    assert exit_code("search", "index", "-", "--json") == 0
    assert [record["hits"][0]["id"] for record in json_lines(capsys)] == list(range(5))


def test_codes_of_two_models_make_no_index(folder, capsys, monkeypatch):
    made = [{**CODE, "csrkern": {"text_model": None, "adapter": name}} for name in "aab"]
    type_in(monkeypatch, "".join(json.dumps(row) + "\n" for row in made))
    assert exit_code("index - -o new") == 2
    assert "standard input: line 3: expected codes of the models of standard input: line 1" in (
        error_of(capsys)
    )
    type_in(monkeypatch, json.dumps({**CODE, "csrkern": {"other": 1}}) + "\n")
    assert exit_code("index - -o new") == 2
    assert "standard input: line 1: csrkern: expected adapter, codes, " in error_of(capsys)


# ---- search --texts -------------------------------------------------------------------


def with_ids(folder: Path, ids: list[int], remove: list[int] = (), add: list[int] = ()) -> Path:
    codes = SparseCodes.load("codes.safetensors")
    built = InvertedIndex.build(codes[: len(ids)], ids=ids, metric="cosine", dtype="float32")
    if len(add):
        built.add(codes[len(ids) : len(ids) + len(add)], ids=add)
    if len(remove):
        built.remove(remove)
    built.save(folder)
    return folder


@pytest.mark.parametrize(
    ("ids", "remove", "add"),
    [
        ([100, 200, 300, 400, 500], [], []),
        ([4, 3, 2, 1, 0], [], []),
        ([0, 1, 2, 3, 4], [1, 3], []),
        ([7, 5, 9], [5], [1, 2**62]),
    ],
)
def test_the_text_of_a_hit_is_its_documents(folder, tmp_path, capsys, ids, remove, add):
    index = with_ids(tmp_path / "own", ids, remove, add)
    live = [id for id in ids + add if id not in remove]
    (tmp_path / "lines.txt").write_text("".join(f"document {id}\n" for id in live))
    line = ["search", str(index), "codes.safetensors", "--texts", str(tmp_path / "lines.txt")]
    assert exit_code(*line, "--json") == 0
    found = [hit for record in json_lines(capsys) for hit in record["hits"]]
    assert {hit["id"] for hit in found} == set(live)
    assert all(hit["text"] == f"document {hit['id']}" for hit in found)
    assert exit_code(*line, "--show", "3") == 0
    shown = [row.split() for row in capsys.readouterr().out.splitlines()[1:-2]]
    assert shown
    assert all(row[3] == row[5] for row in shown)


def test_another_number_of_texts_is_refused(folder, tmp_path, capsys):
    index = with_ids(tmp_path / "own", [0, 1, 2, 3, 4], [1])
    (tmp_path / "lines.txt").write_text("a\nb\nc\nd\ne\n")
    line = ("--texts", str(tmp_path / "lines.txt"))
    assert exit_code("search", str(index), "codes.safetensors", *line) == 2
    assert "expected 4 lines, one for each code of the index, got 5" in error_of(capsys)


def test_texts_may_be_json_lines(folder, capsys, jsonl):
    path = jsonl(BOM + b'{"text": "t0"}', b"", *({"text": f"t{i}"} for i in range(1, 40)))
    assert exit_code(f"search index codes.safetensors --top-k 1 --json --texts {path}") == 0
    assert [record["hits"][0]["text"] for record in json_lines(capsys)] == [
        f"t{i}" for i in range(40)
    ]
    assert exit_code(f"search index codes.safetensors --texts {jsonl({'words': 'a'})}") == 2
    assert "in.jsonl: line 1: expected a text under 'text'" in error_of(capsys)


def test_texts_are_shown_as_they_are_but_for_what_a_terminal_obeys(folder, tmp_path, capsys):
    odd = "[red]a[/red] :smile: \x1b[31mred\x9b0m\x07 [link=file:///x]"
    (tmp_path / "lines.txt").write_text(f"{odd}\n" * 40)
    line = f"search index codes.safetensors --top-k 1 --show 1 --texts {tmp_path}/lines.txt"
    assert exit_code(line) == 0
    out = capsys.readouterr().out
    assert "[red]a[/red] :smile: \\x1b[31mred\\x9b0m\\x07 [link=file:///x]" in out
    assert not {"\x1b", "\x9b", "\x07"} & set(out)


# ---- words ----------------------------------------------------------------------------


@pytest.mark.usefixtures("words")
@pytest.mark.parametrize("text", ["a lamp " * 60, "wörter " * 60, "x" * 5000, "a: b", "."])
def test_words_of_any_length_are_words(folder, capsys, text):
    line = ("--model", "model", "--text-model", "any", "--json")
    assert exit_code("search", "index", text, *line) == 0
    assert json_lines(capsys)[0]["text"] == text
    assert Words.read == [text]


@pytest.mark.usefixtures("words")
def test_words_that_are_no_characters_are_refused(folder, capsys):
    assert exit_code("search", "index", "a\udcff", "--model", "model", "--text-model", "any") == 2
    assert "QUERIES: expected a text of characters" in error_of(capsys)


@pytest.mark.usefixtures("words")
def test_a_pipe_by_name_is_read_once_and_whole(folder, capsys, tmp_path):
    for line in (("embed",), ("search", "index", "--model=model", "--text-model=any", "--json")):
        path = str(tmp_path / line[0])
        os.mkfifo(path)
        writer = threading.Thread(target=Path(path).write_text, args=("one\ntwo\n",))
        writer.start()
        assert exit_code(*line, path) == 0
        writer.join(10)
        assert [record["text"] for record in json_lines(capsys)] == ["one", "two"]
