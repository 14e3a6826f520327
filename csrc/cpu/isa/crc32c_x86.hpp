// crc32c by SSE4.2, which AVX2 and AVX-512 include.
// Internal linkage: each of the files that include this is compiled for another instruction set.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace csrkern {
namespace {

uint32_t crc32c(uint32_t crc, const uint8_t* data, size_t bytes) {
  uint64_t c = ~crc;
  for (; bytes >= 8; bytes -= 8, data += 8) {
    uint64_t word;
    __builtin_memcpy(&word, data, 8);
    c = _mm_crc32_u64(c, word);
  }
  for (; bytes > 0; --bytes, ++data) c = _mm_crc32_u8(static_cast<uint32_t>(c), *data);
  return ~static_cast<uint32_t>(c);
}

}  // namespace
}  // namespace csrkern
