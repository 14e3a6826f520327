// The errors of all prefixes of codes at once, and their gradient. The first j slots of a code
// leave r_j = x - bias - Σ over s < j of values[s] · table[indices[s]]; r_j follows from r_{j-1},
// and from r_{j+1}, so that no more than a row's residual is held. Sums run in float32.
#pragma once

#include <cstdint>

#include "csrkern/codes.hpp"
#include "csrkern/gather.hpp"
#include "csrkern/topk_relu.hpp"

namespace csrkern {

// errors[j - 1] = Σ over rows and columns of r_j². Codes are checked as by check_latents.
struct PrefixErrors {
  Codes codes;
  DType dtype;  // of table
  Table table;  // [codes.dim, d]
  int64_t d;
  float* residual;  // [n, d] contiguous: x - bias before, r_k after
  double* errors;   // [k]
};
void prefix_errors(const PrefixErrors& args, int num_threads);

// The gradient of Σ_j weights[j - 1] / 2 · |r_j|². With S_s = Σ over j > s of weights[j - 1] · r_j:
// grad_values[i, s] = -⟨S_s, table[indices[i, s]]⟩, 0 in empty slots; grad_table[l] -= Σ over the
// slots of latent l of values[i, s] · S_s, in the order of the rows; grad_x[i] = S_0.
struct PrefixErrorsBackward {
  Codes codes;
  DType dtype;
  Table table;  // [codes.dim, d]
  int64_t d;
  const float* residual;  // [n, d], r_k
  const float* weights;   // [k]
  float* grad_values;     // [n, k]
  float* grad_table;      // [codes.dim, d]
  float* grad_x;          // [n, d]
};
void prefix_errors_backward(const PrefixErrorsBackward& args, int num_threads);

}  // namespace csrkern
