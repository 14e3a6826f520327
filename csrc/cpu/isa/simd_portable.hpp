// The vector type of kernels_portable.cpp, in plain C++.
#pragma once

#include <cstring>

#include "csrkern/float_bits.hpp"
#include "isa/small_floats.hpp"

namespace csrkern {
namespace {

// Eight lanes; compilers turn the loops into the vectors that the target has.
struct Portable {
  static constexpr int64_t width = 8;
  struct I {
    int32_t lane[width];
  };
  using Mask = uint32_t;
  using Flag = uint32_t;

  static I splat(int32_t x) {
    I out;
    for (auto& lane : out.lane) lane = x;
    return out;
  }
  static I max(I a, const I& b) {
    for (int i = 0; i < width; ++i) a.lane[i] = a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i];
    return a;
  }
  static I add(I a, const I& b) {
    for (int i = 0; i < width; ++i) a.lane[i] += b.lane[i];
    return a;
  }
  static void store(int32_t* p, const I& x) { std::memcpy(p, x.lane, sizeof(x.lane)); }
  static I load_bits(const int32_t* p) {
    I out;
    std::memcpy(out.lane, p, sizeof(out.lane));
    return out;
  }
  template <class T>
  static I load(const T* p) {
    return load_partial(p, width);
  }
  template <class T>
  static I load_partial(const T* p, int64_t n) {
    I out = splat(0);
    for (int64_t i = 0; i < n; ++i) {
      const float x = to_float(p[i]);
      std::memcpy(&out.lane[i], &x, sizeof(x));
    }
    return out;
  }
  static float to_float(float x) { return x; }
  static float to_float(BFloat x) { return float_of(static_cast<uint32_t>(x.bits) << 16); }
  static float to_float(Half x) { return half_to_float(x.bits); }

  static Flag no_flag() { return 0; }
  static Flag nan_in(const I& x) {
    Flag found = 0;
    for (int32_t lane : x.lane) found |= (lane & 0x7fffffff) > kInfinityBits;
    return found;
  }
  static Flag flag_nan(Flag flag, const I& x, const I& y) { return flag | nan_in(x) | nan_in(y); }
  static bool any(Flag flag) { return flag != 0; }

  static Mask ge(const I& a, const I& b) {
    Mask out = 0;
    for (int i = 0; i < width; ++i) out |= static_cast<Mask>(a.lane[i] >= b.lane[i]) << i;
    return out;
  }
  static bool any_of(Mask a, Mask b, Mask c, Mask d) { return (a | b | c | d) != 0; }
  static I count_ge(I count, const I& a, const I& b) {
    for (int i = 0; i < width; ++i) count.lane[i] += a.lane[i] >= b.lane[i];
    return count;
  }
  static I count_gt(I count, const I& a, const I& b) {
    for (int i = 0; i < width; ++i) count.lane[i] += a.lane[i] > b.lane[i];
    return count;
  }
  static int64_t sum(const I& x) {
    int64_t total = 0;
    for (int32_t lane : x.lane) total += lane;
    return total;
  }
  static I lanes_above(int64_t lane) {
    I out;
    for (int i = 0; i < width; ++i) out.lane[i] = i > lane;
    return out;
  }
  static int64_t append(int32_t* bits, int32_t* index, const I& x, int64_t first, Mask hit) {
    int64_t found = 0;
    for (int i = 0; i < width; ++i) {
      if (!(hit >> i & 1)) continue;
      bits[found] = x.lane[i];
      index[found++] = static_cast<int32_t>(first) + i;
    }
    return found;
  }

