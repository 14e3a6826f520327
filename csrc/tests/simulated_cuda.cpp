// A simulated GPU: csrc/cuda compiled for the CPU, with host memory instead of device memory.
#include "simulated_cuda.hpp"

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>

#include "device.hpp"

namespace csrkern::cuda {

Simulated simulated;

namespace {

std::mutex mutex;
struct Allocation {
  size_t bytes;
  int device;
};
std::map<void*, Allocation> allocations;
thread_local int current = 0;

void expect_device(int device) {
  if (device >= 0 && device < simulated.devices) return;
  throw Error("expected a CUDA device in 0.." + std::to_string(simulated.devices - 1) + ", got " +
              std::to_string(device));
}

// Tests in Python say it by the environment.
size_t total_bytes() {
  const char* given = std::getenv("SIMULATED_CUDA_BYTES");
  return given == nullptr ? simulated.total_bytes : std::strtoull(given, nullptr, 10);
}

}  // namespace

size_t simulated_bytes_in_use(int device) {
  const std::lock_guard<std::mutex> lock(mutex);
  size_t sum = 0;
  for (const auto& [data, allocation] : allocations) {
    if (allocation.device == device) sum += allocation.bytes;
  }
  return sum;
}

int current_device() { return current; }
int count_devices() noexcept { return simulated.devices; }

DeviceInfo device_info(int device) {
  expect_device(device);
  const size_t used = simulated_bytes_in_use(device), total = total_bytes();
  return {"simulated", simulated.processors, 232448, 233472, total > used ? total - used : 0,
          total};
}

UseDevice::UseDevice(int device) : device_(device), before_(current) {
  expect_device(device);
  current = device;
}
UseDevice::~UseDevice() {
  if (before_ != device_) current = before_;
}

DeviceMemory::DeviceMemory(size_t bytes, const char* what) : bytes_(bytes) {
  if (bytes == 0) return;
  if (simulated_bytes_in_use(current) + bytes > total_bytes()) {
    throw OutOfMemory(std::to_string(bytes) + " bytes of device memory for " + what +
                      ": out of memory");
  }
  data_ = std::malloc(bytes);
  std::memset(data_, 0xa5, bytes);  // what is not written shows
  const std::lock_guard<std::mutex> lock(mutex);
  allocations[data_] = {bytes, current};
}

DeviceMemory::~DeviceMemory() {
  if (data_ == nullptr) return;
  const std::lock_guard<std::mutex> lock(mutex);
  allocations.erase(data_);
  std::free(data_);
}

void copy(void* to, const void* from, size_t bytes, Stream, const char*) {
  if (bytes > 0) std::memcpy(to, from, bytes);
}
void clear(void* to, size_t bytes, Stream, const char*) {
  if (bytes > 0) std::memset(to, 0, bytes);
}
void wait(Stream, const char*) {}
void check(int, const char*) {}
Stream make_stream() { return nullptr; }
void free_stream(Stream) noexcept {}

}  // namespace csrkern::cuda
