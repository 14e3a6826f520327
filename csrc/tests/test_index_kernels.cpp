#include <cmath>

#include "check.hpp"
#include "csrkern/index.hpp"
#include "csrkern/index_kernels.hpp"
#include "exact_memory.hpp"

namespace csrkern {
namespace {

uint16_t half_of(float value) {
  uint16_t half;
  index_kernels().to_half(&value, 1, &half);
  return half;
}

// Every positive half comes back; what lies between two goes to the nearer, or to the even one.
void check_halves() {
  for (uint16_t half = 0; half < 0x7c00; ++half) {
    const float value = half_to_float(half);
    CHECK(value == std::ldexp(half < 0x400 ? half : 0x400 + half % 0x400,
                              (half < 0x400 ? 1 : half / 0x400) - 25));
    CHECK(half_of(value) == half && half_of(-value) == half + 0x8000);
    const float next = half == 0x7bff ? 65536.0f : half_to_float(half + 1);
    const float middle = (value + next) / 2;
    CHECK(half_of(middle) == half + half % 2);
    CHECK(half_of(std::nextafter(middle, 0.0f)) == half);
    CHECK(half_of(std::nextafter(middle, next)) == half + 1);
  }
  CHECK(std::isinf(half_to_float(0x7c00)) && std::isnan(half_to_float(0x7e00)));
  CHECK(std::isnan(half_to_float(half_of(std::nanf("")))));
  for (int64_t n = 0; n < 70; ++n) {
    const Exact<float> in(n, 1.5f);
    const Exact<uint16_t> out(n);
    index_kernels().to_half(in.data(), n, out.data());
    for (uint16_t half : out) CHECK(half == 0x3e00);
    const Exact<float> back(n);
    const ValueKernels& halves = index_kernels().of[static_cast<int>(ValueType::float16)];
    halves.read(reinterpret_cast<const uint8_t*>(out.data()), n, 1, back.data());
    for (float value : back) CHECK(value == 1.5f);
  }
}

void check_crc() {
  CHECK(crc32c("123456789", 9) == 0xe3069283);  // the standard's check value
  Random random(1);
  Exact<uint8_t> bytes(100);
  for (uint8_t& b : bytes) b = static_cast<uint8_t>(random.below(256));
  for (size_t n = 0; n <= bytes.size(); ++n) {
    uint32_t crc = ~0u;  // bit by bit, at an odd address
    for (size_t i = bytes.size() - n; i < bytes.size(); ++i) {
      crc ^= bytes[i];
      for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78u : 0u);
    }
    CHECK(crc32c(bytes.end() - n, n) == ~crc);
  }
}

}  // namespace
}  // namespace csrkern

int main() {
  csrkern::check_halves();
  csrkern::check_crc();
}
