// Arrays of float32, float16 or bfloat16 that the tests read and write as floats.
#pragma once

#include <cstring>

#include "check.hpp"
#include "csrkern/float_bits.hpp"
#include "csrkern/topk_relu.hpp"
#include "exact_memory.hpp"

namespace csrkern {

constexpr DType kDTypes[] = {DType::float32, DType::float16, DType::bfloat16};

class Typed {
 public:
  Typed(DType dtype, size_t size) : dtype_(dtype), floats_(full() ? size : 0) {
    halves_ = Exact<uint16_t>(full() ? 0 : size, 0x7e01);  // NaN in both formats
    std::fill(floats_.begin(), floats_.end(), std::nanf(""));
  }

  DType dtype() const { return dtype_; }
  void* data() const {
    return full() ? static_cast<void*>(floats_.data()) : static_cast<void*>(halves_.data());
  }
  // In elements; of 16-bit formats the values nearest to or just below those given.
  void set(int64_t i, float value) const {
    if (full()) {
      floats_[i] = value;
    } else if (dtype_ == DType::float16) {
      halves_[i] = float_to_half(value);
    } else {
      uint32_t bits;
      std::memcpy(&bits, &value, 4);
      halves_[i] = static_cast<uint16_t>(bits >> 16);
    }
  }
  float get(int64_t i) const {
    if (full()) return floats_[i];
    if (dtype_ == DType::float16) return half_to_float(halves_[i]);
    const uint32_t bits = static_cast<uint32_t>(halves_[i]) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
  }
  bool same_bits(int64_t i, const Typed& other, int64_t j) const {
    if (full()) return std::memcmp(&floats_[i], &other.floats_[j], 4) == 0;
    return halves_[i] == other.halves_[j];
  }
  // Half the distance between neighboring values, relative to them.
  double rounding() const { return full() ? 0x1p-24 : dtype_ == DType::float16 ? 0x1p-11 : 0x1p-8; }

 private:
  bool full() const { return dtype_ == DType::float32; }

  DType dtype_;
  Exact<float> floats_;
  Exact<uint16_t> halves_;
};

}  // namespace csrkern
