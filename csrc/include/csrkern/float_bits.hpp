// A float and its bits, in float32 and float16.
#pragma once

#include <cstdint>
#include <cstring>

namespace csrkern {

inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// Converts float16 bits to float32, exactly.
inline float half_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16, magnitude = half & 0x7fff;
  if (magnitude >= 0x7c00) return float_of(sign | 0x7f800000 | (magnitude - 0x7c00) << 13);
  if (magnitude >= 0x0400) return float_of(sign | ((magnitude << 13) + 0x38000000));
  return float_of(sign | bits_of(static_cast<float>(magnitude) * 0x1p-24f));
}

// Rounds to float16 bits: to nearest, ties to even.
inline uint16_t float_to_half(float value) {
  const uint32_t bits = bits_of(value), sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00);
  if (magnitude >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);
  if (magnitude >= 0x38800000) {  // normal in float16: rebias, round the 13 lost bits
    const uint32_t rebiased = magnitude - 0x38000000;
    return static_cast<uint16_t>(sign | ((rebiased + 0xfff + ((rebiased >> 13) & 1)) >> 13));
  }
  // Adding 0.5 puts the last bit of a subnormal float16 (2^-24) at the last bit of the sum.
  return static_cast<uint16_t>(sign | (bits_of(float_of(magnitude) + 0.5f) - 0x3f000000));
}

}  // namespace csrkern
