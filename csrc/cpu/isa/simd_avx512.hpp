// The vector type of kernels_avx512.cpp: sixteen lanes.
// Internal linkage, so that the linker never gives other files a copy compiled for AVX-512.
#pragma once

#include <immintrin.h>

#include "isa/small_floats.hpp"

namespace csrkern {
namespace {

struct Avx512 {
  using I = __m512i;
  using Mask = __mmask16;
  using Flag = __mmask16;
  static constexpr int64_t width = 16;

  static I splat(int32_t x) { return _mm512_set1_epi32(x); }
  static I max(I a, I b) { return _mm512_max_epi32(a, b); }
  static I add(I a, I b) { return _mm512_add_epi32(a, b); }
  static void store(int32_t* p, I x) { _mm512_storeu_si512(p, x); }
  static I load_bits(const int32_t* p) { return _mm512_loadu_si512(p); }

  static I load(const float* p) { return _mm512_loadu_si512(p); }
  static I load(const BFloat* p) {
    const __m256i narrow = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow), 16);
  }
  static I load(const Half* p) {
    const __m256i narrow = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castps_si512(_mm512_cvtph_ps(narrow));
  }
  // Loads the first n lanes; the rest are 0, which is never selected.
  static I load_partial(const float* p, int64_t n) {
    return _mm512_maskz_loadu_epi32(static_cast<__mmask16>((1u << n) - 1), p);
  }
  static I load_partial(const BFloat* p, int64_t n) {
    const __m256i narrow = _mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << n) - 1), p);
    return _mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow), 16);
  }
  static I load_partial(const Half* p, int64_t n) {
    const __m256i narrow = _mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << n) - 1), p);
    return _mm512_castps_si512(_mm512_cvtph_ps(narrow));
  }
  static float to_float(float x) { return x; }
  static float to_float(BFloat x) {
    return _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(x.bits << 16)));
  }
  static float to_float(Half x) { return _cvtsh_ss(x.bits); }

  static Flag no_flag() { return 0; }
  static Flag flag_nan(Flag flag, I x, I y) {
    return static_cast<Flag>(
        flag | _mm512_cmp_ps_mask(_mm512_castsi512_ps(x), _mm512_castsi512_ps(y), _CMP_UNORD_Q));
  }
  static bool any(Flag flag) { return flag != 0; }

  static Mask ge(I a, I b) { return _mm512_cmpge_epi32_mask(a, b); }
  static bool any_of(Mask a, Mask b, Mask c, Mask d) { return (a | b | c | d) != 0; }
  static I count_ge(I count, I a, I b) {
    return _mm512_mask_sub_epi32(count, ge(a, b), count, splat(-1));
  }
  static I count_gt(I count, I a, I b) {
    return _mm512_mask_sub_epi32(count, _mm512_cmpgt_epi32_mask(a, b), count, splat(-1));
  }
  static int64_t sum(I x) { return _mm512_reduce_add_epi32(x); }
  // 1 in the lanes above `lane`, 0 elsewhere.
  static I lanes_above(int64_t lane) {
    return _mm512_maskz_set1_epi32(static_cast<__mmask16>(0xfffeu << lane), 1);
  }
  static int64_t append(int32_t* bits, int32_t* index, I x, int64_t first, Mask hit) {
    const I lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    // Compressing in a register and storing all of it is several times faster on some
    // processors than the compressing store; the buffers have a vector of slack.
    store(bits, _mm512_maskz_compress_epi32(hit, x));
    store(index, _mm512_maskz_compress_epi32(hit, add(lanes, splat(static_cast<int32_t>(first)))));
    return __builtin_popcount(hit);
  }

  using F = __m512;
  static F zero() { return _mm512_setzero_ps(); }
  static F splat(float x) { return _mm512_set1_ps(x); }
  static F load_f(const float* p) { return _mm512_loadu_ps(p); }
  static F load_f(const BFloat* p) { return _mm512_castsi512_ps(load(p)); }
  static F load_f(const Half* p) { return _mm512_castsi512_ps(load(p)); }
  template <class T>
  static F load_partial_f(const T* p, int64_t n) {
    return _mm512_castsi512_ps(load_partial(p, n));
  }
  static constexpr bool stretched = false;
  // Vectors that the gather kernels hold at once: so many columns of a table are in a cache more
  // often than twice or three times as many, which are up to 1.7 times slower.
  static constexpr int tile = 8;
  static void store_f(float* p, F x) { _mm512_storeu_ps(p, x); }
  static void store_f(Half* p, F x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  // Returns the bits of x rounded to bfloat16, in the upper half of each lane. Adding just under
  // half rounds to nearest even; NaN stays NaN.
  static I rounded(F x) {
    const I bits = _mm512_castps_si512(x);
    const I odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), splat(1));
    const I near = _mm512_add_epi32(bits, _mm512_add_epi32(odd, splat(0x7fff)));
    const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    return _mm512_mask_or_epi32(near, nan, bits, splat(0x400000));
  }
  static void store_f(BFloat* p, F x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded(x), 16)));
  }
  // Loads the even and the odd elements of two vectors, which need no widening.
  static constexpr bool pairs = true;
  static void load_pair(const BFloat* p, F& even, F& odd) {
    const I both = _mm512_loadu_si512(p);
    even = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
    odd = _mm512_castsi512_ps(_mm512_and_si512(both, splat(static_cast<int32_t>(0xffff0000))));
  }
  static void store_pair(BFloat* p, F even, F odd) {
    const I low = _mm512_srli_epi32(rounded(even), 16);
    _mm512_storeu_si512(p, _mm512_mask_blend_epi16(0xaaaaaaaa, low, rounded(odd)));
  }
  template <class T>
  static void store_partial_f(T* p, F x, int64_t n) {
    T lanes[width];
    store_f(lanes, x);
    for (int64_t i = 0; i < n; ++i) p[i] = lanes[i];
  }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F fused(F a, F b, F c) { return fma(a, b, c); }
  static float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static F min(F a, F b) { return _mm512_min_ps(a, b); }
  // a where the bits of c are zero, b elsewhere.
  static F where_zero(F c, F a, F b) {
    return _mm512_mask_mov_ps(
        b, _mm512_testn_epi32_mask(_mm512_castps_si512(c), _mm512_castps_si512(c)), a);
  }
  static bool all_zero(F x) {
    return _mm512_test_epi32_mask(_mm512_castps_si512(x), _mm512_castps_si512(x)) == 0;
  }
  // a where labels are equal, 0 elsewhere.
  static F where_equal(I x, I y, F a) {
    return _mm512_maskz_mov_ps(_mm512_cmpeq_epi32_mask(x, y), a);
  }
  static F round(F x) {
    return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  // 2^x for integral x in [-126, 127].
  static F exp2_integral(F x) {
    const I biased = _mm512_add_epi32(_mm512_cvtps_epi32(x), splat(127));
    return _mm512_castsi512_ps(_mm512_slli_epi32(biased, 23));
  }
  static I load_partial_bits(const int32_t* p, int64_t n) {
    return _mm512_maskz_loadu_epi32(static_cast<__mmask16>((1u << n) - 1), p);
  }
  // Packs the lanes that are not 0 and returns their number. `out` has room for a whole vector.
  static int64_t pack_nonzero(float* out, F x) {
    const Mask hit = _mm512_test_epi32_mask(_mm512_castps_si512(x), _mm512_castps_si512(x));
    store_f(out, _mm512_maskz_compress_ps(hit, x));
    return __builtin_popcount(hit);
  }
  static float max_lane(F x) { return _mm512_reduce_max_ps(x); }
  // The upper half of the lanes is added to the lower, until one is left.
  static float sum_halves(F x) {
    const __m256 upper = _mm512_extractf32x8_ps(x, 1);
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(x), upper);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
  static double sum_lanes(F x) {
    const __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(x));
    const __m512d high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1));
    return _mm512_reduce_add_pd(_mm512_add_pd(low, high));
  }
  // lanes[j mod 32] of the sum of x[j] * w[j]; d is a multiple of 32.
  static void dot_lanes(double* lanes, const double* x, const float* w, int64_t d) {
    __m512d sum[4] = {};
    for (int64_t j = 0; j < d; j += 32) {
      for (int a = 0; a < 4; ++a) {
        const __m512d wide = _mm512_cvtps_pd(_mm256_loadu_ps(w + j + 8 * a));
        sum[a] = _mm512_fmadd_pd(_mm512_loadu_pd(x + j + 8 * a), wide, sum[a]);
      }
    }
    for (int a = 0; a < 4; ++a) _mm512_storeu_pd(lanes + 8 * a, sum[a]);
  }
};

}  // namespace
}  // namespace csrkern
