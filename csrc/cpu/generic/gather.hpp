// The gather kernels over a vector type `V`, for isa/kernels_*.cpp.
// Internal linkage: each of these files is compiled for another instruction set.
#pragma once

#include <cstdint>
#include <type_traits>

#include "isa/kernels.hpp"
#include "isa/small_floats.hpp"

namespace csrkern {
namespace {

// A tile holds kTile vectors of float sums in registers. With kTile 0 it is the end of a row,
// narrower than a vector; with kTile kStretch its sums are in the L1 cache. Two vectors of bfloat16
// are held as their even and their odd columns where that is faster.
constexpr int kStretch = -1;

// The cache that a row is prefetched into. Few lines at once can be on their way to the L1, which
// makes a gather of rows from beyond the L2 up to 1.8 times slower; a scatter is then 2% faster.
enum Level { kL2 = 2, kL1 = 3 };

template <class V, class T, int kTile>
constexpr bool kPaired = V::pairs && std::is_same_v<T, BFloat> && kTile % 2 == 0 && kTile > 0;

template <class V, class T, int kTile, class Each>
inline __attribute__((always_inline)) void each_vector(const T* from, int64_t columns,
                                                       Each&& each) {
  if constexpr (kPaired<V, T, kTile>) {
    for (int v = 0; v < kTile; v += 2) {
      typename V::F even, odd;
      V::load_pair(from + v * V::width, even, odd);
      each(v, even);
      each(v + 1, odd);
    }
  } else if constexpr (kTile > 0) {
    for (int v = 0; v < kTile; ++v) each(v, V::load_f(from + v * V::width));
  } else {
    each(0, V::load_partial_f(from, columns));
  }
}

template <class T>
inline __attribute__((always_inline)) void prefetch(const T* row, int64_t columns) {
  const char* byte = reinterpret_cast<const char*>(row);
  for (int64_t i = 0; i < columns * static_cast<int64_t>(sizeof(T)); i += 64) {
    __builtin_prefetch(byte + i);
  }
}

template <class V, class T, int kTile>
struct Sums {
  typename V::F vector[kTile ? kTile : 1];

  void clear(int64_t) {
    for (auto& v : vector) v = V::zero();
  }
  // Prefetches the row `next`, too: each of its lines beside the sums of the same columns.
  template <Level kLevel>
  inline __attribute__((always_inline)) void add_scaled(float scale, const T* row, const T* next,
                                                        int64_t columns) {
    constexpr int kInLine = 64 / (V::width * sizeof(T));  // vectors
    const auto s = V::splat(scale);
    each_vector<V, T, kTile>(row, columns, [&](int v, typename V::F x) {
      if (v % kInLine == 0) __builtin_prefetch(next + v * V::width, 0, kLevel);
      vector[v] = V::fma(s, x, vector[v]);
    });
  }
  inline __attribute__((always_inline)) void add(const T* row, int64_t columns) {
    each_vector<V, T, kTile>(row, columns,
                             [&](int v, typename V::F x) { vector[v] = V::add(vector[v], x); });
  }
  void finish(int64_t) {}
  void load(const float* from, int64_t columns) {
    for (int v = 0; v < kTile; ++v) vector[v] = V::load_f(from + v * V::width);
    if constexpr (kTile == 0) vector[0] = V::load_partial_f(from, columns);
  }
  void keep(float* to, int64_t columns) const {
    for (int v = 0; v < kTile; ++v) V::store_f(to + v * V::width, vector[v]);
    if constexpr (kTile == 0) V::store_partial_f(to, vector[0], columns);
  }
  void store(T* to, const T* bias, int64_t columns) const {
    Sums<V, T, kTile> shifted = *this;
    if (bias) shifted.add(bias, columns);
    if constexpr (kPaired<V, T, kTile>) {
      for (int v = 0; v < kTile; v += 2) {
        V::store_pair(to + v * V::width, shifted.vector[v], shifted.vector[v + 1]);
      }
    } else if constexpr (kTile > 0) {
      for (int v = 0; v < kTile; ++v) V::store_f(to + v * V::width, shifted.vector[v]);
    } else {
      V::store_partial_f(to, shifted.vector[0], columns);
    }
  }
};

// Registers of 8 lanes hold only 64 sums, too few to pay for finding a row (1.7 times slower). So
// kRows rows are collected first and then added in order, four vectors of each at a time.
template <class V, class T>
struct Sums<V, T, kStretch> {
  static constexpr int kRows = 4;
  static constexpr int64_t kTileColumns = 4 * V::width;
  static constexpr int64_t kMost = 256;  // columns; 1,024 are up to 1.3 times slower
  using Tile = Sums<V, T, kTileColumns / V::width>;

