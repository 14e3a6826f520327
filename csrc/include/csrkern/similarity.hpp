// The inner products between two sets of codes. Codes are checked as by check_latents; postings
// must come from transpose.
#pragma once

#include <cstdint>

#include "csrkern/codes.hpp"

namespace csrkern {

// Writes out [a.n, m] contiguous: a times the transposed codes b of m rows.
void similarity(const Codes& a, const Postings& b, int64_t m, float* out, int num_threads);

// A gradient [a.n, m]: element (i, j) is at data + i * row_stride + j * col_stride.
struct Strided {
  const float* data;
  int64_t row_stride;
  int64_t col_stride;
};

// Writes the gradient of the values of a, from that of similarity(a, b): grad_values [a.n, a.k], 0
// in empty slots. For the other side, swap a and b, and the strides.
void similarity_backward(const Codes& a, const Postings& b, int64_t m, const Strided& grad,
                         float* grad_values, int num_threads);

}  // namespace csrkern
