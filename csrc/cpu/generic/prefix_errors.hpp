// The kernels of prefix_errors over a vector type `V`, for isa/kernels_*.cpp.
// Internal linkage: each of these files is compiled for another instruction set.
#pragma once

#include <cstdint>

#include "isa/kernels.hpp"
#include "isa/small_floats.hpp"

namespace csrkern {
namespace {

// kPrefixColumns columns of a row in registers. Unless kWhole, only the first `columns` of them are
// in memory, and the rest are 0.
template <class V, bool kWhole>
struct Stripe {
  static constexpr int kVectors = kPrefixColumns / V::width;
  typename V::F vector[kVectors];

  template <class T>
  static inline __attribute__((always_inline)) typename V::F load(const T* from, int v,
                                                                  int64_t columns) {
    const int64_t left = columns - v * V::width;
    if (kWhole || left >= V::width) return V::load_f(from + v * V::width);
    return left > 0 ? V::load_partial_f(from + v * V::width, left) : V::zero();
  }
  static inline __attribute__((always_inline)) void store(float* to, int v, int64_t columns,
                                                          typename V::F x) {
    const int64_t left = columns - v * V::width;
    if (kWhole || left >= V::width) return V::store_f(to + v * V::width, x);
    if (left > 0) V::store_partial_f(to + v * V::width, x, left);
  }
  void clear() {
    for (auto& v : vector) v = V::zero();
  }
  void load(const float* from, int64_t columns) {
    for (int v = 0; v < kVectors; ++v) vector[v] = load(from, v, columns);
  }
  void store(float* to, int64_t columns) const {
    for (int v = 0; v < kVectors; ++v) store(to, v, columns, vector[v]);
  }
  inline __attribute__((always_inline)) void add_scaled(float scale, const Stripe& x) {
    const auto s = V::splat(scale);
    for (int v = 0; v < kVectors; ++v) vector[v] = V::fma(s, x.vector[v], vector[v]);
  }
  // Sums the lanes by halves, the same way for every width of a vector.
  inline __attribute__((always_inline)) float sum() const {
    Stripe half = *this;
    for (int count = kVectors / 2; count > 0; count /= 2) {
      for (int v = 0; v < count; ++v)
        half.vector[v] = V::add(half.vector[v], half.vector[v + count]);
    }
    return V::sum_halves(half.vector[0]);
  }
};

// Slots between a prefetch and its use.
constexpr int64_t kPrefixAhead = 8;

template <class T>
inline __attribute__((always_inline)) void prefetch_stripe(const T* row) {
  const char* byte = reinterpret_cast<const char*>(row);
  for (int64_t i = 0; i < kPrefixColumns * static_cast<int64_t>(sizeof(T)); i += 64) {
    __builtin_prefetch(byte + i);
  }
}

template <class V, class T, bool kWhole>
void prefix_squares(const PrefixErrors& args, int64_t begin, int64_t end, int64_t column,
                    int64_t columns, float* squares) {
  using S = Stripe<V, kWhole>;
  constexpr int kGroups = kPrefixLanes / V::width;  // vectors that hold the lanes of a sum
  const T* table = static_cast<const T*>(args.table.data) + column;
  const int64_t k = args.codes.k, stride = args.table.row_stride;
  const int64_t last = end * k - 1;
  for (int64_t i = begin; i < end; ++i) {
    float* residual = args.residual + i * args.d + column;
    S r;
    r.load(residual, columns);
    for (int64_t s = 0; s < k; ++s) {
      const int64_t slot = i * k + s;
      const float value = args.codes.values[slot];
      if (value != 0) {
        const int64_t ahead = slot + kPrefixAhead < last ? slot + kPrefixAhead : last;
        prefetch_stripe(table + args.codes.indices[ahead] * stride);
        const T* row = table + args.codes.indices[slot] * stride;
        const auto scale = V::splat(-value);
        for (int v = 0; v < S::kVectors; ++v) {
          r.vector[v] = V::fma(scale, S::load(row, v, columns), r.vector[v]);
        }
      }
      float* sums = squares + s * kPrefixLanes;
      for (int g = 0; g < kGroups; ++g) {
        auto sum = V::mul(r.vector[g], r.vector[g]);
        for (int v = g + kGroups; v < S::kVectors; v += kGroups) {
          sum = V::fma(r.vector[v], r.vector[v], sum);
        }
        V::store_f(sums + g * V::width, V::add(V::load_f(sums + g * V::width), sum));
      }
    }
    r.store(residual, columns);
  }
}

// Walks each code from its last slot to its first, from r_k back.
template <class V, class T, bool kWhole>
void prefix_gradients(const PrefixErrorsBackward& args, int64_t begin, int64_t end, int64_t column,
                      int64_t columns, float* dots) {
  using S = Stripe<V, kWhole>;
  const T* table = static_cast<const T*>(args.table.data) + column;
  float* grad_table = args.grad_table + column;
  const int64_t k = args.codes.k, d = args.d, stride = args.table.row_stride;
  for (int64_t i = begin; i < end; ++i) {
    S r, sum;
    r.load(args.residual + i * d + column, columns);
    sum.clear();
    for (int64_t s = k - 1; s >= 0; --s) {
      const int64_t slot = i * k + s;
      if (args.weights[s] != 0) sum.add_scaled(args.weights[s], r);
      const float value = args.codes.values[slot];
      float dot = 0;
      if (value != 0) {
        const int64_t ahead = s >= kPrefixAhead ? slot - kPrefixAhead : slot;
        prefetch_stripe(table + args.codes.indices[ahead] * stride);
        prefetch_stripe(grad_table + args.codes.indices[ahead] * d);
        const T* row = table + args.codes.indices[slot] * stride;
        float* grad = grad_table + args.codes.indices[slot] * d;
        const auto plus = V::splat(value), minus = V::splat(-value);
        S products;
        for (int v = 0; v < S::kVectors; ++v) {
          const auto x = S::load(row, v, columns);
          products.vector[v] = V::mul(sum.vector[v], x);
          r.vector[v] = V::fma(plus, x, r.vector[v]);
          S::store(grad, v, columns, V::fma(minus, sum.vector[v], S::load(grad, v, columns)));
        }
        dot = products.sum();
      }
      dots[(i - begin) * k + s] = dot;
    }
    sum.store(args.grad_x + i * d + column, columns);
  }
}

template <class V>
struct PrefixErrorsOf {
  template <class T>
  static void squares_of(const PrefixErrors& args, int64_t begin, int64_t end, int64_t column,
                         int64_t columns, float* squares) {
    const auto run =
        columns == kPrefixColumns ? prefix_squares<V, T, true> : prefix_squares<V, T, false>;
    run(args, begin, end, column, columns, squares);
  }
  static void squares(const PrefixErrors& args, int64_t begin, int64_t end, int64_t column,
                      int64_t columns, float* squares) {
    switch (args.dtype) {
      case DType::float32:
        return squares_of<float>(args, begin, end, column, columns, squares);
      case DType::float16:
        return squares_of<Half>(args, begin, end, column, columns, squares);
      case DType::bfloat16:
        return squares_of<BFloat>(args, begin, end, column, columns, squares);
    }
  }
  template <class T>
  static void gradients_of(const PrefixErrorsBackward& args, int64_t begin, int64_t end,
                           int64_t column, int64_t columns, float* dots) {
    const auto run =
        columns == kPrefixColumns ? prefix_gradients<V, T, true> : prefix_gradients<V, T, false>;
    run(args, begin, end, column, columns, dots);
  }
  static void gradients(const PrefixErrorsBackward& args, int64_t begin, int64_t end,
                        int64_t column, int64_t columns, float* dots) {
    switch (args.dtype) {
      case DType::float32:
        return gradients_of<float>(args, begin, end, column, columns, dots);
      case DType::float16:
        return gradients_of<Half>(args, begin, end, column, columns, dots);
      case DType::bfloat16:
        return gradients_of<BFloat>(args, begin, end, column, columns, dots);
    }
  }
};

template <class V>
constexpr PrefixErrorsKernels kPrefixErrors = {PrefixErrorsOf<V>::squares,
                                               PrefixErrorsOf<V>::gradients};

}  // namespace
}  // namespace csrkern
