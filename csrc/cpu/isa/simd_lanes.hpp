// What vector types of eight lanes without masks do by an array of their lanes.
// Internal linkage, so that the linker never gives other files a copy for one instruction set.
#pragma once

#include <cstdint>
#include <cstring>

namespace csrkern {
namespace {

// `V` derives from this.
template <class V>
struct EightLanes {
  static constexpr int64_t width = 8;

  // Loads the first n lanes; the rest are 0, which is never selected.
  template <class T>
  static auto load_partial(const T* p, int64_t n) {
    T lanes[width] = {};
    std::memcpy(static_cast<void*>(lanes), p, n * sizeof(T));
    return V::load(lanes);
  }
  template <class T>
  static auto load_partial_f(const T* p, int64_t n) {
    T lanes[width] = {};
    std::memcpy(static_cast<void*>(lanes), p, n * sizeof(T));
    return V::load_f(lanes);
  }
  static auto load_partial_bits(const int32_t* p, int64_t n) {
    int32_t lanes[width] = {};
    std::memcpy(lanes, p, n * sizeof(int32_t));
    return V::load_bits(lanes);
  }
  template <class T, class F>
  static void store_partial_f(T* p, F x, int64_t n) {
    T lanes[width];
    V::store_f(lanes, x);
    for (int64_t i = 0; i < n; ++i) p[i] = lanes[i];
  }
  static float to_float(float x) { return x; }
  template <class F>
  static float max_lane(F x) {
    float lanes[width];
    V::store_f(lanes, x);
    float best = lanes[0];
    for (float lane : lanes) best = lane > best ? lane : best;
    return best;
  }
};

}  // namespace
}  // namespace csrkern
