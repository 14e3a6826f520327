"""Training: determinism, resume, defaults, and clear stops."""

from __future__ import annotations

import contextlib
import dataclasses
import json

import numpy as np
import pytest
import torch

import csrtrain.training.batches as batches
import csrtrain.training.dataset as training_data
import csrtrain.training.loop as trainer
from csrkern.embeddings.dataset import Embeddings
from csrkern.nn import SparseAutoencoder
from csrtrain import TrainConfig, encode_omp, refit, train, train_two
from csrtrain.evaluation.metrics import unexplained_variance
from csrtrain.training.checkpoint import FILE_NAME

pytestmark = pytest.mark.usefixtures("one_thread")

COUNTS = ("hidden_dim", "k", "dead_threshold", "batch_size", "steps", "seed")
RATES = ("beta", "gamma", "balance", "temperature", "lr", "epochs")
# One k, embeddings as they are and a constant rate: each test sets what it is about.
PLAIN = TrainConfig(ks=(), unit_scale=False, lr=1e-3, decay=0.0)
SMALL = dataclasses.replace(PLAIN, hidden_dim=64, k=4, batch_size=64, steps=30, dead_threshold=3)


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    """Rows around 10 centers, far from the origin."""
    rng = np.random.default_rng(0)
    centers = rng.standard_normal((10, 16))
    noise = 0.3 * rng.standard_normal((500, 16))
    return (3.0 + centers[np.arange(500) % 10] + noise).astype(np.float32)


@pytest.fixture(scope="module")
def y() -> np.ndarray:
    return np.arange(500) % 10


def quiet(*args, **kwargs):
    return train(*args, progress=False, **kwargs)


def same(a, b) -> bool:
    states = a.state_dict(), b.state_dict()
    return all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("contrast", ["self", "label", None])
def test_training_lowers_the_loss_and_returns_an_evaluation_model(x, y, contrast):
    history = []
    config = dataclasses.replace(SMALL, contrast=contrast, steps=150, lr=3e-3)
    labels = y if contrast == "label" else None
    model = quiet(x, labels, config, on_step=history.append)
    assert [report.step for report in history] == list(range(1, 151))
    first, last = history[0].losses, history[-1].losses
    assert last["loss"] < 0.8 * first["loss"]
    assert last["recon"] < first["recon"]
    assert set(last) == {"loss", "recon", "recon_4k", "aux", "contrast", "load", "dead"}
    assert history[-1].rows_per_second > 0
    assert not model.training
    assert (model.input_dim, model.hidden_dim, model.k) == (16, 64, 4)


@pytest.mark.parametrize("threads", [1, 2])
def test_one_seed_gives_one_model_and_another_seed_another(x, threads):
    torch.set_num_threads(threads)
    model = quiet(x, config=SMALL)
    torch.rand(7)  # the global random state does not matter
    assert same(model, quiet(x, config=SMALL))
    assert not same(model, quiet(x, config=dataclasses.replace(SMALL, seed=1)))


def test_the_global_random_state_is_left_alone(x):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    quiet(x, config=SMALL)
    assert torch.equal(torch.rand(4), expected)


def test_a_mapped_file_trains_to_the_same_model(x, tmp_path):
    np.save(tmp_path / "x.npy", x)
    expected = quiet(x, config=SMALL)
    assert same(expected, quiet(tmp_path / "x.npy", config=SMALL))
    assert same(expected, quiet(torch.from_numpy(x), config=SMALL))


def test_a_mapped_file_is_never_read_whole(x, tmp_path, monkeypatch):
    np.save(tmp_path / "x.npy", x)
    largest = []
    rows = Embeddings.rows

    def counted(embeddings, index, dtype=torch.float32):
        picked = rows(embeddings, index, dtype)
        if isinstance(index, torch.Tensor):
            largest.append(len(picked))
        assert isinstance(embeddings.array, np.memmap)
        return picked

    monkeypatch.setattr(Embeddings, "rows", counted)
    quiet(tmp_path / "x.npy", config=SMALL)
    assert max(largest) == 64


