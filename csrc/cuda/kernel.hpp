// The primitives of the CUDA kernels, for a GPU (nvcc) or simulated on the CPU (any compiler).
//
// A kernel is a struct of its arguments with an operator()(ThreadBlock&), which consists of phases:
// code for one thread, after which all threads of the thread block wait for each other. Only shared
// memory outlives a phase. So the same source runs on a GPU and, thread after thread, in tests/.
#pragma once

#include <cstddef>
#include <cstdint>

#include "csrkern/host_device.hpp"
#include "device.hpp"

#ifndef __CUDACC__
#include "simulated_kernel.hpp"  // in tests/
#else
#include <cuda_runtime.h>
#define CSRKERN_DEVICE __device__ __forceinline__
// Before a loop: the loads of some rounds are in flight at once, or registers are saved.
#define CSRKERN_UNROLL _Pragma("unroll 4")
#define CSRKERN_ROLLED _Pragma("unroll 1")

namespace csrkern::cuda {

class ThreadBlock {
 public:
  CSRKERN_DEVICE explicit ThreadBlock(unsigned char* shared) : shared_(shared) {}

  CSRKERN_DEVICE uint32_t index() const { return blockIdx.x; }
  CSRKERN_DEVICE uint32_t grid() const { return gridDim.x; }
  template <class T>
  CSRKERN_DEVICE T* shared(size_t offset = 0) const {
    return reinterpret_cast<T*>(shared_ + offset);
  }

  template <class Body>
  CSRKERN_DEVICE void phase(const Body& body) {
    body(threadIdx.x);
    __syncthreads();
  }
  // Returns a shared value, which all threads have read before any goes on and may change it.
  template <class T>
  CSRKERN_DEVICE T uniform(const T& value) {
    const T read = value;
    __syncthreads();
    return read;
  }

 private:
  unsigned char* shared_;
};

CSRKERN_DEVICE uint32_t atomic_add(uint32_t* to, uint32_t value) { return atomicAdd(to, value); }
CSRKERN_DEVICE void atomic_add(uint64_t* to, uint64_t value) {
  atomicAdd(reinterpret_cast<unsigned long long*>(to), static_cast<unsigned long long>(value));
}
CSRKERN_DEVICE void atomic_max(uint32_t* to, uint32_t value) { atomicMax(to, value); }
CSRKERN_DEVICE void atomic_min(uint64_t* to, uint64_t value) {
  atomicMin(reinterpret_cast<unsigned long long*>(to), static_cast<unsigned long long>(value));
}
CSRKERN_DEVICE int32_t atomic_swap_if(int32_t* to, int32_t expected, int32_t value) {
  return atomicCAS(to, expected, value);
}
// Returns the value in memory, not the one in a cache of this processor.
CSRKERN_DEVICE uint32_t fresh(const uint32_t* at) {
  return *static_cast<const volatile uint32_t*>(at);
}
CSRKERN_DEVICE uint32_t high_product(uint32_t a, uint32_t b) { return __umulhi(a, b); }
CSRKERN_DEVICE uint32_t bits_of(float value) { return __float_as_uint(value); }
CSRKERN_DEVICE float float_of(uint32_t bits) { return __uint_as_float(bits); }
CSRKERN_DEVICE float from_half(uint16_t half) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(half));
  return value;
}
CSRKERN_DEVICE uint16_t to_half(float value) {
  uint16_t half;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(value));
  return half;
}

template <class Body>
__global__ void __launch_bounds__(Body::kThreads, Body::kPerProcessor)
    run(const __grid_constant__ Body body) {
  extern __shared__ __align__(16) unsigned char shared[];
  ThreadBlock threads(shared);
  body(threads);
}

// Lets a kernel use this much shared memory per thread block. All threads of the process share the
// limit, so it must be the same each time: the most that the device has.
template <class Body>
void allow_shared(size_t bytes) {
  check(cudaFuncSetAttribute(run<Body>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(bytes)),
        Body::kName);
}

template <class Body>
void launch(const Body& body, uint32_t grid, size_t shared, Stream stream) {
  if (grid == 0) return;
  // clang-format off: it does not know launches.
  run<Body><<<grid, Body::kThreads, shared, static_cast<cudaStream_t>(stream)>>>(body);
  // clang-format on
  check(cudaGetLastError(), Body::kName);
}

}  // namespace csrkern::cuda

#endif
