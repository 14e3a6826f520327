"""tune: what it tries, how it judges, and what it builds."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from command_line import exit_code

import csrtrain
from csrkern import InvertedIndex, Refine
from csrkern.nn import SparseAutoencoder
from csrtrain.tuning import Setting

pytest.importorskip("faiss")

CONFIG = csrtrain.TrainConfig(hidden_dim=64, k=8, steps=40, batch_size=64)


def rows(n: int = 600, d: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Rows around 20 centers that differ in weak directions only, and their centers."""
    rng = np.random.default_rng(0)
    classes = np.arange(n) % 20
    centers = rng.standard_normal((20, d)) * np.where(np.arange(d) < 4, 0.0, 0.3)
    noise = rng.standard_normal((n, d)) * np.where(np.arange(d) < 4, 3.0, 0.05)
    return (centers[classes] + noise).astype(np.float32), classes


@pytest.fixture(scope="module")
def tuned():
    x, labels = rows()
    return csrtrain.tune(x, labels, n_bytes=17, config=CONFIG, progress=False)


def test_it_tries_every_split_of_the_bytes(tuned):
    settings = {trial.setting for trial in tuned.trials}
    expected = {(5, 0), (4, 5)}
    assert {(s.k, s.fine_bytes) for s in settings} == expected
    assert {s.whitening for s in settings} == {0.0, 0.3, -0.3}
    assert len(tuned.trials) == 6
    assert all(s.n_bytes <= 17 for s in settings)
    assert tuned.measure == "1-NN accuracy"
    assert all(0 <= trial.score <= 1 < trial.queries_per_second for trial in tuned.trials)


def test_it_takes_what_labels_favor(tuned):
    assert tuned.best.score == max(trial.score for trial in tuned.trials)
    assert tuned.config == dataclasses.replace(CONFIG, whitening=tuned.best.setting.whitening)
    by_whitening = {
        w: max(
            t.score for t in tuned.trials if t.setting.whitening == w and not t.setting.fine_bytes
        )
        for w in (0.3, -0.3)
    }
    assert by_whitening[0.3] > by_whitening[-0.3]  # classes differ in weak directions


def test_it_builds_the_best(tuned):
    x, _ = rows()
    model, index = tuned.build(x, progress=False)
    setting = tuned.best.setting
    assert len(index) == 600
    assert index.k == setting.k
    codes = model.encode(x[:5])
    rerank = Refine(x[:5]) if setting.fine_bytes else None
    assert (index.quantizer is None) == (rerank is None)
    assert (index.search(codes, 1, rerank=rerank)[1] >= 0).all()


def test_without_labels_dense_neighbors_judge():
    x, _ = rows()
    tuned = csrtrain.tune(x, n_bytes=12, whitenings=[0], config=CONFIG, progress=False)
    assert tuned.measure == "dense neighbors kept"
    assert tuned.dense == 1
    assert [trial.setting for trial in tuned.trials] == [Setting(64, 0.0, 4, 0)]


def test_every_number_of_latents_is_tried():
    x, _ = rows()
    options = {"n_bytes": 12, "whitenings": [0], "config": CONFIG, "progress": False}
    tuned = csrtrain.tune(x, hidden_dims=[16, 96], **options)
    assert [trial.setting.hidden_dim for trial in tuned.trials] == [16, 96]
    assert tuned.config.hidden_dim == tuned.best.setting.hidden_dim
    alone = csrtrain.tune(x, hidden_dims=[16], **options)
    assert alone.trials[0].score == tuned.trials[0].score


def test_queries_judge_by_what_is_relevant():
    x, _ = rows()
    queries = x[:30]
    qrels = np.stack([np.arange(30), np.arange(30)], 1)
    tuned = csrtrain.tune(
        x, n_bytes=12, queries=queries, qrels=qrels, whitenings=[0], config=CONFIG, progress=False
    )
    assert (tuned.measure, tuned.dense) == ("nDCG@10", 1)
    assert 0.2 < tuned.best.score <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"queries": np.zeros((3, 12))}, "queries, qrels: expected both or neither"),
        ({"n_bytes": 2}, "n_bytes: expected"),
        ({"whitenings": []}, "whitenings: expected at least one"),
        ({"hidden_dims": []}, "hidden_dims: expected at least one"),
        ({"hidden_dims": [4]}, "k: expected at most hidden_dim = 4"),
        ({"whitenings": [2]}, "whitening: expected a number in -1..1"),
        ({"labels": [1, 2]}, "labels: expected 600 labels"),
        ({"shortlist": 3}, "shortlist: expected"),
    ],
)
def test_misuse_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        csrtrain.tune(rows()[0], config=CONFIG, progress=False, **options)


def test_few_rows_are_refused():
    with pytest.raises(ValueError, match="embeddings: expected at least 512 rows, got 300"):
        csrtrain.tune(rows(300)[0], config=CONFIG, progress=False)


def test_the_command_writes_model_index_and_chart(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    x, labels = rows()
    np.savez(tmp_path / "data.npz", x=x, y=labels)
    arguments = ("--bytes", "12", "--labels", f"{tmp_path}/data.npz:y", "--steps", "4", "--json")
    arguments = ("--hidden-dim", "40", "--hidden-dim", "50", *arguments)
    out = str(tmp_path / "out")
    assert exit_code("tune", f"{tmp_path}/data.npz:x", *arguments, "-o", out) == 0
    best = json.loads(capsys.readouterr().out)["best"]["setting"]
    model = SparseAutoencoder.from_pretrained(tmp_path / "out" / "model")
    index = InvertedIndex.load(tmp_path / "out" / "index")
    assert (len(index), index.k, model.input_dim) == (600, best["k"], 12)
    assert model.hidden_dim == best["hidden_dim"] in {40, 50}
    page = (tmp_path / "out" / "trials.html").read_text()
    assert page.count("<svg") == 2
    np.save(tmp_path / "queries.npy", x[:4])
    assert exit_code("search", f"{out}/index", f"{tmp_path}/queries.npy", "--json") == 0
    first = json.loads(capsys.readouterr().out.splitlines()[0])["hits"]
    rerank = None if index.quantizer is None else Refine(x[:4])
    assert [hit["id"] for hit in first] == index.search(model.encode(x[:4]), rerank=rerank)[1][
        0
    ].tolist()