def test_pre_bias_starts_at_the_mean(x):
    seen = []

    class Stop(Exception):
        pass

    def stop(*_args, **_options):
        raise Stop

    def watched(data, make=training_data.Dataset.new_models):
        seen.extend(make(data))
        return seen

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_data.Dataset, "new_models", watched)
        patch.setattr(trainer.CSRLoss, "forward", stop)
        with pytest.raises(Stop):
            quiet(x, config=SMALL)
    expected = torch.from_numpy(x).double().mean(0).float()
    torch.testing.assert_close(seen[-1].pre_bias.data, expected)


def test_the_scale_of_the_embeddings_does_not_matter_to_relative_reconstruction(x):
    """Scaled data give the same terms at the first step, as shares of its variance."""
    reports = {}
    for scale in (1.0, 64.0):
        loss_terms = []
        config = dataclasses.replace(SMALL, steps=1, contrast=None)
        quiet(scale * (x - x.mean(0)), config=config, on_step=loss_terms.append)
        reports[scale] = loss_terms[0].losses
    assert reports[64.0]["recon"] == pytest.approx(64.0**2 * reports[1.0]["recon"], rel=1e-4)
    assert reports[64.0]["loss"] == pytest.approx(reports[1.0]["loss"], rel=1e-4)


class Killed(Exception):
    pass


def killed_after(step):
    def on_step(report):
        if report.step == step:
            raise Killed

    return on_step


