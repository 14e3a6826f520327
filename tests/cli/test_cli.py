from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import Words, clusters, exit_code, inside_the_folder, run_in  # noqa: F401
from safetensors.numpy import save_file

from csrkern import _C, InvertedIndex, Refine, SparseCodes
from csrkern.nn import SparseAutoencoder
from csrtrain import texts
from csrtrain.cli import app as cli
from csrtrain.cli import doctor, shared
from csrtrain.evaluation import quantizers

COMMANDS = [
    "demo",
    "train",
    "embed",
    "encode",
    "index",
    "search",
    "serve",
    "eval",
    "tune",
    "doctor",
    "warmup",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Data files, and a model, codes and an index made from them by the command line."""
    folder = tmp_path_factory.mktemp("cli")
    rows, labels = clusters(300, seed=1)
    queries, query_labels = clusters(60, seed=2)
    np.save(folder / "rows.npy", rows)
    np.save(folder / "narrow.npy", rows[:, :10])
    np.save(folder / "queries.npy", queries)
    np.savez(folder / "data.npz", rows=rows, queries=queries, y=labels, y_queries=query_labels)
    (folder / "lines.txt").write_text("".join(f"line [{i}]\n" for i in range(300)))
    (folder / "words.txt").write_text("one\ntwo\n")
    save_file({"rows": rows}, folder / "rows.safetensors")
    (folder / "broken.npy").write_bytes(b"not an array")
    lines = (
        "train rows.npy -o model --k 4 --hidden-dim 64 --steps 30 --batch-size 100",
        "encode model rows.npy -o codes.safetensors",
        "encode model queries.npy -o asks.safetensors --dtype float32",
        "index codes.safetensors -o index",
    )
    run_in(folder, lines)
    # An index that remembers no models.
    InvertedIndex.build(SparseCodes.load(folder / "codes.safetensors")).save(folder / "plain")
    return folder


def test_train_encode_index_search_agree_with_brute_force(folder, capsys):
    assert exit_code("search index asks.safetensors --top-k 7 -o hits.npz") == 0
    out = capsys.readouterr().out
    assert "60 queries" in out
    assert "hits.npz" in out
    hits = np.load(folder / "hits.npz")
    docs = SparseCodes.load("codes.safetensors").to(torch.float32).normalize()
    asks = SparseCodes.load("asks.safetensors").normalize()
    assert (len(docs), docs.k, docs.dim) == (300, 4, 64)
    scores = (asks.to_dense() @ docs.to_dense().T).numpy()
    for row, ids, found in zip(scores, hits["ids"], hits["scores"], strict=True):
        ids, found = ids[ids >= 0], found[ids >= 0]
        assert len(set(ids.tolist())) == len(ids)
        # Values are stored in float16, so ranks may differ where scores are that close.
        np.testing.assert_allclose(found, row[ids], atol=2e-3)
        np.testing.assert_allclose(found, np.sort(row)[::-1][: len(found)], atol=2e-3)


def test_search_encodes_queries_with_a_model_and_prints_texts(folder, capsys):
    line = "search index queries.npy --model model --texts lines.txt --top-k 3 --show 2"
    assert exit_code(line) == 0
    out = capsys.readouterr().out
    _, ids = InvertedIndex.load("index").search(SparseCodes.load("asks.safetensors"), top_k=3)
    for hit in ids[:2].flat:
        assert f"line [{hit}]" in out


def test_an_index_with_fine_codes_scores_embedded_queries_by_them(folder, capsys):
    pytest.importorskip("faiss")
    line = "index codes.safetensors --embeddings data.npz:rows --fine-bytes 3 -o fine"
    assert exit_code(f"{line} --model model") == 0
    assert exit_code("search fine queries.npy -o fine.npz") == 0
    index, queries = InvertedIndex.load("fine"), np.load("queries.npy")
    assert index.quantizer.n_bytes == 3
    codes = SparseAutoencoder.from_pretrained("model").encode(queries)
    scores, ids = index.search(codes, rerank=Refine(queries))
    hits = np.load("fine.npz")
    assert np.array_equal(hits["ids"], ids)
    assert np.array_equal(hits["scores"], scores)
    assert exit_code("index codes.safetensors --embeddings queries.npy -o other") == 2
    assert "expected at least 256 rows" in capsys.readouterr().err


@pytest.fixture
def alone(folder) -> InvertedIndex:
    """The index "alone" of fine codes alone."""
    pytest.importorskip("faiss")
    if not Path("alone").exists():
        assert exit_code("index --embeddings rows.npy --fine-bytes 3 -o alone") == 0
    return InvertedIndex.load("alone")


def test_an_index_of_fine_codes_alone_is_searched_by_embeddings(alone, capsys):
    assert (len(alone), alone.k, alone.quantizer.n_bytes) == (300, 0, 3)
    queries = np.load("queries.npy")
    expected = alone.search_fine(queries)
    save_file({"queries": queries}, "asked.safetensors")
    records = [{"embedding": row.tolist(), "name": i} for i, row in enumerate(queries)]
    Path("asked.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    for file in ("queries.npy", "data.npz:queries", "asked.safetensors", "asked.jsonl"):
        assert exit_code(f"search alone {file} -o found.npz --force") == 0
        hits = np.load("found.npz")
        assert np.array_equal(hits["scores"], expected[0])
        assert np.array_equal(hits["ids"], expected[1])
    assert exit_code("search alone queries.npy --probes 2 --top-k 50 -o found.npz --force") == 0
    some = alone.search_fine(queries, 50, probes=2)[1]
    assert (some < 0).any()  # two cells of 256 hold fewer
    assert np.array_equal(np.load("found.npz")["ids"], some)
    capsys.readouterr()
    assert exit_code("search alone asked.jsonl --json") == 0
    first = json.loads(capsys.readouterr().out.splitlines()[0])
    assert first["name"] == 0
    assert [hit["id"] for hit in first["hits"]] == expected[1][0].tolist()


def test_codes_do_not_search_an_index_of_fine_codes_alone(alone, capsys):
    record = {"indices": [3], "values": [1.0], "dim": 64}
    Path("coded.jsonl").write_text(json.dumps(record) + "\n")
    for file in ("asks.safetensors", "coded.jsonl"):
        assert exit_code(f"search alone {file}") == 2
        said = capsys.readouterr().err
        assert f"{file}" in said
        assert "expected embeddings of 24 dimensions" in said
        assert "or words, got codes" in said
    assert exit_code("search alone narrow.npy") == 2
    assert "24" in capsys.readouterr().err


def test_words_search_an_index_of_fine_codes_alone(folder, monkeypatch, capsys):
    pytest.importorskip("faiss")
    monkeypatch.setattr(texts, "TextModel", Words)
    np.save("worded.npy", Words("any").embed([f"line [{i}]" for i in range(300)]))
    line = "index --embeddings worded.npy --fine-bytes 5 --text-model any -o worded"
    assert exit_code(line) == 0
    assert "csrkern search worded 'some words'" in capsys.readouterr().out
    assert exit_code("search", "worded", "line [7]", "--texts", "lines.txt", "--json") == 0
    (record,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert record["hits"][0] == record["hits"][0] | {"id": 7, "text": "line [7]"}


def test_index_learns_a_projection_from_labels_or_judgments(folder, capsys):
    pytest.importorskip("faiss")
    rng = np.random.default_rng(0)
    y = np.arange(600) % 20
    noisy = np.where(np.arange(24) < 6, 3.0, 0.05) * rng.standard_normal((600, 24))
    x = rng.standard_normal((20, 24))[y] * np.where(np.arange(24) < 6, 0.0, 0.3) + noisy
    qrels = [(q, d, int(y[q] == y[d])) for q in range(300) for d in range(300, 330)]
    np.savez("hidden.npz", x=x, y=y, none=np.arange(600) % 7, q=x[:300], qrels=qrels)
    line = "index --embeddings hidden.npz:x --fine-bytes 3 -o projected --force"
    for evidence in (
        "--labels hidden.npz:y",
        "--queries hidden.npz:q --qrels hidden.npz:qrels",
    ):
        assert exit_code(f"{line} {evidence}") == 0
        quantizer = InvertedIndex.load("projected").quantizer
        said = " ".join(capsys.readouterr().out.split())
        assert f"gain by a projection to {quantizer.projection.width} dimensions" in said
    assert exit_code(f"{line} --labels hidden.npz:none --json") == 0
    assert json.loads(capsys.readouterr().out)["projection"] is None
    assert InvertedIndex.load("projected").quantizer.projection is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "CODES: expected a file of codes, or --embeddings, or both; got neither"),
        ("--embeddings rows.npy --model model", "--model: expected CODES with it"),
        ("codes.safetensors --labels data.npz:y", "expected --embeddings with them"),
        ("--embeddings rows.npy --queries queries.npy", "--queries, --qrels: expected both"),
    ],
)
def test_index_says_what_belongs_together(folder, capsys, line, message):
    assert exit_code(f"index {line} -o refused") == 2
    assert message in capsys.readouterr().err


def test_search_encodes_embeddings_in_safetensors_too(folder):
    assert exit_code("search index rows.safetensors --model model -o one.npz") == 0
    assert exit_code("search index rows.npy --model model -o other.npz") == 0
    assert np.array_equal(np.load("one.npz")["ids"], np.load("other.npz")["ids"])


def test_eval_finds_the_clusters_and_writes_a_table(folder, capsys):
    line = (
        "eval data.npz:rows --labels data.npz:y --test data.npz:queries "
        "--test-labels data.npz:y_queries --model model --k 2,4 --matryoshka -o accuracy.csv "
        "--report accuracy.html"
    )
    assert exit_code(line) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[1] == "Dense vectors, 48 bytes: 100.0%."
    assert said[2].startswith("For 8 bytes take ")
    assert len(said) < 10
    assert exit_code(line + " --all --force") == 0
    assert "PCA" in capsys.readouterr().out
    lines = Path("accuracy.csv").read_text().splitlines()
    assert lines[0] == "method,active,bytes_per_vector,1-nn"
    rows = list(csv.DictReader(lines))
    accuracy = {(row["method"], int(row["active"])): float(row["1-nn"]) for row in rows}
    assert accuracy["dense", 24] == 1
    assert accuracy["CSR", 4] > 0.9
    wanted = {("CSR", 2), ("CSR, asymmetric", 4), ("PCA", 2), ("PCA", 8), ("int8", 24)}
    assert wanted <= accuracy.keys()
    assert ("Matryoshka-Adaptor", 8) in accuracy
    page = Path("accuracy.html").read_text()
    assert page.count("<svg") == 2
    assert page.count("<tr>") == len(lines)


def test_eval_names_the_methods_that_too_few_rows_leave_out(tmp_path):
    """In a process of its own, which FAISS would end: double free, or a segmentation fault."""
    pytest.importorskip("faiss")
    sizes = ((300, 384), (400, 384), (256, 768), (1000, 1536))
    random = np.random.default_rng(0)
    for n, d in sizes:
        rows, labels = random.normal(size=(n, d)).astype(np.float32), random.integers(0, 5, n)
        np.savez(tmp_path / f"{n}.npz", rows=rows, y=labels)
    code = "from csrtrain.cli import app as cli\n" + "".join(
        f"try: cli.main('eval {n}.npz:rows --labels {n}.npz:y --k 4 --json "
        "--quantizers PQ,OPQ,RaBitQ-1'.split())\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        for n, _ in sizes
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=tmp_path)
    assert (found.returncode, found.stderr) == (0, b"")
    records = [json.loads(line) for line in found.stdout.splitlines()]
    few = "expected at least 256 rows, got"
    fewer = "expected at least as many rows as dimensions,"
    assert [record["left_out"] for record in records] == [
        {"PQ": f"{few} 240", "OPQ": f"{few} 240"},
        {"OPQ": f"{fewer} 384, got 320"},
        {"PQ": f"{few} 205", "OPQ": f"{few} 205"},
        {"OPQ": f"{fewer} 1536, got 800"},
    ]
    for record in records:
        methods = {result["method"] for result in record["results"]}
        assert methods & {"PQ", "OPQ"} == {"PQ", "OPQ"} - record["left_out"].keys()
        assert methods >= {"RaBitQ-1"}
        assert not methods & {"PRQ", "RaBitQ-2"}
        assert {"dense", "PCA", "int8"} <= methods


def test_eval_without_faiss_says_how_to_get_what_is_missing(folder, monkeypatch, capsys):
    monkeypatch.setattr(quantizers, "find_spec", lambda name: None)
    line = "eval rows.npy --labels data.npz:y --k 4 --report without.html"
    assert exit_code(line) == 0
    needs = "is left out: needs FAISS, which is not installed: pip install 'csrkern[eval]'"
    out = capsys.readouterr().out.splitlines()
    assert out[-4:-1] == [*(f"{name} {needs}" for name in ("PQ", "OPQ")), "Wrote without.html"]
    assert "<p>OPQ is left out: needs FAISS" in Path("without.html").read_text()


def test_eval_of_retrieval_scores_rankings(folder, capsys):
    data = np.load("data.npz")
    alike = data["y"][None] == data["y_queries"][:, None]
    np.savez("qrels.npz", qrels=np.argwhere(alike))
    line = "eval data.npz:rows --test data.npz:queries --qrels qrels.npz --k 4 -o ranked.csv"
    assert exit_code(line) == 0
    rows = {
        row["method"]: row for row in csv.DictReader(Path("ranked.csv").read_text().splitlines())
    }
    assert float(rows["dense"]["ndcg@10"]) == 1
    assert float(rows["dense"]["mrr@10"]) == 1
    assert exit_code("eval data.npz:rows --qrels qrels.npz") == 2
    assert exit_code("eval data.npz:rows") == 2


def test_eval_holds_rows_out_where_there_is_no_test_set(folder, capsys):
    assert exit_code("eval rows.npy --labels data.npz:y --holdout 0.1 --k 4") == 0
    assert "30 queries, 270 rows" in capsys.readouterr().out


def test_eval_matches_string_labels_by_name(folder):
    # The test rows lack the first class, so numbering each side by itself would go wrong.
    data = np.load("data.npz")
    names = np.array(["ant", "bee", "cat", "dog"])
    kept = data["y_queries"] > 0
    np.savez("named.npz", y=names[data["y"]], y_queries=names[data["y_queries"][kept]])
    np.save("kept.npy", data["queries"][kept])
    line = (
        "eval rows.npy --labels named.npz:y --test kept.npy --test-labels named.npz:y_queries "
        "--k 2 -o named.csv"
    )
    assert exit_code(line) == 0
    assert "dense,24,48,1.000000" in Path("named.csv").read_text()
    assert exit_code(line.replace("named.npz:y ", "data.npz:y ") + " --force") == 2


def test_train_on_pairs_from_a_preset_in_a_subspace(folder):
    np.savez("pairs.npz", pairs=np.stack([np.arange(300), np.arange(300)[::-1]], 1))
    line = (
        "train data.npz:rows --partners rows.npy --pairs pairs.npz "
        "--hidden-dim 32 --k 4 --ks 2 --steps 3 --input-subspace 8 -o paired"
    )
    assert exit_code(line) == 0
    assert SparseAutoencoder.from_pretrained("paired").input_dim == 24


def test_label_contrast_and_the_same_seed_give_the_same_model(folder):
    for name in ("label-a", "label-b"):
        line = (
            f"train data.npz:rows --labels data.npz:y -o {name} --k 4 --ks 2 "
            "--hidden-dim 32 --steps 5 --seed 3"
        )
        assert exit_code(line) == 0
    a, b = (Path(name, "model.safetensors").read_bytes() for name in ("label-a", "label-b"))
    assert a == b


@pytest.mark.parametrize(
    "line",
    [
        "train rows.npy -o threads --k 2 --hidden-dim 8 --steps 2",
        "encode model rows.npy -o threads.safetensors",
        "search index queries.npy --model model",
        "eval rows.npy --labels data.npz:y --k 4",
    ],
)
def test_threads_are_limited(folder, line):
    before = torch.get_num_threads()
    try:
        assert exit_code(f"{line} --threads {before + 1}") == 0
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


BAD = {
    "train missing.npy -o new": ["no file at missing.npy"],
    "train broken.npy -o new": ["broken.npy is not a readable .npy file"],
    "train data.npz -o new": ["data.npz", "rows [300, 24]", "queries [60, 24]"],
    "train data.npz:nothing -o new": ["no array 'nothing'"],
    "train rows.npy -o new --k 0": ["--k", "(see csrkern train --help)"],
    "train rows.npy -o new --k many": ["--k"],
    "train rows.npy -o new --k 9 --hidden-dim 8": ["k: expected at most hidden_dim = 8"],
    "train rows.npy -o new --ks 2,x": ["--ks", "2,x"],
    "train rows.npy -o new --contrast label": ["--labels"],
    "train rows.npy -o new --labels data.npz:y_queries": ["expected 300 labels"],
    "train rows.npy -o new --lr -1": ["lr: expected a positive number"],
    "train rows.npy -o new --steps 5 --epochs 2": ["epochs, steps"],
    "train rows.npy -o nowhere/new": ["nowhere is not a folder"],
    "train rows.npy -o model": ["model exists", "--force"],
    "train rows.npy": ["--output"],
    "encode nothing rows.npy -o new": ["no config.json in nothing"],
    "encode model narrow.npy -o new": ["24", "10"],
    "encode model rows.npy -o new --k 65": ["k: expected 1 <= k"],
    "encode model rows.npy -o codes.safetensors": ["codes.safetensors exists"],
    "index nothing -o new": ["no code file at nothing"],
    "index rows.npy -o new": ["rows.npy: expected a file of codes", "csrkern encode makes"],
    "index rows.safetensors -o new": [
        "rows.safetensors: expected a file of codes",
        "csrkern encode",
    ],
    "index data.npz:rows -o new": ["data.npz:rows: expected a file of codes"],
    "index model/nothing.npy -o new": ["no code file at model/nothing.npy"],
    "index codes.safetensors -o index": ["index exists"],
    "search nothing asks.safetensors": ["nothing"],
    "search plain rows.npy": ["rows.npy: expected a file of codes, got a .npy file", "--model"],
    "search plain data.npz:queries": ["expected a file of codes", "--model"],
    "encode model rows.npy -o new --threads 0": ["--threads"],
    "train rows.npy -o new --threads none": ["--threads"],
    "search index queries.npy --model model --top-k 0": ["--top-k"],
    "search index asks.safetensors --texts words.txt": ["expected 300 lines", "got 2"],
    "search index asks.safetensors --texts missing.txt": ["missing.txt: No such file"],
    "eval rows.npy --labels data.npz:y --test queries.npy": ["--test-labels"],
    "eval rows.npy --labels data.npz:y --k 0": ["--k"],
    "eval rows.npy --labels data.npz:y --holdout 1": ["--holdout"],
    "eval narrow.npy --labels data.npz:y --model model": ["24", "10"],
    "demo -o rows.npy": ["rows.npy is a file"],
    "demo -o model": ["model holds"],
    "learn rows.npy": ["learn"],
    "train rows.npy -o new --colour red": ["--colour"],
}


@pytest.mark.parametrize("line", BAD)
def test_bad_input_ends_in_one_line_and_code_2(folder, capsys, line):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert exit_code(line) == 2
    streams = capsys.readouterr()
    assert streams.err.startswith("csrkern: ")
    assert streams.err.count("\n") == 1, streams.err
    assert "Traceback" not in streams.err + streams.out
    for words in BAD[line]:
        assert words in streams.err
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_force_overwrites(folder):
    line = "train rows.npy -o again --k 2 --hidden-dim 8 --steps 2"
    assert exit_code(line) == 0
    assert exit_code(line) == 2
    assert exit_code(f"{line} --force --k 3") == 0
    assert '"k": 3' in Path("again/config.json").read_text()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_with_an_example(capsys, command):
    assert exit_code(f"{command} --help") == 0
    out = capsys.readouterr().out
    assert f"Usage: csrkern {command}" in out
    assert command == "doctor" or f"csrkern {command} " in out.split("Usage:")[1].split("\n", 1)[1]


def test_commands_are_listed_without_arguments(capsys):
    cli_exit = exit_code("")
    streams = capsys.readouterr()
    assert cli_exit in (0, 2)
    assert all(command in streams.out for command in COMMANDS)
    assert streams.err == ""


def test_doctor_names_versions_paths_and_what_would_be_faster(capsys, monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.setenv("CSRKERN_ISA", _C.isa())
    monkeypatch.setattr(torch, "get_num_threads", lambda: _C.available_threads() - 1)
    assert exit_code("doctor") == 0
    out = capsys.readouterr().out
    assert torch.__version__ in out
    for word in (
        "csrkern",
        "Triton",
        "CUDA",
        "processor",
        f"native, {_C.isa()}",
        "encode, float32",
    ):
        assert word in out
    assert f"CSRKERN_ISA={_C.isa()} chooses" in out
    assert "raise OMP_NUM_THREADS" in out
    monkeypatch.delenv("CSRKERN_ISA")
    monkeypatch.setattr(torch, "get_num_threads", lambda: max(threads, _C.available_threads()))
    assert exit_code("doctor --json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["paths"]["topk_relu"].startswith("native")
    assert not any("CSRKERN_ISA" in one or "OMP_NUM_THREADS" in one for one in facts["advice"])


@pytest.mark.parametrize(
    ("gpu", "missing", "found"),
    [
        (True, "triton", "no Triton, which the operators need"),
        (True, "", "The index cannot use the GPU"),
        (False, "faiss-cpu", "no fine codes can be learned"),
    ],
)
def test_doctor_tells_what_is_missing(monkeypatch, gpu, missing, found):
    real = doctor._installed
    monkeypatch.setattr(
        doctor, "_installed", lambda p: "not installed" if p == missing else real(p)
    )
    advice = doctor._advice(gpu, "built without CUDA")
    assert any(found in one for one in advice)
    paths = doctor._paths("avx2", False, gpu)
    assert ("Triton, which is missing" in paths["topk_relu"]) == (missing == "triton")
    assert "a float32 product proposes" in paths["encode, float32"]


def raising(error: BaseException):
    def load(*_, **__):
        raise error

    return load


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (RuntimeError("odd"), 1, "RuntimeError: odd (a bug: CSRKERN_DEBUG=1"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 2, "not enough memory"),
        (PermissionError(13, "Permission denied", "codes"), 2, "codes: Permission denied"),
        (ValueError("two\nlines"), 2, "two lines"),
    ],
)
def test_other_errors_end_in_one_line_too(folder, monkeypatch, capsys, error, code, words):
    monkeypatch.setattr(SparseCodes, "load", raising(error))
    assert exit_code("index codes.safetensors -o new") == code
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1


def test_debug_shows_the_traceback(folder, monkeypatch):
    monkeypatch.setattr(SparseCodes, "load", raising(RuntimeError("odd")))
    monkeypatch.setenv("CSRKERN_DEBUG", "1")
    with pytest.raises(RuntimeError, match="odd"):
        cli.main(["index", "codes.safetensors", "-o", "new"])


def test_failed_save_leaves_nothing_behind(folder, monkeypatch):
    monkeypatch.setattr(os, "replace", raising(OSError(28, "No space left on device")))
    line = "encode model rows.npy -o full.safetensors"
    assert exit_code(line) == 2
    assert not [name for name in os.listdir(folder) if "full" in name]


def run_fresh(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


def test_help_needs_neither_torch_nor_numpy():
    """Loading them would take a second or more; without them help takes 0.2 s."""
    result = run_fresh(
        "import sys; from csrtrain.cli import app as cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit as stop: assert not stop.code\n"
        "assert not {'torch', 'numpy'} & sys.modules.keys()"
    )
    assert result.returncode == 0, result.stderr
    assert "Usage: csrkern" in result.stdout


def test_a_reader_that_leaves_ends_quietly():
    code = (
        "import os, sys; from csrtrain.cli import app as cli\n"
        "reader, writer = os.pipe(); os.close(reader); os.dup2(writer, 1)\n"
        "cli.main(['--help'])"
    )
    assert run_fresh(code).stderr == ""


def test_array_names_and_numbers():
    assert shared.numbers("2, 4,8", "--k") == (2, 4, 8)
    assert shared.numbers("", "--k") == ()
