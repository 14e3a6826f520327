#include <cmath>
#include <cstring>
#include <limits>

#include "check.hpp"
#include "csrkern/index.hpp"
#include "exact_memory.hpp"
#include "isa/kernels.hpp"

namespace csrkern {
namespace {

uint16_t half_of(float value) {
  uint16_t half;
  kernels().index.to_half(&value, 1, &half);
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
    kernels().index.to_half(in.data(), n, out.data());
    for (uint16_t half : out) CHECK(half == 0x3e00);
    const Exact<float> back(n);
    const ValueKernels& halves = kernels().index.of[static_cast<int>(ValueType::float16)];
    halves.read(reinterpret_cast<const uint8_t*>(out.data()), n, 1, back.data());
    for (float value : back) CHECK(value == 1.5f);
  }
}

// Every square comes back, by all ways of reading it; what lies between two goes to the nearer, or
// to the lower one.
void check_squares(int32_t exponent) {
  constexpr ValueType type = ValueType::uint8;
  const float unit = unit_of(type, exponent);
  const uint32_t last = 0xff;
  CHECK(std::isnormal(unit) && square(last, unit) == std::ldexp(1.0f, exponent));
  const Exact<uint8_t> stored(last + 1);
  for (uint32_t number = 0; number <= last; ++number) {
    stored.data()[number] = static_cast<uint8_t>(number);
    const float value = square(number, unit);
    CHECK(number_of(value, unit) == number);
    CHECK(value_at(stored.data(), number, type, unit) == value);
    if (number == last) break;
    const double root = number + 1;
    const double middle = (root * root + root + 0.5) * unit;
    const float below = static_cast<float>(middle * (1 - 1e-7));
    CHECK(number_of(below, unit) == number);
    CHECK(number_of(static_cast<float>(middle * (1 + 1e-7)), unit) == number + 1);
    CHECK(number_of(static_cast<float>(middle), unit) == number);
  }
  CHECK(number_of(unit * 1e-3f, unit) == 0);
  CHECK(number_of(std::numeric_limits<float>::denorm_min(), unit) == 0);
  const ValueKernels& of_type = kernels().index.of[static_cast<int>(type)];
  for (int64_t n = 0; n < 70; ++n) {
    for (int64_t first : {int64_t{0}, int64_t{last} + 1 - n}) {
      const Exact<float> values(n);
      const Exact<uint8_t> part(n);
      std::copy_n(stored.data() + first, part.size(), part.data());
      of_type.read(part.data(), n, unit, values.data());
      for (int64_t i = 0; i < n; ++i) {
        CHECK(values[i] == square(static_cast<uint32_t>(first + i), unit));
      }
    }
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

// A product is rounded before it is added, and a value of 0 changes nothing.
void check_dense() {
  constexpr int64_t n = 192;
  Random random(1);
  for (const ValueType type : {ValueType::float16, ValueType::float32}) {
    const int64_t size = value_bytes(type);
    const Exact<uint8_t> stored(n * size);
    Buffer buffer(n * sizeof(float));  // scores are aligned
    auto* scores = reinterpret_cast<float*>(buffer.data());
    std::vector<float> want(n);
    for (int64_t i = 0; i < n; ++i) {
      const float value = i % 3 == 0 ? 0 : random.positive();
      const uint16_t half = half_of(value);
      const auto* from = type == ValueType::float16 ? static_cast<const void*>(&half) : &value;
      std::memcpy(stored.data() + i * size, from, size);
      scores[i] = random.positive();
      const float product = value_at(stored.data(), i, type, 1) * 0.7f;
      want[i] = scores[i] + product;
    }
    kernels().index.of[static_cast<int>(type)].add_dense(stored.data(), n, 0.7f, scores);
    for (int64_t i = 0; i < n; ++i) CHECK(scores[i] == want[i]);
  }
}

}  // namespace
}  // namespace csrkern

int main() {
  csrkern::check_dense();
  csrkern::check_halves();
  for (int32_t exponent : {csrkern::kLeastExponent, -3, 0, 5, csrkern::kMostExponent}) {
    csrkern::check_squares(exponent);
  }
  csrkern::check_crc();
}
