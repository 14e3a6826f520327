#include "check.hpp"
#include "csrkern/prefix_errors.hpp"
#include "owned_codes.hpp"
#include "typed.hpp"

namespace csrkern {
namespace {

constexpr double kRounding = 2e-6;  // of sums in float32, relative to what is summed

struct Given {
  Given(DType dtype, const OwnedCodes& codes, int64_t d, int64_t extra)
      : stride(d + extra),
        table(dtype, (codes.dim - 1) * stride + d),
        x(codes.n * d),
        weights(codes.k) {
    Random random(d);
    for (int64_t r = 0; r < codes.dim; ++r) {
      for (int64_t c = 0; c < d; ++c) table.set(r * stride + c, random.symmetric());
    }
    for (float& value : x) value = random.symmetric();
    for (float& weight : weights) weight = random.below(3) == 0 ? 0.0f : random.positive();
  }

  int64_t stride;
  Typed table;
  Exact<float> x, weights;
};

// Residuals and gradients in double, of one row at a time and dense.
void check(DType dtype, const OwnedCodes& codes, int64_t d, int64_t extra, int num_threads) {
  const int64_t n = codes.n, k = codes.k;
  const Given given(dtype, codes, d, extra);
  std::vector<double> want_errors(k), residuals(n * k * d), sums(n * k * d);
  std::vector<double> want_table(codes.dim * d), size_table(codes.dim * d);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t c = 0; c < d; ++c) {
      double left = given.x[i * d + c], total = 0;
      for (int64_t s = 0; s < k; ++s) {
        const float value = codes.values[i * k + s];
        if (value != 0) {
          left -= value * given.table.get(codes.indices[i * k + s] * given.stride + c);
        }
        residuals[(i * k + s) * d + c] = left;
        want_errors[s] += left * left;
      }
      for (int64_t s = k - 1; s >= 0; --s) {
        total += given.weights[s] * residuals[(i * k + s) * d + c];
        sums[(i * k + s) * d + c] = total;
        const float value = codes.values[i * k + s];
        if (value == 0) continue;
        want_table[codes.indices[i * k + s] * d + c] -= value * total;
        size_table[codes.indices[i * k + s] * d + c] += k * (1 + std::abs(value * total));
      }
    }
  }

  const Exact<float> residual = given.x;
  const Exact<double> errors(k, std::nan(""));
  const Table table{given.table.data(), given.stride};
  prefix_errors({codes.view(), dtype, table, d, residual.data(), errors.data()}, num_threads);
  for (int64_t s = 0; s < k; ++s) CHECK(close(errors[s], want_errors[s], kRounding, 1e-6));
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t c = 0; c < d; ++c) {
      const double want = residuals[(i * k + k - 1) * d + c];
      CHECK(std::abs(residual[i * d + c] - want) <= k * kRounding);
    }
  }

  const Exact<float> grad_values(n * k, std::nanf("")), grad_x(n * d, std::nanf(""));
  const Exact<float> grad_table(codes.dim * d);
  prefix_errors_backward({codes.view(), dtype, table, d, residual.data(), given.weights.data(),
                          grad_values.data(), grad_table.data(), grad_x.data()},
                         num_threads);
  for (int64_t e = 0; e < n * k; ++e) {
    double want = 0, size = 0;
    for (int64_t c = 0; c < d && codes.values[e] != 0; ++c) {
      const double x = given.table.get(codes.indices[e] * given.stride + c);
      want -= sums[e * d + c] * x;
      size += k * (1 + std::abs(sums[e * d + c])) * std::abs(x);
    }
    CHECK(std::abs(grad_values[e] - want) <= kRounding * size);
    if (codes.values[e] == 0) CHECK(grad_values[e] == 0);
  }
  for (int64_t e = 0; e < codes.dim * d; ++e) {
    CHECK(std::abs(grad_table[e] - want_table[e]) <= kRounding * size_table[e]);
  }
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t c = 0; c < d; ++c) {
      const double want = sums[i * k * d + c];
      CHECK(std::abs(grad_x[i * d + c] - want) <= k * kRounding * (1 + std::abs(want)));
    }
  }
}

void check_threads(const OwnedCodes& codes, int64_t d) {
  const Given given(DType::float32, codes, d, 0);
  const Table table{given.table.data(), d};
  std::vector<std::vector<float>> found;
  for (int threads : {1, 3, 7}) {
    Exact<float> residual = given.x, grad_values(codes.n * codes.k), grad_x(codes.n * d),
                 grad_table(codes.dim * d);
    Exact<double> errors(codes.k);
    prefix_errors({codes.view(), DType::float32, table, d, residual.data(), errors.data()},
                  threads);
    prefix_errors_backward(
        {codes.view(), DType::float32, table, d, residual.data(), given.weights.data(),
         grad_values.data(), grad_table.data(), grad_x.data()},
        threads);
    std::vector<float> all(errors.begin(), errors.end());
    for (const auto* part : {&residual, &grad_values, &grad_x, &grad_table}) {
      all.insert(all.end(), part->begin(), part->end());
    }
    found.push_back(all);
  }
  CHECK(found[0] == found[1]);
  CHECK(found[0] == found[2]);
}

void check_out_of_range(DType dtype) {
  const OwnedCodes good = random_codes(9, 6, 30, 1);
  const Given given(dtype, good, 40, 0);
  const Table table{given.table.data(), 40};
  const Exact<float> residual = given.x, grad_values(9 * 6), grad_x(9 * 40), grad_table(30 * 40);
  const Exact<double> errors(6);
  check_refused(good, [&](const OwnedCodes& codes) {
    prefix_errors({codes.view(), dtype, table, 40, residual.data(), errors.data()}, 2);
  });
  check_refused(good, [&](const OwnedCodes& codes) {
    prefix_errors_backward({codes.view(), dtype, table, 40, residual.data(), given.weights.data(),
                            grad_values.data(), grad_table.data(), grad_x.data()},
                           2);
  });
}

}  // namespace
}  // namespace csrkern

int main() {
  using namespace csrkern;
  for (DType dtype : kDTypes) {
    check_out_of_range(dtype);
    for (int64_t d : {1, 7, 8, 9, 16, 17, 63, 64, 65, 128, 130}) {
      for (int64_t k : {1, 6, 24}) {
        const OwnedCodes codes = with_wild_padding(random_codes(9, k, 30, d * 100 + k));
        check(dtype, codes, d, d % 3, 1 + static_cast<int>(d % 3));
      }
    }
    check(dtype, with_wild_padding(random_codes(400, 5, 50, 1)), 40, 0, 3);
    check(dtype, random_codes(0, 4, 3, 1), 8, 0, 2);
  }
  check_threads(random_codes(300, 7, 60, 4), 300);
}
