// Builds the arrays of an index from rows in device memory, without the host.
#pragma once

#include "index_query.hpp"

namespace csrkern::cuda {

// Why a row is not valid. A fault is row << 8 | reason, and the least one is reported.
enum Reason : uint64_t { kLatent = 1, kValue, kTooLarge, kTwice };

// Calls body(row, lane) with a warp for each of n rows.
template <int kThreads, class Body>
CSRKERN_DEVICE void each_row(ThreadBlock& threads, uint64_t n, const Body& body) {
  threads.phase([&](uint32_t t) {
    const uint64_t row = static_cast<uint64_t>(threads.index()) * (kThreads / 32) + t / 32;
    if (row < n) body(static_cast<uint32_t>(row), t % 32);
  });
}

// Calls body(entry, latent, number of the latent's list) for a lane's share of a document.
template <class Body>
CSRKERN_DEVICE void each_entry(const IndexArrays& index, uint32_t doc, uint32_t lane,
                               const Body& body) {
  const uint64_t lists = static_cast<uint64_t>(doc / index.block) * index.dim;
  for (uint32_t e = index.starts[doc] + lane; e < index.starts[doc + 1]; e += 32) {
    const uint32_t latent = latent_at(index, e);
    body(e, latent, lists + latent);
  }
}

struct RowReader {
  Rows rows;
  int32_t dim;
  ValueType type;
  float unit;   // of squares
  float limit;  // the largest value that can be stored
  bool normalize;

  CSRKERN_DEVICE uint64_t begin(uint32_t row) const {
    return rows.starts == nullptr ? static_cast<uint64_t>(row) * rows.width : rows.starts[row];
  }
  CSRKERN_DEVICE float raw(uint64_t entry) const {
    return number_at(rows.type, rows.values, entry);
  }
  // Returns the value rounded to float16, but not to a square; 0 if it will not be stored.
  CSRKERN_DEVICE float rounded(uint64_t entry, double scale) const {
    float value = raw(entry);
    if (normalize) value = scaled_value(value, scale);
    if (type != ValueType::float16) return value;
    const uint16_t half = to_half(value);
    return from_half(half == 0 && value > 0 ? 1 : half);
  }
  // Stores a value at position `at`.
  CSRKERN_DEVICE void put(float value, void* values, uint32_t at) const {
    switch (type) {
      case ValueType::float16:
        static_cast<uint16_t*>(values)[at] = to_half(value);
        break;
      case ValueType::float32:
        static_cast<float*>(values)[at] = value;
        break;
      default:
        static_cast<uint8_t*>(values)[at] = static_cast<uint8_t>(number_of(value, unit));
    }
  }
};

// One thread per row: checks it, finds 1 / L2 norm, and counts what will be stored.
struct MeasureRows {
  static constexpr const char* kName = "measure_rows";
  static constexpr int kThreads = 256;
  static constexpr int kPerProcessor = 4;

  RowReader reader;
  double* scales;     // [n]
  uint32_t* lengths;  // [n]
  uint64_t* fault;

  CSRKERN_DEVICE void operator()(ThreadBlock& threads) const {
    threads.phase([&](uint32_t t) {
      const uint64_t row = static_cast<uint64_t>(threads.index()) * kThreads + t;
      if (row < static_cast<uint64_t>(reader.rows.n)) measure(static_cast<uint32_t>(row));
    });
  }

  CSRKERN_DEVICE void measure(uint32_t row) const {
    const uint64_t begin = reader.begin(row), end = reader.begin(row + 1);
    double square = 0;
    for (uint64_t e = begin; e < end; ++e) {
      const float value = reader.raw(e);
      if (static_cast<uint32_t>(reader.rows.indices[e]) >= static_cast<uint32_t>(reader.dim)) {
        report(row, kLatent);
      }
      if (!(value >= 0 && value <= kLargestFloat)) report(row, kValue);
      square += static_cast<double>(value) * value;
    }
    const double scale = square > 0 ? 1 / sqrt(square) : 0;
    uint32_t length = 0;
    for (uint64_t e = begin; e < end; ++e) {
      const float value = reader.rounded(e, scale);
      if (!(value <= reader.limit)) report(row, kTooLarge);
      length += value > 0;
    }
    scales[row] = scale;
    lengths[row] = length;
  }

