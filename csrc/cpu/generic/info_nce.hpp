// The vector loops of info_nce over a vector type `V`, for isa/kernels_*.cpp.
// Internal linkage: each of these files is compiled for another instruction set.
#pragma once

#include <cstdint>

#include "isa/kernels.hpp"

namespace csrkern {
namespace {

// Returns e^x to about one unit in the last place for x in [-87, 88], e^-87 below. NaN stays NaN.
// x = n ln 2 + r with |r| <= ln 2 / 2; ln 2 is a sum of two numbers, and n times the first is
// exact.
template <class V>
typename V::F exponential(typename V::F x) {
  x = V::max(V::splat(-87.0f), x);
  const auto n = V::round(V::mul(x, V::splat(1.44269504f)));
  auto r = V::fma(n, V::splat(-0.693359375f), x);
  r = V::fma(n, V::splat(2.12194440e-4f), r);
  auto p = V::splat(1.0f / 5040);
  p = V::fma(p, r, V::splat(1.0f / 720));
  p = V::fma(p, r, V::splat(1.0f / 120));
  p = V::fma(p, r, V::splat(1.0f / 24));
  p = V::fma(p, r, V::splat(1.0f / 6));
  p = V::fma(p, r, V::splat(0.5f));
  p = V::fma(V::mul(r, r), p, r);
  return V::mul(V::add(V::splat(1.0f), p), V::exp2_integral(n));
}

template <class V>
void sum_scores(float* scores, int64_t n, float scale, const int32_t* classes, int32_t own,
                float* packed, ScoreSums* sums) {
  using F = typename V::F;
  F peak = V::splat(sums->peak), positive = V::zero();
  const auto own_class = V::splat(own);
  int64_t found = 0;
  const auto take = [&](F x, int64_t j, int64_t lanes) {
    peak = V::max(peak, x);
    found += V::pack_nonzero(packed + found, x);
    if (classes == nullptr) return;
    const auto theirs =
        lanes == V::width ? V::load_bits(classes + j) : V::load_partial_bits(classes + j, lanes);
    positive = V::add(positive, V::where_equal(theirs, own_class, x));
  };
  int64_t j = 0;
  for (; j + V::width <= n; j += V::width) {
    take(V::load_f(scores + j), j, V::width);
    V::store_f(scores + j, V::zero());
  }
  if (j < n) {
    take(V::load_partial_f(scores + j, n - j), j, n - j);
    V::store_partial_f(scores + j, V::zero(), n - j);
  }
  sums->positive += V::sum_lanes(positive);

  const float highest = V::max_lane(peak);
  if (highest != sums->peak) {
    sums->total *= __builtin_exp((static_cast<double>(sums->peak) - highest) * scale);
    sums->peak = highest;
  }
  sums->zeros += n - found;
  V::store_f(packed + found, V::splat(-__builtin_inff()));
  const F shift = V::splat(highest), factor = V::splat(scale);
  const auto term = [&](int64_t i) {
    return exponential<V>(V::mul(V::sub(V::load_f(packed + i), shift), factor));
  };
  // Sums of four in float, their sum in double: 65,536 terms lose no precision.
  double total = 0;
  int64_t i = 0;
  for (; i + 4 * V::width <= found; i += 4 * V::width) {
    const F low = V::add(term(i), term(i + V::width));
    const F high = V::add(term(i + 2 * V::width), term(i + 3 * V::width));
    total += V::sum_lanes(V::add(low, high));
  }
  for (; i < found; i += V::width) total += V::sum_lanes(term(i));
  sums->total += total;
}

template <class V>
void to_gradient(float* scores, int64_t n, float scale, const int32_t* classes, int32_t own,
                 const GradientTerm* row, const GradientTerm* columns) {
  using F = typename V::F;
  const F factor = V::splat(scale);
  const auto own_class = V::splat(own);
  F weight = V::zero(), peak = V::zero(), log_total = V::zero(), pull = V::zero();
  if (row != nullptr) {
    weight = V::splat(*row->weight);
    peak = V::splat(*row->peak);
    log_total = V::splat(*row->log_total);
    if (classes != nullptr) pull = V::splat(*row->pull);
  }
  const auto probability = [&](F x, F peak, F log_total) {
    const F logit = V::sub(V::mul(V::sub(x, peak), factor), log_total);
    // s_ij and s_ji are summed in different orders. With logits of 1e8, this alone could lift a
    // column's probability above 1, even to infinity.
    return exponential<V>(V::min(V::zero(), logit));
  };
  const auto gradient = [&](F x, int64_t j, const auto& load, const auto& load_classes) {
    F out = V::zero(), attraction = pull;
    if (row != nullptr) out = V::mul(weight, probability(x, peak, log_total));
    if (columns != nullptr) {
      const F p = probability(x, load(columns->peak + j), load(columns->log_total + j));
      out = V::fma(load(columns->weight + j), p, out);
      if (classes != nullptr) attraction = V::add(attraction, load(columns->pull + j));
    }
    if (classes == nullptr) return out;
    return V::sub(out, V::where_equal(load_classes(classes + j), own_class, attraction));
  };
  int64_t j = 0;
  for (; j + V::width <= n; j += V::width) {
    const F x = V::load_f(scores + j);
    if (V::all_zero(x)) continue;
    V::store_f(scores + j, gradient(
                               x, j, [](const float* p) { return V::load_f(p); },
                               [](const int32_t* p) { return V::load_bits(p); }));
  }
  const int64_t left = n - j;
  if (left == 0) return;
  const F x = V::load_partial_f(scores + j, left);
  V::store_partial_f(scores + j,
                     gradient(
                         x, j, [&](const float* p) { return V::load_partial_f(p, left); },
                         [&](const int32_t* p) { return V::load_partial_bits(p, left); }),
                     left);
}

template <class V>
constexpr InfoNceKernels kInfoNce = {sum_scores<V>, to_gradient<V>};

}  // namespace
}  // namespace csrkern