@pytest.mark.parametrize(
    "options", [{"unit_scale": True}, {"contrast": "label"}, {"tied": False, "decay": 0.5}]
)
def test_an_interrupted_run_resumes_to_the_same_model_bit_for_bit(x, y, tmp_path, options):
    config = dataclasses.replace(SMALL, **options)
    y = y if config.contrast == "label" else None
    expected = quiet(x, y, config)
    for stop in (13, 22, 29):
        with pytest.raises(Killed):
            quiet(
                x,
                y,
                config,
                checkpoint_dir=tmp_path,
                checkpoint_every=4,
                resume=True,
                on_step=killed_after(stop),
            )
    steps = []
    model = quiet(x, y, config, checkpoint_dir=tmp_path, resume=True, on_step=steps.append)
    assert steps[0].step == 29
    assert same(model, expected)
    finished = quiet(x, y, config, checkpoint_dir=tmp_path, resume=True, on_step=killed_after(0))
    assert same(finished, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"checkpoint_every": 0}, "checkpoint_every: expected at least 1, got 0"),
        ({"checkpoint_every": -5}, "checkpoint_every: expected at least 1, got -5"),
        ({"evaluate_every": 0}, "evaluate_every: expected at least 1, got 0"),
        ({"patience": 0}, "patience: expected at least 1, got 0"),
    ],
)
def test_intervals_are_positive(x, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        quiet(x, config=SMALL, checkpoint_dir=tmp_path, evaluate=lambda model: 0.0, **options)
    (name,) = options
    for value in (2.0, True, "3"):
        with pytest.raises(TypeError, match=f"{name}: expected an int"):
            quiet(x, config=SMALL, evaluate=lambda model: 0.0, **{name: value})
    assert not list(tmp_path.iterdir())


def test_more_steps_go_on_where_the_run_ended(x, tmp_path):
    longer = dataclasses.replace(SMALL, steps=45)
    expected = quiet(x, config=longer)
    quiet(x, config=SMALL, checkpoint_dir=tmp_path)
    steps = []
    model = quiet(x, config=longer, checkpoint_dir=tmp_path, resume=True, on_step=steps.append)
    assert steps[0].step == 31
    assert same(model, expected)
    with pytest.raises(ValueError, match=r"steps = 45, now 44: expected at least the 45 steps"):
        quiet(
            x,
            config=dataclasses.replace(SMALL, steps=44),
            checkpoint_dir=tmp_path,
            resume=True,
        )


@pytest.mark.parametrize(
    ("options", "done"), [({"decay": 0.5}, 24), ({"anneal": True, "hidden_dim": 64}, 4)]
)
def test_other_steps_that_change_those_done_are_refused(x, tmp_path, options, done):
    config = dataclasses.replace(SMALL, **options)
    with pytest.raises(Killed):
        quiet(
            x,
            config=config,
            checkpoint_dir=tmp_path,
            checkpoint_every=1,
            on_step=killed_after(done),
        )
    longer = dataclasses.replace(config, steps=60)
    with pytest.raises(ValueError, match=r"steps = 30, now 60: step \d+, which is done, would"):
        quiet(x, config=longer, checkpoint_dir=tmp_path, resume=True)


def test_more_steps_before_the_rate_falls_are_the_same_run(x, tmp_path):
    config = dataclasses.replace(SMALL, decay=0.5)
    with pytest.raises(Killed):
        quiet(
            x, config=config, checkpoint_dir=tmp_path, checkpoint_every=1, on_step=killed_after(12)
        )
    longer = dataclasses.replace(config, steps=60)
    model = quiet(x, config=longer, checkpoint_dir=tmp_path, resume=True)
    assert same(model, quiet(x, config=longer))


def test_a_checkpoint_loads_weights_only(x, tmp_path):
    quiet(x, config=SMALL, checkpoint_dir=tmp_path)
    content = torch.load(tmp_path / FILE_NAME, weights_only=True)
    assert content["step"] == 30
    assert {"model", "optimizer", "rng", "config"} <= content.keys()
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


def test_a_checkpoint_of_another_run_is_refused(x, y, tmp_path):
    quiet(x, config=SMALL, checkpoint_dir=tmp_path)
    with pytest.raises(FileExistsError, match="resume=True"):
        quiet(x, config=SMALL, checkpoint_dir=tmp_path)
    other = dataclasses.replace(SMALL, lr=0.5)
    with pytest.raises(ValueError, match=r"other settings: lr = 0\.001, now 0\.5"):
        quiet(x, config=other, checkpoint_dir=tmp_path, resume=True)
    with pytest.raises(ValueError, match="other embeddings or labels"):
        quiet(x + 1, config=SMALL, checkpoint_dir=tmp_path, resume=True)
    whole = (tmp_path / FILE_NAME).read_bytes()
    for place in np.random.default_rng(0).integers(0, len(whole), 50):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << (place % 8)
        (tmp_path / FILE_NAME).write_bytes(flipped)
        with pytest.raises(ValueError, match=r"checkpoint\.pt is damaged"):
            quiet(x, config=SMALL, checkpoint_dir=tmp_path, resume=True)
    (tmp_path / FILE_NAME).write_bytes(b"half a file")
    with pytest.raises(ValueError, match=r"checkpoint\.pt is damaged"):
        quiet(x, config=SMALL, checkpoint_dir=tmp_path, resume=True)


def exchanged(x: np.ndarray) -> np.ndarray:
    x = x.copy()
    x[[3, 400]] = x[[400, 3]]
    return x


def balanced(x: np.ndarray) -> np.ndarray:
    x = x.copy()
    x[7, 2] += 1
    x[300, 2] -= 1
    return x


@pytest.mark.parametrize("change", [exchanged, balanced, lambda x: x[:-1], lambda x: x[:, :-1]])
@pytest.mark.parametrize("options", [{}, {"unit_scale": True}, {"standardize": True}])
def test_other_rows_are_other_data(x, tmp_path, change, options):
    config = dataclasses.replace(SMALL, steps=2, **options)
    quiet(x, config=config, checkpoint_dir=tmp_path)
    with pytest.raises(ValueError, match="other embeddings or labels"):
        quiet(change(x), config=config, checkpoint_dir=tmp_path, resume=True)
    quiet(np.asfortranarray(x), config=config, checkpoint_dir=tmp_path, resume=True)
    quiet(x.astype(np.float64), config=config, checkpoint_dir=tmp_path, resume=True)


def test_other_labels_are_other_data(x, y, tmp_path):
    config = dataclasses.replace(SMALL, contrast="label")
    quiet(x, y, config, checkpoint_dir=tmp_path)
    with pytest.raises(ValueError, match="other embeddings or labels"):
        quiet(x, y[::-1].copy(), config, checkpoint_dir=tmp_path, resume=True)


def test_a_loss_that_is_not_finite_stops_and_names_the_batch(x, tmp_path):
    class Diverging(trainer.CSRLoss):
        def forward(self, *args, **options):
            terms = super().forward(*args, **options)
            steps_seen.append(None)
            if len(steps_seen) == 8:
                terms["loss"] = terms["loss"] * float("nan")
            return terms

    steps_seen: list[None] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "CSRLoss", Diverging)
        with pytest.raises(FloatingPointError, match=r"step 8: .* batch of rows \d+, .*lower"):
            quiet(x, config=SMALL, checkpoint_dir=tmp_path, checkpoint_every=3)
    assert torch.load(tmp_path / FILE_NAME, weights_only=True)["step"] == 6
    model = quiet(x, config=SMALL, checkpoint_dir=tmp_path, resume=True)
    assert same(model, quiet(x, config=SMALL))


