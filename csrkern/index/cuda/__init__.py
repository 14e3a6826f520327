"""CudaIndex: an InvertedIndex on one or several GPUs."""
