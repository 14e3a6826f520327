#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "generic/topk_relu.hpp"
#include "isa/simd_portable.hpp"

namespace csrkern {

void topk_relu_rows_portable(const TopkRelu& args, int64_t begin, int64_t end,
                             const TopkScratch& scratch) {
  rows_of_any<Portable>(args, begin, end, scratch);
}

void topk_relu_row_with_nan(const float* row, int64_t h, int64_t k, int32_t* order) {
  std::vector<int32_t> latents;
  for (int64_t j = 0; j < h; ++j) {
    if (!(row[j] <= 0)) latents.push_back(static_cast<int32_t>(j));
  }
  const auto before = [row](int32_t a, int32_t b) {
    const bool nan_a = std::isnan(row[a]), nan_b = std::isnan(row[b]);
    if (nan_a != nan_b) return nan_a;
    return !nan_a && row[a] != row[b] ? row[a] > row[b] : a < b;
  };
  const int64_t won = std::min<int64_t>(k, static_cast<int64_t>(latents.size()));
  std::partial_sort(latents.begin(), latents.begin() + won, latents.end(), before);
  std::copy_n(latents.begin(), won, order);
  std::fill(order + won, order + k, -1);
}

}  // namespace csrkern