def test_weights_that_are_not_finite_are_never_saved(x, tmp_path):
    config = dataclasses.replace(SMALL, lr=1e38, steps=6)
    with pytest.raises(FloatingPointError, match="lower"):
        quiet(x, config=config, checkpoint_dir=tmp_path, checkpoint_every=1)
    path = tmp_path / FILE_NAME
    if path.exists():
        state = torch.load(path, weights_only=True)["model"]
        assert all(bool(torch.isfinite(tensor).all()) for tensor in state.values())


def test_every_epoch_takes_every_row_once():
    order = batches.BatchOrder(96, 32, seed=0)
    epochs = [[order(3 * epoch + batch) for batch in range(3)] for epoch in range(2)]
    for taken in epochs:
        assert torch.equal(torch.cat(taken).sort().values, torch.arange(96))
    assert not torch.equal(epochs[0][0], epochs[1][0])
    assert torch.equal(batches.BatchOrder(96, 32, seed=0)(4), epochs[1][1])
    assert not torch.equal(batches.BatchOrder(96, 32, seed=1)(0), epochs[0][0])


def test_a_progress_bar_shows_loss_dead_latents_and_speed(x, capsys, monkeypatch):
    config = dataclasses.replace(SMALL, steps=3)
    train(x, config=config)
    streams = capsys.readouterr()
    assert streams.out == streams.err == ""  # no terminal
    monkeypatch.setenv("FORCE_COLOR", "1")  # which rich takes for a terminal
    train(x, config=config)
    streams = capsys.readouterr()
    assert streams.out == ""
    for word in ("3/3", "loss", "dead", "rows/s"):
        assert word in streams.err


@pytest.mark.parametrize("n", [2, 3, 65])
def test_sets_smaller_than_a_batch(x, n):
    config = dataclasses.replace(SMALL, steps=3)
    model = quiet(x[:n], config=config)
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


def test_data_that_cannot_be_trained_on(x, y):
    with pytest.raises(ValueError, match="at least 2 rows"):
        quiet(x[:1])
    with pytest.raises(ValueError, match="all of them are equal"):
        quiet(np.ones((20, 16), np.float32), config=SMALL)
    for options in ({"standardize": True}, {"unit_scale": True}):
        with pytest.raises(ValueError, match="all of them are equal"):
            quiet(np.tile(x[:1], (600, 1)), config=dataclasses.replace(SMALL, **options))
    with pytest.raises(ValueError, match="standardize: expected False with input_dim = 1"):
        quiet(x[:, :1], config=dataclasses.replace(SMALL, standardize=True, unit_scale=False))
    for factor, advice in ((1e30, r".e-3\d"), (1e-38, r".e\+3\d")):
        with pytest.raises(ValueError, match=f"standard deviation of .* multiply them by {advice}"):
            quiet(x * np.float32(factor), config=SMALL)
    broken = x.copy()
    broken[123, 4] = np.nan
    with pytest.raises(ValueError, match="row 123"):
        quiet(broken, config=SMALL)
    config = dataclasses.replace(SMALL, contrast="label")
    with pytest.raises(ValueError, match="labels: expected one per embedding"):
        quiet(x, config=config)
    with pytest.raises(ValueError, match="expected 500 labels"):
        quiet(x, y[:10], config)
    with pytest.raises(ValueError, match="checkpoint_dir"):
        quiet(x, config=SMALL, resume=True)


