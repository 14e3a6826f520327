"""Reading embeddings and labels: every format, and what is wrong with bad files."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from csrkern.embeddings import dataset
from csrkern.embeddings.dataset import open_embeddings
from csrkern.embeddings.files import split_name
from csrkern.embeddings.labels import read_integers
from csrkern.nn import SparseAutoencoder
from csrtrain import TrainConfig, load_embeddings, load_labels, train, train_two
from csrtrain.evaluation.metrics import unexplained_variance
from csrtrain.pca import PCA


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((50, 6)).astype(np.float32)


@pytest.fixture
def y() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 5, 50)


def as_tensor(array) -> torch.Tensor:
    return open_embeddings("x", array).rows(slice(None))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_npy_is_memory_mapped(tmp_path, x, dtype):
    np.save(tmp_path / "x.npy", x.astype(dtype))
    array = load_embeddings(tmp_path / "x.npy")
    assert isinstance(array, np.memmap)
    assert array.dtype == dtype
    assert torch.equal(as_tensor(array), torch.from_numpy(x.astype(dtype)).float())


def test_npz_takes_the_only_fitting_array(tmp_path, x, y):
    np.savez(tmp_path / "x.npz", emb=x, label=y, names=np.array(["a", "b"]))
    assert np.array_equal(load_embeddings(str(tmp_path / "x.npz")), x)
    with pytest.raises(
        ValueError, match=r"several arrays that would do.*label \[50\] int64.*names"
    ):
        load_labels(tmp_path / "x.npz")
    assert torch.equal(load_labels(f"{tmp_path}/x.npz:label"), torch.from_numpy(y))


def test_npz_with_several_candidates_names_them(tmp_path, x):
    np.savez(tmp_path / "x.npz", train=x, test=x[:3])
    with pytest.raises(
        ValueError, match=r"name one as .*:NAME.*train \[50, 6\] float32, test \[3, 6\]"
    ):
        load_embeddings(tmp_path / "x.npz")
    assert len(load_embeddings(f"{tmp_path}/x.npz:test")) == 3
    with pytest.raises(ValueError, match=r"no array 'dev'; it holds: train"):
        load_embeddings(f"{tmp_path}/x.npz:dev")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_tensor_files(tmp_path, x, y, dtype, suffix):
    path = tmp_path / f"x{suffix}"
    content = {"emb": torch.from_numpy(x).to(dtype), "y": torch.from_numpy(y)}
    (save_file if suffix == ".safetensors" else torch.save)(content, path)
    array = load_embeddings(path)
    assert array.dtype == dtype
    assert torch.equal(as_tensor(array), content["emb"].float())
    assert torch.equal(load_labels(path, n=50), content["y"])


def test_a_plain_tensor_saved_alone(tmp_path, x):
    torch.save(torch.from_numpy(x), tmp_path / "x.pt")
    assert torch.equal(as_tensor(load_embeddings(tmp_path / "x.pt")), torch.from_numpy(x))


def test_a_pickle_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (sys.exit, (1,))

    torch.save(Evil(), tmp_path / "x.pt")
    with pytest.raises(ValueError, match="not a readable weights-only PyTorch file"):
        load_embeddings(tmp_path / "x.pt")


def test_arrays_and_tensors_pass_through(x):
    assert load_embeddings(x) is x
    assert load_embeddings(torch.from_numpy(x)).shape == (50, 6)
    swapped = x.astype(">f4")
    assert torch.equal(as_tensor(load_embeddings(swapped)), torch.from_numpy(x))


@pytest.mark.parametrize(
    ("array", "error", "message"),
    [
        (np.zeros((3, 2, 2), np.float32), ValueError, r"shape \[n, d\], got \[3, 2, 2\]"),
        (np.zeros(3, np.float32), ValueError, r"shape \[n, d\], got \[3\]"),
        (
            np.zeros((0, 4), np.float32),
            ValueError,
            r"at least one row and one column, got \[0, 4\]",
        ),
        (
            np.zeros((4, 0), np.float32),
            ValueError,
            r"at least one row and one column, got \[4, 0\]",
        ),
        (np.zeros((3, 2), np.int64), TypeError, "floating-point embeddings, got int64"),
        (np.zeros((3, 2), object), TypeError, "floating-point embeddings, got object"),
        (np.zeros((3, 2), bool), TypeError, "floating-point embeddings, got bool"),
        (np.zeros((3, 2), complex), TypeError, "floating-point embeddings, got complex128"),
        (np.zeros(3, [("a", "f4"), ("b", "f4")]), TypeError, "fields a, b; .*structured_to_unstr"),
        (
            torch.zeros(3, 2, dtype=torch.int8),
            TypeError,
            "floating-point embeddings, got torch.int8",
        ),
        (torch.zeros(3, 2).to_sparse(), TypeError, "expected a dense tensor, got one of"),
        ([[1.0], [1.0, 2.0]], ValueError, "embeddings: expected an array, got lists of unlike"),
        ([["a"]], TypeError, "floating-point embeddings, got <U1"),
        (None, TypeError, "expected a path, .* or lists of numbers, got NoneType"),
        (
            np.ma.masked_array(np.zeros((3, 2)), [[0, 0], [0, 1], [0, 0]]),
            ValueError,
            "without masked values",
        ),
    ],
)
def test_arrays_that_are_not_embeddings(array, error, message):
    with pytest.raises(error, match=message):
        load_embeddings(array)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_first_row_that_is_not_finite_is_named(x, bad, monkeypatch):
    monkeypatch.setattr(dataset, "_PIECE_BYTES", 4 * 6 * 8)  # 8 rows a piece
    x[[37, 45], 2] = bad
    with pytest.raises(ValueError, match=f"^embeddings: row 37 holds 1 values .* finite.*{bad}"):
        load_embeddings(x)
    assert load_embeddings(x, check_finite=False) is x


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors", ".parquet", ".pt"])
def test_damaged_files_give_one_clear_line(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    for content in (b"", b"not such a file at all"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="not a readable") as caught:
            load_embeddings(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_pickled_npy_is_refused(tmp_path):
    np.save(tmp_path / "x.npy", np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"not a readable \.npy file: it holds pickled Python"):
        load_embeddings(tmp_path / "x.npy")


def kinds_of_numbers() -> list[tuple[str, np.ndarray]]:
    """An array in every form that NumPy can hold floats in, by name."""
    values = np.random.default_rng(1).standard_normal((9, 4))
    wide = np.asfortranarray(values.astype(">f8"))
    return [
        *((f"{kind}", values.astype(kind)) for kind in (">f2", ">f4", ">f8", "<f2", "<f4", "<f8")),
        ("longdouble", values.astype(np.longdouble)),
        ("by column", np.asfortranarray(values.astype(np.float32))),
        ("by column, swapped", wide),
        ("one row", values[:1].astype(">f4")),
        ("one column", values[:, :1].astype(">f4")),
        ("backwards", values.astype(np.float32)[::-1, ::-1]),
        ("with gaps", values.astype(">f4")[::2, ::3]),
    ]


@pytest.mark.parametrize(("name", "array"), kinds_of_numbers())
def test_every_form_of_floats(tmp_path, name, array):
    array.flags.writeable = False
    right = torch.from_numpy(np.array(array, np.float32))
    np.save(tmp_path / "x.npy", array)
    np.savez(tmp_path / "x.npz", a=array)
    np.savez_compressed(tmp_path / "z.npz", a=array)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for source in (array, *(tmp_path / file for file in ("x.npy", "x.npz", "z.npz"))):
            held = load_embeddings(source)
            assert torch.equal(as_tensor(held), right), source
            assert torch.equal(open_embeddings("x", held).rows(torch.tensor([0])), right[:1])
    assert isinstance(load_embeddings(tmp_path / "x.npy"), np.memmap)


def test_labels_and_pairs_in_the_other_byte_order(tmp_path, y):
    for kind in (">i8", ">i2", ">u4", ">U3"):
        np.save(tmp_path / "y.npy", y.astype(kind))
        for source in (tmp_path / "y.npy", y.astype(kind)):
            assert torch.equal(load_labels(source), torch.from_numpy(y))
    pairs = y.reshape(25, 2)
    np.savez(tmp_path / "p.npz", pairs=pairs.astype(">i4"))
    found = read_integers(tmp_path / "p.npz")
    assert found.dtype.isnative
    assert np.array_equal(found, pairs)


def test_bfloat16_of_numpy(tmp_path):
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="needs ml_dtypes")
    array = np.random.default_rng(0).standard_normal((20, 6)).astype(ml_dtypes.bfloat16)
    np.save(tmp_path / "x.npy", array)  # as two untyped bytes each
    np.savez(tmp_path / "x.npz", a=array)
    for source in (array, array[::-2, ::3], tmp_path / "x.npy", tmp_path / "x.npz"):
        right = source if isinstance(source, np.ndarray) else array
        got = as_tensor(load_embeddings(source))
        assert torch.equal(got, torch.from_numpy(right.astype(np.float32)))
    array[3, 1] = np.inf
    with pytest.raises(ValueError, match="row 3 holds 1 values"):
        load_embeddings(array)


def test_data_frames_and_other_arrays(x, y):
    pandas = pytest.importorskip("pandas", reason="needs pandas")
    frame = pandas.DataFrame(x)
    assert torch.equal(as_tensor(load_embeddings(frame)), torch.from_numpy(x))
    assert torch.equal(as_tensor(load_embeddings(x.tolist())), torch.from_numpy(x))
    assert torch.equal(load_labels(pandas.Series(y)), torch.from_numpy(y))
    assert load_labels(pandas.Series(["b", "a"])).tolist() == [1, 0]
    assert load_labels(pandas.Categorical(["b", "a"])).tolist() == [1, 0]
    column = pandas.DataFrame({"embedding": list(x)})
    with pytest.raises(TypeError, match=r"got object; make numbers of them .* numpy\.stack"):
        load_embeddings(column)


def test_what_is_given_stays_as_it_is(x, y):
    model = SparseAutoencoder(6, 24, 3).eval()
    for given in (x, torch.from_numpy(x), x.astype(">f8"), np.asfortranarray(x)):
        before = given.clone() if isinstance(given, torch.Tensor) else given.copy()
        model.encode(given)
        train(given, y, TrainConfig(hidden_dim=24, k=3, steps=2, batch_size=16), progress=False)
        assert np.array_equal(given, before)


def test_npz_members_are_read_alone(tmp_path, x):
    names = np.array([{"a": 1}], object)
    np.savez(tmp_path / "x.npz", **{"emb:1": x, "emb:2": x[:2]}, names=names)
    assert len(load_embeddings(f"{tmp_path}/x.npz:emb:2")) == 2
    with pytest.raises(ValueError, match=r"holds: emb:1 \[50, 6\] float32, .*names \[1\] object"):
        load_embeddings(tmp_path / "x.npz")
    with pytest.raises(TypeError, match=r"x\.npz\[names\]: expected floating-point .* object"):
        load_embeddings(f"{tmp_path}/x.npz:names")
    with pytest.raises(TypeError, match=r"got object; make strings of them with \.astype\(str\)"):
        load_labels(f"{tmp_path}/x.npz:names")
    for path in (tmp_path / "x.npz", tmp_path / "a:b.npz"):
        path.write_bytes((tmp_path / "x.npz").read_bytes())
        assert len(load_embeddings(f"{path}:emb:2")) == 2
        assert split_name(f"{path}:emb:1") == (path, "emb:1")
    assert split_name("not:there.npz:a") == (Path("not:there.npz"), "a")


def test_many_arrays_make_a_short_message(tmp_path, x):
    np.savez(tmp_path / "x.npz", **{f"a{i}": x for i in range(200)})
    with pytest.raises(ValueError, match=r"and 190 more$") as caught:
        load_embeddings(tmp_path / "x.npz")
    assert len(str(caught.value)) < 500


def test_names_of_files(tmp_path, x):
    for name in ("a[1].npy", "b*?.npy", "c d.npy", "\u00e9.NPY", "e:f.npy", "g::h.npy"):
        np.save(tmp_path / "x.npy", x)
        path = (tmp_path / "x.npy").rename(tmp_path / name)
        for source in (path, str(path), os.fsencode(path)):
            assert np.array_equal(load_embeddings(source), x)
    (tmp_path / "link.npy").symlink_to(path)
    assert np.array_equal(load_embeddings(tmp_path / "link.npy"), x)
    (tmp_path / "folder.npy").mkdir()
    with pytest.raises(IsADirectoryError, match=r"folder\.npy is a folder; expected a file"):
        load_embeddings(tmp_path / "folder.npy")
    os.mkfifo(tmp_path / "pipe.npy")
    with pytest.raises(ValueError, match=r"pipe\.npy is a device or a pipe"):
        load_embeddings(tmp_path / "pipe.npy")
    with pytest.raises(FileNotFoundError, match="no file at"):
        load_embeddings("a word " * 60)


def test_files_that_were_cut_off(tmp_path, x):
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "x.npz", a=x)
    np.savez_compressed(tmp_path / "z.npz", a=x)
    for name in ("x.npy", "x.npz", "z.npz"):
        whole = (tmp_path / name).read_bytes()
        for length in (0, 1, 5, 9, 50, 127, 128, 200, len(whole) - 1):
            (tmp_path / name).write_bytes(whole[:length])
            with pytest.raises(ValueError, match="is not a readable") as caught:
                load_embeddings(tmp_path / name)
            assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "z.npz"])
def test_files_with_a_wrong_byte(tmp_path, x, name):
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "x.npz", a=x)
    np.savez_compressed(tmp_path / "z.npz", a=x)
    whole = (tmp_path / name).read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(200):
        broken = bytearray(whole)
        broken[rng.integers(min(len(whole), 300))] = rng.integers(256)
        (tmp_path / name).write_bytes(broken)
        # Some such files are other arrays; what is none is refused in these words alone.
        with contextlib.suppress(ValueError, TypeError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            load_embeddings(tmp_path / name, check_finite=False)


def test_empty_arrays_are_refused(tmp_path):
    for shape in ((0, 4), (4, 0), (0, 0)):
        np.save(tmp_path / "x.npy", np.zeros(shape, ">f4"))
        with pytest.raises(ValueError, match="expected at least one row and one column, got"):
            load_embeddings(tmp_path / "x.npy")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_mapped_file_is_never_held_whole(tmp_path):
    """A file of half a gigabyte, all holes; the process stays smaller."""
    rows_, d = 1 << 17, 1024
    header = np.lib.format.header_data_from_array_1_0(np.zeros((1, d), ">f4"))
    with open(tmp_path / "x.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, {**header, "shape": (rows_, d)})
        file.truncate(file.tell() + rows_ * d * 4)
    code = (
        "import sys; from csrtrain import load_embeddings\n"
        "array = load_embeddings(sys.argv[1])\n"
        "status = dict(line.split(':', 1) for line in open('/proc/self/status'))\n"
        "print(len(array), int(status['RssAnon'].split()[0]) // 1024)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "x.npy")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    count, megabytes = map(int, done.stdout.split())
    assert count == rows_
    assert megabytes < 400


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_encodes_and_trains_names_the_row(x, y, bad, tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "_PIECE_BYTES", 4 * 6 * 8)
    good = x.copy()
    x[37, 2] = bad
    np.save(tmp_path / "x.npy", x)
    model = SparseAutoencoder(6, 24, 3).eval()
    config = TrainConfig(hidden_dim=24, k=3, steps=2, batch_size=16)
    clip = TrainConfig(hidden_dim=24, k=3, steps=2, batch_size=16, contrast="clip")
    calls = {
        "x": [lambda: model.encode(x)],
        "embeddings": [
            lambda: unexplained_variance(model, x, [1, 3]),
            lambda: train(x, None, config, progress=False),
            lambda: train_two(x, good, clip, progress=False),
            lambda: PCA(x),
        ],
        "partners": [
            lambda: train(good, None, clip, partners=x, progress=False),
            lambda: train_two(good, x, clip, progress=False),
        ],
        str(tmp_path / "x.npy"): [
            lambda: load_embeddings(tmp_path / "x.npy"),
            lambda: model.encode(tmp_path / "x.npy"),
            lambda: train(tmp_path / "x.npy", None, config, progress=False),
        ],
    }
    for name, named in calls.items():
        for call in named:
            with pytest.raises(ValueError, match=f"^{re.escape(name)}: row 37 holds 1 values"):
                call()


def test_large_numbers_that_float32_holds_are_no_infinity(x):
    huge = np.full((4, 6), 3e38, np.float32)
    assert load_embeddings(huge) is huge
    with pytest.raises(ValueError, match=r"row 2 holds 1 values .* \(the first: inf\)"):
        load_embeddings(np.where(np.arange(4)[:, None] == 2, [1e300, 0, 0, 0, 0, 0], 1.0))


def test_missing_files_and_unknown_suffixes(tmp_path, x):
    with pytest.raises(FileNotFoundError, match="no file at"):
        load_embeddings(tmp_path / "x.npy")
    (tmp_path / "x.csv").write_text("1,2")
    with pytest.raises(ValueError, match=r"ends in \.npy, \.npz, \.safetensors"):
        load_embeddings(tmp_path / "x.csv")
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(ValueError, match="leave out :emb"):
        load_embeddings(f"{tmp_path}/x.npy:emb")


def test_arrays_are_called_what_the_argument_is(x, y):
    for wrong in (x[0], torch.from_numpy(x[0])):
        with pytest.raises(ValueError, match=r"^embeddings: expected embeddings of shape"):
            load_embeddings(wrong)
    with pytest.raises(TypeError, match=r"^labels: expected a path, a NumPy array, a tensor"):
        load_labels({"a": 1})
    with pytest.raises(ValueError, match=r"^pairs: expected integers in rows, got \[50\] int64"):
        read_integers(y, argument="pairs")


def test_labels_of_every_kind(y):
    assert torch.equal(load_labels(y.astype(np.uint8)), torch.from_numpy(y))
    assert torch.equal(load_labels(torch.from_numpy(y).int()), torch.from_numpy(y))
    assert load_labels(np.array(["b", "a", "b"])).tolist() == [1, 0, 1]
    with pytest.raises(ValueError, match=r"^labels: expected 3 labels, one for each .* got 50"):
        load_labels(y, n=3)
    with pytest.raises(TypeError, match="labels: expected integer or string labels, got float64"):
        load_labels(y.astype(float))
    with pytest.raises(ValueError, match=r"shape \[n\], got \[5, 10\]"):
        load_labels(y.reshape(5, 10))
    with pytest.raises(ValueError, match=r"labels: expected integers below 2\^63, got 1844674407"):
        load_labels(np.array([1, 2**64 - 1], np.uint64))
    assert load_labels(["b", "a"]).tolist() == [1, 0]
    assert load_labels([3, 1]).tolist() == [3, 1]


def test_pieces_cover_every_row_once(x, monkeypatch):
    monkeypatch.setattr(dataset, "_PIECE_BYTES", 4 * 6 * 7)
    pieces = list(open_embeddings("x", x).pieces())
    assert [len(piece) for piece in pieces] == [*[7] * 7, 1]
    assert torch.equal(torch.cat(pieces), torch.from_numpy(x))


def test_rows_own_their_memory(x):
    for array in (x, torch.from_numpy(x)):
        opened = open_embeddings("x", array)
        picked = opened.rows(torch.tensor([3, 1]))
        assert torch.equal(picked, torch.from_numpy(x[[3, 1]]))
        picked.zero_()
        assert np.any(x[3])
        whole = opened.rows(slice(0, 2))
        whole.zero_()
        assert np.any(x[0])
