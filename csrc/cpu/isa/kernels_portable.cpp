// All kernels in plain C++, and the rows that are too rare for vector code.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <functional>
#include <vector>

#include "csrkern/float_bits.hpp"
#include "csrkern/index_values.hpp"
#include "generic/batch.hpp"
#include "generic/encode.hpp"
#include "generic/fine.hpp"
#include "generic/gather.hpp"
#include "generic/groups.hpp"
#include "generic/info_nce.hpp"
#include "generic/prefix_errors.hpp"
#include "generic/products.hpp"
#include "generic/topk_relu.hpp"
#include "isa/kernels.hpp"
#include "isa/simd_portable.hpp"

namespace csrkern {
namespace {

template <class T>
T load(const uint8_t* at) {
  T value;
  std::memcpy(&value, at, sizeof(value));
  return value;
}

template <ValueType type>
struct Postings {
  static void add(const uint8_t* ids, const uint8_t* values, uint64_t from, uint64_t to,
                  float weight, uint64_t, int32_t, float unit, float* scores) {
    for (uint64_t i = from; i < to; ++i) {
      scores[load<uint16_t>(ids + 2 * i)] += value_at(values, i, type, unit) * weight;
    }
  }
};

// Scores the postings [from, to) of a slice of n.
template <ValueType type>
void score_postings(const uint8_t* ids, uint64_t n, uint64_t from, uint64_t to, float weight,
                    float unit, float* scores) {
  Postings<type>::add(ids, ids + 2 * n, from, to, weight, 0, 0, unit, scores);
}

template <ValueType type>
void score(const uint8_t* postings, const QueryTerm* terms, int n_terms, int64_t window, bool,
           int32_t, float unit, float* scores) {
  const uint64_t posting = posting_bytes(type);
  for (int t = 0; t < n_terms; ++t) {
    const uint64_t begin = terms[t].offsets[window], n = terms[t].offsets[window + 1] - begin;
    const uint8_t* slice = postings + begin * posting;
    score_postings<type>(slice, n, 0, n, terms[t].weight, unit, scores);
  }
}

template <ValueType type>
void score_ranges(const SliceRange* ranges, int n_ranges, int32_t, float unit, float* scores) {
  for (const SliceRange* r = ranges; r < ranges + n_ranges; ++r) {
    score_postings<type>(r->slice, r->n, r->from, r->to, r->weight, unit, scores);
  }
}

template <ValueType type>
void add_dense(const uint8_t* values, int64_t n, float weight, float* scores) {
  for (int64_t i = 0; i < n; ++i) scores[i] += value_at(values, i, type, 1) * weight;
}

template <ValueType type>
void read(const uint8_t* stored, int64_t n, float unit, float* values) {
  for (int64_t i = 0; i < n; ++i) values[i] = value_at(stored, i, type, unit);
}

template <ValueType type>
constexpr ValueKernels kOf = {score<type>, score_ranges<type>, add_dense<type>, read<type>};

constexpr ValueKernels kGrouped = {score_groups<Postings<ValueType::uint4>>, nullptr, nullptr,
                                   read<ValueType::uint4>};

void keep(float* scores, int64_t n, const uint64_t* bits) {
  for (int64_t i = 0; i < n; ++i) {
    if (!(bits[i / 64] >> i % 64 & 1)) scores[i] = 0;
  }
}

void lane_maxima(const float* scores, int64_t n, int64_t lanes, uint32_t* maxima) {
  std::fill(maxima, maxima + lanes, 0u);
  for (int64_t i = 0; i < n; i += lanes) {
    const int64_t count = std::min(lanes, n - i);
    for (int64_t j = 0; j < count; ++j) {
      maxima[j] = std::max<int32_t>(maxima[j], bits_of(scores[i + j]));
    }
  }
}

int64_t take(float* scores, int64_t n, uint32_t bar, uint16_t* ids, float* taken) {
  int64_t count = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (static_cast<int32_t>(bits_of(scores[i])) >= static_cast<int32_t>(bar)) {
      ids[count] = static_cast<uint16_t>(i);
      taken[count++] = scores[i];
    }
    scores[i] = 0;
  }
  return count;
}

void add_bounds(const uint8_t* const* rows, const uint16_t* weights, int n_rows, int64_t n,
                uint16_t* bounds) {
  for (int64_t b = 0; b < n; ++b) {
    uint32_t sum = 1;
    for (int t = 0; t < n_rows; ++t) sum += static_cast<uint32_t>(rows[t][b]) * weights[t] >> 8;
    bounds[b] = static_cast<uint16_t>(sum);
  }
}

int64_t find_bounds(const uint16_t* bounds, int64_t n, uint16_t least, int32_t* found) {
  int64_t count = 0;
  for (int64_t b = 0; b < n; ++b) {
    if (bounds[b] >= least) found[count++] = static_cast<int32_t>(b);
  }
  return count;
}

struct BatchSums {
  using Bars = const int16_t*;

