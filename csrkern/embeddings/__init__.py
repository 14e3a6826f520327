"""Embeddings and labels from files and arrays, checked, for models, trainer and Ray workers."""
