"""Fingerprints: a model's, and how codes, files and indexes carry and compare them."""

from __future__ import annotations

import copy
import io
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree

import csrkern
from csrkern import _C, InvertedIndex, ModelMismatchError, PackedCodes, Rerank, SparseCodes
from csrkern._fingerprint import fingerprint_of_codes
from csrkern.identity import check_same_model
from csrkern.index.file import HEADER
from csrkern.nn import SparseAutoencoder
from csrtrain import TrainConfig, train_two

D, H, K = 8, 32, 4
OTHER = "00112233445566ff"


def make(seed: int = 0, **options) -> SparseAutoencoder:
    torch.manual_seed(seed)
    model = SparseAutoencoder(D, H, **{"k": K, **options})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def rows(n: int = 20, seed: int = 7) -> torch.Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def model() -> SparseAutoencoder:
    return make()


@pytest.fixture
def codes(model) -> SparseCodes:
    return model.encode(rows()).detach()


# ---- of a model -----------------------------------------------------------------------


def test_it_is_the_hash_that_is_documented():
    """Files keep it: another hash would make them strangers to their own models."""
    model = SparseAutoencoder(2, 3, 1).eval()
    with torch.no_grad():
        model.encoder.weight.copy_(torch.arange(6.0).reshape(3, 2))
        model.pre_bias.copy_(torch.tensor([0.5, -1.0]))
        model.latent_bias.copy_(torch.tensor([0.25, 0.0, 3.0]))
    assert model.fingerprint == "a3c04cae37cc6cb9"


def test_it_tells_of_what_determines_codes_and_of_nothing_else(model, tmp_path):
    own = model.fingerprint
    model.save_pretrained(tmp_path / "elsewhere")
    loaded = SparseAutoencoder.from_pretrained(tmp_path / "elsewhere")
    assert not loaded.training
    same = [loaded, copy.deepcopy(model), pickle.loads(pickle.dumps(model)), make(k=9), make()]
    same[4].k, same[4].dead_threshold = 2, 5
    untied = make(tied=False)
    untied.load_state_dict(model.state_dict(), strict=False)
    with torch.no_grad():
        untied.decoder.linear.weight.add_(1)
    assert {one.fingerprint for one in (*same, untied, copy.deepcopy(model).double())} == {own}
    others = [make(1), make(standardize=True), copy.deepcopy(model).half()]
    for name in ("encoder.weight", "latent_bias", "pre_bias"):
        other = copy.deepcopy(model)
        with torch.no_grad():
            other.get_parameter(name).view(-1)[-1] += 1
        others.append(other)
    assert len({own, *(one.fingerprint for one in others)}) == len(others) + 1


def steps(model: SparseAutoencoder, optimizer: torch.optim.Optimizer) -> None:
    for _ in range(2):
        optimizer.zero_grad()
        model(rows())[0].square().sum().backward()
        optimizer.step()


def test_models_that_share_latents_have_one(tmp_path):
    torch.manual_seed(3)
    image, text = make(1), SparseAutoencoder(5, H, K).eval()
    alone = image.fingerprint, text.fingerprint
    image.share_latents_with(text)
    shared = image.fingerprint
    assert shared == text.fingerprint
    assert shared not in alone
    index = InvertedIndex.build(image.encode(rows()))
    index.search(text.encode(torch.randn(4, 5)), 3)
    text.save_pretrained(tmp_path / "text")
    assert SparseAutoencoder.from_pretrained(tmp_path / "text").fingerprint == shared
    assert SparseAutoencoder(**text.config()).partner == text.partner == alone[0]
    with torch.no_grad():
        text.latent_bias.add_(1)
    assert text.fingerprint != image.fingerprint == shared
    with pytest.raises(ValueError, match="other: expected a model of 32 latents, got 16"):
        image.share_latents_with(SparseAutoencoder(D, 16, K))
    config = json.loads((tmp_path / "text/config.json").read_text())
    (tmp_path / "text/config.json").write_text(json.dumps({**config, "partner": "it"}))
    with pytest.raises(ValueError, match="json: partner: expected 16 hexadecimal digits"):
        SparseAutoencoder.from_pretrained(tmp_path / "text")


