// The scan of rows for a batch of queries at once, for isa/kernels_*.cpp.
// Internal linkage: each of these files is compiled for another instruction set.
#pragma once

#include <cstdint>

#include "isa/kernels.hpp"

namespace csrkern {
namespace {

// How far ahead of the row that is added up others are prefetched.
constexpr int64_t kEntriesAhead = 256;

// `Sums` holds the sums of a row for all queries of a batch: add(a, b, pair) adds the low byte of
// the pair times line a and the high byte times line b; reached(bars) returns the
// queries, as bits, whose sums reach their bars.
template <class Sums>
int64_t find_row(const ByteRows& rows, const int8_t* queries, const int16_t* bars, int64_t row,
                 int64_t end, int16_t* sums, uint64_t* reached) {
  alignas(64) static const int8_t kZeros[kBatch] = {};
  const typename Sums::Bars ordered(bars);
  for (; row < end; ++row) {
    const uint64_t begin = rows.starts[row], n = rows.starts[row + 1] - begin;
    const uint8_t* terms = rows.entries + begin * rows.entry_bytes;
    const uint8_t* numbers = rows.numbers + begin;
    const auto two_bytes = [](const uint8_t* at) {
      uint16_t two;
      __builtin_memcpy(&two, at, 2);
      return two;
    };
    const auto line = [&](uint64_t j) {
      return queries + int64_t{two_bytes(terms + 2 * j)} * kBatch;
    };
    // Rows of 64 entries take as long as memory needs to deliver them.
    for (uint64_t at = 0; at < n; at += 32) {
      __builtin_prefetch(terms + kEntriesAhead * rows.entry_bytes + 2 * at);
    }
    for (uint64_t at = 0; at < n; at += 64) __builtin_prefetch(numbers + kEntriesAhead + at);
    Sums sum;
    uint64_t j = 0;
    for (; j + 2 <= n; j += 2) sum.add(line(j), line(j + 1), two_bytes(numbers + j));
    if (j < n) sum.add(line(j), kZeros, two_bytes(numbers + j));
    *reached = sum.reached(ordered);
    if (*reached != 0) {
      sum.store(sums);
      return row;
    }
  }
  return end;
}

}  // namespace
}  // namespace csrkern
