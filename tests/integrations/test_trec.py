"""TREC files: runs and judgments go out and come back, and wrong lines are named."""

from __future__ import annotations

import numpy as np
import pytest

from csrkern.integrations.trec import read_qrels, read_run, write_run
from csrtrain.evaluation.metrics import Judgments

QUERIES, DOCUMENTS = ["q1", "q2", "q3"], [f"doc-{i}" for i in range(9)]
SCORES = np.array([[0.9, 0.30000001, -np.inf], [2.0, 1.5, 1.25], [-np.inf] * 3], np.float32)
IDS = np.array([[4, 2, -1], [0, 8, 3], [-1, -1, -1]])


def test_a_run_comes_back_to_the_bit(tmp_path):
    path = tmp_path / "run.txt"
    write_run(path, (SCORES, IDS), queries=QUERIES, documents=DOCUMENTS, name="mine")
    assert path.read_text().splitlines()[:2] == [
        "q1 Q0 doc-4 1 0.899999976 mine",
        "q1 Q0 doc-2 2 0.300000012 mine",
    ]
    scores, ids = read_run(path, QUERIES, DOCUMENTS)
    np.testing.assert_array_equal(ids, IDS)
    np.testing.assert_array_equal(scores, SCORES)
    # Other queries are passed over, and their order is the caller's.
    np.testing.assert_array_equal(read_run(path, ["q2"], DOCUMENTS)[1], IDS[1:2])
    assert read_run(path, ["q3"], DOCUMENTS)[1].shape == (1, 0)


def test_numbers_are_names_unless_given(tmp_path):
    write_run(tmp_path / "run", (SCORES[:1], IDS[:1]))
    assert (tmp_path / "run").read_text().startswith("0 Q0 4 1 0.899999976 csrkern\n")
    write_run(tmp_path / "run", (SCORES[:1], IDS[:1]), documents={4: "four", 2: "two"})
    assert "Q0 two 2" in (tmp_path / "run").read_text()


def test_a_run_is_read_by_its_scores_not_its_ranks(tmp_path):
    lines = ["q1 Q0 doc-1 1 0.5 x", "", "q1 Q0 doc-7 2 0.75 x", "q1\tQ0\tdoc-0\t3\t5e-1\tx"]
    (tmp_path / "run").write_text("\n".join(lines))
    scores, ids = read_run(tmp_path / "run", ["q1"], DOCUMENTS)
    assert ids.tolist() == [[7, 0, 1]]  # equal scores by lower id
    assert scores.tolist() == [[0.75, 0.5, 0.5]]


def test_judgments_become_rows(tmp_path):
    (tmp_path / "qrels").write_text("q2 0 doc-3 2\nq1 0 doc-8 0\nother 0 nothing 1\n")
    rows = read_qrels(tmp_path / "qrels", QUERIES, DOCUMENTS)
    assert rows.tolist() == [[1, 3, 2], [0, 8, 0]]
    assert read_qrels(tmp_path / "qrels", ["q3"], DOCUMENTS).shape == (0, 3)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q1 Q0 doc-1 1 0.5", "line 2: expected 'query Q0 document rank score name'"),
        ("q1 Q0 doc-1 1 much x", "line 2: expected a number for a score, got 'much'"),
        ("q1 Q0 doc-1 1 nan x", "line 2: expected a number for a score"),
        ("q1 Q0 doc-99 1 0.5 x", "line 2: expected a document among those named, got 'doc-99'"),
        ("q1 Q0 doc-0 1 0.5 x", "line 2: expected a document once for each query, got doc-0"),
    ],
)
def test_wrong_lines_of_a_run_are_named(tmp_path, line, message):
    (tmp_path / "run").write_text(f"q1 Q0 doc-0 1 0.9 x\n{line}\n")
    with pytest.raises(ValueError, match=message):
        read_run(tmp_path / "run", QUERIES, DOCUMENTS)


