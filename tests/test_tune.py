"""tune: what it tries, how it judges, and what it builds."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator

import numpy as np
import pytest
from command_line import exit_code

import csrtrain
from csrkern import InvertedIndex, Refine
from csrkern.nn import SparseAutoencoder
from csrtrain import tuning
from csrtrain.tuning import Setting, Trial

pytest.importorskip("faiss")

CONFIG = csrtrain.TrainConfig(hidden_dim=64, k=8, steps=40, batch_size=64)


def rows(n: int = 600, d: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Rows around 20 centers that differ in weak directions only, and their centers."""
    rng = np.random.default_rng(0)
    classes = np.arange(n) % 20
    centers = rng.standard_normal((20, d)) * np.where(np.arange(d) < 4, 0.0, 0.3)
    noise = rng.standard_normal((n, d)) * np.where(np.arange(d) < 4, 3.0, 0.05)
    return (centers[classes] + noise).astype(np.float32), classes


@pytest.fixture(scope="module", autouse=True)
def narrow_beam() -> Iterator[None]:
    """Codebooks are learned in a quarter of the time: how well is not what these tests show."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("csrtrain.training.quantizer._BEAM", 1)
        yield


@pytest.fixture
def learned(monkeypatch) -> list[dict]:
    """The arguments of each call of `learn_projection`."""
    learned: list[dict] = []

    def learn(*args, **options):
        learned.append(options)
        return csrtrain.learn_projection(*args, **options)

    monkeypatch.setattr("csrtrain.tuning.learn_projection", learn)
    return learned


@pytest.fixture(scope="module")
def tuned():
    x, labels = rows()
    return csrtrain.tune(x, labels, n_bytes=17, config=CONFIG, progress=False)


def test_it_tries_fine_codes_alone_and_every_split_of_the_bytes(tuned):
    settings = [trial.setting for trial in tuned.trials]
    alone = [(directions, size) for directions in (None, 12) for size in (17, 8, 4)]
    assert [(s.directions, s.fine_bytes) for s in settings[:6]] == alone
    assert {(s.k, s.dtype) for s in settings[:6]} == {(0, None)}
    with_lists = {(s.k, s.dtype, s.fine_bytes, s.directions) for s in settings[6:]}
    refined = {(4, "uint4", 9, directions) for directions in (None, 12)}
    assert with_lists == {(8, "uint4", 0, None), (5, "uint8", 0, None), *refined}
    assert {s.whitening for s in settings[6:]} == {0.0, 0.3, -0.3}
    assert len(tuned.trials) == 6 + 12
    assert all(s.n_bytes <= 17 for s in settings)
    assert tuned.measure == "1-NN accuracy"
    assert all(0 <= trial.score <= 1 < trial.queries_per_second for trial in tuned.trials)


def test_it_takes_what_labels_favor(tuned):
    assert tuned.best.score == max(trial.score for trial in tuned.trials)
    # Classes differ in weak directions, which whitening raises and the projection keeps.
    scores = {trial.setting: trial.score for trial in tuned.trials}
    assert scores[Setting(64, 0.3, 5, "uint8", 0)] > scores[Setting(64, -0.3, 5, "uint8", 0)]
    assert tuned.best.setting.directions
    assert tuned.best.score > tuned.dense + 0.5
    assert (tuned.config is None) == (tuned.best.setting.k == 0)


def test_it_builds_fine_codes_behind_the_projection(tuned):
    x, _ = rows()
    (alone,) = (t for t in tuned.trials if t.setting == Setting(None, None, 0, None, 17, 12))
    model, index = dataclasses.replace(tuned, best=alone, config=None).build(x, progress=False)
    assert model is None
    assert (len(index), index.k, index.quantizer.n_bytes) == (600, 0, 17)
    assert index.quantizer.projection is tuned.projection
    assert (index.search_fine(x[:5], 1)[1] >= 0).all()


@pytest.mark.parametrize(("k", "dtype"), [(5, "uint8"), (8, "uint4"), (4, "uint4")])
def test_it_builds_a_model_and_an_index_with_lists(tuned, k, dtype):
    x, _ = rows()
    best = max((t for t in tuned.trials if t.setting.k == k), key=lambda trial: trial.score)
    config = dataclasses.replace(CONFIG, whitening=best.setting.whitening)
    projection = tuned.projection if best.setting.directions else None
    model, index = dataclasses.replace(
        tuned, best=best, config=config, projection=projection
    ).build(x, progress=False)
    assert (len(index), index.k, index.dtype) == (600, k, dtype)
    codes = model.encode(x[:5])
    rerank = Refine(x[:5]) if best.setting.fine_bytes else None
    assert (index.quantizer is None) == (rerank is None)
    assert (index.search(codes, 1, rerank=rerank)[1] >= 0).all()


@pytest.mark.parametrize("fewer_is_faster", [True, False])
def test_it_names_cells_that_are_faster_at_the_same_score(fewer_is_faster, monkeypatch):
    class Clock:
        now, next = 0.0, 1000.0

        def perf_counter(self) -> float:
            """Return a time that passes ever faster, or ever slower."""
            self.now += self.next
            self.next *= 0.9 if fewer_is_faster else 1.1
            return self.now

    monkeypatch.setattr(tuning, "time", Clock())
    monkeypatch.setattr(tuning, "PROBES", (256, 128, 1))
    x, labels = rows()
    tuned = csrtrain.tune(x, labels, n_bytes=5, lists=False, progress=False)
    assert {trial.probes for trial in tuned.trials} == {128 if fewer_is_faster else None}


def test_without_lists_no_model_is_trained(monkeypatch):
    monkeypatch.setattr("csrtrain.tuning.train", None)
    x, labels = rows()
    tuned = csrtrain.tune(x, labels, n_bytes=5, lists=False, progress=False)
    assert [trial.setting.directions for trial in tuned.trials] == [None, 12]
    assert {(t.setting.k, t.setting.n_bytes) for t in tuned.trials} == {(0, 5)}


def test_few_bytes_are_tried_behind_fewer_directions(learned):
    x, labels = rows(d=80)
    tuned = csrtrain.tune(x, labels, n_bytes=12, lists=False, progress=False)
    tried = [(t.setting.directions, t.setting.fine_bytes) for t in tuned.trials]
    assert tried == [(None, 12), (None, 6), (32, 12), (32, 6), (16, 6)]
    assert tuned.trials[3].score == tuned.trials[4].score == 1
    assert tuned.best is tuned.trials[4]
    assert len(learned) == 2  # from all rows for the index, and cut
    assert (tuned.projection.width, tuned.projection.dim) == (16, 80)
    _, index = tuned.build(x, progress=False)
    assert index.quantizer.projection is tuned.projection


def test_where_nothing_is_gained_no_projection_is_tried():
    x, _ = rows()
    labels = np.arange(600) % 7  # tells nothing
    tuned = csrtrain.tune(x, labels, n_bytes=5, lists=False, progress=False)
    assert [trial.setting for trial in tuned.trials] == [Setting(None, None, 0, None, 5)]
    assert tuned.projection is None


def test_bytes_that_codebooks_cannot_share_are_fewer():
    x, _ = rows()
    tuned = csrtrain.tune(x, n_bytes=38, lists=False, progress=False)  # 37 books of 12 dimensions
    sizes = [trial.setting.fine_bytes for trial in tuned.trials]
    assert sizes == [37, 19, 9, 4]


def test_without_labels_dense_neighbors_judge():
    x, _ = rows()
    tuned = csrtrain.tune(x, n_bytes=12, whitenings=[0], config=CONFIG, progress=False)
    assert tuned.measure == "dense neighbors kept"
    assert tuned.dense == 1
    alone = [Setting(None, None, 0, None, size) for size in (12, 6)]
    lists = [Setting(64, 0.0, 6, "uint4", 0), Setting(64, 0.0, 4, "uint8", 0)]
    expected = [*alone, *lists, Setting(64, 0.0, 4, "uint4", 4)]
    assert [trial.setting for trial in tuned.trials] == expected


def test_every_number_of_latents_is_tried():
    x, _ = rows()
    options = {"n_bytes": 12, "whitenings": [0], "config": CONFIG, "progress": False}
    tuned = csrtrain.tune(x, hidden_dims=[16, 96], **options)
    hidden_dims = [trial.setting.hidden_dim for trial in tuned.trials]
    assert hidden_dims == [None] * 2 + [16] * 3 + [96] * 3
    alone = csrtrain.tune(x, hidden_dims=[16], **options)
    assert [trial.score for trial in alone.trials] == [t.score for t in tuned.trials[:5]]


def test_the_config_is_that_of_the_best_model(monkeypatch):
    monkeypatch.setattr("csrtrain.tuning._Task.dense", lambda task: 0.0)
    scores = iter([0.1] * 6 + [0.9] + [0.2] * 7)
    monkeypatch.setattr(
        "csrtrain.tuning._Task.trial", lambda task, setting, *_: Trial(setting, next(scores), 1.0)
    )
    config = dataclasses.replace(CONFIG, steps=2)
    options = {"n_bytes": 12, "hidden_dims": [16, 96], "whitenings": [0, 0.3], "config": config}
    tuned = csrtrain.tune(rows()[0], progress=False, **options)
    assert tuned.best.setting == Setting(16, 0.3, 4, "uint8", 0)
    assert tuned.config == dataclasses.replace(config, hidden_dim=16, whitening=0.3)


def test_queries_judge_by_what_is_relevant():
    x, _ = rows()
    queries = x[:30]
    qrels = np.stack([np.arange(30), np.arange(30)], 1)
    tuned = csrtrain.tune(
        x, n_bytes=12, queries=queries, qrels=qrels, whitenings=[0], config=CONFIG, progress=False
    )
    assert (tuned.measure, tuned.dense) == ("nDCG@10", 1)
    assert 0.2 < tuned.best.score <= 1


def test_a_projection_learns_from_rows_that_do_not_judge(learned):
    x, labels = rows()
    tuned = csrtrain.tune(x, labels, n_bytes=5, lists=False, progress=False)
    first, last = learned
    assert [len(first["embeddings"]), len(first["labels"])] == [540, 540]
    assert tuned.best.setting.directions
    assert len(last["embeddings"]) == 600  # for the index, from all


def judged_queries(n: int) -> dict:
    """Rows that are documents, n queries, and the documents of each query's class."""
    x, labels = rows(400)
    queries, classes = rows(n)
    qrels = [(q, d, int(labels[d] == classes[q])) for q in range(n) for d in range(q % 40, 400, 40)]
    return {"embeddings": x, "queries": queries, "qrels": np.array(qrels)[::-1]}


