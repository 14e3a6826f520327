// The vector loops of info_nce, one implementation per instruction set.
#pragma once

#include <cstdint>

namespace csrkern {

// What is known of one row's scores so far. Scores of 0 are counted, not summed: most pairs of
// rows share no latent.
struct ScoreSums {
  float peak;       // at least the largest score
  double total;     // sum of exp((score - peak) scale) over the scores that are not 0
  double positive;  // sum of the scores of the row's class
  int64_t zeros;
};

// One side of a loss's gradient: G_j = weight exp((s_j - peak) scale - log_total), less
// `pull` where the classes are equal.
struct GradientTerm {
  const float* weight;
  const float* peak;
  const float* log_total;
  const float* pull;  // null without labels
};

struct InfoNceKernels {
  // Adds n scores to `sums` and sets them to 0. classes [n], or null without labels.
  // packed: room for n + 16.
  void (*sum_scores)(float* scores, int64_t n, float scale, const int32_t* classes, int32_t own,
                     float* packed, ScoreSums* sums);
  // Replaces n scores by their gradient: the term of the row (arrays of one) plus the terms of
  // the columns (arrays of n), either null. Scores of 0 may stay 0: no posting reads them.
  void (*to_gradient)(float* scores, int64_t n, float scale, const int32_t* classes, int32_t own,
                      const GradientTerm* row, const GradientTerm* columns);
};

extern const InfoNceKernels kInfoNceKernelsPortable;
#ifdef CSRKERN_X86
extern const InfoNceKernels kInfoNceKernelsAvx2;
extern const InfoNceKernels kInfoNceKernelsAvx512;
#endif

}  // namespace csrkern
