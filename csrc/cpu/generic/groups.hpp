// The loop of a search over lists in groups of equal values (index_groups.hpp), for
// isa/kernels_*.cpp. Internal linkage: each of these files is compiled for another instruction set.
#pragma once

#include <cstdint>
#include <cstring>

#include "csrkern/index_groups.hpp"
#include "generic/prefetch.hpp"
#include "isa/kernels.hpp"

namespace csrkern {
namespace {

// Numbers that are written out before their postings are scored, and how many at once.
constexpr uint32_t kNumbers = 4096, kRun = 64;

// Writes a number `count` times, and up to kRun times more.
inline void write_run(uint8_t number, uint32_t count, uint8_t* to) {
  std::memset(to, number, kRun);
  for (uint32_t i = kRun; i < count; i += kRun) std::memset(to + i, number, kRun);
}

// As ValueKernels::score. Writes out the number of each posting, which lists in uint8 store:
// Postings::add(ids, numbers, from, to, weight, ahead, spare, unit, scores) is their loop. A loop
// for each group would end where no processor foresees it: 0.93 instead of 0.75 ns a posting.
template <class Postings>
void score_groups(const uint8_t* postings, const QueryTerm* terms, int n_terms, int64_t window,
                  bool last, int32_t spare, float unit, float* scores) {
  alignas(64) uint8_t numbers[kNumbers + kRun];
  for (int t = 0; t < n_terms; ++t) {
    const uint64_t* offset = terms[t].offsets + window;
    if (t + 1 < n_terms) {
      const uint64_t* next = terms[t + 1].offsets + window;
      prefetch_bytes(postings + 2 * next[0], 2 * (next[1] - next[0]));
    }
    const uint64_t words = offset[1] - offset[0];
    if (words == 0) continue;
    const uint8_t* slice = postings + 2 * offset[0];
    const uint64_t ahead = words >= kBytesAhead ? kBytesAhead : last ? 0 : 2 * words;
    const GroupedSlice groups(slice, postings_of_words(words));
    const uint8_t* ids = groups.ids();
    uint32_t written = 0;
    const auto add = [&] {
      Postings::add(ids, numbers, 0, written, terms[t].weight, ahead, spare, unit, scores);
      ids += 2 * written;
      written = 0;
    };
    for (int number = 0; number < kGroups; ++number) {
      uint32_t left = groups.count(number);
      while (left > kNumbers - written) {
        const uint32_t run = kNumbers - written;
        write_run(static_cast<uint8_t>(number), run, numbers + written);
        written += run;
        left -= run;
        add();
      }
      write_run(static_cast<uint8_t>(number), left, numbers + written);
      written += left;
    }
    add();
  }
}

}  // namespace
}  // namespace csrkern