  struct F {
    float lane[width];
  };
  template <class Op>
  static F each(Op op) {
    F out;
    for (int i = 0; i < width; ++i) out.lane[i] = op(i);
    return out;
  }
  static F zero() { return splat(0.0f); }
  static F splat(float x) {
    return each([=](int) { return x; });
  }
  template <class T>
  static F load_f(const T* p) {
    return each([=](int i) { return to_float(p[i]); });
  }
  template <class T>
  static F load_partial_f(const T* p, int64_t n) {
    return each([=](int i) { return i < n ? to_float(p[i]) : 0.0f; });
  }
  static constexpr bool pairs = false;
  static constexpr bool stretched = false;
  static constexpr int tile = 4;  // vectors that the gather kernels hold at once
  static void narrow(float x, float* out) { *out = x; }
  static void narrow(float x, BFloat* out) {
    // Round to nearest even by adding just under half; NaN must stay NaN.
    const uint32_t bits = bits_of(x);
    const bool nan = (bits & 0x7fffffff) > static_cast<uint32_t>(kInfinityBits);
    const uint32_t rounded = nan ? bits | 0x400000 : bits + 0x7fff + (bits >> 16 & 1);
    out->bits = static_cast<uint16_t>(rounded >> 16);
  }
  static void narrow(float x, Half* out) { out->bits = float_to_half(x); }
  template <class T>
  static void store_f(T* p, const F& x) {
    store_partial_f(p, x, width);
  }
  template <class T>
  static void store_partial_f(T* p, const F& x, int64_t n) {
    for (int64_t i = 0; i < n; ++i) narrow(x.lane[i], p + i);
  }
  static F add(const F& a, const F& b) {
    return each([&](int i) { return a.lane[i] + b.lane[i]; });
  }
  static F sub(const F& a, const F& b) {
    return each([&](int i) { return a.lane[i] - b.lane[i]; });
  }
  static F mul(const F& a, const F& b) {
    return each([&](int i) { return a.lane[i] * b.lane[i]; });
  }
  static F fma(const F& a, const F& b, const F& c) {
    return each([&](int i) { return a.lane[i] * b.lane[i] + c.lane[i]; });
  }
  // a * b + c, rounded once as processors do that have an instruction for it: in double, where the
  // product is exact, and where a sum that is not is made odd, so that rounding it again is right.
  static float fused(float a, float b, float c) {
    const double product = static_cast<double>(a) * b;
    double sum = product + c;
    const double added = sum - product;
    const double lost = (product - (sum - added)) + (c - added);
    uint64_t bits;
    std::memcpy(&bits, &sum, sizeof(bits));
    if (lost != 0 && bits % 2 == 0) bits += (lost > 0) == (sum > 0) ? 1 : -1;
    std::memcpy(&sum, &bits, sizeof(sum));
    return static_cast<float>(sum);
  }
  static F fused(const F& a, const F& b, const F& c) {
    return each([&](int i) { return fused(a.lane[i], b.lane[i], c.lane[i]); });
  }
  static F max(const F& a, const F& b) {
    return each([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
  }
  static F min(const F& a, const F& b) {
    return each([&](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
  }
  // a where the bits of c are zero, b elsewhere.
  static F where_zero(const F& c, const F& a, const F& b) {
    return each([&](int i) { return bits_of(c.lane[i]) == 0 ? a.lane[i] : b.lane[i]; });
  }
  static bool all_zero(const F& x) {
    uint32_t any = 0;
    for (float lane : x.lane) any |= bits_of(lane);
    return any == 0;
  }
  // a where labels are equal, 0 elsewhere.
  static F where_equal(const I& x, const I& y, const F& a) {
    return each([&](int i) { return x.lane[i] == y.lane[i] ? a.lane[i] : 0.0f; });
  }
  static F round(const F& x) {
    // Adding and subtracting 1.5 * 2^23 rounds |x| < 2^22 to the nearest integer.
    return each([&](int i) { return (x.lane[i] + 12582912.0f) - 12582912.0f; });
  }
  // 2^x for integral x in [-126, 127].
  static F exp2_integral(const F& x) {
    return each([&](int i) {
      return float_of(static_cast<uint32_t>(static_cast<int32_t>(x.lane[i]) + 127) << 23);
    });
  }
  static I load_partial_bits(const int32_t* p, int64_t n) {
    I out = splat(0);
    std::memcpy(out.lane, p, n * sizeof(int32_t));
    return out;
  }
  // Packs the lanes that are not 0 and returns their number. `out` has room for a whole vector.
  static int64_t pack_nonzero(float* out, const F& x) {
    int64_t found = 0;
    for (float lane : x.lane) {
      out[found] = lane;
      found += bits_of(lane) != 0;
    }
    return found;
  }
  static float max_lane(const F& x) {
    float best = x.lane[0];
    for (float lane : x.lane) best = lane > best ? lane : best;
    return best;
  }
  // The upper half of the lanes is added to the lower, until one is left.
  static float sum_halves(F x) {
    for (int64_t half = width / 2; half > 0; half /= 2) {
      for (int64_t i = 0; i < half; ++i) x.lane[i] += x.lane[i + half];
    }
    return x.lane[0];
  }
  static double sum_lanes(const F& x) {
    double sum = 0;
    for (float lane : x.lane) sum += lane;
    return sum;
  }
  // lanes[j mod 32] of the sum of x[j] * w[j]; d is a multiple of 32.
  static void dot_lanes(double* lanes, const double* x, const float* w, int64_t d) {
    for (int lane = 0; lane < 32; ++lane) lanes[lane] = 0;
    for (int64_t j = 0; j < d; j += 32) {
      for (int lane = 0; lane < 32; ++lane) {
        lanes[lane] += x[j + lane] * static_cast<double>(w[j + lane]);
      }
    }
  }
};

}  // namespace
}  // namespace csrkern
