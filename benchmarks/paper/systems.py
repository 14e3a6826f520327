"""Systems that are measured together, ours and every peer's, by the name of their family."""

from __future__ import annotations

from importlib.util import find_spec

import our_systems
import peer_systems
from cases import Build

FAMILIES: dict[str, tuple[Build, str]] = {
    "dense": (peer_systems.faiss_dense, "faiss"),
    "lists": (our_systems.one_stage, "csrkern"),
    "fine": (our_systems.two_stages, "faiss"),
    "alone": (our_systems.fine_alone, "faiss"),
    "alone-principal": (our_systems.fine_alone_principal, "faiss"),
    "alone-projected": (our_systems.fine_alone_projected, "faiss"),
    "alone-narrow": (our_systems.fine_alone_narrow, "faiss"),
    "residual": (peer_systems.faiss_residual, "faiss"),
    "residual-principal": (peer_systems.faiss_residual_principal, "faiss"),
    "principal-lists": (peer_systems.faiss_principal_lists, "faiss"),
    "projected": (peer_systems.faiss_projected, "faiss"),
    "residual-lists": (peer_systems.faiss_residual_lists, "faiss"),
    "flat": (peer_systems.faiss_flat, "faiss"),
    "scann": (peer_systems.scann, "scann"),
    "scann-principal": (peer_systems.scann_principal, "scann"),
    "scann-projected": (peer_systems.scann_projected, "scann"),
    "rabitq": (peer_systems.faiss_rabitq, "faiss"),
    "inverted": (peer_systems.faiss_lists, "faiss"),
    "graphs": (peer_systems.faiss_graphs, "faiss"),
    "usearch": (peer_systems.usearch, "usearch"),
    "matryoshka": (peer_systems.matryoshka, "faiss"),
    "fast": (peer_systems.faiss_additive_fast, "faiss"),
    "pq": (peer_systems.faiss_pq, "faiss"),
    "fine-products": (our_systems.two_stages_of_products, "faiss"),
    "products": (peer_systems.faiss_products, "faiss"),
}
"""Systems that are measured together, and the package that they need."""


def missing() -> dict[str, str]:
    """Families whose package is not installed, with a sentence each."""
    return {
        name: f"{name}: not measured, for {package} is not installed"
        for name, (_, package) in FAMILIES.items()
        if find_spec(package) is None
    }
