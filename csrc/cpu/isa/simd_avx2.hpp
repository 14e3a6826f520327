// The vector type of kernels_avx2.cpp: eight lanes.
// Internal linkage, so that the linker never gives other files a copy compiled for AVX2.
#pragma once

#include <immintrin.h>

#include "isa/simd_lanes.hpp"
#include "isa/small_floats.hpp"

namespace csrkern {
namespace {

// For each set of lanes, their numbers, packed.
struct PackingOrders {
  uint8_t lanes[256][8];
  constexpr PackingOrders() : lanes() {
    for (int set = 0; set < 256; ++set) {
      for (int lane = 0, n = 0; lane < 8; ++lane) {
        if (set >> lane & 1) lanes[set][n++] = static_cast<uint8_t>(lane);
      }
    }
  }
};
constexpr PackingOrders kPackingOrders;

struct Avx2 : EightLanes<Avx2> {
  using I = __m256i;
  using Mask = __m256i;
  using Flag = __m256;

  static I splat(int32_t x) { return _mm256_set1_epi32(x); }
  static I max(I a, I b) { return _mm256_max_epi32(a, b); }
  static I add(I a, I b) { return _mm256_add_epi32(a, b); }
  static void store(int32_t* p, I x) { _mm256_storeu_si256(reinterpret_cast<I*>(p), x); }
  static I load_bits(const int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const I*>(p)); }

