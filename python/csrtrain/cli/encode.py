"""The command encode."""

from __future__ import annotations

from typing import Annotated

from csrtrain.cli import shared
from csrtrain.cli.kinds import expect, expect_model


def encode(
    model: shared.Adapter,
    embeddings: shared.Embeddings,
    output: shared.Output,
    k: Annotated[int | None, shared.whole("Active latents a row (default: the model's).")] = None,
    dtype: shared.StoredAs = "float32",
    text_model: shared.TextModelName = None,
    threads: shared.Threads = None,
    as_json: shared.Json = False,
    force: shared.Force = False,
) -> None:
    """Turn embeddings into sparse codes.

    With --text-model, the file names the model that made the embeddings, and search takes words.

    [bold]Example[/bold]

      csrkern encode model embeddings.npy -o codes.safetensors
    """
    shared.check_free(output, force, ".safetensors")
    usage = "csrkern encode MODEL EMBEDDINGS"
    expect_model(model, usage)
    expect(embeddings, "embeddings", usage=usage)
    shared.use_threads(threads)
    from csrkern.embeddings.dataset import open_embeddings
    from csrkern.nn import SparseAutoencoder
    from csrtrain.progress import working
    from csrtrain.recipe import RECIPE_KEY, Recipe

    adapter = SparseAutoencoder.from_pretrained(model)
    with working("reading the embeddings"):
        rows = open_embeddings("embeddings", embeddings)
    with working("encoding", len(rows)) as advance:
        codes = adapter.encode(rows, k, on_rows=advance)
    recipe = Recipe(text_model, model)
    codes.save(output, dtype=dtype, notes={RECIPE_KEY: recipe.to_json()})
    facts = {"output": str(output), "codes": len(codes), "k": codes.k, "dim": codes.dim}
    message = f"Wrote {output}: {len(codes)} codes, {codes.k} of {codes.dim} latents"
    if output.is_file():  # not a device or a pipe
        size = output.stat().st_size / len(codes)
        facts["bytes_per_code"] = size
        message += (
            f", {size:.0f} bytes a code.\nNext: csrkern index {shared.quoted(output)} -o index"
        )
    shared.report(facts, message, as_json, output)
