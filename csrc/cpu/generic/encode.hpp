// The kernels of encode over a vector type `V`, for isa/kernels_*.cpp.
// Internal linkage: each of these files is compiled for another instruction set.
#pragma once

#include "generic/topk_relu.hpp"

namespace csrkern {
namespace {

// Products of two floats are exact in double, so only the order of the sum matters. Every
// instruction set uses the same order: element j goes to lane j mod 32, lanes are added in a tree.
constexpr int64_t kLanes = 32;

template <class V>
inline double exact_dot(const double* x, const float* w, int64_t d) {
  double lanes[kLanes];
  const int64_t whole = d / kLanes * kLanes;
  V::dot_lanes(lanes, x, w, whole);
  for (int64_t j = whole; j < d; ++j) lanes[j - whole] += x[j] * static_cast<double>(w[j]);
  for (int64_t half = kLanes / 2; half > 0; half /= 2) {
    for (int64_t lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  }
  return lanes[0];
}

template <class V>
inline float exact_pre_activation(const Linear& layer, const double* x, int64_t latent) {
  const double dot = exact_dot<V>(x, layer.weight + latent * layer.row_stride, layer.d);
  const float value =
      static_cast<float>(layer.bias ? dot + static_cast<double>(layer.bias[latent]) : dot);
  return value == value ? value : __builtin_nanf("");  // the same NaN for every input NaN
}

inline int32_t signed_bits(float x) {
  int32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

// Returns the bits of a float that is not above a positive x.
inline int32_t bits_below(double x) {
  const int32_t bits = signed_bits(static_cast<float>(x)) - 1;
  return bits > 1 ? bits : 1;
}

// Writes the latents that may be among the k best, ascending, to s.index. Returns their number, or
// -1 if the row needs `candidates_of_odd_row`.
template <class V, class T>
int64_t candidates(const T* row, const Refine& args, double slack, const TopkScratch& s) {
  constexpr int64_t kGroups = kAccumulators * V::width;
  const int64_t h = args.layer.h, k = args.k;
  int64_t chunks = 1;
  while (chunks * kGroups < 4 * k && chunks * kGroups * 4 <= h) chunks *= 2;
  if (!group_maxima<V>(row, h, chunks, s.group_max)) return -1;
  // If the k-th best approximate value is at least `kth`, a latent whose exact value is among the k
  // best has at least this approximate value.
  const auto least = [&](int32_t kth) {
    float value;
    std::memcpy(&value, &kth, sizeof value);
    return (value * (1 - args.relative) - 2 * slack) / (1 + args.relative);
  };
  const double first = least(lower_bound_of_kth<V>(s.group_max, chunks * kGroups, k, k / 8));
  if (!(first > 0)) return -1;
  const int64_t collected = collect<V, T>(row, nullptr, h, bits_below(first), s.bits, s.index);
  for (int64_t i = collected; i % V::width != 0; ++i) s.bits[i] = 0;
  const int64_t padded = (collected + V::width - 1) / V::width * V::width;
  const int32_t bound = bits_below(least(lower_bound_of_kth<V>(s.bits, padded, k, 0)));
  int64_t kept = 0;
  for (int64_t i = 0; i < collected; ++i) {
    s.index[kept] = s.index[i];
    kept += s.bits[i] >= bound;
  }
  return kept;
}

template <class V, class T>
void refine_row(const Refine& args, int64_t i, const TopkScratch& s, double* x64) {
  const Linear& layer = args.layer;
  const T* row = static_cast<const T*>(args.approx) + i * layer.h;
  int64_t found = candidates<V>(row, args, args.slack[i], s);
  if (found < 0) {
    float* plain = reinterpret_cast<float*>(s.spare_bits);
    for (int64_t l = 0; l < layer.h; ++l) plain[l] = V::to_float(row[l]);
    found = candidates_of_odd_row(plain, layer.h, args.k, args.slack[i], args.relative, s.index);
  }
  args.candidates[i] = found <= args.limit ? static_cast<int32_t>(found) : -1;
  if (found > args.limit) return;

  const float* x = layer.x + i * layer.d;
  for (int64_t j = 0; j < layer.d; ++j) x64[j] = x[j];
  constexpr int64_t kAhead = 3;
  int64_t positive = 0;
  for (int64_t c = 0; c < found; ++c) {
    if (c + kAhead < found) {
      const float* next = layer.weight + s.index[c + kAhead] * layer.row_stride;
      for (int64_t j = 0; j < layer.d; j += 16) __builtin_prefetch(next + j);
    }
    const float value = exact_pre_activation<V>(layer, x64, s.index[c]);
    const int32_t bits = value == value ? signed_bits(value) : kInfinityBits + 1;
    s.bits[positive] = bits;
    s.index[positive] = s.index[c];
    positive += bits > 0;
  }
  // Sorting moves the bits and the places with them, which lead back to bits and latents.
  int32_t* place = static_cast<int32_t*>(s.staged);
  int32_t* by_place = s.group_max;
  for (int64_t c = 0; c < positive; ++c) {
    place[c] = static_cast<int32_t>(c);
    by_place[c] = s.bits[c];
  }
  const int64_t won = positive < args.k ? positive : args.k;
  if (positive <= kRankSortLimit<V>) {
    rank_sort<V>(s.bits, place, positive, args.k, s.sorted);
  } else {
    radix_sort(s.bits, place, positive, s.spare_bits, s.spare_index);
    std::memcpy(s.sorted, place, won * sizeof(int32_t));
  }
  float* values = args.values + i * args.k;
  int32_t* indices = args.indices + i * args.k;
  for (int64_t r = 0; r < won; ++r) {
    const int32_t bits = by_place[s.sorted[r]];
    const int32_t stored = bits > kInfinityBits ? kQuietNaN : bits;
    std::memcpy(values + r, &stored, sizeof stored);
    indices[r] = s.index[s.sorted[r]];
  }
  std::memset(values + won, 0, (args.k - won) * sizeof(float));
  std::memset(indices + won, 0, (args.k - won) * sizeof(int32_t));
}

template <class V>
void round_row(const Rounding& args, int64_t i) {
  const float* row = args.rows + i * args.row_stride;
  BFloat* rounded = reinterpret_cast<BFloat*>(args.rounded) + i * args.d;
  auto square = V::zero(), lost = V::zero();
  const auto add = [&](typename V::F x, typename V::F near) {
    const auto rest = V::sub(x, near);
    square = V::fma(x, x, square);
    lost = V::fma(rest, rest, lost);
  };
  int64_t j = 0;
  for (; j + V::width <= args.d; j += V::width) {
    const auto x = V::load_f(row + j);
    V::store_f(rounded + j, x);
    add(x, V::load_f(rounded + j));
  }
  if (j < args.d) {
    const auto x = V::load_partial_f(row + j, args.d - j);
    V::store_partial_f(rounded + j, x, args.d - j);
    add(x, V::load_partial_f(rounded + j, args.d - j));
  }
  args.norms[i] = static_cast<float>(__builtin_sqrt(V::sum_lanes(square)));
  args.residuals[i] = static_cast<float>(__builtin_sqrt(V::sum_lanes(lost)));
}

template <class V>
struct EncodeOf {
  static void round_rows(const Rounding& args, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) round_row<V>(args, i);
  }

  static void linear_exact(const Linear& layer, const double* x64, int64_t begin, int64_t end,
                           float* out) {
    for (int64_t latent = begin; latent < end; ++latent) {
      for (int64_t i = 0; i < layer.n; ++i) {
        out[i * layer.h + latent] = exact_pre_activation<V>(layer, x64 + i * layer.d, latent);
      }
    }
  }

  static void refine(const Refine& args, int64_t begin, int64_t end, const TopkScratch& scratch,
                     double* x64) {
    for (int64_t i = begin; i < end; ++i) {
      if (args.dtype == DType::float32) {
        refine_row<V, float>(args, i, scratch, x64);
      } else {
        refine_row<V, BFloat>(args, i, scratch, x64);
      }
    }
  }
};

template <class V>
constexpr EncodeKernels kEncode = {EncodeOf<V>::linear_exact, EncodeOf<V>::round_rows,
                                   EncodeOf<V>::refine};

}  // namespace
}  // namespace csrkern