def test_wrong_judgments_and_arguments_are_named(tmp_path):
    (tmp_path / "qrels").write_text("q1 0 doc-3 high\n")
    with pytest.raises(ValueError, match="line 1: expected a whole number, got 'high'"):
        read_qrels(tmp_path / "qrels", QUERIES, DOCUMENTS)
    with pytest.raises(ValueError, match="documents: expected distinct names, got 'a' twice"):
        read_qrels(tmp_path / "qrels", QUERIES, ["a", "b", "a"])
    run = tmp_path / "run"
    for options, message in (
        ({"queries": ["one"]}, "queries: expected a name of 1, got none"),
        ({"documents": {4: "a"}}, "documents: expected a name of 2, got none"),
        ({"documents": ["a b"] * 9}, r"documents\[4\]: expected a name without blanks"),
        ({"queries": [1, 2, 3]}, r"queries\[0\]: expected a str, got int"),
        ({"name": ""}, "name: expected a name without blanks"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            write_run(run, (SCORES, IDS), **options)
    with pytest.raises(ValueError, match="results: expected scores and ids"):
        write_run(run, (SCORES, IDS[:2]))
    assert not run.exists()


def test_trec_eval_reads_what_is_written(tmp_path):
    pytrec_eval = pytest.importorskip("pytrec_eval")
    write_run(tmp_path / "run", (SCORES, IDS), queries=QUERIES, documents=DOCUMENTS)
    (tmp_path / "qrels").write_text("q1 0 doc-2 1\nq2 0 doc-0 2\nq2 0 doc-3 1\n")
    with (tmp_path / "run").open() as run, (tmp_path / "qrels").open() as qrels:
        ranked = pytrec_eval.parse_run(run)
        judged = pytrec_eval.parse_qrel(qrels)
    found = pytrec_eval.RelevanceEvaluator(judged, {"ndcg_cut.10"}).evaluate(ranked)
    judgments = Judgments(read_qrels(tmp_path / "qrels", QUERIES, DOCUMENTS), len(QUERIES))
    theirs = [found[query]["ndcg_cut_10"] for query in QUERIES[:2]]
    np.testing.assert_allclose(judgments.ndcg_each(IDS), theirs, rtol=1e-6)


def test_a_mark_of_the_byte_order_is_no_part_of_the_first_name(tmp_path):
    path = tmp_path / "file"
    path.write_text("q1 Q0 doc-4 1 0.5 mine\n", "utf-8-sig")
    assert read_run(path, QUERIES, DOCUMENTS)[1].tolist() == [[4], [-1], [-1]]
    path.write_text("q1 0 doc-4 1\n", "utf-8-sig")
    assert read_qrels(path, QUERIES, DOCUMENTS).tolist() == [[0, 4, 1]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"q1 0 doc-1 1\nq1 0 doc-1 2\n", "line 2: expected a document once for each query"),
        (b"q1 0 doc-1 " + b"9" * 30, "line 1: expected a whole number"),
        (b"q1 0 doc-1 -" + b"9" * 30, "line 1: expected a whole number"),
        (b"q1 0 doc-1 1\nq1 0 d\xff 1\n", "file: expected UTF-8"),
    ],
)
def test_judgments_that_are_none_are_named(tmp_path, content, message):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_qrels(tmp_path / "file", QUERIES, DOCUMENTS)


# ---- the packages themselves, where they are installed ----------------------------------------


@pytest.fixture
def files(tmp_path):
    (tmp_path / "qrels").write_text("q1 0 doc-2 2\nq1 0 doc-5 1\nq2 0 doc-0 1\nq2 0 doc-8 0\n")
    found = SCORES[:2], IDS[:2]
    write_run(tmp_path / "run.trec", found, queries=QUERIES, documents=DOCUMENTS)
    rows = read_qrels(tmp_path / "qrels", QUERIES[:2], DOCUMENTS)
    judgments = Judgments(rows, 2)
    return tmp_path, [judgments.ndcg(IDS[:2], 3), judgments.recall(IDS[:2], 3)]


def test_ranx_reads_runs_and_writes_them(files):
    ranx = pytest.importorskip("ranx")
    folder, scored = files
    run = ranx.Run.from_file(str(folder / "run.trec"), kind="trec")
    qrels = ranx.Qrels.from_file(str(folder / "qrels"), kind="trec")
    theirs = ranx.evaluate(qrels, run, ["ndcg@3", "recall@3"])
    assert list(theirs.values()) == pytest.approx(scored)
    run.save(str(folder / "theirs.trec"), kind="trec")
    scores, ids = read_run(folder / "theirs.trec", QUERIES[:2], DOCUMENTS)
    np.testing.assert_array_equal(ids, IDS[:2])
    np.testing.assert_allclose(scores, SCORES[:2], rtol=1e-6)


def test_ir_measures_reads_runs(files):
    ir_measures = pytest.importorskip("ir_measures")
    folder, scored = files
    run = list(ir_measures.read_trec_run(str(folder / "run.trec")))
    qrels = list(ir_measures.read_trec_qrels(str(folder / "qrels")))
    measures = [ir_measures.nDCG @ 3, ir_measures.R @ 3]
    theirs = ir_measures.calc_aggregate(measures, qrels, run)
    assert [theirs[m] for m in measures] == pytest.approx(scored)
