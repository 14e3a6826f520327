#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <vector>

#include "topk_relu_impl.hpp"

namespace csrkern {
namespace {

// Eight lanes in plain C++; compilers turn the loops into whatever vectors there are.
struct Portable {
  static constexpr int64_t width = 8;
  struct I {
    int32_t lane[width];
  };
  using Mask = uint32_t;
  using Flag = bool;

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
    return load_part(p, width);
  }
  template <class T>
  static I load_part(const T* p, int64_t n) {
    I out = splat(0);
    for (int64_t i = 0; i < n; ++i) {
      const float x = to_float(p[i]);
      std::memcpy(&out.lane[i], &x, sizeof(x));
    }
    return out;
  }
  static float to_float(float x) { return x; }
  static float to_float(BFloat x) { return from_bits(static_cast<uint32_t>(x.bits) << 16); }
  static float to_float(Half x) {
    const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000) << 16;
    const uint32_t exponent = x.bits >> 10 & 31;
    const uint32_t mantissa = x.bits & 1023;
    if (exponent == 31) return from_bits(sign | 0x7f800000u | mantissa << 13);
    if (exponent > 0) return from_bits(sign | (exponent + 112) << 23 | mantissa << 13);
    const float tiny = static_cast<float>(mantissa) * 0x1p-24f;
    return sign ? -tiny : tiny;
  }
  static float from_bits(uint32_t bits) {
    float out;
    std::memcpy(&out, &bits, sizeof(out));
    return out;
  }

  static Flag no_flag() { return false; }
  static bool nan_in(const I& x) {
    bool found = false;
    for (int32_t lane : x.lane) found |= (lane & 0x7fffffff) > kInfinityBits;
    return found;
  }
  static Flag flag_nan(Flag flag, const I& x, const I& y) { return flag | nan_in(x) | nan_in(y); }
  static bool any(Flag flag) { return flag; }

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
};

}  // namespace

void topk_relu_rows_portable(const TopkRelu& args, int64_t begin, int64_t end,
                             const TopkScratch& scratch) {
  rows_of_any<Portable>(args, begin, end, scratch);
}

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

}  // namespace csrkern
