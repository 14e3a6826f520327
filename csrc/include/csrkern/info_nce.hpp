// The contrastive loss over codes, without storing the matrix of scores.
//
// With scores s_ij = <a_i, b_j>, scale 1 / temperature and positives P_i:
//   L_i = log(sum_j c_ij exp(s_ij scale)) - mean over P_i of s_ij scale
// - pairs: c = 1, P_i = {i};
// - one set (b is a): c_ii = 1, c_ij = 2, P_i = {i};
// - labels: P_i are the rows of i's class and c = 1; in one set, i itself is in neither sum. L_i
//   is 0 where P_i is empty.
//
// Codes are checked as by check_latents; postings must come from transpose.
#pragma once

#include <cstdint>

#include "csrkern/codes.hpp"

namespace csrkern {

struct InfoNce {
  Codes a;                     // values >= 0
  Postings b;                  // the other set transposed, or a itself
  int64_t m;                   // rows of b
  bool one_set;                // b is a
  float scale;                 // 1 / temperature
  const int32_t* classes_a;    // [a.n], null without labels
  const int32_t* classes_b;    // [m], null without labels
  const int32_t* n_positives;  // with labels, the size of each P_i; see the functions
};

// loss, peak and log_total [a.n]: sum_j c_ij exp(s_ij scale) = exp(peak_i scale + log_total_i).
// n_positives [a.n]. The result does not depend on num_threads.
void info_nce(const InfoNce& args, float* loss, float* peak, float* log_total, int num_threads);

// What the gradient needs to know of the rows whose losses were summed.
struct InfoNceRows {
  const float* grad;       // the gradient of each loss
  const float* peak;       // as written by info_nce
  const float* log_total;  // as written by info_nce
};

// Writes the gradient of the values of args.a: grad_values [a.n, a.k], 0 in empty slots. The losses
// are those of the rows of a or, if `of_columns`, of the rows of b against a; `rows` and
// n_positives belong to that side. In one set both sides are added and of_columns is unused.
void info_nce_backward(const InfoNce& args, const InfoNceRows& rows, bool of_columns,
                       float* grad_values, int num_threads);

}  // namespace csrkern
