// Simulates a GPU for kernels: what csrc/cuda/kernel.hpp gives nvcc, for any C++ compiler.
//
// A launch runs its thread blocks one after the other, and the threads of each likewise, in a
// different order in each phase: code that depends on the order within a phase gives different
// results. Or several threads of the CPU (`Simulated::workers`) run a thread block, as warps of a
// GPU do: each goes through the whole kernel with its own variables, runs its share of every phase,
// and waits for the others at the end of a phase. So a thread sanitizer sees a missing barrier, and
// a barrier that not all reach hangs.
#pragma once

#include <pthread.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "csrkern/float_bits.hpp"
#include "device.hpp"
#include "simulated_cuda.hpp"
#define CSRKERN_DEVICE inline
#define CSRKERN_UNROLL
#define CSRKERN_ROLLED

namespace csrkern::cuda {

class Barrier {
 public:
  explicit Barrier(uint32_t workers) : workers_(workers) {
    pthread_barrier_init(&barrier_, nullptr, workers);
  }
  ~Barrier() { pthread_barrier_destroy(&barrier_); }
  Barrier(const Barrier&) = delete;

  void wait() {
    if (workers_ > 1) pthread_barrier_wait(&barrier_);
  }

 private:
  uint32_t workers_;
  pthread_barrier_t barrier_;
};

// A thread block, as one of its workers sees it.
class ThreadBlock {
 public:
  struct Place {
    uint32_t index, grid, threads, worker, workers;
  };

  ThreadBlock(const Place& place, unsigned char* shared, Barrier& barrier)
      : place_(place), shared_(shared), barrier_(barrier), state_(1 + place.index) {}

  uint32_t index() const { return place_.index; }
  uint32_t grid() const { return place_.grid; }
  template <class T>
  T* shared(size_t offset = 0) const {
    return reinterpret_cast<T*>(shared_ + offset);
  }

  template <class Body>
  void phase(const Body& body) {
    state_ = state_ * 1664525 + 1013904223;
    const uint32_t first = state_ >> 8, step = (state_ >> 16) | 1;  // odd: visits all of 2^n
    for (uint32_t i = place_.worker; i < place_.threads; i += place_.workers) {
      body((first + i * step) & (place_.threads - 1));
    }
    barrier_.wait();
  }
  template <class T>
  T uniform(const T& value) {
    const T read = value;
    barrier_.wait();
    return read;
  }

 private:
  Place place_;
  unsigned char* shared_;
  Barrier& barrier_;
  uint32_t state_;
};

template <class T>
T atomic_add(T* to, T value) {
  return __atomic_fetch_add(to, value, __ATOMIC_RELAXED);
}
inline void atomic_max(uint32_t* to, uint32_t value) {
  uint32_t seen = __atomic_load_n(to, __ATOMIC_RELAXED);
  while (seen < value &&
         !__atomic_compare_exchange_n(to, &seen, value, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
}
inline void atomic_min(uint64_t* to, uint64_t value) {
  uint64_t seen = __atomic_load_n(to, __ATOMIC_RELAXED);
  while (seen > value &&
         !__atomic_compare_exchange_n(to, &seen, value, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
}
inline int32_t atomic_swap_if(int32_t* to, int32_t expected, int32_t value) {
  __atomic_compare_exchange_n(to, &expected, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
  return expected;
}
inline uint32_t fresh(const uint32_t* at) { return __atomic_load_n(at, __ATOMIC_RELAXED); }
inline uint32_t high_product(uint32_t a, uint32_t b) {
  return static_cast<uint32_t>(static_cast<uint64_t>(a) * b >> 32);
}
inline float from_half(uint16_t half) { return half_to_float(half); }
inline uint16_t to_half(float value) { return float_to_half(value); }

// The most shared memory that a kernel may use. As on a GPU, the last setting counts for all
// threads that launch it.
template <class Body>
size_t& shared_limit() {
  static size_t limit = 48 << 10;
  return limit;
}

template <class Body>
void allow_shared(size_t bytes) {
  if (bytes < shared_limit<Body>()) {
    throw std::logic_error(std::string(Body::kName) + ": another thread may launch it with more");
  }
  if (bytes > shared_limit<Body>()) shared_limit<Body>() = bytes;
}

// Runs each thread block in shared memory that ends where the allocation ends.
template <class Body>
void launch(const Body& body, uint32_t grid, size_t shared, Stream) {
  static_assert((Body::kThreads & (Body::kThreads - 1)) == 0, "threads are visited in 2^n steps");
  ++simulated.launches;
  if (shared > shared_limit<Body>()) {
    throw std::logic_error(std::string(Body::kName) + ": more shared memory than was allowed");
  }
  std::vector<uint32_t> order(grid);
  std::iota(order.begin(), order.end(), 0);
  uint64_t state = grid;
  for (uint32_t i = grid; i > 1; --i) {
    state = state * 6364136223846793005 + 1442695040888963407;
    std::swap(order[i - 1], order[(state >> 33) % i]);
  }
  const uint32_t workers = simulated.workers, at_once = workers > 1 ? 2 : 1;
  // Runs thread blocks first, first + at_once, ... of the order as one of the workers that share
  // them.
  const auto work = [&](uint32_t worker, uint32_t first, Barrier& barrier, unsigned char* memory) {
    for (uint32_t i = first; i < grid; i += at_once) {
      if (worker == 0) std::memset(memory, 0xa5, shared);
      barrier.wait();
      ThreadBlock block({order[i], grid, Body::kThreads, worker, workers}, memory, barrier);
      body(block);
      barrier.wait();
    }
  };
  std::vector<std::unique_ptr<uint64_t[]>> memories;
  std::vector<std::unique_ptr<Barrier>> barriers;
  std::vector<std::thread> threads;
  for (uint32_t first = 0; first < at_once; ++first) {
    memories.emplace_back(new uint64_t[(shared + 7) / 8]);
    barriers.push_back(std::make_unique<Barrier>(workers));
    auto* memory = reinterpret_cast<unsigned char*>(memories.back().get());
    Barrier& barrier = *barriers.back();
    if (workers == 1) {
      work(0, first, barrier, memory);
      continue;
    }
    for (uint32_t worker = 0; worker < workers; ++worker) {
      threads.emplace_back(
          [&work, worker, first, &barrier, memory] { work(worker, first, barrier, memory); });
    }
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace csrkern::cuda
