#include "device.hpp"

#include <cuda_runtime_api.h>

#include <string>

namespace csrkern::cuda {
namespace {

std::string why(cudaError_t code, const char* what) {
  return std::string(what) + ": " + cudaGetErrorString(code);
}

void expect_device(int device) {
  int count = 0;
  const cudaError_t code = cudaGetDeviceCount(&count);
  if (code != cudaSuccess) {
    cudaGetLastError();
    throw Error(std::string("no CUDA device: ") + cudaGetErrorString(code));
  }
  if (device < 0 || device >= count) {
    throw Error("expected a CUDA device in 0.." + std::to_string(count - 1) + ", got " +
                std::to_string(device));
  }
}

}  // namespace

void check(int given, const char* what) {
  const auto code = static_cast<cudaError_t>(given);
  if (code == cudaSuccess) return;
  cudaGetLastError();  // so that the next call does not report it again
  if (code == cudaErrorMemoryAllocation) throw OutOfMemory(why(code, what));
  throw Error(why(code, what));
}

int count_devices() noexcept {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  cudaGetLastError();
  return 0;
}

int current_device() {
  int device = 0;
  check(cudaGetDevice(&device), "reading the current device");
  return device;
}

DeviceInfo device_info(int device) {
  expect_device(device);
  const UseDevice use(device);
  const auto attribute = [&](cudaDeviceAttr which) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, which, device), "reading a device's properties");
    return value;
  };
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, device), "reading a device's properties");
  DeviceInfo info;
  info.name = properties.name;
  info.processors = attribute(cudaDevAttrMultiProcessorCount);
  info.shared_bytes = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  info.shared_total = attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  check(cudaMemGetInfo(&info.free_bytes, &info.total_bytes), "reading a device's free memory");
  return info;
}

UseDevice::UseDevice(int device) : device_(device) {
  expect_device(device);
  before_ = current_device();
  check(cudaSetDevice(device), "choosing a device");
}

UseDevice::~UseDevice() {
  if (before_ != device_) cudaSetDevice(before_);
}

DeviceMemory::DeviceMemory(size_t bytes, const char* what) : bytes_(bytes) {
  if (bytes == 0) return;
  const cudaError_t code = cudaMalloc(&data_, bytes);
  if (code == cudaSuccess) return;
  data_ = nullptr;
  check(code, (std::to_string(bytes) + " bytes of device memory for " + what).c_str());
}

DeviceMemory::~DeviceMemory() {
  if (data_ != nullptr) cudaFree(data_);  // waits for the device
}

void copy(void* to, const void* from, size_t bytes, Stream stream, const char* what) {
  if (bytes == 0) return;
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, static_cast<cudaStream_t>(stream)),
        (std::string("copying ") + what).c_str());
}

void clear(void* to, size_t bytes, Stream stream, const char* what) {
  if (bytes == 0) return;
  check(cudaMemsetAsync(to, 0, bytes, static_cast<cudaStream_t>(stream)),
        (std::string("clearing ") + what).c_str());
}

void wait(Stream stream, const char* what) {
  check(cudaStreamSynchronize(static_cast<cudaStream_t>(stream)), what);
}

Stream make_stream() {
  cudaStream_t stream;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "making a stream");
  return stream;
}

void free_stream(Stream stream) noexcept {
  if (stream != nullptr) cudaStreamDestroy(static_cast<cudaStream_t>(stream));
}

}  // namespace csrkern::cuda
