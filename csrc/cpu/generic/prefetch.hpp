// How the loops of a search fetch postings before they add them.
// Internal linkage: each file that includes this is compiled for another instruction set.
#pragma once

#include <cstdint>

namespace csrkern {
namespace {

constexpr uint64_t kLine = 64;
// Bytes of the numbers and of the values of a slice that are prefetched before it is scored, and
// how far ahead they are prefetched while it is: 0.46 instead of 0.52 ns a posting in long slices.
constexpr uint64_t kBytesAhead = 512;

inline void prefetch(const uint8_t* at) { __builtin_prefetch(at, 0, 3); }

inline void prefetch_bytes(const uint8_t* data, uint64_t bytes) {
  if (bytes > kBytesAhead) bytes = kBytesAhead;
  for (uint64_t i = 0; i < bytes; i += kLine) prefetch(data + i);
}

}  // namespace
}  // namespace csrkern
