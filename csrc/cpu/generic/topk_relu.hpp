// The algorithm of topk_relu over a vector type `V`, for isa/kernels_*.cpp.
// Internal linkage: each of these files is compiled for another instruction set.
//
// A row is reduced to the maxima of G > k disjoint groups. The k-th largest of these maxima is
// a lower bound tau on the k-th largest entry. Few entries exceed it: in a row in random order,
// about G ln(G / (G - k)), which is 37 for k = 32 and G = 128. A second pass collects all of these
// (the buffer has room for the whole row), and only they are sorted. Bits of positive floats order
// like the floats, and those of negative floats are negative integers. So all comparisons are on
// int32, which also makes them immune to flush-to-zero modes.
#pragma once

#include <cstdint>
#include <cstring>

#include "isa/kernels.hpp"
#include "isa/small_floats.hpp"

namespace csrkern {
namespace {

constexpr int kAccumulators = 8;

// With more candidates than this, the radix sort is faster.
template <class V>
constexpr int64_t kRankSortLimit = 8 * V::width;

// Finds the maxima of 8 * V::width groups in each of `chunks` equal chunks of the row, at least 0.
// Returns false if the row contains NaN.
template <class V, class T>
bool group_maxima(const T* row, int64_t h, int64_t chunks, int32_t* group_max) {
  constexpr int64_t kStep = kAccumulators * V::width;
  const int64_t chunk = (h / chunks + kStep - 1) / kStep * kStep;
  typename V::Flag nan = V::no_flag();
  for (int64_t c = 0; c < chunks; ++c) {
    int64_t i = c * chunk;
    const int64_t end = c + 1 == chunks ? h : (i + chunk < h ? i + chunk : h);
    typename V::I best[kAccumulators];
    for (auto& b : best) b = V::splat(0);
    for (; i + kStep <= end; i += kStep) {
      for (int a = 0; a < kAccumulators; a += 2) {
        const auto x = V::load(row + i + a * V::width);
        const auto y = V::load(row + i + (a + 1) * V::width);
        best[a] = V::max(best[a], x);
        best[a + 1] = V::max(best[a + 1], y);
        nan = V::flag_nan(nan, x, y);
      }
    }
    for (int a = 0; i < end; i += V::width, a = (a + 1) % kAccumulators) {
      const auto x = end - i >= V::width ? V::load(row + i) : V::load_partial(row + i, end - i);
      best[a] = V::max(best[a], x);
      nan = V::flag_nan(nan, x, x);
    }
    for (int a = 0; a < kAccumulators; ++a) {
      V::store(group_max + c * kStep + a * V::width, best[a]);
    }
  }
  return !V::any(nan);
}

// Returns how many of bits[0..n) are >= bound; n is a multiple of the vector width.
template <class V>
int64_t count_at_least(const int32_t* bits, int64_t n, int32_t bound) {
  auto count = V::splat(0);
  const auto b = V::splat(bound);
  for (int64_t i = 0; i < n; i += V::width) count = V::count_ge(count, V::load_bits(bits + i), b);
  return V::sum(count);
}

// Returns a t >= 1 such that at least k, and at most k + slack, of bits[0..n) are >= t: the largest
// such t if slack is 0. Returns 1 if fewer than k are positive.
template <class V>
int32_t lower_bound_of_kth(const int32_t* bits, int64_t n, int64_t k, int64_t slack) {
  int32_t low = 1;
  if (count_at_least<V>(bits, n, low) <= k + slack) return low;
  int32_t high = kInfinityBits;  // may itself be the answer
  while (low < high) {
    const int32_t middle = low + (high - low) / 2 + 1;
    const int64_t count = count_at_least<V>(bits, n, middle);
    if (count >= k) {
      low = middle;
      if (count <= k + slack) break;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

// Collects entries >= tau in order of their latent. Prefetches the next row, if there is one, into
// the L2 cache, since memory would be idle.
template <class V, class T>
int64_t collect(const T* row, const T* next, int64_t h, int32_t tau, int32_t* bits,
                int32_t* index) {
  constexpr int kUnroll = 4;
  const auto bound = V::splat(tau);
  int64_t found = 0, i = 0;
  for (; i + kUnroll * V::width <= h; i += kUnroll * V::width) {
    typename V::I x[kUnroll];
    typename V::Mask hit[kUnroll];
    for (int u = 0; u < kUnroll; ++u) {
      x[u] = V::load(row + i + u * V::width);
      hit[u] = V::ge(x[u], bound);
    }
    if (next) {
      const char* line = reinterpret_cast<const char*>(next + i);
      constexpr int kBytes = kUnroll * V::width * static_cast<int>(sizeof(T));
      for (int b = 0; b < kBytes; b += 64) __builtin_prefetch(line + b, 0, 2);
    }
    if (!V::any_of(hit[0], hit[1], hit[2], hit[3])) continue;
    for (int u = 0; u < kUnroll; ++u) {
      found += V::append(bits + found, index + found, x[u], i + u * V::width, hit[u]);
    }
  }
  for (; i < h; i += V::width) {
    const auto x = h - i >= V::width ? V::load(row + i) : V::load_partial(row + i, h - i);
    found += V::append(bits + found, index + found, x, i, V::ge(x, bound));
  }
  return found;
}

// Keeps exactly the k best of n > k candidates, in order of their latent.
template <class V>
void narrow(int32_t* bits, int32_t* index, int64_t n, int64_t k) {
  for (int64_t i = n; i % V::width != 0; ++i) bits[i] = 0;
  const int64_t padded = (n + V::width - 1) / V::width * V::width;
  const int32_t kth = lower_bound_of_kth<V>(bits, padded, k, 0);
  int64_t ties = k - count_at_least<V>(bits, padded, kth + 1);
  int64_t kept = 0;
  for (int64_t i = 0; i < n; ++i) {
    const bool tie = bits[i] == kth;
    if (bits[i] < kth || (tie && ties == 0)) continue;
    ties -= tie;
    bits[kept] = bits[i];
    index[kept++] = index[i];
  }
}

// Sorts latents by value, then by position: counts for each candidate how many others precede it.
// Branch-free, n^2 / width steps: the fastest for few candidates.
template <class V>
void rank_sort(int32_t* bits, const int32_t* index, int64_t n, int64_t k, int32_t* sorted) {
  for (int64_t i = n; i % V::width != 0; ++i) bits[i] = 0;
  for (int64_t first = 0; first < n; first += V::width) {
    const auto mine = V::load_bits(bits + first);
    const int64_t end = first + V::width < n ? first + V::width : n;
    auto rank = V::splat(0);
    for (int64_t j = 0; j < first; ++j) rank = V::count_ge(rank, V::splat(bits[j]), mine);
    for (int64_t j = end; j < n; ++j) rank = V::count_gt(rank, V::splat(bits[j]), mine);
    for (int64_t j = first; j < end; ++j) {
      // Within this vector, lanes after j lose ties to it. Adding one to j's bits turns > into >=,
      // and no finite value overflows.
      const auto other = V::splat(bits[j]);
      rank = V::count_gt(rank, V::add(other, V::lanes_above(j - first)), mine);
    }
    int32_t ranks[V::width];
    V::store(ranks, rank);
    for (int64_t lane = 0; lane < end - first; ++lane) {
      if (ranks[lane] < k) sorted[ranks[lane]] = index[first + lane];
    }
  }
}

// Sorts in the same order by four stable counting passes over bytes, least significant first.
// Skips a byte that all candidates share.
inline void radix_sort(int32_t* bits, int32_t* index, int64_t n, int32_t* spare_bits,
                       int32_t* spare_index) {
  int32_t count[4][256] = {};
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t key = ~static_cast<uint32_t>(bits[i]);
    for (int b = 0; b < 4; ++b) ++count[b][key >> (8 * b) & 255];
  }
  int32_t *from_bits = bits, *from_index = index, *to_bits = spare_bits, *to_index = spare_index;
  for (int b = 0; b < 4; ++b) {
    const uint32_t first = ~static_cast<uint32_t>(from_bits[0]) >> (8 * b) & 255;
    if (count[b][first] == n) continue;
    int32_t position = 0;
    for (int32_t& c : count[b]) {
      const int32_t here = c;
      c = position;
      position += here;
    }
    for (int64_t i = 0; i < n; ++i) {
      const int32_t place = count[b][~static_cast<uint32_t>(from_bits[i]) >> (8 * b) & 255]++;
      to_bits[place] = from_bits[i];
      to_index[place] = from_index[i];
    }
    int32_t* swap = from_bits;
    from_bits = to_bits;
    to_bits = swap;
    swap = from_index;
    from_index = to_index;
    to_index = swap;
  }
  if (from_index != index) std::memcpy(index, from_index, n * sizeof(int32_t));
}

// Writes the latents of the k best entries of a contiguous row to s.sorted, best first. Returns
// their number, at most k, or -1 if the row contains NaN.
template <class V, class T>
int64_t select(const T* row, const T* next, int64_t h, int64_t k, const TopkScratch& s) {
  constexpr int64_t kGroups = kAccumulators * V::width;
  int64_t chunks = 1;
  while (chunks * kGroups < 4 * k && chunks * kGroups * 4 <= h) chunks *= 2;
  if (!group_maxima<V>(row, h, chunks, s.group_max)) return -1;
  const int32_t tau = lower_bound_of_kth<V>(s.group_max, chunks * kGroups, k, k / 8);
  int64_t found = collect<V>(row, next, h, tau, s.bits, s.index);
  if (found > k + k / 2 + 16) {
    narrow<V>(s.bits, s.index, found, k);
    found = k;
  }
  if (found <= kRankSortLimit<V>) {
    rank_sort<V>(s.bits, s.index, found, k, s.sorted);
  } else {
    radix_sort(s.bits, s.index, found, s.spare_bits, s.spare_index);
    std::memcpy(s.sorted, s.index, (found < k ? found : k) * sizeof(int32_t));
  }
  return found < k ? found : k;
}

// Copies a strided or masked row to `staged`; masked latents become the most negative value.
template <class T>
const T* stage(const TopkRelu& args, const T* row, T lowest, T* staged) {
  for (int64_t j = 0; j < args.h; ++j) {
    staged[j] = args.latent_mask && !args.latent_mask[j] ? lowest : row[j * args.col_stride];
  }
  return staged;
}

template <class V, class T>
void rows_of(const TopkRelu& args, int64_t begin, int64_t end, T lowest, const TopkScratch& s) {
  const bool direct = args.col_stride == 1 && !args.latent_mask;
  for (int64_t i = begin; i < end; ++i) {
    const T* row = static_cast<const T*>(args.pre) + i * args.row_stride;
    const T* next = direct && i + 1 < end ? row + args.row_stride : nullptr;
    if (!direct) row = stage(args, row, lowest, static_cast<T*>(s.staged));
    int64_t won = select<V>(row, next, args.h, args.k, s);
    if (won < 0) {
      float* plain = reinterpret_cast<float*>(s.spare_bits);
      for (int64_t j = 0; j < args.h; ++j) plain[j] = V::to_float(row[j]);
      topk_relu_row_with_nan(plain, args.h, args.k, s.sorted);
      for (won = 0; won < args.k && s.sorted[won] >= 0;) ++won;
    }
    T* values = static_cast<T*>(args.values) + i * args.k;
    int32_t* indices = args.indices + i * args.k;
    for (int64_t j = 0; j < won; ++j) {
      indices[j] = s.sorted[j];
      values[j] = row[s.sorted[j]];
    }
    std::memset(static_cast<void*>(values + won), 0, (args.k - won) * sizeof(T));
    std::memset(indices + won, 0, (args.k - won) * sizeof(int32_t));
  }
}

template <class V>
void rows_of_any(const TopkRelu& args, int64_t begin, int64_t end, const TopkScratch& s) {
  switch (args.dtype) {
    case DType::float32:
      return rows_of<V, float>(args, begin, end, -__builtin_inff(), s);
    case DType::float16:
      return rows_of<V, Half>(args, begin, end, Half{0xfc00}, s);
    case DType::bfloat16:
      return rows_of<V, BFloat>(args, begin, end, BFloat{0xff80}, s);
  }
}

}  // namespace
}  // namespace csrkern
