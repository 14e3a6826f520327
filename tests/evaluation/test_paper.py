"""The scripts of the paper's figures, on small sets: what they write, and that they go on."""

from __future__ import annotations

import csv
import dataclasses
import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import csrkern

PAPER = Path(__file__).parents[2] / "benchmarks/paper"
MODULES = [path.stem for path in PAPER.glob("*.py")]
D = 16


def clusters(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    centers = np.random.default_rng(0).standard_normal((6, D))
    labels = rng.integers(0, 6, n)
    x = centers[labels] + 0.3 * rng.standard_normal((n, D))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float16), labels


@pytest.fixture
def paper(monkeypatch, tmp_path):
    """Imports a script; its trainings are cut to a few steps of few latents."""
    (x, y), (q, q_labels) = clusters(300, 1), clusters(40, 2)
    np.savez(tmp_path / "classes.npz", train_emb=x, train_label=y, test_emb=q, test_label=q_labels)
    qrels = np.array([(i, j, 1) for i in range(40) for j in np.flatnonzero(y[:100] == q_labels[i])])
    common = {"corpus_emb": x[:100], "query_test_emb": q, "qrels_test": qrels}
    np.savez(
        tmp_path / "questions.npz",
        query_train_emb=x[100:200],
        qrels_train=np.stack([np.arange(100), np.arange(100), np.ones(100, int)], 1),
        **common,
    )
    np.savez(tmp_path / "captions.npz", train_emb=x, train_image=np.arange(300) // 5, **common)
    monkeypatch.syspath_prepend(str(PAPER))
    monkeypatch.setattr("csrtrain.training.quantizer._BEAM", 1)  # no score is asked for
    from csrtrain import train
    from csrtrain.training.matryoshka import train_matryoshka

    def small(*data, config, **options):
        return train(*data, config=dataclasses.replace(config, hidden_dim=64, **STEPS), **options)

    def small_adapter(*data, steps, **options):
        return train_matryoshka(*data, steps=2, **options)

    def load(name: str):
        module = importlib.import_module(name)
        for attribute, replacement in (("train", small), ("train_matryoshka", small_adapter)):
            if hasattr(module, attribute):
                monkeypatch.setattr(module, attribute, replacement)
        return module

    yield load, tmp_path
    for name in MODULES:
        sys.modules.pop(name, None)


STEPS = {"steps": 3, "epochs": None, "batch_size": 32}


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("script", "name"),
    [
        ("dead_latents", "classes"),
        ("hidden_dim", "classes"),
        ("training_time", "questions"),
        ("search_time", "classes"),
        ("accuracy_time", "questions"),
        ("text_tasks", "classes"),
        ("text_tasks", "questions"),
        ("captions", "captions"),
        ("fine_codes", "classes"),
    ],
)
def test_a_script_writes_rows_and_a_verdict(paper, monkeypatch, script, name):
    pytest.importorskip("sklearn")
    load, folder = paper
    command = f"{script} --data {folder} --sets {name},missing --quick -o {folder}/out"
    monkeypatch.setattr(sys, "argv", command.split())
    module = load(script)
    output = importlib.import_module("output")
    chart = {}
    monkeypatch.setattr(output, "draw", lambda path, rows, asked: chart.update(rows=rows, of=asked))
    output.run(module.measure, output.Chart(*axes_of(script)))
    rows = table(folder / f"out/{script}_{name}.csv")
    assert len(rows) > 3
    assert {*axes_of(script)} <= rows[0].keys()
    text = (folder / f"out/{script}_{name}.md").read_text()
    assert "held" in text or "did not hold" in text
    assert not (folder / f"out/{script}_missing.csv").exists()
    assert chart["rows"]


def axes_of(script: str) -> tuple[str, ...]:
    """The columns that a script's chart is drawn from, as its last lines say."""
    source = (PAPER / f"{script}.py").read_text()
    call = source[source.rindex("output.Chart(") :]
    return tuple(
        call.split(f'{axis}="')[1].split('"')[0] for axis in ("x", "y", "by") if f'{axis}="' in call
    )