@pytest.mark.parametrize("options", [{}, {"unit_scale": True}, {"whitening": 0.5}])
@pytest.mark.parametrize("offset", [1e6, -1e6])
def test_rows_far_from_the_origin_train(x, offset, options):
    """1e6 is a multiple of what float32 holds there, so the rows are the same but for it."""
    config = dataclasses.replace(SMALL, steps=60, lr=3e-3, **options)
    rounded = np.round(4 * x) / 4
    far = (rounded + np.float32(offset)).astype(np.float32)
    assert np.array_equal(far - np.float32(offset), rounded)
    found, expected = [], []
    quiet(far, config=config, on_step=found.append)
    quiet(rounded, config=config, on_step=expected.append)
    assert found[-1].losses["recon"] == pytest.approx(expected[-1].losses["recon"], rel=0.1)


def test_lists_and_data_frames_train(x):
    pandas = pytest.importorskip("pandas")
    config = dataclasses.replace(SMALL, steps=2)
    expected = quiet(x, config=config)
    assert same(quiet(x.tolist(), config=config), expected)
    assert same(quiet(pandas.DataFrame(x), config=config), expected)
    labels = pandas.Series(np.arange(500) % 10)
    assert same(quiet(x, labels, config), quiet(x, labels.tolist(), config))


MODES = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "default dtype": lambda: defaults(dtype=torch.float64),
    "default device": lambda: defaults(device="meta"),
}


@contextlib.contextmanager
def defaults(dtype=torch.float32, device=None):
    try:
        torch.set_default_dtype(dtype)
        torch.set_default_device(device)
        yield
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tied": False, "unit_scale": True},
        {"standardize": True},
        {"whitening": 0.5, "balance": 0.1, "contrast": "label"},
        {"input_subspace": 8, "contrast": "label"},
        {"anneal": True, "unit_scale": True, "contrast": "pair"},
    ],
    ids=str,
)
def test_training_does_not_depend_on_the_callers_torch(x, y, mode, options):
    config = dataclasses.replace(SMALL, steps=4, **options)
    labels = y if config.contrast == "label" else None
    partners = x[:, ::-1].copy() if config.contrast == "pair" else None

    def results():
        model = quiet(x, labels, config, partners=partners, evaluate=score, evaluate_every=2)
        coded = model.encode(x)
        found = [*model.state_dict().values(), coded.values, coded.indices]
        found.append(torch.tensor(score(model), device="cpu", dtype=torch.float64))
        if not config.standardize:
            rows = torch.from_numpy(x[:50])
            found.append(encode_omp(model, rows, rounds=2).values)
            found.append(refit(model, rows, coded[:50]).values)
        return found

    def score(model) -> float:
        return -unexplained_variance(model, x, [4])[4]

    expected = results()
    with MODES[mode]():
        found = results()
        given = torch.from_numpy(x).clone()
        quiet(given, config=dataclasses.replace(SMALL, steps=2))
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


@pytest.mark.parametrize("mode", MODES)
def test_two_adapters_do_not_depend_on_the_callers_torch(x, mode):
    config = dataclasses.replace(SMALL, steps=3)
    expected = train_two(x, x[:, :9], config, progress=False)
    with MODES[mode]():
        found = train_two(x, x[:, :9], config, progress=False)
    assert all(same(a, b) for a, b in zip(found, expected, strict=True))


def test_codes_of_a_model_of_any_dtype(x):
    for dtype in (torch.float64, torch.bfloat16):
        model = SparseAutoencoder(16, 64, 4, dtype=dtype)
        rows = torch.from_numpy(x).to(dtype)
        assert model.encode(x).equal(model.encode(rows).detach())


def test_labels_and_partners_choose_the_contrast(x, y):
    partners, pairs = x[:, ::-1].copy(), np.stack([np.arange(500)] * 2, 1)

    def model(labels=None, config=SMALL, /, contrast="auto", **given):
        return quiet(x, labels, dataclasses.replace(config, steps=3, contrast=contrast), **given)

    assert TrainConfig().contrast == "auto"
    assert same(model(), model(contrast="self"))
    assert same(model(y), model(y, contrast="label"))
    assert not same(model(y), model())
    clip = model(partners=partners, pairs=pairs)
    assert same(clip, model(partners=partners, contrast="clip"))
    assert not same(clip, model(partners=partners, contrast="pair"))
    preset = TrainConfig.preset("imagenet", hidden_dim=64, k=4, steps=3)
    assert same(quiet(x, y, preset), quiet(x, y, dataclasses.replace(preset, contrast="label")))
    small = dataclasses.replace(SMALL, steps=3)
    two = train_two(x, partners, small, progress=False)
    clips = train_two(x, partners, dataclasses.replace(small, contrast="clip"), progress=False)
    assert all(same(a, b) for a, b in zip(two, clips, strict=True))