  CSRKERN_DEVICE void report(uint32_t row, Reason reason) const {
    atomic_min(fault, static_cast<uint64_t>(row) << 8 | reason);
  }
};

// One warp per row: stores its entries in order of latents.
struct PlaceRows {
  static constexpr const char* kName = "place_rows";
  static constexpr int kThreads = 256;
  static constexpr int kPerProcessor = 4;

  RowReader reader;
  const double* scales;
  const uint32_t* starts;  // [n + 1]
  bool wide;
  void* latents;
  void* values;
  uint64_t* fault;

  CSRKERN_DEVICE void operator()(ThreadBlock& threads) const {
    each_row<kThreads>(threads, reader.rows.n,
                       [&](uint32_t row, uint32_t lane) { place(row, lane); });
  }

  CSRKERN_DEVICE void place(uint32_t row, uint32_t lane) const {
    const uint64_t begin = reader.begin(row), end = reader.begin(row + 1);
    const double scale = scales[row];
    for (uint64_t e = begin + lane; e < end; e += 32) {
      const float value = reader.rounded(e, scale);
      if (!(value > 0)) continue;
      const int32_t latent = reader.rows.indices[e];
      uint32_t rank = 0;
      for (uint64_t other = begin; other < end; ++other) {
        const int32_t its = reader.rows.indices[other];
        if (other == e || its > latent || !(reader.rounded(other, scale) > 0)) continue;
        rank += its < latent || other < e;
        if (its == latent) atomic_min(fault, static_cast<uint64_t>(row) << 8 | kTwice);
      }
      const uint32_t at = starts[row] + rank;
      if (wide) {
        static_cast<uint32_t*>(latents)[at] = static_cast<uint32_t>(latent);
      } else {
        static_cast<uint16_t*>(latents)[at] = static_cast<uint16_t>(latent);
      }
      reader.put(value, values, at);
    }
  }
};

// One warp per document: counts the postings of each list and finds each latent's largest value.
struct CountPostings {
  static constexpr const char* kName = "count_postings";
  static constexpr int kThreads = 256;
  static constexpr int kPerProcessor = 4;

  IndexArrays index;
  uint32_t* counts;        // [n_blocks * dim], 0
  uint32_t* largest_bits;  // [dim], 0
  uint32_t* longest_row;   // 0

  CSRKERN_DEVICE void operator()(ThreadBlock& threads) const {
    each_row<kThreads>(threads, index.n_docs, [&](uint32_t doc, uint32_t lane) {
      if (lane == 0) atomic_max(longest_row, index.starts[doc + 1] - index.starts[doc]);
      each_entry(index, doc, lane, [&](uint32_t e, uint32_t latent, uint64_t list) {
        atomic_add(counts + list, 1u);
        atomic_max(largest_bits + latent, bits_of(value_at(index, e)));
      });
    });
  }
};

// One warp per document: writes its postings, each list from its end.
struct PlacePostings {
  static constexpr const char* kName = "place_postings";
  static constexpr int kThreads = 256;
  static constexpr int kPerProcessor = 4;

  IndexArrays index;
  uint32_t* counts;  // [n_blocks * dim] postings that each list still lacks
  int32_t impact_bits;
  uint32_t* words;
  uint16_t* numbers;
  uint8_t* impacts;

