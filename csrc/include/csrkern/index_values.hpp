// The forms in which an index stores values.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "csrkern/float_bits.hpp"
#include "csrkern/host_device.hpp"

namespace csrkern {

// uint8 and uint16 are squares: the number b stands for (b + 1)² units, so that weak values keep
// their precision beside strong ones. Units are powers of two, the same in the whole index.
enum class ValueType : int32_t { float16, float32, uint8, uint16 };

inline bool is_squares(ValueType type) {
  return type == ValueType::uint8 || type == ValueType::uint16;
}

inline int64_t value_bytes(ValueType type) {
  return type == ValueType::uint8 ? 1 : type == ValueType::float32 ? 4 : 2;
}

constexpr float kLeastFloat = 0x1p-149f;

// A local document number (uint16) and a value.
inline int64_t posting_bytes(ValueType type) { return 2 + value_bytes(type); }

// The largest square is 2^exponent. Between these bounds all of them are normal float32.
constexpr int32_t kLeastExponent = -94, kMostExponent = 127;

inline float power_of_two(int32_t exponent) {
  const uint32_t bits = static_cast<uint32_t>(exponent + 127) << 23;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline float unit_of(ValueType type, int32_t exponent) {
  if (!is_squares(type)) return 1;
  return power_of_two(exponent - 16 * static_cast<int32_t>(value_bytes(type)));
}

CSRKERN_BOTH inline float square(uint32_t number, float unit) {
  const float root = static_cast<float>(number + 1);
  return root * root * unit;
}

// The greatest score: a cosine is 1 at most, though products of rounded rows can come to more.
inline float most_score(bool cosine) {
  return cosine ? 1.0f : std::numeric_limits<float>::infinity();
}

// A value of a row that is brought to norm 1; one that is positive stays so.
CSRKERN_BOTH inline float scaled_value(float value, double scale) {
  const float scaled = static_cast<float>(value * scale);
  return scaled > 0 || !(value > 0) ? scaled : kLeastFloat;
}

// The number whose square is nearest to a positive value of at most the largest, the lower one of
// two: so nothing positive becomes 0, and a square becomes itself.
CSRKERN_BOTH inline uint32_t number_of(float value, float unit) {
  const double x = value / static_cast<double>(unit);
  const double root = static_cast<int32_t>(std::sqrt(x));
  const double nearest = root + (x > root * root + root + 0.5 ? 1 : 0);
  return nearest > 1 ? static_cast<uint32_t>(nearest) - 1 : 0;
}

// The i-th of stored values.
inline float value_at(const uint8_t* values, uint64_t i, ValueType type, float unit) {
  uint16_t two;
  float four;
  switch (type) {
    case ValueType::uint8:
      return square(values[i], unit);
    case ValueType::float32:
      std::memcpy(&four, values + 4 * i, 4);
      return four;
    default:
      std::memcpy(&two, values + 2 * i, 2);
      return type == ValueType::float16 ? half_to_float(two) : square(two, unit);
  }
}

}  // namespace csrkern
