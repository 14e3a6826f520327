// The inner products between two sets of codes. Codes are checked as by check_latents; postings are
// those that transpose filled.
#pragma once

#include <cstdint>

#include "csrkern/codes.hpp"

namespace csrkern {

// out [a.n, m] contiguous = a times the transposed codes b of m rows.
void similarity(const Codes& a, const Postings& b, int64_t m, float* out, int num_threads);

// Where element (i, j) of a gradient [a.n, m] lies: at data + i * row_stride + j * col_stride.
struct Strided {
  const float* data;
  int64_t row_stride;
  int64_t col_stride;
};

// The gradient of the values of a, from that of similarity(a, b): grad_values [a.n, a.k],
// 0 in empty slots. For the other side exchange a and b, and the strides.
void similarity_backward(const Codes& a, const Postings& b, int64_t m, const Strided& grad,
                         float* grad_values, int num_threads);

}  // namespace csrkern