  CSRKERN_DEVICE void operator()(ThreadBlock& threads) const {
    each_row<kThreads>(threads, index.n_docs, [&](uint32_t doc, uint32_t lane) {
      const uint32_t number = doc % index.block;
      each_entry(index, doc, lane, [&](uint32_t e, uint32_t latent, uint64_t list) {
        const uint32_t at = index.offsets[list] + atomic_add(counts + list, ~0u) - 1;
        const uint32_t impact = impact_of(value_at(index, e), index.scales[latent], impact_bits);
        if (impact_bits == 16) {
          words[at] = impact << 16 | number;
        } else {
          numbers[at] = static_cast<uint16_t>(number);
          impacts[at] = static_cast<uint8_t>(impact);
        }
      });
    });
  }
};

// ---- exclusive sums of counts: of each tile, then of the tiles, then within each ------------

constexpr uint32_t kScanThreads = 256;
constexpr uint32_t kScanEach = 16;
constexpr uint32_t kScanTile = kScanThreads * kScanEach;

struct SumTiles {
  static constexpr const char* kName = "sum_tiles";
  static constexpr int kThreads = kScanThreads;
  static constexpr int kPerProcessor = 4;

  const uint32_t* counts;  // [n]
  uint64_t n;
  uint64_t* sums;  // [tiles]

  CSRKERN_DEVICE void operator()(ThreadBlock& threads) const {
    uint32_t* partial = threads.shared<uint32_t>();
    const uint64_t first = static_cast<uint64_t>(threads.index()) * kScanTile;
    threads.phase([&](uint32_t t) {
      partial[t] = 0;
      for (uint64_t i = first + t; i < first + kScanTile && i < n; i += kThreads) {
        partial[t] += counts[i];
      }
    });
    threads.phase([&](uint32_t t) {
      if (t != 0) return;
      uint64_t sum = 0;
      for (int i = 0; i < kThreads; ++i) sum += partial[i];
      sums[threads.index()] = sum;
    });
  }
};

// One thread is enough: 100 million documents have 30,000 tiles.
struct ScanSums {
  static constexpr const char* kName = "scan_sums";
  static constexpr int kThreads = 32;
  static constexpr int kPerProcessor = 1;

  uint64_t* sums;  // [n + 1], in place; the last is the total
  uint64_t n;

  CSRKERN_DEVICE void operator()(ThreadBlock& threads) const {
    threads.phase([&](uint32_t t) {
      if (t != 0) return;
      uint64_t before = 0;
      for (uint64_t i = 0; i < n; ++i) {
        const uint64_t sum = sums[i];
        sums[i] = before;
        before += sum;
      }
      sums[n] = before;
    });
  }
};

struct ScanTiles {
  static constexpr const char* kName = "scan_tiles";
  static constexpr int kThreads = kScanThreads;
  static constexpr int kPerProcessor = 4;

  const uint32_t* counts;  // [n]
  uint64_t n;
  const uint64_t* sums;  // [tiles + 1] before each tile
  uint32_t* offsets;     // [n + 1]

  CSRKERN_DEVICE void operator()(ThreadBlock& threads) const {
    uint32_t* before = threads.shared<uint32_t>();
    const uint64_t first = static_cast<uint64_t>(threads.index()) * kScanTile;
    threads.phase([&](uint32_t t) {
      uint32_t sum = 0;
      for (uint32_t i = 0; i < kScanEach; ++i) {
        const uint64_t at = first + t * kScanEach + i;
        if (at < n) sum += counts[at];
      }
      before[t] = sum;
    });
    threads.phase([&](uint32_t t) {
      if (t != 0) return;
      uint32_t sum = static_cast<uint32_t>(sums[threads.index()]);
      for (int i = 0; i < kThreads; ++i) {
        const uint32_t mine = before[i];
        before[i] = sum;
        sum += mine;
      }
    });
    threads.phase([&](uint32_t t) {
      uint32_t sum = before[t];
      for (uint32_t i = 0; i < kScanEach; ++i) {
        const uint64_t at = first + t * kScanEach + i;
        if (at > n) return;
        offsets[at] = sum;
        if (at < n) sum += counts[at];
      }
    });
  }
};

}  // namespace csrkern::cuda