  static I load_bytes(const uint8_t* p) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  }
  static I load(const float* p) { return _mm256_loadu_si256(reinterpret_cast<const I*>(p)); }
  static I load(const BFloat* p) {
    const __m128i narrow = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_slli_epi32(_mm256_cvtepu16_epi32(narrow), 16);
  }
  static I load(const Half* p) {
    const __m128i narrow = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castps_si256(_mm256_cvtph_ps(narrow));
  }
  using EightLanes<Avx2>::to_float;
  static float to_float(BFloat x) {
    return _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(x.bits << 16)));
  }
  static float to_float(Half x) { return _cvtsh_ss(x.bits); }

  static Flag no_flag() { return _mm256_setzero_ps(); }
  static Flag flag_nan(Flag flag, I x, I y) {
    return _mm256_or_ps(
        flag, _mm256_cmp_ps(_mm256_castsi256_ps(x), _mm256_castsi256_ps(y), _CMP_UNORD_Q));
  }
  static bool any(Flag flag) { return _mm256_movemask_ps(flag) != 0; }

  static I gt(I a, I b) { return _mm256_cmpgt_epi32(a, b); }
  static Mask ge(I a, I b) { return gt(a, add(b, splat(-1))); }
  static bool any_of(Mask a, Mask b, Mask c, Mask d) {
    const I either = _mm256_or_si256(_mm256_or_si256(a, b), _mm256_or_si256(c, d));
    return !_mm256_testz_si256(either, either);
  }
  static I count_ge(I count, I a, I b) { return _mm256_sub_epi32(count, ge(a, b)); }
  static I count_gt(I count, I a, I b) { return _mm256_sub_epi32(count, gt(a, b)); }
  static int64_t sum(I x) {
    int32_t lanes[width];
    store(lanes, x);
    int64_t total = 0;
    for (int32_t lane : lanes) total += lane;
    return total;
  }
  // 1 in the lanes above `lane`, 0 elsewhere.
  static I lanes_above(int64_t lane) {
    const I numbers = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_srli_epi32(gt(numbers, splat(static_cast<int32_t>(lane))), 31);
  }
  // Moves the lanes of `set` to the front.
  static I packing_order(int set) { return load_bytes(kPackingOrders.lanes[set]); }
  // Returns the lanes of a mask as bits.
  static int set_of(Mask mask) { return _mm256_movemask_ps(_mm256_castsi256_ps(mask)); }
  static int64_t append(int32_t* bits, int32_t* index, I x, int64_t first, Mask hit) {
    const int set = set_of(hit);
    const I order = packing_order(set);
    store(bits, _mm256_permutevar8x32_epi32(x, order));
    store(index, add(order, splat(static_cast<int32_t>(first))));
    return __builtin_popcount(static_cast<unsigned>(set));
  }

  using F = __m256;
  static F convert(I x) { return _mm256_cvtepi32_ps(x); }
  static F zero() { return _mm256_setzero_ps(); }
  static F splat(float x) { return _mm256_set1_ps(x); }
  static F load_f(const float* p) { return _mm256_loadu_ps(p); }
  static F load_f(const BFloat* p) { return _mm256_castsi256_ps(load(p)); }
  static F load_f(const Half* p) { return _mm256_castsi256_ps(load(p)); }
  static constexpr bool stretched = true;
  static constexpr int tile = 8;  // vectors that the gather kernels hold at once
  static void store_f(float* p, F x) { _mm256_storeu_ps(p, x); }
  static void store_f(Half* p, F x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  // Returns the bits of x rounded to bfloat16, in the upper half of each lane. Adding just under
  // half rounds to nearest even; NaN stays NaN.
  static I rounded(F x) {
    const I bits = _mm256_castps_si256(x);
    const I odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), splat(1));
    const I near = add(bits, add(odd, splat(0x7fff)));
    const I quiet = _mm256_or_si256(bits, splat(0x400000));
    const I nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    return _mm256_blendv_epi8(near, quiet, nan);
  }
  static void store_f(BFloat* p, F x) {
    const I high = _mm256_srli_epi32(rounded(x), 16);
    const I packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 0x08);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
  }
  // Loads the even and the odd elements of two vectors, which need no widening.
  static constexpr bool pairs = true;
  static void load_pair(const BFloat* p, F& even, F& odd) {
    const I both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    even = _mm256_castsi256_ps(_mm256_slli_epi32(both, 16));
    odd = _mm256_castsi256_ps(_mm256_and_si256(both, splat(static_cast<int32_t>(0xffff0000))));
  }
  static void store_pair(BFloat* p, F even, F odd) {
    const I low = _mm256_srli_epi32(rounded(even), 16);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_blend_epi16(low, rounded(odd), 0xaa));
  }
  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F fused(F a, F b, F c) { return fma(a, b, c); }
  static float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
  static F max(F a, F b) { return _mm256_max_ps(a, b); }
  static F min(F a, F b) { return _mm256_min_ps(a, b); }
  // a where the bits of c are zero, b elsewhere.
  static F where_zero(F c, F a, F b) {
    const I zero = _mm256_cmpeq_epi32(_mm256_castps_si256(c), _mm256_setzero_si256());
    return _mm256_blendv_ps(b, a, _mm256_castsi256_ps(zero));
  }
  static bool all_zero(F x) {
    return _mm256_testz_si256(_mm256_castps_si256(x), _mm256_castps_si256(x)) != 0;
  }
  // x in the lanes of `set`, 0 elsewhere.
  static F where_set(int32_t set, F x) {
    const I lane_bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const I kept = _mm256_cmpeq_epi32(_mm256_and_si256(splat(set), lane_bit), lane_bit);
    return _mm256_and_ps(_mm256_castsi256_ps(kept), x);
  }
  // a where labels are equal, 0 elsewhere.
  static F where_equal(I x, I y, F a) {
    return _mm256_and_ps(_mm256_castsi256_ps(_mm256_cmpeq_epi32(x, y)), a);
  }
  static F round(F x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  // 2^x for integral x in [-126, 127].
  static F exp2_integral(F x) {
    const I biased = _mm256_add_epi32(_mm256_cvtps_epi32(x), splat(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
  }
  // Packs the lanes that are not 0 and returns their number. `out` has room for a whole vector.
  static int64_t pack_nonzero(float* out, F x) {
    const I zero = _mm256_cmpeq_epi32(_mm256_castps_si256(x), _mm256_setzero_si256());
    const int hit = ~set_of(zero) & 255;
    store_f(out, _mm256_permutevar8x32_ps(x, packing_order(hit)));
    return __builtin_popcount(hit);
  }
  // The upper half of the lanes is added to the lower, until one is left.
  static float sum_halves(F x) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
  static double sum_lanes(F x) {
    const __m256d low = _mm256_cvtps_pd(_mm256_castps256_ps128(x));
    const __m256d high = _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1));
    const __m256d four = _mm256_add_pd(low, high);
    const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
    return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
  }
  // lanes[j mod 32] of the sum of x[j] * w[j]; d is a multiple of 32.
  static void dot_lanes(double* lanes, const double* x, const float* w, int64_t d) {
    __m256d sum[8] = {};
    for (int64_t j = 0; j < d; j += 32) {
      for (int a = 0; a < 8; ++a) {
        const __m256d wide = _mm256_cvtps_pd(_mm_loadu_ps(w + j + 4 * a));
        sum[a] = _mm256_fmadd_pd(_mm256_loadu_pd(x + j + 4 * a), wide, sum[a]);
      }
    }
    for (int a = 0; a < 8; ++a) _mm256_storeu_pd(lanes + 4 * a, sum[a]);
  }
};

}  // namespace
}  // namespace csrkern
