// Functions that run on the CPU and, if nvcc compiles them, on a GPU.
#pragma once

#ifdef __CUDACC__
#define CSRKERN_BOTH __host__ __device__
#else
#define CSRKERN_BOTH
#endif