  alignas(64) float sums[kMost];
  const T *rows[kRows], *nexts[kRows];
  float scales[kRows];
  int count = 0;

  Tile tile(int64_t column) const {
    Tile tile;
    for (int v = 0; v < kTileColumns / V::width; ++v) {
      tile.vector[v] = V::load_f(sums + column + v * V::width);
    }
    return tile;
  }
  void keep(int64_t column, const Tile& tile) {
    for (int v = 0; v < kTileColumns / V::width; ++v) {
      V::store_f(sums + column + v * V::width, tile.vector[v]);
    }
  }
  void clear(int64_t columns) {
    for (int64_t c = 0; c < columns; c += V::width) V::store_f(sums + c, V::zero());
  }
  void add(const T* row, int64_t columns) {
    for (int64_t c = 0; c < columns; c += kTileColumns) {
      Tile sum = tile(c);
      sum.add(row + c, kTileColumns);
      keep(c, sum);
    }
  }
  template <int kCount>
  inline __attribute__((always_inline)) void add_rows(int64_t columns) {
    const T *from[kCount], *next[kCount];
    float scale[kCount];
    for (int g = 0; g < kCount; ++g) {
      from[g] = rows[g];
      next[g] = nexts[g];
      scale[g] = scales[g];
    }
    for (int64_t c = 0; c < columns; c += kTileColumns) {
      Tile sum = tile(c);
#pragma GCC unroll 4
      for (int g = 0; g < kCount; ++g) {
        sum.template add_scaled<kL1>(scale[g], from[g] + c, next[g] + c, kTileColumns);
      }
      keep(c, sum);
    }
  }
  template <Level>
  inline __attribute__((always_inline)) void add_scaled(float scale, const T* row, const T* next,
                                                        int64_t columns) {
    scales[count] = scale;
    rows[count] = row;
    nexts[count++] = next;
    if (count < kRows) return;
    add_rows<kRows>(columns);
    count = 0;
  }
  void finish(int64_t columns) {
    if (count == 1) add_rows<1>(columns);
    if (count == 2) add_rows<2>(columns);
    if (count == 3) add_rows<3>(columns);
    count = 0;
  }
  void store(T* to, const T* bias, int64_t columns) const {
    for (int64_t c = 0; c < columns; c += kTileColumns) {
      tile(c).store(to + c, bias ? bias + c : nullptr, kTileColumns);
    }
  }
};

// Entries between a prefetch and its use in a scatter: 2 to 4 are 1.8 times slower, 12 and 24 a few
// percent.
constexpr int64_t kScatterAhead = 16;

// Calls body(kTile, column, columns) as long as a whole tile is left; returns the first column that
// is.
template <class V, int kTile, class Body>
inline int64_t whole_tiles(int64_t column, int64_t d, const Body& body) {
  for (; column + kTile * V::width <= d; column += kTile * V::width) {
    body(std::integral_constant<int, kTile>{}, column, kTile * V::width);
  }
  return column;
}

// Calls body(kTile, column, columns) over stretches, or over tiles of the columns up to d, the
// widest first, then over single vectors, then, with kTile 0, over the rest.
template <class V, class T, bool kStretches, class Body>
inline void tiles(int64_t column, int64_t d, Body&& body) {
  if constexpr (V::stretched && kStretches) {
    using Stretch = Sums<V, T, kStretch>;
    while (d - column >= Stretch::kTileColumns) {
      const int64_t whole = (d - column) / Stretch::kTileColumns * Stretch::kTileColumns;
      const int64_t columns = whole < Stretch::kMost ? whole : Stretch::kMost;
      body(std::integral_constant<int, kStretch>{}, column, columns);
      column += columns;
    }
  } else {
    column = whole_tiles<V, V::tile>(column, d, body);
    if constexpr (V::tile > 4) column = whole_tiles<V, 4>(column, d, body);
  }
  column = whole_tiles<V, 1>(column, d, body);
  if (column < d) body(std::integral_constant<int, 0>{}, column, d - column);
}

// Slots of a code that are added at a time: each tile of columns adds these rows while they are in
// the L1 cache and their pages in its TLB (all of a code's at k = 128: 1.3 times slower), and
// prefetches those of as many slots further on, across the ends of codes.
constexpr int64_t kChunk = 16;

template <class T>
struct Chunk {
  const T *rows[kChunk], *nexts[kChunk];
  float scales[kChunk];
  int count = 0;
};

// The columns are at most kGatherBytes of a row.
template <class V, class T>
void gather_sum_rows(const GatherSum& args, int64_t begin, int64_t end, int64_t first_column,
                     int64_t last_column) {
  const T* table = static_cast<const T*>(args.table.data);
  const T* bias = static_cast<const T*>(args.bias);
  const int64_t k = args.codes.k, stride = args.table.row_stride;
  const int64_t last = end * k - 1;
  alignas(64) float between[kGatherBytes / sizeof(T)];  // sums from one chunk to the next
  for (int64_t i = begin; i < end; ++i) {
    int64_t slot = i * k;
    bool first = true;
    for (int q = 0; q < args.num_prefixes; ++q) {
      const int64_t stop = i * k + args.ends[q];
      T* out = static_cast<T*>(args.outs[q]) + i * args.d;
      do {
        Chunk<T> chunk;
        for (; slot < stop && chunk.count < kChunk; ++slot) {
          const int64_t ahead = slot + kChunk < last ? slot + kChunk : last;
          chunk.scales[chunk.count] = args.codes.values[slot];
          chunk.rows[chunk.count] = table + args.codes.indices[slot] * stride;
          chunk.nexts[chunk.count] = table + args.codes.indices[ahead] * stride;
          chunk.count += args.codes.values[slot] != 0;
        }
        const bool whole = slot == stop, more = !whole || q + 1 < args.num_prefixes;
        tiles<V, T, false>(first_column, last_column, [&](auto tile, int64_t c, int64_t columns) {
          Sums<V, T, tile()> sums;
          first ? sums.clear(columns) : sums.load(between + (c - first_column), columns);
          for (int g = 0; g < chunk.count; ++g) {
            sums.template add_scaled<kL2>(chunk.scales[g], chunk.rows[g] + c, chunk.nexts[g] + c,
                                          columns);
          }
          if (whole) sums.store(out + c, bias ? bias + c : nullptr, columns);
          if (more) sums.keep(between + (c - first_column), columns);
        });
        first = false;
      } while (slot < stop);
    }
  }
}

// Returns ⟨a, b⟩ by 64 partial sums, element j in sum j mod 64, then by a tree: the same on every
// instruction set that fuses multiply and add.
template <class V, class T>
inline float dot(const T* a, const T* b, int64_t d) {
  constexpr int64_t kSums = 64, kVectors = kSums / V::width;
  typename V::F acc[kVectors];
  for (auto& sum : acc) sum = V::zero();
  int64_t j = 0;
  for (; j + kSums <= d; j += kSums) {
    for (int v = 0; v < kVectors; ++v) {
      acc[v] = V::fma(V::load_f(a + j + v * V::width), V::load_f(b + j + v * V::width), acc[v]);
    }
  }
  for (int v = 0; j < d; j += V::width, ++v) {
    const int64_t left = d - j;
    acc[v] = left >= V::width
                 ? V::fma(V::load_f(a + j), V::load_f(b + j), acc[v])
                 : V::fma(V::load_partial_f(a + j, left), V::load_partial_f(b + j, left), acc[v]);
  }
  float sums[kSums];
  for (int v = 0; v < kVectors; ++v) V::store_f(sums + v * V::width, acc[v]);
  for (int64_t half = kSums / 2; half > 0; half /= 2) {
    for (int64_t i = 0; i < half; ++i) sums[i] += sums[i + half];
  }
  return sums[0];
}

template <class V, class T>
void gather_dot_rows(const GatherDot& args, int64_t begin, int64_t end) {
  constexpr int64_t kAhead = 2;
  const T* table = static_cast<const T*>(args.table.data);
  const int64_t k = args.codes.k, d = args.d, stride = args.table.row_stride;
  for (int64_t i = begin; i < end; ++i) {
    const float* values = args.codes.values + i * k;
    const int32_t* indices = args.codes.indices + i * k;
    for (int64_t s = 0; s < k; ++s) {
      if (s + kAhead < k) prefetch(table + indices[s + kAhead] * stride, d);
      float sum = 0;
      for (int q = 0; q < args.num_sources && values[s] != 0; ++q) {
        const Source& source = args.sources[q];
        if (s < source.begin || s >= source.end) continue;
        const T* row = static_cast<const T*>(source.rows.data) + i * source.rows.row_stride;
        sum += dot<V>(row, table + indices[s] * stride, d);
      }
      args.out[i * k + s] = sum;
    }
  }
}

// Adds entries first..last-1 of one latent while their row is below row_end. Returns the first
// entry that is left.
template <class V, class T, int kTile>
inline int64_t add_entries(const ScatterSum& args, int64_t first, int64_t last, int64_t row_end,
                           int64_t column, int64_t columns, Sums<V, T, kTile>& sums) {
  const bool whole = row_end == args.n;  // otherwise the rows are in the L2 cache
  int64_t e = first;
  for (; e < last && args.rows[e] < row_end; ++e) {
    const int64_t slot = args.slots[e];
    const int64_t ahead = args.rows[whole && e + kScatterAhead < last ? e + kScatterAhead : e];
    for (int q = 0; q < args.num_sources; ++q) {
      const Source& source = args.sources[q];
      const T* data = static_cast<const T*>(source.rows.data) + column;
      if (slot < source.begin || slot >= source.end) continue;
      sums.template add_scaled<kL1>(source.scale[e], data + args.rows[e] * source.rows.row_stride,
                                    data + ahead * source.rows.row_stride, columns);
    }
  }
  sums.finish(columns);
  return e;
}

// Takes tiles of rows that stay in the L2 cache while all latents add them; between tiles the sums
// are in `out`. Every sum is in the order of the rows.
template <class V, class T>
void scatter_sum_latents(const ScatterSum& args, int64_t begin, int64_t end, int64_t first_column,
                         int64_t last_column) {
  int64_t next[kScatterLatents];
  tiles<V, T, sizeof(T) == 2>(
      first_column, last_column, [&](auto tile, int64_t column, int64_t columns) {
        for (int64_t latent = begin; latent < end; ++latent) {
          next[latent - begin] = args.starts[latent];
        }
        int64_t row_end = 0;
        do {
          const int64_t row = row_end;
          row_end = row + args.tile_rows < args.n ? row + args.tile_rows : args.n;
          for (int64_t latent = begin; latent < end; ++latent) {
            const int64_t first = next[latent - begin], last = args.starts[latent + 1];
            if (row > 0 && (first == last || args.rows[first] >= row_end)) continue;
            T* out = static_cast<T*>(args.out) + latent * args.d + column;
            Sums<V, T, tile()> sums;
            sums.clear(columns);
            if (row > 0) sums.add(out, columns);
            next[latent - begin] =
                add_entries<V, T, tile()>(args, first, last, row_end, column, columns, sums);
            sums.store(out, nullptr, columns);
          }
        } while (row_end < args.n);
      });
}

template <class V>
struct GatherOf {
  static void gather_sum(const GatherSum& args, int64_t begin, int64_t end, int64_t first_column,
                         int64_t last_column) {
    switch (args.dtype) {
      case DType::float32:
        return gather_sum_rows<V, float>(args, begin, end, first_column, last_column);
      case DType::float16:
        return gather_sum_rows<V, Half>(args, begin, end, first_column, last_column);
      case DType::bfloat16:
        return gather_sum_rows<V, BFloat>(args, begin, end, first_column, last_column);
    }
  }
  static void gather_dot(const GatherDot& args, int64_t begin, int64_t end) {
    switch (args.dtype) {
      case DType::float32:
        return gather_dot_rows<V, float>(args, begin, end);
      case DType::float16:
        return gather_dot_rows<V, Half>(args, begin, end);
      case DType::bfloat16:
        return gather_dot_rows<V, BFloat>(args, begin, end);
    }
  }
  static void scatter_sum(const ScatterSum& args, int64_t begin, int64_t end, int64_t first_column,
                          int64_t last_column) {
    switch (args.dtype) {
      case DType::float32:
        return scatter_sum_latents<V, float>(args, begin, end, first_column, last_column);
      case DType::float16:
        return scatter_sum_latents<V, Half>(args, begin, end, first_column, last_column);
      case DType::bfloat16:
        return scatter_sum_latents<V, BFloat>(args, begin, end, first_column, last_column);
    }
  }
};

template <class V>
constexpr GatherKernels kGather = {GatherOf<V>::gather_sum, GatherOf<V>::gather_dot,
                                   GatherOf<V>::scatter_sum};

}  // namespace
}  // namespace csrkern