def test_adapters_that_are_trained_together_have_one():
    x = rows(64).numpy()
    config = TrainConfig(contrast="clip", k=4, hidden_dim=H, steps=3, batch_size=32)
    first, second = train_two(x, x[:, :5].copy(), config, progress=False)
    assert first.encode(rows()).fingerprint == second.encode(rows()[:, :5]).fingerprint
    assert first.fingerprint == second.fingerprint


CHANGES = {
    "fused": lambda m: steps(m, torch.optim.Adam(m.parameters(), fused=True)),
    "foreach": lambda m: steps(m, torch.optim.Adam(m.parameters(), foreach=True)),
    "data": lambda m: m.encoder.weight.data.mul_(2),
    "NumPy": lambda m: np.negative(m.latent_bias.detach().numpy(), m.latent_bias.detach().numpy()),
    "assignment": lambda m: setattr(m, "pre_bias", torch.nn.Parameter(m.pre_bias + 1)),
    "data assigned": lambda m: setattr(m.encoder.weight, "data", m.encoder.weight.data * 2),
    "a file": lambda m: m.load_state_dict(make(5).state_dict()),
    "rounding": lambda m: m.half().float(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_it_follows_every_change(change, model):
    own = model.fingerprint
    assert model.encode(rows()).fingerprint == own
    CHANGES[change](model)
    assert model.encode(rows()).fingerprint == model.fingerprint != own
    assert model.fingerprint == copy.deepcopy(model).fingerprint


def test_it_follows_steps_that_leave_no_trace_in_a_tensor(model, monkeypatch):
    """As of CUDA graphs, on a device whose memory cannot be read without waiting."""
    monkeypatch.setattr("csrkern._fingerprint._state", lambda tensor: (0, 0, b""))
    own = model.fingerprint
    model.train()
    model.encoder.weight.data.mul_(2)
    assert model.fingerprint != own
    assert model.eval().fingerprint != own


def test_it_is_computed_once(model, monkeypatch):
    from csrkern import _fingerprint as fingerprint

    computed = []

    def digest(*arguments):
        computed.append(1)
        return OTHER

    monkeypatch.setattr(fingerprint, "digest", digest)
    for _ in range(3):
        assert model.fingerprint == OTHER
        with torch.inference_mode():
            assert model.encode(rows()).fingerprint == OTHER
        model.eval()
    assert len(computed) == 1
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        assert model.encode(rows()).fingerprint is None
        out, found = model(rows())
        assert found.fingerprint is None
        assert model.autoencode(rows(), [2, 4])[0].fingerprint is None
        out.sum().backward()
        optimizer.step()
    assert len(computed) == 1


def test_weights_of_every_kind(model):
    strided = copy.deepcopy(model)
    strided.encoder.weight = torch.nn.Parameter(model.encoder.weight.detach().T.contiguous().T)
    assert strided.fingerprint == model.fingerprint
    assert strided.encode(rows()).fingerprint == model.fingerprint
    half = copy.deepcopy(model).to(torch.bfloat16)
    assert half.encode(rows().bfloat16()).fingerprint == half.fingerprint
    with torch.inference_mode():
        inferred = make()
        assert inferred.encode(rows()).fingerprint == model.fingerprint
    with pytest.raises(
        ValueError, match=r"expected a model with its weights in memory, got .* meta"
    ):
        copy.deepcopy(model).to("meta").fingerprint  # noqa: B018


# ---- where it would cost --------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")  # of torch.jit
def test_compiled_and_exported_encoders_are_as_before(model, codes):
    torch._dynamo.reset()
    compiled = torch.compile(model.encode, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (3, 8):
        found = compiled(rows(n))
        assert found.equal(model.encode(rows(n)))
        assert found.fingerprint is None

    class Encode(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x):
            return self.model.encode(x)

    class Values(Encode):
        def forward(self, x):
            return self.model.encode(x).values

    for strict in (False, True):
        exported = torch.export.export(Encode().eval(), (rows(),), strict=strict)
        found = exported.module()(rows())
        assert found.equal(codes)
        assert found.fingerprint is None
    traced = torch.jit.trace(Values().eval(), rows())
    assert torch.equal(traced(rows()), codes.values)


@pytest.mark.skipif(torch.__version__ < (2, 12), reason="needs PyTorch 2.12")
def test_exported_functions_take_codes_of_any_model(codes):
    class Power(torch.nn.Module):
        def forward(self, codes):
            return codes.power(0.5)

    for strict in (False, True):
        exported = torch.export.export(Power(), (codes,), strict=strict).module()
        found = exported(make(1).encode(rows()))
        assert found.fingerprint is None  # not that of the codes it was exported with


def test_under_transforms_and_modes_codes_have_none(model):
    encoder = model.encoder.weight, model.latent_bias, model.pre_bias
    found = []

    def ask(x):
        found.append(fingerprint_of_codes(model, encoder))
        return x.sum()

    torch.vmap(ask)(rows())
    torch.func.grad(ask)(rows())
    with FakeTensorMode(allow_non_fake_inputs=True):
        ask(rows())
    assert found == [None] * 3
    assert model.fingerprint


# ---- of codes -------------------------------------------------------------------------

KEPT = {
    "rows": lambda c: c[2:9],
    "a row": lambda c: c[3],
    "list": lambda c: c[[1, 0]],
    "mask": lambda c: c[np.arange(len(c)) % 2 == 0],
    "truncate": lambda c: c.truncate(2),
    "dtype": lambda c: c.to(torch.float16),
    "wider": lambda c: c.to(torch.float64),
    "detach": lambda c: c.detach(),
    "normalize": lambda c: c.normalize(),
    "power": lambda c: c.power(0.5),
    "validate": lambda c: c.validate(),
    "cat": lambda c: SparseCodes.cat([c[:3], c[3:]]),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda c: pickle.loads(pickle.dumps(c)),
    "pytree": lambda c: _pytree.tree_map(lambda t: t.clone(), c),
    "pack": lambda c: PackedCodes.pack(c).unpack(),
    "packed rows": lambda c: PackedCodes.pack(c)[1:3].unpack(),
    "packed pickle": lambda c: pickle.loads(pickle.dumps(PackedCodes.pack(c))).unpack(),
}


@pytest.mark.parametrize("kept", KEPT)
def test_codes_keep_it(kept, codes, model):
    assert codes.fingerprint == model.fingerprint
    assert KEPT[kept](codes).fingerprint == model.fingerprint
    codes.fingerprint = None
    assert KEPT[kept](codes).fingerprint is None


def test_whole_corpora_have_it(model):
    from csrtrain.evaluation.least_squares import encode_omp, refit

    own = model.fingerprint
    assert model.encode(rows()).fingerprint == own
    assert model.train().encode(rows().numpy()).fingerprint == own
    assert model.eval()(rows())[1].fingerprint == own
    assert model.autoencode(rows(), [2, K])[0].fingerprint == own
    assert encode_omp(model, rows()).fingerprint == own
    assert refit(model, rows(), model.encode(rows())).fingerprint == own


def test_codes_of_two_models_do_not_mix(codes):
    other, unknown = make(1).encode(rows()), copy.copy(codes)
    unknown.fingerprint = None
    with pytest.raises(ModelMismatchError, match=f"{codes.fingerprint} and {other.fingerprint}"):
        SparseCodes.cat([codes, other])
    assert SparseCodes.cat([codes, unknown]).fingerprint is None
    with pytest.raises(ModelMismatchError):
        SparseCodes.cat([codes, unknown, other])
    assert codes.equal(unknown)  # which compares codes, not models


def test_trees_of_codes_of_two_models_are_alike(codes):
    other = make(1).encode(rows())
    assert _pytree.tree_structure(codes) == _pytree.tree_structure(other)
    together = _pytree.tree_map(lambda a, b: a + b, codes, other)
    assert torch.equal(together.values, codes.values + other.values)
    spec = _pytree.tree_structure(codes)
    assert _pytree.treespec_loads(_pytree.treespec_dumps(spec)) == spec


# ---- in files -------------------------------------------------------------------------


def save_codes(codes, path):
    codes.save(path)


def save_packed(codes, path):
    PackedCodes.pack(codes).save(path)


FORMS = {"codes": (save_codes, SparseCodes.load), "packed": (save_packed, PackedCodes.load)}


@pytest.mark.parametrize("form", FORMS)
def test_files_of_codes_hold_it(form, codes, tmp_path):
    save, load = FORMS[form]
    path = tmp_path / "codes"
    save(codes, path)
    assert load(path).fingerprint == codes.fingerprint
    header = json.loads(metadata(path)["csrkern"])
    assert header["version"] == 1  # earlier releases pass over it
    for forged in ("", OTHER.upper(), OTHER + "0", 7):
        rewrite(path, {**header, "fingerprint": forged})
        with pytest.raises(ValueError, match="damaged: fingerprint: expected 16 hexadecimal"):
            load(path)
    del header["fingerprint"]  # as earlier releases wrote it
    rewrite(path, header)
    assert load(path).fingerprint is None
    codes.fingerprint = None
    save(codes, path)
    assert "fingerprint" not in json.loads(metadata(path)["csrkern"])
    codes.fingerprint = "a name"
    with pytest.raises(ValueError, match="fingerprint: expected 16 hexadecimal digits"):
        save(codes, path)


def test_tables_hold_it(codes, tmp_path):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    from csrkern.integrations.frames import FINGERPRINT, from_arrow, to_arrow

    pq.write_table(to_arrow(codes), tmp_path / "codes.parquet")
    table = pq.read_table(tmp_path / "codes.parquet")
    assert from_arrow(table, H).fingerprint == codes.fingerprint
    assert from_arrow(table.to_batches()[0], H).fingerprint == codes.fingerprint
    assert from_arrow(table.replace_schema_metadata(), H).fingerprint is None
    assert from_arrow(pa.table(table.to_pydict()), H).fingerprint is None
    codes.fingerprint = None
    assert from_arrow(to_arrow(codes), H).fingerprint is None
    with pytest.raises(ValueError, match="fingerprint of the table: expected 16"):
        from_arrow(table.replace_schema_metadata({FINGERPRINT: b"\xff"}), H)


def metadata(path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        return file.metadata()


def rewrite(path, header) -> None:
    save_file(load_file(path), path, metadata={"csrkern": json.dumps(header)})


def forge_index(folder, change) -> None:
    header = json.loads((folder / HEADER).read_text())
    change(header["index"])
    body = json.dumps(header["index"], sort_keys=True, separators=(",", ":")).encode()
    (folder / HEADER).write_text(json.dumps({**header, "crc32c": _C.crc32c(body)}))


def test_indexes_on_disk_hold_it(codes, tmp_path):
    InvertedIndex.build(codes).save(tmp_path / "index")
    assert json.loads((tmp_path / "index" / HEADER).read_text())["version"] == 2
    index = InvertedIndex.load(tmp_path / "index")
    for copied in (index, pickle.loads(pickle.dumps(index)), index.truncate(2)):
        assert copied.fingerprint == copied.stats()["fingerprint"] == codes.fingerprint
    forge_index(tmp_path / "index", lambda facts: facts.update(fingerprint="x"))
    with pytest.raises(ValueError, match="damaged"):
        InvertedIndex.load(tmp_path / "index")
    forge_index(tmp_path / "index", lambda facts: facts.pop("fingerprint"))
    assert InvertedIndex.load(tmp_path / "index").fingerprint is None


# ---- where two meet -------------------------------------------------------------------

SEARCHES = {
    "search": lambda index, queries, **options: index.search(queries, 3, **options),
    "fast": lambda index, queries, **options: index.search(queries, 3, mode="fast", **options),
    "above": lambda index, queries, **options: index.search_above(queries, 0.1, **options),
    "score": lambda index, queries, **options: index.explain(queries, 0, **options),
}


@pytest.mark.parametrize("way", SEARCHES)
def test_queries_of_another_model_are_refused(way, codes):
    search, other = SEARCHES[way], make(1)
    index = InvertedIndex.build(codes)
    queries = other.encode(rows(4))
    with pytest.raises(ModelMismatchError) as caught:
        search(index, queries)
    message = str(caught.value)
    assert isinstance(caught.value, ValueError)
    for part in (index.fingerprint, other.fingerprint, "encode", "any_model=True"):
        assert part in message
    forced = search(index, queries, any_model=True)
    for got, want in zip(forced, search(index, (*queries.numpy(),)), strict=True):
        np.testing.assert_array_equal(got, want)
    search(index, queries.to_scipy())  # not known
    index.fingerprint = None
    search(index, queries)


def test_dense_queries_of_another_model_are_refused(model, codes):
    index = InvertedIndex.build(codes, metric="ip", norms=model.norms(codes))
    for space in ("embeddings", "adapter"):
        rerank = model.rerank(rows(), space=space)
        index.search(codes, rerank=rerank)
        other = make(1).rerank(rows(), space=space)
        with pytest.raises(ModelMismatchError, match=r"^rerank: made by another model"):
            index.search(codes, rerank=other)
        index.search(codes, rerank=other, any_model=True)
    index.search_dense(Rerank(*[rerank.dense_queries]).dense_queries, 3)


def test_codes_of_another_model_are_not_added(codes):
    other = make(1).encode(rows())
    index = InvertedIndex.build(codes)
    with pytest.raises(ModelMismatchError, match=r"^codes: made by another model"):
        index.add(other)
    assert len(index) == len(codes)
    index.add(other.to_scipy())
    index.add(other, any_model=True)
    assert len(index) == 3 * len(codes)
    assert index.fingerprint == codes.fingerprint


def test_an_index_has_the_model_of_its_first_codes(codes):
    other = make(1).encode(rows())
    index = InvertedIndex.build((np.zeros((0, 1)), np.zeros((0, 1), int)), dim=H)
    assert index.fingerprint is None
    index.add(codes)
    assert index.fingerprint == codes.fingerprint
    index.remove(index.ids)
    index.add(other)  # nothing of the first model is left
    assert index.fingerprint == other.fingerprint
    index = InvertedIndex.build(codes.to_scipy())
    index.add(codes)  # among codes of which nothing is known
    assert index.fingerprint is None


def test_pieces_of_two_models_are_not_built_into_one_index(codes, tmp_path):
    other = make(1).encode(rows())
    with pytest.raises(ModelMismatchError, match="than those before"):
        InvertedIndex.build_streaming([codes, other], tmp_path / "index")
    assert not (tmp_path / "index" / HEADER).exists()
    index = InvertedIndex.build_streaming([codes[:0], codes, codes], tmp_path / "index")
    assert index.fingerprint == codes.fingerprint
    codes.save(tmp_path / "codes")
    index = InvertedIndex.build_streaming(tmp_path / "codes", tmp_path / "index", chunk=7)
    assert index.fingerprint == codes.fingerprint


def test_indexes_on_a_gpu_compare(device, codes):
    index, other = InvertedIndex.build(codes), make(1).encode(rows(4))
    there = index.to("cuda")
    built = csrkern.CudaIndex.build(codes.to(device))
    for cuda in (there, built):
        assert cuda.fingerprint == cuda.stats()["fingerprint"] == codes.fingerprint
        for queries in (other, other.to(device)):
            with pytest.raises(ModelMismatchError, match=r"^queries: made by another model"):
                cuda.search(queries, 3)
            cuda.search(queries, 3, any_model=True)
        with pytest.raises(ModelMismatchError, match=r"^rerank: made by another model"):
            cuda.search(codes, 3, rerank=make(1).rerank(rows()))


def test_unknown_models_pass():
    for one, two in ((None, None), (None, OTHER), (OTHER, None), (OTHER, OTHER)):
        check_same_model("codes", one, two)


def test_needs_no_torch(codes, tmp_path):
    codes.save(tmp_path / "codes")
    script = f"""
import sys
import csrkern
index = csrkern.InvertedIndex.build_streaming({str(tmp_path / "codes")!r}, {str(tmp_path / "i")!r})
assert csrkern.InvertedIndex.load({str(tmp_path / "i")!r}).fingerprint == {codes.fingerprint!r}
assert issubclass(csrkern.ModelMismatchError, ValueError)
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_torch_save_keeps_models_and_codes(model, codes):
    for thing in (model, codes):
        file = io.BytesIO()
        torch.save(thing, file)
        file.seek(0)
        assert torch.load(file, weights_only=False).fingerprint == model.fingerprint
