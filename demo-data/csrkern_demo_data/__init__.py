"""The files that `csrtrain.demo.data` reads: WordNet definitions and their embeddings."""