def test_quality_goes_on_where_it_was_stopped(paper, monkeypatch, capsys):
    load, folder = paper
    quality = load("quality")
    out = folder / "out"

    def measured(*more: str) -> list[str]:
        command = ["quality", "--data", str(folder), "--sets", "classes,questions", "-o", str(out)]
        monkeypatch.setattr(sys, "argv", [*command, *more])
        quality.main()
        lines = capsys.readouterr().out.splitlines()
        return [line.split(":")[0] for line in lines if line.endswith(" s")]

    every = (
        "matryoshka,recommended,published,labels,pairs,pair-contrast,dense-pairs,"
        "matryoshka-pairs,matryoshka-labels,neighbors"
    )
    assert measured("--methods", "recommended") == [
        "classes recommended 0",
        "questions recommended 0",
    ]
    before = (out / "quality.csv").read_text()
    # A training whose results were not written is taken for one that was cut short.
    trainings = (out / "training.csv").read_text()
    (out / "training.csv").write_text(
        trainings + trainings.splitlines()[1].replace(",0,", ",9,", 1) + "\n"
    )
    found = measured("--methods", every)
    assert "classes recommended 0" not in found
    assert {"classes labels 0", "questions pairs 0", "questions matryoshka-pairs 0"} <= {*found}
    assert {"questions pair-contrast 0", "questions dense-pairs 0"} <= {*found}
    assert {"classes neighbors 0", "questions neighbors 0"} <= {*found}
    assert not {"classes pairs 0", "classes dense-pairs 0"} & {*found}
    methods = {row["method"] for row in table(out / "quality.csv") if row["set"] == "questions"}
    assert {"CSR with pairs, roots", "int8, with pairs"} <= methods
    assert (out / "quality.csv").read_text().startswith(before)
    assert all(row["seed"] == "0" for row in table(out / "training.csv"))
    assert measured("--methods", every) == []
    assert measured("--methods", "dense,rabitq", "--seeds", "1") == [
        "classes rabitq 1",
        "questions rabitq 1",
    ]
    published = [row for row in table(out / "training.csv") if row["run"] == "published"]
    assert [row["k"] for row in published] == ["8", "32"] * 2


