"""Modules: TopKReLU and the sparse autoencoder of CSR."""

from csrkern.nn.modules import SparseAutoencoder, TopKReLU

__all__ = ["SparseAutoencoder", "TopKReLU"]
