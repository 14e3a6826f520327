// All kernels for AVX2. Only kAvx2 has external linkage.
#include <immintrin.h>

#include "generic/batch.hpp"
#include "generic/encode.hpp"
#include "generic/fine.hpp"
#include "generic/gather.hpp"
#include "generic/groups.hpp"
#include "generic/index.hpp"
#include "generic/info_nce.hpp"
#include "generic/prefix_errors.hpp"
#include "generic/products.hpp"
#include "generic/topk_relu.hpp"
#include "isa/crc32c_x86.hpp"
#include "isa/kernels.hpp"
#include "isa/simd_avx2.hpp"

namespace csrkern {
namespace {

// Slices of uint8 values may begin at odd addresses.
uint16_t load_short(const uint8_t* at) {
  uint16_t two;
  __builtin_memcpy(&two, at, 2);
  return two;
}

struct HalfValues {
  static constexpr uint64_t kBytes = 2;
  static __m256 load8(const uint8_t* at) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
  }
  static float load(const uint8_t* at) { return _cvtsh_ss(load_short(at)); }
};

struct FloatValues {
  static constexpr uint64_t kBytes = 4;
  static __m256 load8(const uint8_t* at) {
    return _mm256_loadu_ps(reinterpret_cast<const float*>(at));
  }
  static float load(const uint8_t* at) {
    float value;
    __builtin_memcpy(&value, at, 4);
    return value;
  }
};

// In units; see index_values.hpp.
__m256 squares(__m256i numbers) {
  const __m256 roots = _mm256_cvtepi32_ps(_mm256_add_epi32(numbers, _mm256_set1_epi32(1)));
  return _mm256_mul_ps(roots, roots);
}

float square(uint32_t number) {
  const float root = static_cast<float>(number + 1);
  return root * root;
}

struct ByteValues {
  static constexpr uint64_t kBytes = 1;
  static __m256 load8(const uint8_t* at) {
    const __m128i eight = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(at));
    return squares(_mm256_cvtepu8_epi32(eight));
  }
  static float load(const uint8_t* at) { return square(*at); }
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
    alignas(32) float products[8];
    weight *= unit;
    uint64_t i = from;
    for (const uint64_t whole = from + (to - from) / 8 * 8; i < whole; i += 8) {
      prefetch(ids + ahead + 2 * i);
      prefetch(values + ahead + i * kBytes);
      const __m256 loaded = Value::load8(values + i * kBytes);
      _mm256_store_ps(products, _mm256_mul_ps(loaded, _mm256_set1_ps(weight)));
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
  const __m256 weights = _mm256_set1_ps(weight);
#pragma GCC unroll 4
  for (int64_t i = 0; i < n; i += 8) {
    const __m256 products = _mm256_mul_ps(Value::load8(values + i * Value::kBytes), weights);
    _mm256_store_ps(scores + i, _mm256_add_ps(_mm256_load_ps(scores + i), products));
  }
}

template <class Value>
void read(const uint8_t* stored, int64_t n, float unit, float* values) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m256 loaded = Value::load8(stored + i * Value::kBytes);
    _mm256_storeu_ps(values + i, _mm256_mul_ps(loaded, _mm256_set1_ps(unit)));
  }
  for (; i < n; ++i) values[i] = Value::load(stored + i * Value::kBytes) * unit;
}

template <class Value>
constexpr ValueKernels kOf = {score<Postings<Value>>, score_ranges<Postings<Value>>,
                              add_dense<Value>, read<Value>};

constexpr ValueKernels kGrouped = {score_groups<Postings<ByteValues>>, nullptr, nullptr,
                                   read<ByteValues>};

void keep(float* scores, int64_t n, const uint64_t* bits) {
  const __m256i lane_bit = _mm256_set_epi32(128, 64, 32, 16, 8, 4, 2, 1);
  for (int64_t i = 0; i < n; i += 8) {
    const __m256i eight = _mm256_set1_epi32(static_cast<int>(bits[i / 64] >> i % 64 & 0xff));
    const __m256i kept = _mm256_cmpeq_epi32(_mm256_and_si256(eight, lane_bit), lane_bit);
    _mm256_store_ps(scores + i,
                    _mm256_and_ps(_mm256_castsi256_ps(kept), _mm256_load_ps(scores + i)));
  }
}

int64_t take(float* scores, int64_t n, uint32_t bar, uint16_t* ids, float* taken) {
  // bar >= 1, so "greater than bar - 1" is "at least bar".
  const __m256i below = _mm256_set1_epi32(static_cast<int>(bar - 1));
  const __m256i zero = _mm256_setzero_si256();
  int64_t count = 0;
  for (int64_t i = 0; i < n; i += 32) {
    __m256i over[4];
    for (int j = 0; j < 4; ++j) {
      const __m256i s = _mm256_load_si256(reinterpret_cast<const __m256i*>(scores + i + 8 * j));
      over[j] = _mm256_cmpgt_epi32(s, below);
    }
    const __m256i any =
        _mm256_or_si256(_mm256_or_si256(over[0], over[1]), _mm256_or_si256(over[2], over[3]));
    if (!_mm256_testz_si256(any, any)) {
      for (int j = 0; j < 4; ++j) {
        uint32_t mask = static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(over[j])));
        for (; mask != 0; mask &= mask - 1) {
          const int64_t at = i + 8 * j + __builtin_ctz(mask);
          ids[count] = static_cast<uint16_t>(at);
          taken[count++] = scores[at];
        }
      }
    }
    for (int j = 0; j < 4; ++j) {
      _mm256_store_si256(reinterpret_cast<__m256i*>(scores + i + 8 * j), zero);
    }
  }
  return count;
}