def test_what_is_given_and_not_used_is_told(x, y):
    small = dataclasses.replace(SMALL, steps=2)
    for contrast in ("self", None):
        config = dataclasses.replace(small, contrast=contrast)
        with pytest.warns(UserWarning, match=r"labels are not used, since contrast=") as caught:
            model = quiet(x, y, config)
        assert caught[0].filename == __file__
        assert same(model, quiet(x, config=config))
    with pytest.raises(ValueError, match="labels, partners: expected one of the two"):
        quiet(x, y, small, partners=x)
    with pytest.raises(ValueError, match="pairs: expected partners as well"):
        quiet(x, config=small, pairs=np.array([[0, 1], [1, 0]]))
    for contrast in ("self", "label", None):
        with pytest.raises(ValueError, match="partners: expected embeddings with contrast='pair'"):
            quiet(x, y, dataclasses.replace(small, contrast=contrast), partners=x)


def test_defaults_follow_from_the_data():
    config = TrainConfig().resolve(16_000, 384)
    assert (config.hidden_dim, config.k, config.k_aux) == (4096, 32, 512)
    assert (config.ks, config.unit_scale, config.whitening) == ((4, 8, 16), True, 0)
    assert (config.lr, config.decay, config.batch_size) == (2e-3, 0.3, 512)
    assert TrainConfig(hidden_dim=None).resolve(16_000, 384).hidden_dim == 1536
    served = {1: (), 4: (), 5: (4,), 64: (4, 8, 16, 32), 512: (4, 8, 16, 32, 64, 128)}
    for k, below in served.items():
        assert TrainConfig(k=k).resolve(16_000, 384).ks == below
    assert TrainConfig(ks=()).resolve(16_000, 384).ks == ()
    assert (config.beta, config.gamma, config.temperature) == (1 / 32, 0.1, 0.2)
    assert TrainConfig(contrast="label").resolve(16_000, 384).gamma == 1.0
    assert config.steps >= 400
    assert config.contrast == "self"
    assert TrainConfig().settle_contrast(labels=True).resolve(16_000, 384).gamma == 1.0
    assert TrainConfig().settle_contrast(partners=True).contrast == "clip"
    tiny = TrainConfig().resolve(50, 8)
    assert tiny.batch_size == 50
    large = TrainConfig().resolve(1_000_000, 768)
    assert large.steps * large.batch_size == pytest.approx(10_000_000, rel=0.01)
    huge = TrainConfig().resolve(500_000_000, 768)
    assert huge.steps * huge.batch_size == pytest.approx(500_000_000, rel=0.01)
    assert TrainConfig(epochs=3, batch_size=100).resolve(1050, 8).steps == 30
    assert TrainConfig(**config.to_dict()) == config
    several = TrainConfig(ks=(4,), input_subspace=6)
    assert TrainConfig(**several.to_dict()) == several
    assert TrainConfig(**TrainConfig().to_dict()) == TrainConfig()


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("hidden_dim", 0, ValueError),
        ("k", 0, ValueError),
        ("k", 2.0, TypeError),
        ("k_aux", -1, ValueError),
        ("beta", -1, ValueError),
        ("gamma", float("nan"), ValueError),
        ("temperature", 0, ValueError),
        ("contrast", "labels", ValueError),
        ("lr", 0.0, ValueError),
        ("lr", "fast", TypeError),
        ("decay", 1.5, ValueError),
        ("batch_size", True, TypeError),
        ("epochs", 0, ValueError),
        ("steps", -5, ValueError),
        ("seed", -1, ValueError),
        ("ks", (32,), ValueError),
        ("ks", (0,), ValueError),
        ("ks", 4, TypeError),
        ("ks", "4,8", TypeError),
        ("ks", (2.0,), TypeError),
        ("contrast", "none", ValueError),
        ("whitening", 2, ValueError),
        ("whitening", float("nan"), ValueError),
        ("whitening", "some", TypeError),
        ("whitening", True, TypeError),
        ("input_subspace", 0, ValueError),
        ("input_subspace", "auto", TypeError),
        ("input_subspace", 2.5, TypeError),
        ("decay", True, TypeError),
        ("decay", float("nan"), ValueError),
        ("decay", -0.5, ValueError),
        ("tied", 1, TypeError),
        ("autocast", "yes", TypeError),
        ("seed", 1.0, TypeError),
        ("seed", 2**32, ValueError),
        *((name, np.bool_(True), TypeError) for name in (*COUNTS, *RATES)),
        *((name, True, TypeError) for name in (*COUNTS, *RATES)),
        *((name, float("nan"), ValueError) for name in RATES),
        *((name, np.float32("inf"), ValueError) for name in RATES),
        *((name, "1", TypeError) for name in (*COUNTS, *RATES)),
    ],
)
def test_settings_that_do_not_fit_are_named(field, value, error):
    with pytest.raises(error, match=field):
        TrainConfig(**{field: value})


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.int32])
def test_numpys_numbers_are_numbers(x, kind):
    counts = {name: kind(3 if name != "hidden_dim" else 64) for name in COUNTS if name != "epochs"}
    rates = {name: np.float32(0.5) for name in RATES if name != "epochs"}
    config = TrainConfig(
        **counts, **rates, ks=np.array([1, 2]), standardize=np.bool_(False), k_aux=kind(0)
    )
    assert all(type(getattr(config, name)) is int for name in (*counts, "k_aux"))
    assert all(type(getattr(config, name)) is float for name in rates)
    assert type(config.standardize) is bool
    plain = TrainConfig(**{name: getattr(config, name) for name in config.to_dict()})
    assert config == plain
    assert json.loads(json.dumps(config.to_dict())) == config.to_dict()
    small = dataclasses.replace(config, beta=0.1, gamma=0.1, lr=1e-3, batch_size=64)
    assert quiet(x, config=small).k_aux == 0


