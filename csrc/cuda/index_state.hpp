// The memory of an index on a GPU.
#pragma once

#include <mutex>
#include <vector>

#include "device.hpp"
#include "index_arrays.hpp"

namespace csrkern::cuda {

// Memory and a stream for one search from the host.
struct Scratch {
  DeviceMemory memory;
  Stream stream = nullptr;
};

struct Index::Arrays {
  int device = 0;
  DeviceInfo info;
  IndexOptions options;
  int64_t n = 0;
  int64_t entries = 0;
  uint32_t row_width = 0;
  float gather_cost = 0.5f;  // until it is measured
  IndexArrays view{};
  DeviceMemory starts, latents, values, scales, offsets, postings, impacts, ids, norms, work;
  std::mutex lending;
  std::vector<Scratch> scratch;

  ~Arrays() {
    for (const Scratch& one : scratch) free_stream(one.stream);
  }
};

inline size_t latent_bytes(const IndexOptions& options) { return options.dim <= 65536 ? 2 : 4; }

}  // namespace csrkern::cuda
