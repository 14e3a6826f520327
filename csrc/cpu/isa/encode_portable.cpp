#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#include "generic/encode.hpp"
#include "isa/simd_portable.hpp"

namespace csrkern {

const EncodeKernels kEncodePortable = {EncodeOf<Portable>::linear_exact,
                                       EncodeOf<Portable>::round_rows, EncodeOf<Portable>::refine};

int64_t candidates_of_odd_row(const float* row, int64_t h, int64_t k, double slack, double relative,
                              int32_t* index) {
  // The k-th largest lower bound of an exact value: whatever cannot reach it is out.
  double bar = -INFINITY;
  if (std::isfinite(slack)) {
    std::vector<double> lowest;
    for (int64_t l = 0; l < h; ++l) {
      const double value = row[l];
      if (!std::isnan(value)) lowest.push_back(value - slack - relative * std::fabs(value));
    }
    if (static_cast<int64_t>(lowest.size()) >= k) {
      std::nth_element(lowest.begin(), lowest.begin() + (k - 1), lowest.end(), std::greater<>());
      bar = lowest[k - 1];
    }
  }
  int64_t found = 0;
  for (int64_t l = 0; l < h; ++l) {
    const double value = row[l];
    const double highest = value + slack + relative * std::fabs(value);
    const bool out = highest <= 0 || highest < bar;  // false for NaN: those stay in
    if (!out) index[found++] = static_cast<int32_t>(l);
  }
  return found;
}

}  // namespace csrkern
