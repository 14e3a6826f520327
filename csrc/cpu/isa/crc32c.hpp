// crc32c by instructions: SSE4.2, which AVX2 and AVX-512 include, or the CRC extension of ARM.
// Internal linkage: each of the files that include this is compiled for another instruction set.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_acle.h>
#endif

#include <cstddef>
#include <cstdint>

namespace csrkern {
namespace {

#if defined(__x86_64__)
uint32_t crc_step(uint32_t crc, uint64_t eight) {
  return static_cast<uint32_t>(_mm_crc32_u64(crc, eight));
}
uint32_t crc_step(uint32_t crc, uint8_t one) { return _mm_crc32_u8(crc, one); }
#elif defined(__aarch64__)
uint32_t crc_step(uint32_t crc, uint64_t eight) { return __crc32cd(crc, eight); }
uint32_t crc_step(uint32_t crc, uint8_t one) { return __crc32cb(crc, one); }
#endif

uint32_t crc32c(uint32_t crc, const uint8_t* data, size_t bytes) {
  crc = ~crc;
  for (; bytes >= 8; bytes -= 8, data += 8) {
    uint64_t eight;
    __builtin_memcpy(&eight, data, 8);
    crc = crc_step(crc, eight);
  }
  for (; bytes > 0; --bytes, ++data) crc = crc_step(crc, *data);
  return ~crc;
}

}  // namespace
}  // namespace csrkern
