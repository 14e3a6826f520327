// Devices, their memory and their streams. Every error becomes an exception.
#pragma once

#include <cstddef>
#include <cstdint>

#include "csrkern/cuda_index.hpp"

namespace csrkern::cuda {

// Makes a device the current one while this lives.
class UseDevice {
 public:
  explicit UseDevice(int device);
  ~UseDevice();
  UseDevice(const UseDevice&) = delete;

 private:
  int device_;
  int before_ = 0;
};

// Memory of the current device.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  DeviceMemory(size_t bytes, const char* what);
  DeviceMemory(DeviceMemory&& other) noexcept { *this = static_cast<DeviceMemory&&>(other); }
  DeviceMemory& operator=(DeviceMemory&& other) noexcept {
    void* const data = data_;
    const size_t bytes = bytes_;
    data_ = other.data_;
    bytes_ = other.bytes_;
    other.data_ = data;
    other.bytes_ = bytes;
    return *this;
  }
  ~DeviceMemory();  // waits for all that was launched before

  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  size_t bytes() const { return bytes_; }

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

void copy(void* to, const void* from, size_t bytes, Stream stream, const char* what);
void clear(void* to, size_t bytes, Stream stream, const char* what);
void wait(Stream stream, const char* what);
Stream make_stream();
void free_stream(Stream stream) noexcept;

// Throws if a CUDA call failed: OutOfMemory for a lack of memory, else Error. `code` is a
// cudaError_t.
void check(int code, const char* what);

}  // namespace csrkern::cuda
