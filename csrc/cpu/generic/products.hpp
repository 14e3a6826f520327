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
        sums[i][v] = V::add(sums[i][v], V::mul(entry, words[v]));
      }
    }
  }
  for (int i = 0; i < Rows; ++i) {
    for (int v = 0; v < Vectors; ++v) V::store_f(out + i * pitch + v * V::width, sums[i][v]);
  }
}

template <class V, int Rows, int Vectors>
void product_rows(const float* x, int64_t width, const float* block, int64_t rows, int64_t columns,
                  float* out, int64_t pitch) {
  int64_t j = 0;
  for (; j + Vectors * V::width <= columns; j += Vectors * V::width) {
    product_tile<V, Rows, Vectors>(x, width, block + j, rows, columns, out + j, pitch);
  }
  if constexpr (Vectors > 2) {  // two at a time: an addition waits for the one before
    for (; j + 2 * V::width <= columns; j += 2 * V::width) {
      product_tile<V, Rows, 2>(x, width, block + j, rows, columns, out + j, pitch);
    }
  }
  for (; j + V::width <= columns; j += V::width) {
    product_tile<V, Rows, 1>(x, width, block + j, rows, columns, out + j, pitch);
  }
  for (; j < columns; ++j) {
    for (int i = 0; i < Rows; ++i) {
      float sum = 0;
      for (int64_t r = 0; r < rows; ++r) sum += x[i * width + r] * block[r * columns + j];
      out[i * pitch + j] = sum;
    }
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

// Rows begin..end-1 with all blocks.
template <class V>
void block_products_of(const BlockProducts& args, int64_t begin, int64_t end) {
  const int64_t pitch = args.n_blocks * args.columns;
  for (int64_t b = 0; b < args.n_blocks; ++b) {
    const float* block = args.blocks + b * args.rows * args.columns;
    int64_t i = begin;
    const auto x = [&] { return args.x + i * args.width + args.first[b]; };
    const auto out = [&] { return args.out + i * pitch + b * args.columns; };
    for (; i + 4 <= end; i += 4) {
      product_rows<V, 4, 2>(x(), args.width, block, args.rows, args.columns, out(), pitch);
    }
    for (; i < end; ++i) {
      product_rows<V, 1, 8>(x(), args.width, block, args.rows, args.columns, out(), pitch);
    }
  }
}

}  // namespace
}  // namespace csrkern
