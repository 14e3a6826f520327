// The vector type of kernels_neon.cpp: eight lanes in two registers, so that sums are in the order
// of AVX2's. Internal linkage, so that the linker never gives other files a copy compiled for NEON.
#pragma once

#include <arm_neon.h>

#include <cstring>

#include "isa/simd_lanes.hpp"
#include "isa/small_floats.hpp"

namespace csrkern {
namespace {

// For each set of four lanes, their number and their bytes, packed.
struct PackingOrders {
  uint8_t count[16];
  uint8_t bytes[16][16];
  constexpr PackingOrders() : count(), bytes() {
    for (int set = 0; set < 16; ++set) {
      for (int lane = 0; lane < 4; ++lane) {
        if (!(set >> lane & 1)) continue;
        for (int byte = 0; byte < 4; ++byte) {
          bytes[set][4 * count[set] + byte] = static_cast<uint8_t>(4 * lane + byte);
        }
        ++count[set];
      }
    }
  }
};
constexpr PackingOrders kPackingOrders;

struct Neon : EightLanes<Neon> {
  struct I {
    int32x4_t low, high;
  };
  struct Mask {
    uint32x4_t low, high;
  };
  struct F {
    float32x4_t low, high;
  };
  using Flag = float32x4_t;

  static I as_bits(F x) { return {vreinterpretq_s32_f32(x.low), vreinterpretq_s32_f32(x.high)}; }
  static F as_floats(I x) { return {vreinterpretq_f32_s32(x.low), vreinterpretq_f32_s32(x.high)}; }

  static I splat(int32_t x) { return {vdupq_n_s32(x), vdupq_n_s32(x)}; }
  static I max(I a, I b) { return {vmaxq_s32(a.low, b.low), vmaxq_s32(a.high, b.high)}; }
  static I add(I a, I b) { return {vaddq_s32(a.low, b.low), vaddq_s32(a.high, b.high)}; }
  static void store(int32_t* p, I x) {
    vst1q_s32(p, x.low);
    vst1q_s32(p + 4, x.high);
  }
  static I load_bits(const int32_t* p) { return {vld1q_s32(p), vld1q_s32(p + 4)}; }
  static I load_bytes(const uint8_t* p) {
    const uint16x8_t wide = vmovl_u8(vld1_u8(p));
    return {vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(wide))),
            vreinterpretq_s32_u32(vmovl_high_u16(wide))};
  }
  template <class T>
  static I load(const T* p) {
    return as_bits(load_f(p));
  }
  using EightLanes<Neon>::to_float;
  static float to_float(BFloat x) {
    const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
  }
  static float to_float(Half x) {
    __fp16 half;
    std::memcpy(&half, &x.bits, sizeof(half));
    return half;
  }

  // A maximum with NaN is NaN.
  static Flag no_flag() { return vdupq_n_f32(0); }
  static Flag flag_nan(Flag flag, I x, I y) {
    const F a = as_floats(x), b = as_floats(y);
    return vmaxq_f32(flag, vmaxq_f32(vmaxq_f32(a.low, a.high), vmaxq_f32(b.low, b.high)));
  }
  static bool any(Flag flag) {
    const float most = vmaxvq_f32(flag);
    return most != most;
  }

