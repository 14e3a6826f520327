// The properties of the simulated GPU.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace csrkern::cuda {

struct Simulated {
  int devices = 2;
  int32_t processors = 2;
  size_t total_bytes = size_t{1} << 30;  // of each device
  uint32_t workers = 1;                  // threads of the CPU that run a thread block
  std::atomic<int> launches{0};          // of kernels, so far
};

extern Simulated simulated;

size_t simulated_bytes_in_use(int device = 0);

}  // namespace csrkern::cuda
