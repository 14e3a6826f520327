// The forms in which an index stores values.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "csrkern/float_bits.hpp"
#include "csrkern/host_device.hpp"

namespace csrkern {

// uint8 and uint4 hold squares: the number b means (b + 1)² units, so that small values keep their
// relative precision. The unit is a power of two, the same in the whole index. Lists in uint4 store
// no values: postings of equal numbers stand together (index_groups.hpp).
enum class ValueType : int32_t { float16, float32, uint8, uint4 };

inline bool is_grouped(ValueType type) { return type == ValueType::uint4; }
inline bool is_squares(ValueType type) { return type == ValueType::uint8 || is_grouped(type); }

// Of a value by itself.
inline int64_t value_bytes(ValueType type) {
  return is_squares(type) ? 1 : type == ValueType::float32 ? 4 : 2;
}

constexpr float kLeastFloat = 0x1p-149f;

// Of what offsets count: a local document number (uint16) and a value, or a word of grouped lists.
inline int64_t posting_bytes(ValueType type) {
  return is_grouped(type) ? 2 : 2 + value_bytes(type);
}

// The largest square is 2^exponent. Between these bounds all squares are normal float32 numbers.
constexpr int32_t kLeastExponent = -94, kMostExponent = 127;

inline float power_of_two(int32_t exponent) {
  const uint32_t bits = static_cast<uint32_t>(exponent + 127) << 23;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline float unit_of(ValueType type, int32_t exponent) {
  if (!is_squares(type)) return 1;
  return power_of_two(exponent - (is_grouped(type) ? 8 : 16));
}

CSRKERN_BOTH inline float square(uint32_t number, float unit) {
  const float root = static_cast<float>(number + 1);
  return root * root * unit;
}

// The largest score: a cosine is at most 1, even if the sum over rounded rows is larger.
inline float most_score(bool cosine) {
  return cosine ? 1.0f : std::numeric_limits<float>::infinity();
}

// Scales a value of a row that is being L2-normalized; positive values stay positive.
CSRKERN_BOTH inline float scaled_value(float value, double scale) {
  const float scaled = static_cast<float>(value * scale);
  return scaled > 0 || !(value > 0) ? scaled : kLeastFloat;
}

// Returns the number whose square is nearest to a positive value, the lower number of two. No
// positive value becomes 0, and a square becomes itself.
CSRKERN_BOTH inline uint32_t number_of(float value, float unit) {
  const double x = value / static_cast<double>(unit);
  const double root = static_cast<int32_t>(std::sqrt(x));
  const double nearest = root + (x > root * root + root + 0.5 ? 1 : 0);
  return nearest > 1 ? static_cast<uint32_t>(nearest) - 1 : 0;
}

// Returns stored value i.
inline float value_at(const uint8_t* values, uint64_t i, ValueType type, float unit) {
  uint16_t two;
  float four;
  switch (type) {
    case ValueType::uint8:
    case ValueType::uint4:
      return square(values[i], unit);
    case ValueType::float32:
      std::memcpy(&four, values + 4 * i, 4);
      return four;
    default:
      std::memcpy(&two, values + 2 * i, 2);
      return half_to_float(two);
  }
}

}  // namespace csrkern