  static Mask gt(I a, I b) { return {vcgtq_s32(a.low, b.low), vcgtq_s32(a.high, b.high)}; }
  static Mask ge(I a, I b) { return {vcgeq_s32(a.low, b.low), vcgeq_s32(a.high, b.high)}; }
  static bool any_of(Mask a, Mask b, Mask c, Mask d) {
    const uint32x4_t low = vorrq_u32(vorrq_u32(a.low, b.low), vorrq_u32(c.low, d.low));
    const uint32x4_t high = vorrq_u32(vorrq_u32(a.high, b.high), vorrq_u32(c.high, d.high));
    return vmaxvq_u32(vorrq_u32(low, high)) != 0;
  }
  // The lanes of a mask are -1 or 0.
  static I subtract(I a, Mask b) {
    return {vsubq_s32(a.low, vreinterpretq_s32_u32(b.low)),
            vsubq_s32(a.high, vreinterpretq_s32_u32(b.high))};
  }
  static I count_ge(I count, I a, I b) { return subtract(count, ge(a, b)); }
  static I count_gt(I count, I a, I b) { return subtract(count, gt(a, b)); }
  static int64_t sum(I x) { return vaddlvq_s32(x.low) + vaddlvq_s32(x.high); }
  // 1 in the lanes above `lane`, 0 elsewhere.
  static I lanes_above(int64_t lane) {
    return subtract(splat(0), gt(numbers(), splat(static_cast<int32_t>(lane))));
  }
  static I numbers() {
    const int32_t lanes[] = {0, 1, 2, 3, 4, 5, 6, 7};
    return load_bits(lanes);
  }
  static Mask lane_bits() {
    const uint32_t bits[] = {1, 2, 4, 8, 16, 32, 64, 128};
    return {vld1q_u32(bits), vld1q_u32(bits + 4)};
  }
  // Returns the lanes of a mask as bits.
  static uint32_t set_of(Mask mask) {
    const Mask bits = lane_bits();
    return vaddvq_u32(vorrq_u32(vandq_u32(mask.low, bits.low), vandq_u32(mask.high, bits.high)));
  }
  // Moves the lanes of `set` to the front.
  static int32x4_t pack(int32x4_t x, uint32_t set) {
    const uint8x16_t order = vld1q_u8(kPackingOrders.bytes[set]);
    return vreinterpretq_s32_u8(vqtbl1q_u8(vreinterpretq_u8_s32(x), order));
  }
  static int64_t append(int32_t* bits, int32_t* index, I x, int64_t first, Mask hit) {
    const uint32_t set = set_of(hit), low = set & 15, high = set >> 4;
    const I lanes = add(numbers(), splat(static_cast<int32_t>(first)));
    vst1q_s32(bits, pack(x.low, low));
    vst1q_s32(index, pack(lanes.low, low));
    const int64_t found = kPackingOrders.count[low];
    vst1q_s32(bits + found, pack(x.high, high));
    vst1q_s32(index + found, pack(lanes.high, high));
    return found + kPackingOrders.count[high];
  }

