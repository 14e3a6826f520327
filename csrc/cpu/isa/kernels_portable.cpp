#include <algorithm>
#include <array>
#include <cstring>

#include "csrkern/float_bits.hpp"
#include "csrkern/index_values.hpp"

namespace csrkern {
namespace {

template <class T>
T load(const uint8_t* at) {
  T value;
  std::memcpy(&value, at, sizeof(value));
  return value;
}

// Scores the postings [from, to) of a segment of n.
template <ValueType type>
void score_postings(const uint8_t* ids, uint64_t n, uint64_t from, uint64_t to, float weight,
                    float unit, float* scores) {
  const uint8_t* values = ids + 2 * n;
  for (uint64_t i = from; i < to; ++i) {
    scores[load<uint16_t>(ids + 2 * i)] += value_at(values, i, type, unit) * weight;
  }
}

template <ValueType type>
void score(const uint8_t* postings, const QueryTerm* terms, int n_terms, int64_t window, bool,
           int32_t, float unit, float* scores) {
  const uint64_t posting = posting_bytes(type);
  for (int t = 0; t < n_terms; ++t) {
    const uint64_t begin = terms[t].offsets[window], n = terms[t].offsets[window + 1] - begin;
    const uint8_t* segment = postings + begin * posting;
    score_postings<type>(segment, n, 0, n, terms[t].weight, unit, scores);
  }
}

template <ValueType type>
void score_parts(const Part* parts, int n_parts, int32_t, float unit, float* scores) {
  for (const Part* p = parts; p < parts + n_parts; ++p) {
    score_postings<type>(p->segment, p->n, p->from, p->to, p->weight, unit, scores);
  }
}

template <ValueType type>
void read(const uint8_t* stored, int64_t n, float unit, float* values) {
  for (int64_t i = 0; i < n; ++i) values[i] = value_at(stored, i, type, unit);
}

template <ValueType type>
constexpr ValueKernels kOf = {score<type>, score_parts<type>, read<type>};

void keep(float* scores, int64_t n, const uint64_t* bits) {
  for (int64_t i = 0; i < n; ++i) {
    if (!(bits[i / 64] >> i % 64 & 1)) scores[i] = 0;
  }
}

void lane_maxima(const float* scores, int64_t n, int64_t lanes, uint32_t* maxima) {
  std::fill(maxima, maxima + lanes, 0u);
  for (int64_t i = 0; i < n; i += lanes) {
    const int64_t count = std::min(lanes, n - i);
    for (int64_t j = 0; j < count; ++j) maxima[j] = std::max(maxima[j], bits_of(scores[i + j]));
  }
}

int64_t take(float* scores, int64_t n, uint32_t bar, uint16_t* ids, float* taken) {
  int64_t count = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (bits_of(scores[i]) >= bar) {
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

uint16_t float_to_half(float value) {
  const uint32_t bits = bits_of(value), sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00);
  if (magnitude >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);
  if (magnitude >= 0x38800000) {  // normal in float16: rebias, round the 13 lost bits
    const uint32_t rebiased = magnitude - 0x38000000;
    return static_cast<uint16_t>(sign | ((rebiased + 0xfff + ((rebiased >> 13) & 1)) >> 13));
  }
  // Adding 0.5 puts the last bit of a subnormal float16 (2^-24) at the last bit of the sum.
  return static_cast<uint16_t>(sign | (bits_of(float_of(magnitude) + 0.5f) - 0x3f000000));
}

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

float half_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16, magnitude = half & 0x7fff;
  if (magnitude >= 0x7c00) return float_of(sign | 0x7f800000 | (magnitude - 0x7c00) << 13);
  if (magnitude >= 0x0400) return float_of(sign | ((magnitude << 13) + 0x38000000));
  return float_of(sign | bits_of(static_cast<float>(magnitude) * 0x1p-24f));
}

const IndexKernels kIndexKernelsPortable = {{kOf<ValueType::float16>, kOf<ValueType::float32>,
                                             kOf<ValueType::uint8>, kOf<ValueType::uint16>},
                                            keep,
                                            lane_maxima,
                                            take,
                                            add_bounds,
                                            find_bounds,
                                            to_half,
                                            crc32c};

}  // namespace csrkern
