// All kernels for AVX2. Only kAvx2 has external linkage.
#include <immintrin.h>

#include "generic/batch.hpp"
#include "generic/eight_lanes.hpp"
#include "generic/encode.hpp"
#include "generic/fine.hpp"
#include "generic/gather.hpp"
#include "generic/info_nce.hpp"
#include "generic/prefix_errors.hpp"
#include "generic/products.hpp"
#include "generic/topk_relu.hpp"
#include "isa/crc32c.hpp"
#include "isa/kernels.hpp"
#include "isa/simd_avx2.hpp"

namespace csrkern {
namespace {

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

  static __m256i half(const uint8_t* line, int i) {
    return _mm256_load_si256(reinterpret_cast<const __m256i*>(line) + i);
  }
  void add(const uint8_t* line) {
    for (int i = 0; i < 2; ++i) sum[i] = _mm256_adds_epu8(sum[i], half(line, i));
  }
  uint64_t below(const uint8_t* limits) const {
    uint64_t bits = 0;
    for (int i = 0; i < 2; ++i) {
      const __m256i room = _mm256_subs_epu8(half(limits, i), sum[i]);
      const __m256i none = _mm256_cmpeq_epi8(room, _mm256_setzero_si256());
      bits |= uint64_t{~static_cast<uint32_t>(_mm256_movemask_epi8(none))} << (32 * i);
    }
    return bits;
  }
};

}  // namespace

const Kernels kAvx2 = {
    rows_of_any<Avx2>,
    kEncode<Avx2>,
    kGather<Avx2>,
    kPrefixErrors<Avx2>,
    kInfoNce<Avx2>,
    {{kOf<HalfValues<Avx2>>, kOf<FloatValues<Avx2>>, kOf<ByteValues<Avx2>>,
      kGrouped<ByteValues<Avx2>>},
     keep<Avx2>,
     lane_maxima<Avx2>,
     take<Avx2>,
     add_bounds,
     find_bounds,
     find_row<BatchSums>,
     to_half<Avx2>,
     crc32c},
    fine_kernels<FineSums, Bytes32>(),
    block_products_of<Avx2>,
    unit_row,
};

}  // namespace csrkern
