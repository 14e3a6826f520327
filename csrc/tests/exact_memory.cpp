#include "exact_memory.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#include <sanitizer/asan_interface.h>
#endif
#endif
#ifndef ASAN_POISON_MEMORY_REGION
#define ASAN_POISON_MEMORY_REGION(memory, bytes) static_cast<void>(0)
#define ASAN_UNPOISON_MEMORY_REGION(memory, bytes) static_cast<void>(0)
#endif

// The linker gives these names to the C library's functions and those below to csrkern's calls.
extern "C" void* __real_mmap(void*, size_t, int, int, int, off_t);
extern "C" int __real_munmap(void*, size_t);

namespace csrkern {
namespace {

size_t round_up(size_t n, size_t step) { return (n + step - 1) / step * step; }
size_t page() { return static_cast<size_t>(sysconf(_SC_PAGESIZE)); }

}  // namespace

void* allocate_exactly(size_t bytes, size_t alignment) {
  const size_t usable = round_up(bytes, page());
  void* memory = __real_mmap(nullptr, usable + page(), PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) std::abort();
  auto* begin = static_cast<uint8_t*>(memory);
  if (mprotect(begin + usable, page(), PROT_NONE) != 0) std::abort();
  uint8_t* data = begin + usable - round_up(bytes, alignment);
  ASAN_POISON_MEMORY_REGION(begin, usable);
  ASAN_UNPOISON_MEMORY_REGION(data, bytes);
  return data;
}

void free_exactly(void* memory, size_t bytes) {
  const size_t usable = round_up(bytes, page());
  const auto end = round_up(reinterpret_cast<uintptr_t>(memory) + bytes, page());
  auto* begin = reinterpret_cast<uint8_t*>(end - usable);
  ASAN_UNPOISON_MEMORY_REGION(begin, usable);
  if (__real_munmap(begin, usable + page()) != 0) std::abort();
}

}  // namespace csrkern

extern "C" void* __wrap_mmap(void*, size_t bytes, int, int, int, off_t) {
  constexpr size_t kVector = 64;
  return csrkern::allocate_exactly(bytes, kVector);
}

extern "C" int __wrap_munmap(void* memory, size_t bytes) {
  csrkern::free_exactly(memory, bytes);
  return 0;
}