  static F convert(I x) { return {vcvtq_f32_s32(x.low), vcvtq_f32_s32(x.high)}; }
  static F zero() { return splat(0.0f); }
  static F splat(float x) { return {vdupq_n_f32(x), vdupq_n_f32(x)}; }
  static F load_f(const float* p) { return {vld1q_f32(p), vld1q_f32(p + 4)}; }
  static F load_f(const BFloat* p) {
    const uint16x8_t narrow = vld1q_u16(reinterpret_cast<const uint16_t*>(p));
    const uint16x8_t zero = vdupq_n_u16(0);
    return {vreinterpretq_f32_u16(vzip1q_u16(zero, narrow)),
            vreinterpretq_f32_u16(vzip2q_u16(zero, narrow))};
  }
  static F load_f(const Half* p) {
    const uint16x8_t bits = vld1q_u16(reinterpret_cast<const uint16_t*>(p));
    const float16x8_t narrow = vreinterpretq_f16_u16(bits);
    return {vcvt_f32_f16(vget_low_f16(narrow)), vcvt_high_f32_f16(narrow)};
  }
  static constexpr bool stretched = true;
  static constexpr bool pairs = false;  // widening takes no more instructions
  static constexpr int tile = 8;        // vectors that the gather kernels hold at once
  static void store_f(float* p, F x) {
    vst1q_f32(p, x.low);
    vst1q_f32(p + 4, x.high);
  }
  static void store_f(Half* p, F x) {
    const float16x8_t narrow = vcvt_high_f16_f32(vcvt_f16_f32(x.low), x.high);
    vst1q_u16(reinterpret_cast<uint16_t*>(p), vreinterpretq_u16_f16(narrow));
  }
  // Returns the bits of x rounded to bfloat16, in the upper half of each lane. Adding just under
  // half rounds to nearest even; NaN stays NaN.
  static uint32x4_t rounded(float32x4_t x) {
    const uint32x4_t bits = vreinterpretq_u32_f32(x);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t near = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    return vbslq_u32(vceqq_f32(x, x), near, vorrq_u32(bits, vdupq_n_u32(0x400000)));
  }
  static void store_f(BFloat* p, F x) {
    const uint16x8_t low = vreinterpretq_u16_u32(rounded(x.low));
    const uint16x8_t high = vreinterpretq_u16_u32(rounded(x.high));
    vst1q_u16(reinterpret_cast<uint16_t*>(p), vuzp2q_u16(low, high));
  }
  static F add(F a, F b) { return {vaddq_f32(a.low, b.low), vaddq_f32(a.high, b.high)}; }
  static F sub(F a, F b) { return {vsubq_f32(a.low, b.low), vsubq_f32(a.high, b.high)}; }
  static F mul(F a, F b) { return {vmulq_f32(a.low, b.low), vmulq_f32(a.high, b.high)}; }
  static F fma(F a, F b, F c) {
    return {vfmaq_f32(c.low, a.low, b.low), vfmaq_f32(c.high, a.high, b.high)};
  }
  static F fused(F a, F b, F c) { return fma(a, b, c); }
  static float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
  // b where a or b is NaN, as on x86.
  static F max(F a, F b) {
    return {vbslq_f32(vcgtq_f32(a.low, b.low), a.low, b.low),
            vbslq_f32(vcgtq_f32(a.high, b.high), a.high, b.high)};
  }
  static F min(F a, F b) {
    return {vbslq_f32(vcltq_f32(a.low, b.low), a.low, b.low),
            vbslq_f32(vcltq_f32(a.high, b.high), a.high, b.high)};
  }
  static Mask is_zero(I x) { return {vceqzq_s32(x.low), vceqzq_s32(x.high)}; }
  // a in the lanes of a mask, b elsewhere.
  static F where(Mask mask, F a, F b) {
    return {vbslq_f32(mask.low, a.low, b.low), vbslq_f32(mask.high, a.high, b.high)};
  }
  // a where the bits of c are zero, b elsewhere.
  static F where_zero(F c, F a, F b) { return where(is_zero(as_bits(c)), a, b); }
  static bool all_zero(F x) {
    const I bits = as_bits(x);
    return vmaxvq_u32(vreinterpretq_u32_s32(vorrq_s32(bits.low, bits.high))) == 0;
  }
  // x in the lanes of `set`, 0 elsewhere.
  static F where_set(int32_t set, F x) {
    const uint32x4_t sets = vdupq_n_u32(static_cast<uint32_t>(set));
    const Mask bits = lane_bits();
    return where({vtstq_u32(sets, bits.low), vtstq_u32(sets, bits.high)}, x, zero());
  }
  // a where labels are equal, 0 elsewhere.
  static F where_equal(I x, I y, F a) {
    return where({vceqq_s32(x.low, y.low), vceqq_s32(x.high, y.high)}, a, zero());
  }
  static F round(F x) { return {vrndnq_f32(x.low), vrndnq_f32(x.high)}; }
  // 2^x for integral x in [-126, 127].
  static F exp2_integral(F x) {
    const I biased = add({vcvtq_s32_f32(x.low), vcvtq_s32_f32(x.high)}, splat(127));
    return as_floats({vshlq_n_s32(biased.low, 23), vshlq_n_s32(biased.high, 23)});
  }
  // Packs the lanes that are not 0 and returns their number. `out` has room for a whole vector.
  static int64_t pack_nonzero(float* out, F x) {
    const I bits = as_bits(x);
    const uint32_t set = ~set_of(is_zero(bits)) & 255, low = set & 15, high = set >> 4;
    const int64_t found = kPackingOrders.count[low];
    vst1q_f32(out, vreinterpretq_f32_s32(pack(bits.low, low)));
    vst1q_f32(out + found, vreinterpretq_f32_s32(pack(bits.high, high)));
    return found + kPackingOrders.count[high];
  }
  // The upper half of the lanes is added to the lower, until one is left.
  static float sum_halves(F x) {
    const float32x4_t four = vaddq_f32(x.low, x.high);
    return vaddv_f32(vadd_f32(vget_low_f32(four), vget_high_f32(four)));
  }
  static double sum_lanes(F x) {
    const float64x2_t left =
        vaddq_f64(vcvt_f64_f32(vget_low_f32(x.low)), vcvt_f64_f32(vget_low_f32(x.high)));
    const float64x2_t right = vaddq_f64(vcvt_high_f64_f32(x.low), vcvt_high_f64_f32(x.high));
    return vaddvq_f64(vaddq_f64(left, right));
  }
  // lanes[j mod 32] of the sum of x[j] * w[j]; d is a multiple of 32.
  static void dot_lanes(double* lanes, const double* x, const float* w, int64_t d) {
    float64x2_t sum[16];
    for (auto& two : sum) two = vdupq_n_f64(0);
    for (int64_t j = 0; j < d; j += 32) {
      for (int a = 0; a < 8; ++a) {
        const float32x4_t narrow = vld1q_f32(w + j + 4 * a);
        const float64x2_t low = vcvt_f64_f32(vget_low_f32(narrow));
        sum[2 * a] = vfmaq_f64(sum[2 * a], vld1q_f64(x + j + 4 * a), low);
        const float64x2_t high = vcvt_high_f64_f32(narrow);
        sum[2 * a + 1] = vfmaq_f64(sum[2 * a + 1], vld1q_f64(x + j + 4 * a + 2), high);
      }
    }
    for (int a = 0; a < 16; ++a) vst1q_f64(lanes + 2 * a, sum[a]);
  }
};

}  // namespace
}  // namespace csrkern
