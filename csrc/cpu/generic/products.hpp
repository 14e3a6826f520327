// Products of rows with blocks of columns; see csrkern/fine.hpp.
// Internal linkage: each file that includes this is compiled for another instruction set.
#pragma once

#include <cmath>
#include <cstdint>

#include "csrkern/fine.hpp"

namespace csrkern {
namespace {

// `Rows` rows times `Vectors` vectors of a block's columns.
template <class V, int Rows, int Vectors>
void product_tile(const float* x, int64_t width, const float* block, int64_t rows, int64_t columns,
                  float* out, int64_t pitch) {
  using F = typename V::F;
  F sums[Rows][Vectors];
  for (auto& row : sums) {
    for (F& sum : row) sum = V::zero();
  }
  for (int64_t r = 0; r < rows; ++r) {
    F words[Vectors];
    for (int v = 0; v < Vectors; ++v) words[v] = V::load_f(block + r * columns + v * V::width);
    for (int i = 0; i < Rows; ++i) {
      const F entry = V::splat(x[i * width + r]);
      for (int v = 0; v < Vectors; ++v) {
        sums[i][v] = V::fused(entry, words[v], sums[i][v]);
      }
    }
  }
  for (int i = 0; i < Rows; ++i) {
    for (int v = 0; v < Vectors; ++v) V::store_f(out + i * pitch + v * V::width, sums[i][v]);
  }
}

// n rows times `Vectors` vectors of a block's columns, `Rows` rows at a time.
template <class V, int Rows, int Vectors>
void product_columns(const BlockProducts& args, const float* x, const float* block, float* out,
                     int64_t n) {
  const int64_t pitch = args.n_blocks * args.columns;
  int64_t i = 0;
  for (; i + Rows <= n; i += Rows) {
    product_tile<V, Rows, Vectors>(x + i * args.width, args.width, block, args.rows, args.columns,
                                   out + i * pitch, pitch);
  }
  for (; i < n; ++i) {
    product_tile<V, 1, Vectors>(x + i * args.width, args.width, block, args.rows, args.columns,
                                out + i * pitch, pitch);
  }
}

// Brings a row to norm 1 and takes the center away; see csrkern/fine.hpp. Eight sums, of which a
// processor adds up several at once; squares of floats are exact in double.
inline void unit_row(const float* x, int64_t width, const float* center, float* out) {
  constexpr int64_t kSums = 8;
  double sums[kSums] = {};
  const int64_t whole = width / kSums * kSums;
  for (int64_t j = 0; j < whole; j += kSums) {
    for (int64_t i = 0; i < kSums; ++i) sums[i] += double{x[j + i]} * x[j + i];
  }
  for (int64_t j = whole; j < width; ++j) sums[j - whole] += double{x[j]} * x[j];
  const double square =
      ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
  const double norm = std::sqrt(square);
  const double factor = norm > 0 ? 1 / norm : 0;
  for (int64_t j = 0; j < width; ++j) out[j] = static_cast<float>(x[j] * factor);
  for (int64_t j = 0; center != nullptr && j < width; ++j) out[j] -= center[j];
}

// Rows begin..end-1 with all blocks. Columns that rows share stay in the first cache.
template <class V>
void block_products_of(const BlockProducts& args, int64_t begin, int64_t end) {
  // As many sums as there are registers for.
  constexpr int kRows = 4, kVectors = V::width == 16 ? 4 : 2;
  const int64_t pitch = args.n_blocks * args.columns, n = end - begin;
  for (int64_t b = 0; b < args.n_blocks; ++b) {
    const float* block = args.blocks + b * args.rows * args.columns;
    const float* x = args.x + begin * args.width + args.first[b];
    float* out = args.out + begin * pitch + b * args.columns;
    int64_t j = 0;
    // Few rows take more columns at once: an addition waits for the one before.
    for (; n < kRows && j + 8 * V::width <= args.columns; j += 8 * V::width) {
      product_columns<V, 1, 8>(args, x, block + j, out + j, n);
    }
    for (; j + kVectors * V::width <= args.columns; j += kVectors * V::width) {
      product_columns<V, kRows, kVectors>(args, x, block + j, out + j, n);
    }
    for (; kVectors > 2 && j + 2 * V::width <= args.columns; j += 2 * V::width) {
      product_columns<V, kRows, 2>(args, x, block + j, out + j, n);
    }
    for (; j + V::width <= args.columns; j += V::width) {
      product_columns<V, kRows, 1>(args, x, block + j, out + j, n);
    }
    for (; j < args.columns; ++j) {
      for (int64_t i = 0; i < n; ++i) {
        float sum = 0;
        for (int64_t r = 0; r < args.rows; ++r) {
          sum = V::fused(x[i * args.width + r], block[r * args.columns + j], sum);
        }
        out[i * pitch + j] = sum;
      }
    }
  }
}

}  // namespace
}  // namespace csrkern
