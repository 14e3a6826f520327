// The 16-bit floating-point formats, as types.
#pragma once

#include <cstdint>

namespace csrkern {

struct Half {
  uint16_t bits;
};
struct BFloat {
  uint16_t bits;
};

constexpr int32_t kInfinityBits = 0x7f800000;
constexpr int32_t kQuietNaN = 0x7fc00000;

}  // namespace csrkern
