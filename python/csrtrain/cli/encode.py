"""The command encode."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from csrtrain.cli.io import (
    CodesDtype,
    Embeddings,
    Force,
    Json,
    Output,
    TextModelName,
    Threads,
    check_free,
    quoted,
    report,
    use_threads,
)


def encode(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Folder written by train.")],
    embeddings: Embeddings,
    output: Output,
    k: Annotated[
        int | None, typer.Option(min=1, help="Active latents a row (default: the model's).")
    ] = None,
    dtype: Annotated[
        CodesDtype, typer.Option(help="Precision of the stored values.")
    ] = CodesDtype.FLOAT16,
    text_model: TextModelName = None,
    threads: Threads = None,
    as_json: Json = False,
    force: Force = False,
) -> None:
    """Turn embeddings into sparse codes.

    With --text-model, what made the embeddings is remembered, and search takes words.

    [bold]Example[/bold]

      csrkern encode model embeddings.npy -o codes.safetensors
    """
    check_free(output, force, ".safetensors")
    use_threads(threads)
    from csrkern.embeddings.dataset import open_embeddings
    from csrkern.nn import SparseAutoencoder
    from csrtrain.progress import working
    from csrtrain.texts import RECIPE_KEY, Recipe

    adapter = SparseAutoencoder.from_pretrained(model).eval()
    with working("reading the embeddings"):
        rows = open_embeddings("embeddings", embeddings)
    with working("encoding", len(rows)) as advance:
        codes = adapter.encode(rows, k, on_rows=advance)
    recipe = Recipe(text_model, str(model))
    codes.save(output, dtype=dtype.value, notes={RECIPE_KEY: recipe.to_json()})
    facts = {"output": str(output), "codes": len(codes), "k": codes.k, "dim": codes.dim}
    message = f"Wrote {output}: {len(codes)} codes, {codes.k} of {codes.dim} latents"
    if output.is_file():  # not a device or a pipe
        size = output.stat().st_size / len(codes)
        facts["bytes_per_code"] = size
        message += f", {size:.0f} bytes a code.\nNext: csrkern index {quoted(output)} -o index"
    report(facts, message, as_json, output)
