// The loops of a search that vector instruction sets share, for isa/kernels_*.cpp.
// Internal linkage: each of these files is compiled for another instruction set.
#pragma once

#include <cstdint>

#include "generic/prefetch.hpp"
#include "isa/kernels.hpp"

namespace csrkern {
namespace {

constexpr uint64_t kLongSlice = 512;

// `Postings` says how one form of values is scored: score(slice, n, from, to, weight, ahead, spare,
// unit, scores) adds the postings [from, to) of a slice of n, with `kBytes` a value, and prefetches
// what is `ahead` bytes after them.
template <class Postings>
void score(const uint8_t* postings, const QueryTerm* terms, int n_terms, int64_t window, bool last,
           int32_t spare, float unit, float* scores) {
  constexpr uint64_t kPosting = 2 + Postings::kBytes;
  for (int t = 0; t < n_terms; ++t) {
    const uint64_t begin = terms[t].offsets[window], n = terms[t].offsets[window + 1] - begin;
    if (t + 1 < n_terms) {
      const uint64_t* next = terms[t + 1].offsets + window;
      const uint64_t n_next = next[1] - next[0];
      prefetch_bytes(postings + next[0] * kPosting, 2 * n_next);
      prefetch_bytes(postings + next[0] * kPosting + 2 * n_next, n_next * Postings::kBytes);
    }
    const uint8_t* slice = postings + begin * kPosting;
    // After a short slice, prefetch the next one of its list, for the next window.
    const uint64_t ahead = n >= kLongSlice ? kBytesAhead : last ? 0 : n * kPosting;
    Postings::score(slice, n, 0, n, terms[t].weight, ahead, spare, unit, scores);
  }
}

template <class Postings>
void score_ranges(const SliceRange* ranges, int n_ranges, int32_t spare, float unit,
                  float* scores) {
  for (const SliceRange* r = ranges; r < ranges + n_ranges; ++r) {
    Postings::score(r->slice, r->n, r->from, r->to, r->weight, 0, spare, unit, scores);
  }
}

template <class V>
void lane_maxima(const float* scores, int64_t n, int64_t lanes, uint32_t* maxima) {
  for (int64_t j = 0; j < lanes; j += V::width) {
    auto best = V::splat(int32_t{0});
    for (int64_t i = j; i < n; i += lanes) best = V::max(best, V::load(scores + i));
    V::store(reinterpret_cast<int32_t*>(maxima + j), best);
  }
}

}  // namespace
}  // namespace csrkern
