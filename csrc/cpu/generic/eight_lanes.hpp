// The index's kernels over a vector type `V` of eight lanes without masks, for isa/kernels_avx2.cpp
// and isa/kernels_neon.cpp.
// Internal linkage: each file that includes this is compiled for another instruction set.
#pragma once

#include <cstdint>

#include "generic/groups.hpp"
#include "generic/index.hpp"
#include "generic/prefetch.hpp"
#include "isa/kernels.hpp"
#include "isa/small_floats.hpp"

namespace csrkern {
namespace {

// Slices of uint8 values may begin at odd addresses.
uint16_t load_short(const uint8_t* at) {
  uint16_t two;
  __builtin_memcpy(&two, at, 2);
  return two;
}

template <class V>
struct HalfValues {
  using Vector = V;
  static constexpr uint64_t kBytes = 2;
  static typename V::F load8(const uint8_t* at) {
    return V::load_f(reinterpret_cast<const Half*>(at));
  }
  static float load(const uint8_t* at) { return V::to_float(Half{load_short(at)}); }
};

template <class V>
struct FloatValues {
  using Vector = V;
  static constexpr uint64_t kBytes = 4;
  static typename V::F load8(const uint8_t* at) {
    return V::load_f(reinterpret_cast<const float*>(at));
  }
  static float load(const uint8_t* at) {
    float value;
    __builtin_memcpy(&value, at, 4);
    return value;
  }
};

// In units; see index_values.hpp.
template <class V>
struct ByteValues {
  using Vector = V;
  static constexpr uint64_t kBytes = 1;
  static typename V::F load8(const uint8_t* at) {
    const auto roots = V::convert(V::add(V::load_bytes(at), V::splat(1)));
    return V::mul(roots, roots);
  }
  static float load(const uint8_t* at) {
    const float root = static_cast<float>(*at + 1);
    return root * root;
  }
};

// Scores the postings [from, to) of a slice of n, and prefetches what is `ahead` bytes after them.
template <class Value>
struct Postings {
  static constexpr uint64_t kBytes = Value::kBytes;
  static void score(const uint8_t* slice, uint64_t n, uint64_t from, uint64_t to, float weight,
                    uint64_t ahead, int32_t spare, float unit, float* scores) {
    add(slice, slice + 2 * n, from, to, weight, ahead, spare, unit, scores);
  }
  // Of ids and values that stand anywhere.
  static inline __attribute__((always_inline)) void add(const uint8_t* ids, const uint8_t* values,
                                                        uint64_t from, uint64_t to, float weight,
                                                        uint64_t ahead, int32_t, float unit,
                                                        float* scores) {
    using V = typename Value::Vector;
    alignas(32) float products[8];
    weight *= unit;
    uint64_t i = from;
    for (const uint64_t whole = from + (to - from) / 8 * 8; i < whole; i += 8) {
      prefetch(ids + ahead + 2 * i);
      prefetch(values + ahead + i * kBytes);
      V::store_f(products, V::mul(Value::load8(values + i * kBytes), V::splat(weight)));
#pragma GCC unroll 8
      for (int j = 0; j < 8; ++j) scores[load_short(ids + 2 * (i + j))] += products[j];
    }
    for (; i < to; ++i) {
      scores[load_short(ids + 2 * i)] += Value::load(values + i * kBytes) * weight;
    }
  }
};

template <class Value>
void add_dense(const uint8_t* values, int64_t n, float weight, float* scores) {
  using V = typename Value::Vector;
  const auto weights = V::splat(weight);
#pragma GCC unroll 4
  for (int64_t i = 0; i < n; i += 8) {
    const auto products = V::mul(Value::load8(values + i * Value::kBytes), weights);
    V::store_f(scores + i, V::add(V::load_f(scores + i), products));
  }
}

template <class Value>
void read(const uint8_t* stored, int64_t n, float unit, float* values) {
  using V = typename Value::Vector;
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    V::store_f(values + i, V::mul(Value::load8(stored + i * Value::kBytes), V::splat(unit)));
  }
  for (; i < n; ++i) values[i] = Value::load(stored + i * Value::kBytes) * unit;
}

template <class Value>
constexpr ValueKernels kOf = {score<Postings<Value>>, score_ranges<Postings<Value>>,
                              add_dense<Value>, read<Value>};

template <class Value>
constexpr ValueKernels kGrouped = {score_groups<Postings<Value>>, nullptr, nullptr, read<Value>};

template <class V>
void keep(float* scores, int64_t n, const uint64_t* bits) {
  for (int64_t i = 0; i < n; i += 8) {
    const auto eight = static_cast<int32_t>(bits[i / 64] >> i % 64 & 0xff);
    V::store_f(scores + i, V::where_set(eight, V::load_f(scores + i)));
  }
}

template <class V>
int64_t take(float* scores, int64_t n, uint32_t bar, uint16_t* ids, float* taken) {
  const auto bars = V::splat(static_cast<int32_t>(bar));
  int64_t count = 0;
  for (int64_t i = 0; i < n; i += 32) {
    typename V::Mask over[4];
    for (int j = 0; j < 4; ++j) over[j] = V::ge(V::load(scores + i + 8 * j), bars);
    if (V::any_of(over[0], over[1], over[2], over[3])) {
      for (int j = 0; j < 4; ++j) {
        for (auto set = static_cast<uint32_t>(V::set_of(over[j])); set != 0; set &= set - 1) {
          const int64_t at = i + 8 * j + __builtin_ctz(set);
          ids[count] = static_cast<uint16_t>(at);
          taken[count++] = scores[at];
        }
      }
    }
    for (int j = 0; j < 4; ++j) V::store_f(scores + i + 8 * j, V::zero());
  }
  return count;
}

template <class V>
void to_half(const float* values, int64_t n, uint16_t* halves) {
  Half* to = reinterpret_cast<Half*>(halves);
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) V::store_f(to + i, V::load_f(values + i));
  if (i < n) V::store_partial_f(to + i, V::load_partial_f(values + i, n - i), n - i);
}

}  // namespace
}  // namespace csrkern