def test_k_aux_of_0_means_no_auxiliary_loss(x):
    reports = []
    config = dataclasses.replace(SMALL, k_aux=0, dead_threshold=1)
    model = quiet(x, config=config, on_step=reports.append)
    assert {report.losses["aux"] for report in reports} == {0.0}
    assert any(report.losses["dead"] > 0 for report in reports)
    assert model.k_aux == 0


def test_settings_that_do_not_fit_together():
    with pytest.raises(ValueError, match="k: expected at most hidden_dim = 16, got 32"):
        TrainConfig(hidden_dim=16)
    with pytest.raises(ValueError, match="at most one of the two"):
        TrainConfig(epochs=1, steps=1)
    with pytest.raises(ValueError, match=r"k: expected at most 4 \* 4 = 16 latents, got 32"):
        TrainConfig(hidden_dim=None).resolve(100, 4)
    with pytest.raises(ValueError, match="pass unit_scale=False with standardize=True"):
        TrainConfig(standardize=True)


def test_a_config_is_not_labels():
    with pytest.raises(TypeError, match="labels: expected labels, got a TrainConfig"):
        train(torch.randn(20, 4), TrainConfig(steps=1))


def test_annealing_comes_down_from_64_over_seven_tenths_of_the_steps():
    config = TrainConfig(k=4, hidden_dim=1000, steps=100, anneal=True)
    ks = [config.k_at(step) for step in range(100)]
    assert ks[0] == 64
    assert ks[35] == 34
    assert set(ks[70:]) == {4}
    assert ks == sorted(ks, reverse=True)
    assert TrainConfig(k=4, hidden_dim=100, steps=100, anneal=True).k_at(0) == 25
    assert TrainConfig(k=40, hidden_dim=100, steps=100, anneal=True).k_at(0) == 40
    assert dataclasses.replace(config, anneal=False).k_at(0) == 4


def test_annealing_reaches_the_loss(x):
    seen = []

    class Watched(trainer.CSRLoss):
        def forward(self, *args, k=None, **options):
            seen.append(k)
            return super().forward(*args, k=k, **options)

    config = dataclasses.replace(SMALL, anneal=True, steps=10)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "CSRLoss", Watched)
        model = quiet(x, config=config)
    assert seen == [16, 14, 13, 11, 9, 7, 6, 4, 4, 4]
    assert model.k == 4


