// Exact codes of a linear layer from approximate pre-activations.
//
// The exact pre-activation of row i and latent l is the float nearest to
// Σ_j x[i, j] · weight[l, j] + bias[l], summed in double in a fixed order, so it depends on the
// operands only. An approximate matrix product with a known error bound tells which latents may be
// among the k best; only these are computed exactly.
#pragma once

#include <cstdint>

#include "csrkern/topk_relu.hpp"

namespace csrkern {

struct Linear {
  const float* x;       // [n, d] contiguous
  const float* weight;  // [h, d] with unit column stride
  int64_t row_stride;   // of weight, in elements
  const float* bias;    // [h] or null
  int64_t n;
  int64_t h;
  int64_t d;
};

// Writes every pre-activation exactly: out[i, l], [n, h] contiguous. For few rows, where the cost
// is reading the weight.
void linear_exact(const Linear& layer, float* out, int num_threads);

// Rounds rows to bfloat16, and finds the L2 norms, summed in float, of each row and of its rounding
// error. One pass does all three, since reading a large weight is the cost.
struct Rounding {
  const float* rows;  // [n, d] with unit column stride
  int64_t row_stride;
  int64_t n;
  int64_t d;
  uint16_t* rounded;  // [n, d] contiguous, the bits of bfloat16
  float* norms;       // [n]
  float* residuals;   // [n]
};
void round_rows(const Rounding& args, int num_threads);

struct Refine {
  Linear layer;
  const void* approx;   // [n, h] contiguous, within slack[i] + relative * |approx[i, l]| of exact
  DType dtype;          // of approx
  const double* slack;  // [n]; rows where it is not finite are computed in full
  double relative;
  int64_t k;
  int64_t limit;        // rows with more candidates are skipped
  float* values;        // [n, k] contiguous, as in TopkRelu
  int32_t* indices;     // [n, k] contiguous
  int32_t* candidates;  // [n]: latents computed exactly, or -1 for a skipped row
};
void refine(const Refine& args, int num_threads);

}  // namespace csrkern