def test_a_projection_learns_from_queries_that_do_not_judge(learned):
    given = judged_queries(620)
    tuned = csrtrain.tune(**given, n_bytes=5, lists=False, progress=False)
    first, last = (options["pairs"] for options in learned)
    held = np.setdiff1d(np.arange(620), first[:, 0])
    assert len(held) == 310
    assert len(np.unique(last[:, 0])) == 620
    qrels = given["qrels"]
    relevant = {(q, d) for q, d, grade in qrels.tolist() if grade}
    assert {tuple(pair) for pair in last.tolist()} == relevant
    assert tuned.best.setting.directions
    # Held queries alone, given to judge by, say the same.
    own = qrels[np.isin(qrels[:, 0], held)]
    own[:, 0] = np.searchsorted(held, own[:, 0])
    alone = {**given, "queries": given["queries"][held], "qrels": own}
    again = csrtrain.tune(**alone, n_bytes=5, lists=False, progress=False)
    assert len(learned) == 2  # too few to learn from, but not to choose principal directions by
    assert [trial.setting.directions for trial in again.trials] == [None, 12]
    assert again.dense == pytest.approx(tuned.dense)
    assert again.trials[0].score == pytest.approx(tuned.trials[0].score)


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
        ({"lists": 1}, "lists: expected"),
    ],
)
def test_misuse_is_named(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        csrtrain.tune(rows()[0], config=CONFIG, progress=False, **options)


def test_few_rows_are_refused():
    with pytest.raises(ValueError, match="embeddings: expected at least 512 rows, got 300"):
        csrtrain.tune(rows(300)[0], config=CONFIG, progress=False)


def test_the_command_writes_model_index_and_charts(tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    best_of_lists_alone(monkeypatch)
    x, labels = rows()
    np.savez(tmp_path / "data.npz", x=x, y=labels)
    arguments = ("--bytes", "12", "--labels", f"{tmp_path}/data.npz:y", "--steps", "4", "--json")
    arguments = ("--hidden-dim", "40", "--hidden-dim", "50", *arguments)
    out = str(tmp_path / "out")
    assert exit_code("tune", f"{tmp_path}/data.npz:x", *arguments, "-o", out) == 0
    found = json.loads(capsys.readouterr().out)
    best = found["best"]["setting"]
    assert found["projection"] is None
    model = SparseAutoencoder.from_pretrained(tmp_path / "out" / "model")
    index = InvertedIndex.load(tmp_path / "out" / "index")
    assert (len(index), index.k, model.input_dim) == (600, best["k"], 12)
    assert model.hidden_dim == best["hidden_dim"] in {40, 50}
    page = (tmp_path / "out" / "trials.html").read_text()
    assert page.count("<svg") == 3
    np.save(tmp_path / "queries.npy", x[:4])
    assert exit_code("search", f"{out}/index", f"{tmp_path}/queries.npy", "--json") == 0
    first = json.loads(capsys.readouterr().out.splitlines()[0])["hits"]
    ids = index.search(model.encode(x[:4]))[1]
    assert [hit["id"] for hit in first] == ids[0].tolist()


def best_of_lists_alone(monkeypatch) -> None:
    """Make the best of the settings with lists and no fine codes the best of all."""
    trial = tuning._Task.trial

    def worse_with_fine_codes(task, setting, *args):
        made = trial(task, setting, *args)
        return dataclasses.replace(made, score=0.0) if setting.fine_bytes else made

    monkeypatch.setattr(tuning._Task, "trial", worse_with_fine_codes)


def test_the_command_writes_an_index_without_a_model(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    x, labels = rows()
    np.savez(tmp_path / "data.npz", x=x, y=labels)
    (tmp_path / "out" / "model").mkdir(parents=True)  # of an earlier run
    out = str(tmp_path / "out")
    line = ("tune", f"{tmp_path}/data.npz:x", "--labels", f"{tmp_path}/data.npz:y", "--bytes", "6")
    assert exit_code(*line, "--no-lists", "-o", out, "--force") == 0
    said = capsys.readouterr().out
    assert (
        "Best: fine codes alone behind a projection to 12 dimensions, 6 bytes of fine code." in said
    )
    assert "index and trials.html" in said
    assert f"csrkern search {out}/index queries.npy" in said
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["index", "trials.html"]
    assert (tmp_path / "out" / "trials.html").read_text().count("<svg") == 2
    np.save(tmp_path / "queries.npy", x[:4])
    assert exit_code("search", f"{out}/index", f"{tmp_path}/queries.npy", "--json") == 0
    first = json.loads(capsys.readouterr().out.splitlines()[0])["hits"]
    ids = InvertedIndex.load(tmp_path / "out" / "index").search_fine(x[:4])[1]
    assert [hit["id"] for hit in first] == ids[0].tolist()