def test_options_go_on_where_they_were_stopped(paper, monkeypatch, capsys):
    load, folder = paper
    options = load("options")
    command = f"options --data {folder} --sets classes,questions,missing -o {folder}/out --steps 3"

    def measured(more: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", f"{command} {more}".split())
        options.main()
        return [line.split(":")[0] for line in capsys.readouterr().out.splitlines()]

    assert measured("--options whitened") == ["classes whitened 0", "questions whitened 0"]
    found = measured("--options whitened,default --seeds 0,1")
    assert found[:2] == ["classes whitened 1", "questions whitened 1"]
    assert found[2:] == [
        f"{name} default {seed}" for seed in (0, 1) for name in ("classes", "questions")
    ]
    rows = table(folder / "out/options.csv")
    each = [{(row["k"], row["way"]) for row in rows if row["option"] == o} for o in options.OPTIONS]
    assert [len(pairs) for pairs in each[:2]] == [25, 5]  # five sizes, by five ways or one
    assert {row["measure"] for row in rows} == {"1-nn", "ndcg@10"}
    assert {row["steps"] for row in rows} == {"3"}


def test_ways_keep_as_many_latents_on_average(paper):
    load, _ = paper
    options = load("options")
    rng = np.random.default_rng(0)
    codes = csrkern.SparseCodes.from_dense(torch.from_numpy(rng.random((50, 64)) ** 4), 64)
    seen = {way: (stored, asked) for way, stored, asked in options.ways(codes, codes, 4)}
    lengths = {way: stored.active.sum(1).float() for way, (stored, _) in seen.items()}
    assert all(abs(float(length.mean()) - 4) < 0.05 for length in lengths.values())
    assert [way for way, length in lengths.items() if length.max() > 4] == [
        way for way in seen if way.startswith("documents by")
    ]
    assert {way: asked.k for way, (_, asked) in seen.items() if asked.k == 8} == {
        way: 8 for way in seen if way.endswith("queries at 2k")
    }


def test_verdicts_follow_from_the_rows(paper):
    load, _ = paper
    summary = load("summary")

    def row(method, active, size, score, seed=0):
        return {
            "set": "s", "method": method, "active": str(active), "bytes": str(size),
            "measure": "1-nn", "score": str(score), "seed": str(seed),
        }  # fmt: skip

    rows = [
        row("dense", 384, 768, 90.0),
        row("PCA", 8, 16, 80.0),
        row("PCA", 16, 32, 88.0),
        row("PCA", 32, 64, 88.0),
        *(row("CSR", 8, 32, score, seed) for seed, score in enumerate((60.0, 85.0, 86.0))),
        row("CSR", 32, 128, 88.5),
    ]
    claims = list(summary.claims(summary.Scores(rows), []))
    equal_active, _, near_dense, equal_bytes, *_ = claims
    assert str(equal_active).endswith(": held, 2 of 2")
    assert equal_active.margin == "0.5"  # the median of 8: 85, not 60
    assert str(near_dense).endswith(": did not hold, 0 of 1")
    assert near_dense.lost == [("s", "88.5 (CSR)", "89.0 (dense less 1)")]
    assert str(equal_bytes).endswith(": did not hold, 1 of 3")
    assert ("s 32 bytes", "85.0 (CSR-8)", "88.0 (PCA-16)") in equal_bytes.lost
    _, table, *_ = summary.verdicts(claims)
    assert f"| {equal_active.text} | 2 | 2 | 0.5 |" in table
    trainings = [
        {"set": "s", "run": "recommended", "beta": "0.03", "dead_percent": "1.5"},
        {"set": "s", "run": "without", "beta": "0.0", "dead_percent": "50"},
    ]
    *_, dead = summary.claims(summary.Scores(rows), trainings)
    assert dead.lost == [("s, recommended", "1.5%", "1%")]


def test_nearest_others_are_found_row_by_row(paper):
    import torch

    load, _ = paper
    x = torch.randn(1010, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[1005] = 2 * x[7]  # the cosine to itself is not the only one of 1
    got = load("quality").nearest_others(x)
    assert got[7].tolist() == [7, 1005]
    assert got[1005].tolist() == [1005, 7]
    cosines = torch.nn.functional.cosine_similarity(x[:, None], x[None], dim=2).fill_diagonal_(-2)
    assert torch.equal(got[:, 0], torch.arange(1010))
    torch.testing.assert_close(cosines[got[:, 0], got[:, 1]], cosines.amax(1))


def test_captions_of_one_image_are_paired(paper):
    import torch

    load, _ = paper
    pairs = load("sets").captions_of_one_image(torch.tensor([7, 3, 7, 3, 7, 5]))
    assert pairs.tolist() == [[1, 3], [0, 2], [0, 4]]


def test_systems_are_compared_in_bytes_of_the_whole(paper, monkeypatch, capsys):
    pytest.importorskip("faiss")
    load, folder = paper
    (x, y), (q, q_labels) = clusters(1000, 1), clusters(40, 2)
    arrays = {"train_emb": x, "train_label": y, "test_emb": q, "test_label": q_labels}
    np.savez(folder / "classes.npz", **arrays)
    cases, _ = load("cases"), load("peer_systems")
    turn = csrkern.Projection(np.eye(x.shape[1])[:8], np.zeros(x.shape[1]))
    monkeypatch.setattr(cases, "learn_projection", lambda *data, **options: turn)
    compare = load("compare")
    out = folder / "out"

    def measured(families: str) -> list[str]:
        command = f"compare --data {folder} --sets classes,missing --quick -o {out}"
        monkeypatch.setattr(sys, "argv", [*command.split(), "--families", families])
        compare.main()
        lines = capsys.readouterr().out.splitlines()
        return [line.split(":")[0] for line in lines if line.endswith(" s")]

    assert measured("fine,residual-lists") == ["classes fine 0", "classes residual-lists 0"]
    assert "– | – |" in (out / "compare.md").read_text()  # without the dense score
    assert measured("fine,dense,residual,graphs") == [
        "classes dense 0",
        "classes residual 0",
        "classes graphs 0",
    ]
    assert measured("alone,alone-projected,projected") == [
        "classes alone 0",
        "classes alone-projected 0",
        "classes projected 0",
    ]
    assert measured("alone-principal,residual-principal,principal-lists") == [
        "classes alone-principal 0",
        "classes residual-principal 0",
        "classes principal-lists 0",
    ]
    rows = table(out / "compare.csv")
    methods = {row["method"] for row in rows}
    assert {load("our_systems").PRINCIPAL, "FAISS PCA + RQ"} <= methods
    assert {compare.TAUGHT, "fine codes alone", "FAISS RQ" + compare.BEHIND} <= methods
    assert {"CSR + fine codes", "FAISS SQ8", "FAISS RQ", "FAISS IVF-RQ"} <= methods
    assert {"FAISS HNSW + SQ8", "FAISS PCA + OPQ + IVF-PQ fast scan"} <= methods
    assert all(float(row["per_s"]) > 0 and float(row["per_s_single"]) > 0 for row in rows)
    by_setting = {row["setting"]: float(row["bytes"]) for row in rows}
    assert any("directions, 8 bytes" in setting for setting in by_setting)
    assert any("directions, RQ1x7" in setting for setting in by_setting)
    # A byte for each codebook and one of the norm. In lists an id of 8 bytes comes on top.
    for start, n_bytes in (("RQ1x7", 8), ("IVF64,RQ1x7", 16)):
        found = [size for name, size in by_setting.items() if name.startswith(start)]
        assert found
        assert all(size == n_bytes for size in found), found
    # Entries of 3 bytes, the fine code, and a directory.
    name, size = next((n, s) for n, s in by_setting.items() if " bytes queries" in n)
    k, n_bytes = int(name.split("k=")[1].split()[0]), int(name.split("+ ")[1].split()[0])
    assert 3 * k + n_bytes - 3 <= size <= 3 * k + n_bytes + 2
    text = (out / "compare.md").read_text()
    assert "points" in text
    assert "not measured" in text  # quantizers of quality.csv
    assert compare.NOT_MEASURED in text


def test_fine_codes_of_several_parts_have_their_own_bytes(paper, monkeypatch):
    load, folder = paper
    monkeypatch.setattr(load("cases"), "MOST", (7, 5))
    case = load("cases").Case(load("sets").load(folder / "classes.npz"), 0, folder, quick=False)
    systems = load("our_systems")._fine_alone(case, "alone", case, sizes={8: (1, 2)})
    sizes = {system.setting: round(system.n_bytes) for system in systems}
    # With cells 2 bytes and 8 of a list come on top; of 7 bytes two halves have three each.
    assert sizes == {"8 bytes": 8, "8 bytes,": 17, "7 bytes, 2 parts": 7}


def test_a_large_set_has_more_lists_and_more_rows_to_learn_them_from(paper, monkeypatch):
    load, folder = paper
    cases = load("cases")
    data = load("sets").load(folder / "classes.npz")
    case = cases.Case(data, 0, folder / "kept", quick=True)
    monkeypatch.setattr(cases, "ROWS", 50)
    assert case.lists == (64,)
    assert torch.equal(case.rows(1), case.sample)
    assert torch.equal(case.rows(3), case.fitted[::3])  # of 300, to the last
    monkeypatch.setattr(cases, "LARGE", 299)
    assert case.lists == (256, 1024)
    assert torch.equal(case.rows(256), case.fitted)


def test_recall_is_measured_where_a_set_names_the_nearest_rows(paper, monkeypatch):
    pytest.importorskip("faiss")
    load, folder = paper
    (x, y), (q, q_labels) = clusters(300, 1), clusters(40, 2)
    near = np.argsort(-(q.astype(np.float32) @ x.T.astype(np.float32)), axis=1)[:, :10]
    near[:, 9] = 300  # a row that nobody finds
    arrays = {"train_emb": x, "train_label": y, "test_emb": q, "test_label": q_labels}
    np.savez(folder / "near.npz", **arrays, nearest_test=near)
    compare = load("compare")
    out = folder / "out"
    command = f"compare --data {folder} --sets near --quick -o {out} --families dense,alone"
    monkeypatch.setattr(sys, "argv", command.split())
    compare.main()
    rows = table(out / "compare.csv")
    assert {row["measure"] for row in rows} == {"1-nn"}
    (dense,) = (row for row in rows if row["method"] == "FAISS dense, float32")
    assert 85 < float(dense["recall"]) <= 90
    sizes = {"cells" in r["setting"]: float(r["bytes"]) for r in rows if "bytes" in r["setting"]}
    assert sizes[True] - sizes[False] == pytest.approx(2 + 8 * 257 / 300, abs=0.02)
    text = (out / "compare.md").read_text()
    assert "near, recall of the ten nearest in %" in text
    assert f"| FAISS dense, float32 | {float(dense['recall']):.1f}" not in text  # 64 bytes and more
    assert "– | – | – | –" not in text.split("recall of the ten")[1].splitlines()[2]


def test_definitions_of_wordnet_are_read_without_examples(paper, tmp_path):
    load, _ = paper
    lines = {
        "noun": "  1 the license | of it\n00001740 03 n 01 entity 0 000 | what is; a thing  \n",
        "verb": '00001740 29 v 01 breathe 0 000 | draw air; "I can breathe"; "breathe!"  \n',
        "adj": "00001740 00 a 01 able 0 000 | having power  \n",
        "adv": "00001740 02 r 01 a_cappella 0 000 | without music  \n",
    }
    for part, text in lines.items():
        (tmp_path / f"data.{part}").write_text(text)
    texts, labels = load("wordnet").definitions(tmp_path)
    assert texts == ["what is; a thing", "draw air", "having power", "without music"]
    assert labels.tolist() == [3, 29, 0, 2]


def test_no_setting_that_another_beats_is_kept(paper):
    load, _ = paper
    compare = load("compare")

    def row(method, n_bytes, score, per_s):
        return {"method": method, "bytes": n_bytes, "score": score, "per_s": per_s}

    best = row("a", 16, 80.0, 100)
    assert compare._beats(best, row("a", 16, 79.0, 100))
    assert compare._beats(best, row("a", 17, 80.0, 90))
    assert not compare._beats(best, row("b", 17, 79.0, 90))
    assert not compare._beats(best, row("a", 16, 81.0, 1))
    assert not compare._beats(best, row("a", 15, 10.0, 1))
    assert not compare._beats(best, best)
    # A time that was taken once may be off.
    assert not compare._beats(best, row("a", 16, 79.0, 90), slack=1.2)


def test_verdicts_on_systems_follow_from_the_rows(paper):
    load, _ = paper
    compare = load("compare")

    def row(method, n_bytes, score, per_s, seed=0):
        return {
            "set": "s", "family": "f", "seed": str(seed), "measure": "1-nn", "method": method,
            "setting": f"{method} {n_bytes}", "bytes": str(n_bytes), "shared": "0",
            "score": str(score), "per_s": str(per_s), "per_s_single": str(per_s / 2),
        }  # fmt: skip

    quality = [
        {"set": "s", "method": "RQ", "active": "16", "bytes": "16", "measure": "1-nn",
         "score": "88.0", "seed": "0"}
    ]  # fmt: skip
    rows = [
        row("FAISS dense, float32", 1536, 90.0, 50.0),
        row("FAISS PQ", 32, 89.5, 100.0),
        *(row("CSR + fine codes", 16, score, 300.0, i) for i, score in enumerate((70.0, 89.7, 90))),
        row("CSR codes", 100, 91.0, 400.0),
    ]
    found = compare.Table(rows, quality)
    head, scores = compare.score_verdicts(found, "ours", "peers")
    assert "ahead of the best of peers on 4 of 4 points, and more than 0.3 behind on 0" in head
    assert "| s | 16 | 89.70 (CSR + fine codes" in scores
    assert "88.00 (RQ, scores only, 16.0 bytes) | +1.70 |" in scores
    head, speed = compare.speed_verdicts(found, "ours", "peers")
    assert "on 4 of 4 points" in head  # without a search, RQ has no speed
    assert "| 3.00 |" in speed
    assert "| 4.00 |" in speed
    assert speed.count("\n| s | 16 |") == 1
    # What labels taught is not counted without them; peers behind our projection are, if asked.
    rows += [row(compare.TAUGHT, 16, 95.0, 10.0), row("FAISS RQ" + compare.BEHIND, 16, 96.0, 10.0)]
    found = compare.Table(rows, quality)
    best = {who: found.best("s", who, 16).score for who in compare.WHO}
    assert list(best.values()) == [95.0, 89.7, 88.0, 96.0]
    # Principal directions need neither.
    found = compare.Table([*rows, row(load("our_systems").PRINCIPAL, 16, 92.0, 10.0)], quality)
    best = {who: found.best("s", who, 16).score for who in compare.WHO}
    assert list(best.values()) == [95.0, 92.0, 88.0, 96.0]
    found = compare.Table(rows, quality)
    text = "\n".join(compare.tables(found))
    assert "| TurboQuant-1 | not measured |" in text
    assert "| FAISS PQ | – | 89.50 | 89.50 | 89.50 | 32.0 | 100 / 50 in 32.0 bytes |" in text