  int16_t sum[kBatch] = {};

  void add(const int8_t* a, const int8_t* b, uint16_t pair) {
    for (int64_t q = 0; q < kBatch; ++q) {
      const int all = sum[q] + (pair & 0xff) * a[q] + (pair >> 8) * b[q];
      sum[q] = static_cast<int16_t>(all < kMostSum ? all : kMostSum);
    }
  }
  uint64_t reached(Bars bars) const {
    uint64_t bits = 0;
    for (int64_t q = 0; q < kBatch; ++q) bits |= uint64_t{sum[q] >= bars[q]} << q;
    return bits;
  }
  void store(int16_t* sums) const { __builtin_memcpy(sums, sum, sizeof(sum)); }
};

struct FineSums {
  uint8_t sum[kFineBatch] = {};

  void add(const uint8_t* line) {
    for (int64_t q = 0; q < kFineBatch; ++q) {
      const int total = sum[q] + line[q];
      sum[q] = static_cast<uint8_t>(total < 255 ? total : 255);
    }
  }
  uint64_t below(const uint8_t* limits) const {
    uint64_t bits = 0;
    for (int64_t q = 0; q < kFineBatch; ++q) bits |= uint64_t{sum[q] < limits[q]} << q;
    return bits;
  }
};

void to_half(const float* values, int64_t n, uint16_t* halves) {
  for (int64_t i = 0; i < n; ++i) halves[i] = float_to_half(values[i]);
}

uint32_t crc32c(uint32_t crc, const uint8_t* data, size_t bytes) {
  static const std::array<uint32_t, 256> table = [] {
    std::array<uint32_t, 256> made{};
    for (uint32_t i = 0; i < 256; ++i) {
      uint32_t c = i;
      for (int bit = 0; bit < 8; ++bit) c = (c >> 1) ^ (c & 1 ? 0x82f63b78u : 0u);
      made[i] = c;
    }
    return made;
  }();
  crc = ~crc;
  for (size_t i = 0; i < bytes; ++i) crc = table[(crc ^ data[i]) & 0xff] ^ (crc >> 8);
  return ~crc;
}

}  // namespace

void topk_relu_row_with_nan(const float* row, int64_t h, int64_t k, int32_t* order) {
  std::vector<int32_t> latents;
  for (int64_t j = 0; j < h; ++j) {
    if (!(row[j] <= 0)) latents.push_back(static_cast<int32_t>(j));
  }
  const auto before = [row](int32_t a, int32_t b) {
    const bool nan_a = std::isnan(row[a]), nan_b = std::isnan(row[b]);
    if (nan_a != nan_b) return nan_a;
    return !nan_a && row[a] != row[b] ? row[a] > row[b] : a < b;
  };
  const int64_t won = std::min<int64_t>(k, static_cast<int64_t>(latents.size()));
  std::partial_sort(latents.begin(), latents.begin() + won, latents.end(), before);
  std::copy_n(latents.begin(), won, order);
  std::fill(order + won, order + k, -1);
}

int64_t candidates_of_odd_row(const float* row, int64_t h, int64_t k, double slack, double relative,
                              int32_t* index) {
  // The k-th largest lower bound of an exact value: whatever cannot reach it is out.
  double bar = -INFINITY;
  if (std::isfinite(slack)) {
    std::vector<double> lowest;
    for (int64_t l = 0; l < h; ++l) {
      const double value = row[l];
      if (!std::isnan(value)) lowest.push_back(value - slack - relative * std::fabs(value));
    }
    if (static_cast<int64_t>(lowest.size()) >= k) {
      std::nth_element(lowest.begin(), lowest.begin() + (k - 1), lowest.end(), std::greater<>());
      bar = lowest[k - 1];
    }
  }
  int64_t found = 0;
  for (int64_t l = 0; l < h; ++l) {
    const double value = row[l];
    const double highest = value + slack + relative * std::fabs(value);
    const bool out = highest <= 0 || highest < bar;  // false for NaN: those stay in
    if (!out) index[found++] = static_cast<int32_t>(l);
  }
  return found;
}

const Kernels kPortable = {
    rows_of_any<Portable>,
    kEncode<Portable>,
    kGather<Portable>,
    kPrefixErrors<Portable>,
    kInfoNce<Portable>,
    {{kOf<ValueType::float16>, kOf<ValueType::float32>, kOf<ValueType::uint8>, kGrouped},
     keep,
     lane_maxima,
     take,
     add_bounds,
     find_bounds,
     find_row<BatchSums>,
     to_half,
     crc32c},
    fine_kernels<FineSums>(),
    block_products_of<Portable>,
    unit_row,
};

}  // namespace csrkern