def test_presets_are_the_published_settings():
    config = TrainConfig.preset("imagenet", k=8).resolve(1_281_167, 2048)
    assert (config.hidden_dim, config.batch_size, config.lr, config.gamma) == (
        8192,
        4096,
        4e-4,
        0.1,
    )
    assert config.steps == 10 * (1_281_167 // 4096)
    text = TrainConfig.preset("text")
    assert (text.lr, text.k_aux, text.beta, text.gamma, text.batch_size) == (
        4e-5,
        1024,
        0.1,
        1,
        128,
    )
    clip = TrainConfig.preset("clip", steps=7)
    assert (clip.contrast, clip.epochs, clip.steps, clip.gamma) == ("clip", None, 7, 1)
    csrv2 = TrainConfig.preset("csrv2", k=2)
    assert (csrv2.contrast, csrv2.anneal, csrv2.k) == ("label", True, 2)
    assert not any(TrainConfig.preset(n).relative_recon for n in ("imagenet", "text", "csrv2"))
    published = [TrainConfig.preset(n) for n in ("imagenet", "text", "clip", "csrv2")]
    assert {(c.hidden_dim, c.ks, c.unit_scale, c.decay) for c in published} == {
        (None, (), False, 0.0)
    }
    with pytest.raises(ValueError, match="preset: expected one of 'imagenet', 'text'"):
        TrainConfig.preset("audio")


@pytest.mark.parametrize("contrast", ["pair", "clip"])
def test_two_adapters_learn_to_share_latents(x, contrast):
    """A partner is its row with the dimensions in another order; pairs are given shuffled."""
    pairs = np.stack([np.arange(500), np.random.default_rng(1).permutation(500)], 1)
    partners = np.empty_like(x)
    partners[pairs[:, 1]] = x[:, ::-1]
    group = torch.arange(500) % 10

    def right(first, second):
        za = first.encode(torch.from_numpy(x)).normalize().to_dense()
        zb = second.encode(torch.from_numpy(x[:, ::-1][:, :9].copy())).normalize().to_dense()
        return float((group[(za @ zb.T).argmax(1)] == group).float().mean())

    config = dataclasses.replace(SMALL, contrast=contrast, lr=3e-3, batch_size=100)
    models = {
        steps: train_two(
            x,
            partners[:, :9],
            dataclasses.replace(config, steps=steps),
            pairs=pairs,
            progress=False,
        )
        for steps in (1, 150)
    }
    first, second = models[150]
    assert (first.input_dim, second.input_dim) == (16, 9)
    assert first.hidden_dim == second.hidden_dim
    assert right(*models[1]) < 0.5
    assert right(first, second) > 0.8


@pytest.mark.parametrize("contrast", ["pair", "clip"])
def test_one_adapter_brings_pairs_closer(x, contrast):
    rng = np.random.default_rng(1)
    pairs = np.stack([np.arange(500), rng.permutation(500)], 1)
    shifted = x + 1.5 * rng.standard_normal(16).astype(np.float32)
    partners = np.empty_like(x)
    partners[pairs[:, 1]] = shifted
    reports = []
    config = dataclasses.replace(SMALL, contrast=contrast, lr=3e-3, batch_size=100, steps=100)
    quiet(x, config=config, partners=partners, pairs=pairs, on_step=reports.append)
    assert reports[-1].losses["contrast"] < 0.8 * reports[0].losses["contrast"]


def test_partners_that_do_not_fit(x):
    config = dataclasses.replace(SMALL, contrast="pair")
    with pytest.raises(ValueError, match="partners: expected embeddings with contrast='pair'"):
        quiet(x, config=config)
    with pytest.raises(ValueError, match="partners: expected 500 rows"):
        quiet(x, config=config, partners=x[:50])
    with pytest.raises(ValueError, match="train_two"):
        quiet(x, config=config, partners=x[:, :4])
    with pytest.raises(ValueError, match="pairs: expected rows of 500 embeddings"):
        quiet(x, config=config, partners=x, pairs=np.array([[0, 500], [1, 1]]))
    with pytest.raises(ValueError, match=r"pairs: expected integers \[p, 2\]"):
        quiet(x, config=config, partners=x, pairs=np.array([[0, 5, 7]]))
