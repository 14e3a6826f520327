// What the CUDA kernels are written in, for a GPU (nvcc) or simulated on the CPU (any compiler).
//
// A kernel is a struct of its arguments with an operator()(Block&), made of phases: code for one
// thread, after which all threads of the block wait for each other. Nothing that a thread holds
// outlives a phase; what they share does. So the same source runs on a GPU and, thread after
// thread, in tests/.
#pragma once

#include <cstddef>
#include <cstdint>

#include "device.hpp"

#ifdef __CUDACC__
#include <cuda_runtime.h>
#define CSRKERN_DEVICE __device__ __forceinline__
#define CSRKERN_BOTH __host__ __device__
#else
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>
#include <vector>

#include "csrkern/float_bits.hpp"
#include "csrkern/index_kernels.hpp"
#define CSRKERN_DEVICE inline
#define CSRKERN_BOTH
#endif

namespace csrkern::cuda {

#ifdef __CUDACC__

class Block {
 public:
  CSRKERN_DEVICE explicit Block(unsigned char* shared) : shared_(shared) {}

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
  // A shared value that all threads have read before any goes on, and may change it.
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
// The value in memory, not one that a cache of this processor kept.
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
  Block block(shared);
  body(block);
}

// Lets a kernel use that much shared memory a block; once for each device.
template <class Body>
void allow_shared(size_t bytes) {
  check(cudaFuncSetAttribute(run<Body>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(bytes)),
        Body::kName);
}

template <class Body>
void launch(const Body& body, uint32_t grid, size_t shared, Stream stream) {
  if (grid == 0) return;
  run<Body><<<grid, Body::kThreads, shared, static_cast<cudaStream_t>(stream)>>>(body);
  check(cudaGetLastError(), Body::kName);
}

#else

// Threads run one after the other, in another order in each phase: what depends on the order
// within a phase gives other results.
class Block {
 public:
  Block(unsigned char* shared, uint32_t index, uint32_t grid, uint32_t threads)
      : shared_(shared), index_(index), grid_(grid), threads_(threads) {}

  uint32_t index() const { return index_; }
  uint32_t grid() const { return grid_; }
  template <class T>
  T* shared(size_t offset = 0) const {
    return reinterpret_cast<T*>(shared_ + offset);
  }

  template <class Body>
  void phase(const Body& body) {
    state_ = state_ * 1664525 + 1013904223;
    const uint32_t first = state_ >> 8, step = (state_ >> 16) | 1;  // odd: visits all of 2^n
    for (uint32_t i = 0; i < threads_; ++i) body((first + i * step) & (threads_ - 1));
  }
  template <class T>
  T uniform(const T& value) {
    return value;
  }

 private:
  unsigned char* shared_;
  uint32_t index_, grid_, threads_;
  uint32_t state_ = 1 + index_;
};

template <class T>
T atomic_add(T* to, T value) {
  const T before = *to;
  *to = before + value;
  return before;
}
inline void atomic_max(uint32_t* to, uint32_t value) { *to = std::max(*to, value); }
inline void atomic_min(uint64_t* to, uint64_t value) { *to = std::min(*to, value); }
inline int32_t atomic_swap_if(int32_t* to, int32_t expected, int32_t value) {
  const int32_t before = *to;
  if (before == expected) *to = value;
  return before;
}
inline uint32_t fresh(const uint32_t* at) { return *at; }
inline uint32_t high_product(uint32_t a, uint32_t b) {
  return static_cast<uint32_t>(static_cast<uint64_t>(a) * b >> 32);
}
inline float from_half(uint16_t half) { return half_to_float(half); }
inline uint16_t to_half(float value) {
  uint16_t half;
  index_kernels().to_half(&value, 1, &half);
  return half;
}

template <class Body>
void allow_shared(size_t) {}

// Blocks in an order of their own, each in shared memory that ends where it ends.
template <class Body>
void launch(const Body& body, uint32_t grid, size_t shared, Stream) {
  static_assert((Body::kThreads & (Body::kThreads - 1)) == 0, "threads are visited in 2^n steps");
  std::vector<uint32_t> order(grid);
  std::iota(order.begin(), order.end(), 0);
  uint64_t state = grid;
  for (uint32_t i = grid; i > 1; --i) {
    state = state * 6364136223846793005 + 1442695040888963407;
    std::swap(order[i - 1], order[(state >> 33) % i]);
  }
  for (const uint32_t index : order) {
    const std::unique_ptr<uint64_t[]> memory(new uint64_t[(shared + 7) / 8]);
    auto* bytes = reinterpret_cast<unsigned char*>(memory.get());
    std::memset(bytes, 0xa5, (shared + 7) / 8 * 8);
    Block block(bytes, index, grid, Body::kThreads);
    body(block);
  }
}

#endif

}  // namespace csrkern::cuda
