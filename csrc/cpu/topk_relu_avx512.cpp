#include <immintrin.h>

#include "topk_relu_impl.hpp"

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
  // The first n lanes; the rest are 0, which never wins.
  static I load_part(const float* p, int64_t n) {
    return _mm512_maskz_loadu_epi32(static_cast<__mmask16>((1u << n) - 1), p);
  }
  static I load_part(const BFloat* p, int64_t n) {
    const __m256i narrow = _mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << n) - 1), p);
    return _mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow), 16);
  }
  static I load_part(const Half* p, int64_t n) {
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
};

}  // namespace

void topk_relu_rows_avx512(const TopkRelu& args, int64_t begin, int64_t end,
                           const TopkScratch& scratch) {
  rows_of_any<Avx512>(args, begin, end, scratch);
}

}  // namespace csrkern