void add_bounds(const uint8_t* const* rows, const uint16_t* weights, int n_rows, int64_t n,
                uint16_t* bounds) {
  for (int64_t b = 0; b < n; b += 16) {
    __m256i sum = _mm256_set1_epi16(1);
    for (int t = 0; t < n_rows; ++t) {
      const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[t] + b));
      const __m256i wide = _mm256_slli_epi16(_mm256_cvtepu8_epi16(codes), 8);
      const __m256i weight = _mm256_set1_epi16(static_cast<short>(weights[t]));
      sum = _mm256_add_epi16(sum, _mm256_mulhi_epu16(wide, weight));
    }
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(bounds + b), sum);
  }
}

int64_t find_bounds(const uint16_t* bounds, int64_t n, uint16_t least, int32_t* found) {
  const __m256i least16 = _mm256_set1_epi16(static_cast<short>(least));
  int64_t count = 0;
  for (int64_t b = 0; b < n; b += 16) {
    const int64_t last = n - b < 16 ? n - b : 16;
    if (last == 16) {
      const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bounds + b));
      const __m256i over = _mm256_cmpeq_epi16(_mm256_max_epu16(x, least16), x);
      if (_mm256_testz_si256(over, over)) continue;
    }
    for (int64_t j = b; j < b + last; ++j) {
      if (bounds[j] >= least) found[count++] = static_cast<int32_t>(j);
    }
  }
  return count;
}

// Unpacking interleaves within halves of 128 bits: the sums are those of queries 0-7 and 16-23,
// 8-15 and 24-31, 32-39 and 48-55, 40-47 and 56-63.
struct BatchSums {
  struct Bars {
    __m256i below[4];
    explicit Bars(const int16_t* bars) {
      for (int i = 0; i < 4; ++i) {
        const int16_t* at = bars + 32 * (i / 2) + 8 * (i % 2);
        const __m256i both = _mm256_loadu2_m128i(reinterpret_cast<const __m128i*>(at + 16),
                                                 reinterpret_cast<const __m128i*>(at));
        below[i] = _mm256_sub_epi16(both, _mm256_set1_epi16(1));
      }
    }
  };

  __m256i sum[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(),
                    _mm256_setzero_si256()};

  void add(const int8_t* a, const int8_t* b, uint16_t pair) {
    const __m256i numbers = _mm256_set1_epi16(static_cast<short>(pair));
    for (int half = 0; half < 2; ++half) {
      const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(a) + half);
      const __m256i y = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b) + half);
      const __m256i low = _mm256_maddubs_epi16(numbers, _mm256_unpacklo_epi8(x, y));
      const __m256i high = _mm256_maddubs_epi16(numbers, _mm256_unpackhi_epi8(x, y));
      sum[2 * half] = _mm256_adds_epi16(sum[2 * half], low);
      sum[2 * half + 1] = _mm256_adds_epi16(sum[2 * half + 1], high);
    }
  }
  uint64_t reached(const Bars& bars) const {
    uint32_t half[2];
    for (int i = 0; i < 2; ++i) {
      // Packing puts the queries into their order again.
      const __m256i over =
          _mm256_packs_epi16(_mm256_cmpgt_epi16(sum[2 * i], bars.below[2 * i]),
                             _mm256_cmpgt_epi16(sum[2 * i + 1], bars.below[2 * i + 1]));
      half[i] = static_cast<uint32_t>(_mm256_movemask_epi8(over));
    }
    return half[0] | uint64_t{half[1]} << 32;
  }
  void store(int16_t* sums) const {
    for (int i = 0; i < 4; ++i) {
      int16_t* at = sums + 32 * (i / 2) + 8 * (i % 2);
      _mm256_storeu2_m128i(reinterpret_cast<__m128i*>(at + 16), reinterpret_cast<__m128i*>(at),
                           sum[i]);
    }
  }
};

struct FineSums {
  __m256i sum[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};

  static __m256i half(const uint16_t* line, int i) {
    return _mm256_load_si256(reinterpret_cast<const __m256i*>(line) + i);
  }
  void add(const uint16_t* line) {
    for (int i = 0; i < 2; ++i) sum[i] = _mm256_add_epi16(sum[i], half(line, i));
  }
  uint32_t reached(const uint16_t* bars) const {
    __m256i over[2];
    for (int i = 0; i < 2; ++i) {
      over[i] = _mm256_cmpeq_epi16(_mm256_max_epu16(sum[i], half(bars, i)), sum[i]);
    }
    const __m256i packed = _mm256_packs_epi16(over[0], over[1]);
    return static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_permute4x64_epi64(packed, 0xd8)));
  }
  void store(uint16_t* sums) const {
    for (int i = 0; i < 2; ++i) _mm256_store_si256(reinterpret_cast<__m256i*>(sums) + i, sum[i]);
  }
};

void to_half(const float* values, int64_t n, uint16_t* halves) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(halves + i),
                     _mm256_cvtps_ph(_mm256_loadu_ps(values + i),
                                     _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  for (; i < n; ++i) {
    halves[i] = _cvtss_sh(values[i], _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
}

}  // namespace

const Kernels kAvx2 = {
    rows_of_any<Avx2>,
    kEncode<Avx2>,
    kGather<Avx2>,
    kPrefixErrors<Avx2>,
    kInfoNce<Avx2>,
    {{kOf<HalfValues>, kOf<FloatValues>, kOf<ByteValues>, kGrouped},
     keep,
     lane_maxima<Avx2>,
     take,
     add_bounds,
     find_bounds,
     find_row<BatchSums>,
     to_half,
     crc32c},
    kFine<FineSums>,
    block_products_of<Avx2>,
};

}  // namespace csrkern
