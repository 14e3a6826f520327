// What the modules csrkern._C and csrkern._cuda read from Python.
#pragma once

#include <pybind11/numpy.h>

#include <optional>
#include <stdexcept>
#include <string>

#include "csrkern/index.hpp"

template <class T>
using Array = pybind11::array_t<T, pybind11::array::c_style>;

inline csrkern::ValueType value_type(const std::string& name) {
  if (name == "float16") return csrkern::ValueType::float16;
  if (name == "float32") return csrkern::ValueType::float32;
  if (name == "uint8") return csrkern::ValueType::uint8;
  if (name == "uint4") return csrkern::ValueType::uint4;
  throw std::invalid_argument("expected the name of a value type, got " + name);
}

// values and indices [n, k], or flat with starts [n + 1].
inline csrkern::SparseRows sparse_rows(const Array<float>& values, const Array<int32_t>& indices,
                                       const std::optional<Array<int64_t>>& starts, int32_t dim) {
  if (values.size() != indices.size())
    throw std::invalid_argument("expected as many values as indices");
  if (!starts) {
    if (values.ndim() != 2) throw std::invalid_argument("expected values of shape [n, k]");
    return {values.shape(0), dim, values.shape(1), nullptr, values.data(), indices.data()};
  }
  if (starts->size() < 1 || starts->at(starts->size() - 1) > values.size()) {
    throw std::invalid_argument("expected row starts that end within the values");
  }
  return {starts->size() - 1, dim, 0, starts->data(), values.data(), indices.data()};
}
