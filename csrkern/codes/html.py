"""HTML of sparse codes for notebooks: a strip of used latents, and the first rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from csrkern.codes.sparse import SparseCodes

ROWS, LATENTS = 8, 8  # shown
BINS, BAR = 256, 80  # columns of the strip; pixels of the longest bar
SAMPLE = 100_000  # rows that the strip is made of


def to_html(codes: SparseCodes) -> str:
    """Return the codes as HTML: a heading, a strip and a table."""
    n, dim = codes.shape
    facts = f"n = {n:,}, k = {codes.k}, dim = {dim:,}, {codes.dtype}, {codes.device}"
    first = codes[:ROWS].detach().cpu().float()
    rows = "".join(_row(number, first) for number in range(len(first)))
    rest = f"<tr><td>…</td><td></td><td>{n - len(first):,} more</td></tr>" if n > len(first) else ""
    return (
        f"<div><p><b>SparseCodes</b> {facts}</p>{_strip(codes)}<table><thead><tr><th>row</th>"
        "<th>active</th><th>strongest latents and values</th></tr></thead><tbody>"
        f"{rows}{rest}</tbody></table></div>"
    )


def _row(number: int, codes: SparseCodes) -> str:
    active = codes.active[number]
    values = codes.values[number][active].tolist()
    latents = codes.indices[number][active].tolist()
    cells = "".join(
        f'<span title="{value:.4g}" style="display:inline-block;margin-right:1em">{latent}'
        f'<span style="display:inline-block;height:.6em;margin-left:.3em;background:#4477aa;'
        f'width:{round(BAR * value / values[0]) if values[0] > 0 else 0}px"></span></span>'
        for latent, value in list(zip(latents, values, strict=True))[:LATENTS]
    )
    more = f" +{len(values) - LATENTS}" if len(values) > LATENTS else ""
    return (
        f'<tr><td>{number}</td><td>{len(values)}</td><td style="text-align:left">{cells}{more}'
        "</td></tr>"
    )


def _strip(codes: SparseCodes) -> str:
    """Return how often latents are used, from the first to the last: darker is more often."""
    some = codes[:SAMPLE].detach()
    bins = min(BINS, codes.dim)
    used = some.indices[some.active].long().clamp(0, codes.dim - 1) * bins // codes.dim
    counts = torch.bincount(used.cpu(), minlength=bins).double()
    if not counts.any():
        return ""
    shades = (counts / counts.max()).sqrt().tolist()
    bars = "".join(
        f'<rect x="{i}" width="1" height="16" fill="#4477aa" fill-opacity="{shade:.2f}"/>'
        for i, shade in enumerate(shades)
        if shade > 0
    )
    return (
        f'<svg viewBox="0 0 {bins} 16" width="100%" height="16" preserveAspectRatio="none" '
        f'role="img"><title>use of latents 0 to {codes.dim - 1}</title>{bars}</svg>'
    )
