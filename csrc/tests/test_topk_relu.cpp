#include <limits>
#include <vector>

#include "check.hpp"
#include "csrkern/topk_relu.hpp"
#include "exact_memory.hpp"
#include "typed.hpp"

namespace csrkern {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

struct Layout {
  int64_t row_stride, col_stride;
};

// Rows that break careless selections, each by its number.
constexpr int kKinds = 19;
float entry(int kind, int64_t j, int64_t h, int64_t k, Random& random) {
  const float noise = random.symmetric(), small = 0.01f * random.positive();
  switch (kind) {
    case 0:
      return 1;  // all equal
    case 1:
      return 0;
    case 2:
      return -0.0f;
    case 3:
      return -0.1f - small;  // all negative
    case 4:
      return j == h / 2 ? 2.0f : -1.0f;  // fewer than k positive
    case 5:
      return j < k / 2 ? 1.0f : -1.0f;
    case 6:
      return static_cast<float>(random.below(3));  // ties
    case 7:
      return static_cast<float>(j + 1);  // sorted up
    case 8:
      return static_cast<float>(h - j);  // sorted down
    case 9:
      return j < k ? 10 + small : small;  // the winners side by side
    case 10:
      return j % 128 == 0 ? 10 + small : small;  // the winners in one group of maxima
    case 11:
      return j == 0 || j == h - 1 ? kInf : noise;
    case 12:
      return -kInf;
    case 13:
      return kInf;
    case 14:
      return j == h / 3 ? std::nanf("") : noise;
    case 15:
      return j % 2 ? std::nanf("") : noise;
    case 16:
      return j == h / 2 ? -std::nanf("") : noise;
    case 17:
      return noise * 1e-42f;  // subnormal
    case 18:
      return j == 0 ? 3e38f : noise;
    default:
      return noise;
  }
}

// Positive entries and NaN, NaN first, then by value, then by latent: one scan per place.
std::vector<int32_t> best(const std::vector<float>& row, const uint8_t* mask, int64_t k) {
  std::vector<int32_t> chosen;
  std::vector<bool> used(row.size());
  while (static_cast<int64_t>(chosen.size()) < k) {
    int64_t top = -1;
    for (size_t j = 0; j < row.size(); ++j) {
      if (used[j] || row[j] <= 0 || (mask != nullptr && mask[j] == 0)) continue;
      const bool first = top < 0 || (std::isnan(row[j]) && !std::isnan(row[top]));
      if (first || row[j] > row[top]) top = static_cast<int64_t>(j);
    }
    if (top < 0) break;
    used[top] = true;
    chosen.push_back(static_cast<int32_t>(top));
  }
  return chosen;
}

void check(DType dtype, int64_t n, int64_t h, int64_t k, Layout layout, const uint8_t* mask,
           int num_threads) {
  Random random(h * 1000 + k);
  const int64_t size = n == 0 ? 0 : (n - 1) * layout.row_stride + (h - 1) * layout.col_stride + 1;
  const Typed pre(dtype, size), values(dtype, n * k);
  const Exact<int32_t> indices(n * k, -7);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < h; ++j) {
      pre.set(i * layout.row_stride + j * layout.col_stride,
              entry(static_cast<int>(i), j, h, k, random));
    }
  }
  topk_relu({pre.data(), dtype, n, h, layout.row_stride, layout.col_stride, mask, k, values.data(),
             indices.data()},
            num_threads);
  const Typed zero(dtype, 1);
  zero.set(0, 0);
  std::vector<float> row(h);
  for (int64_t i = 0; i < n; ++i) {
    const auto at = [&](int64_t j) { return i * layout.row_stride + j * layout.col_stride; };
    for (int64_t j = 0; j < h; ++j) row[j] = pre.get(at(j));
    const std::vector<int32_t> chosen = best(row, mask, k);
    for (int64_t s = 0; s < k; ++s) {
      const bool active = s < static_cast<int64_t>(chosen.size());
      CHECK(indices[i * k + s] == (active ? chosen[s] : 0));
      CHECK(active ? values.same_bits(i * k + s, pre, at(chosen[s]))
                   : values.same_bits(i * k + s, zero, 0));
    }
  }
}

}  // namespace
}  // namespace csrkern

int main() {
  using namespace csrkern;
  const int64_t n = kKinds + 2;
  for (DType dtype : kDTypes) {
    for (int64_t h : {1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 127, 128, 129, 257, 1000}) {
      const int64_t ks[] = {1, 2, 5, 16, 33, h / 2, h};
      for (int64_t k : ks) {
        if (k < 1 || k > h) continue;
        check(dtype, n, h, k, {h, 1}, nullptr, 1);
        if (h % 2 == 0) continue;  // odd sizes are awkward enough for the rest
        check(dtype, n, h, k, {h + 3, 1}, nullptr, 2);
        check(dtype, n, h, k, {1, n}, nullptr, 3);
        check(dtype, n, h, k, {2 * h, 2}, nullptr, 1);
        check(dtype, 1, h, k, {0, 0}, nullptr, 1);
        Exact<uint8_t> mask(h);
        check(dtype, n, h, k, {h, 1}, mask.data(), 1);
        mask[h / 2] = 1;
        check(dtype, n, h, k, {h, 1}, mask.data(), 1);
        for (int64_t j = 0; j < h; j += 3) mask[j] = 255;
        check(dtype, n, h, k, {1, n}, mask.data(), 2);
      }
    }
    check(dtype, n, 4099, 32, {4099, 1}, nullptr, 2);
    check(dtype, n, 4099, 700, {4099, 1}, nullptr, 2);
    check(dtype, 0, 10, 3, {10, 1}, nullptr, 2);
  }
}
