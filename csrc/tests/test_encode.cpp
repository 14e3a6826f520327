#include <cstring>
#include <limits>
#include <vector>

#include "check.hpp"
#include "csrkern/encode.hpp"
#include "exact_memory.hpp"
#include "typed.hpp"

namespace csrkern {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

struct OwnedLinear {
  OwnedLinear(int64_t n, int64_t h, int64_t d, int64_t extra, bool with_bias)
      : x(n * d), weight((h - 1) * (d + extra) + d), bias(h) {
    Random random(n + h + d);
    for (float& v : x) v = random.symmetric();
    for (float& v : weight) v = random.symmetric();
    for (float& v : bias) v = random.symmetric() / 8;
    view = {x.data(), weight.data(), d + extra, with_bias ? bias.data() : nullptr, n, h, d};
  }

  Exact<float> x, weight, bias;
  Linear view;
};

Exact<float> check_linear(const Linear& layer, int num_threads) {
  Exact<float> out(layer.n * layer.h, 7);
  linear_exact(layer, out.data(), num_threads);
  for (int64_t e = 0; e < layer.n * layer.h; ++e) {
    const int64_t latent = e % layer.h;
    double sum = layer.bias ? layer.bias[latent] : 0, size = std::abs(sum);
    for (int64_t j = 0; j < layer.d; ++j) {
      const double product = static_cast<double>(layer.x[e / layer.h * layer.d + j]) *
                             layer.weight[latent * layer.row_stride + j];
      sum += product;
      size += std::abs(product);
    }
    CHECK(std::isnan(sum) ? std::isnan(out[e]) : close(out[e], sum, 0x1p-24, 1e-14 * size));
  }
  return out;
}

// Rows refined from blurred pre-activations are the codes of the exact ones.
void check_refine(const Linear& layer, const Exact<float>& exact, DType dtype, double blur,
                  int64_t k, int64_t limit, int num_threads) {
  const int64_t n = layer.n, h = layer.h;
  Random random(k);
  const Typed approx(dtype, n * h);
  const Exact<double> slack(n);
  for (int64_t e = 0; e < n * h; ++e) {
    approx.set(e, exact[e] + static_cast<float>(blur) * random.symmetric());
    const double off = std::abs(static_cast<double>(approx.get(e)) - exact[e]);
    double& most = slack[e / h];
    most = std::isnan(off) ? kInf : std::max(most, off);
  }
  const Exact<float> values(n * k, 7), want_values(n * k);
  const Exact<int32_t> indices(n * k, 7), want_indices(n * k), candidates(n, 7);
  refine({layer, approx.data(), dtype, slack.data(), 0, k, limit, values.data(), indices.data(),
          candidates.data()},
         num_threads);
  topk_relu({exact.data(), DType::float32, n, h, h, 1, nullptr, k, want_values.data(),
             want_indices.data()},
            1);
  for (int64_t e = 0; e < n * k; ++e) {
    const int32_t found = candidates[e / k];
    CHECK(found <= limit && (found >= 0 || limit < h));
    CHECK(indices[e] == (found < 0 ? 7 : want_indices[e]));
    const float want = found < 0 ? 7 : want_values[e];
    CHECK(values[e] == want || (std::isnan(values[e]) && std::isnan(want)));
  }
}

// Each float goes to the nearer of two neighbors, or to the even one.
void check_rounding(int64_t d, int num_threads) {
  const int64_t n = 5, stride = d + 3;
  Random random(d);
  const Exact<float> rows((n - 1) * stride + d);
  for (float& v : rows) v = random.symmetric();
  rows[0] = 1 + 0x1p-8f;  // between 1 and 1 + 2^-7
  rows[d - 1] = 1 + 3 * 0x1p-8f;
  const Exact<uint16_t> rounded(n * d);
  const Exact<float> norms(n, std::nanf("")), residuals(n, std::nanf(""));
  round_rows({rows.data(), stride, n, d, rounded.data(), norms.data(), residuals.data()},
             num_threads);
  for (int64_t i = 0; i < n; ++i) {
    double square = 0, lost = 0;
    for (int64_t j = 0; j < d; ++j) {
      const float value = rows[i * stride + j];
      const double ulp = std::ldexp(1, std::ilogb(value) - 7);
      const double nearest = std::nearbyint(value / ulp) * ulp;
      const uint32_t bits = static_cast<uint32_t>(rounded[i * d + j]) << 16;
      float got;
      std::memcpy(&got, &bits, 4);
      CHECK(got == nearest);
      square += static_cast<double>(value) * value;
      lost += (value - nearest) * (value - nearest);
    }
    CHECK(close(norms[i], std::sqrt(square), 1e-6));
    CHECK(close(residuals[i], std::sqrt(lost), 1e-6));
  }
}

void check(int64_t h, int64_t d, bool odd_rows) {
  const int64_t n = 11;
  const OwnedLinear owned(n, h, d, h % 3, h % 2 == 0);
  if (odd_rows) {
    std::fill_n(owned.x.data(), d, 0.0f);
    owned.x[d] = std::nanf("");
    owned.x[3 * d - 1] = INFINITY;
  }
  const Exact<float> exact = check_linear(owned.view, 1);
  const Exact<float> again = check_linear(owned.view, 3);
  for (int64_t e = 0; e < n * h; ++e) CHECK(exact[e] == again[e] || std::isnan(exact[e]));
  const int64_t ks[] = {1, 5, 40, h};
  for (int64_t k : ks) {
    if (k > h) continue;
    for (DType dtype : {DType::float32, DType::bfloat16}) {
      check_refine(owned.view, exact, dtype, 0, k, h, 1);
      check_refine(owned.view, exact, dtype, 0.01, k, h, 2);
      check_refine(owned.view, exact, dtype, 0.3, k, 2 * k, 3);
      check_refine(owned.view, exact, dtype, 100, k, h, 1);
    }
  }
}

}  // namespace
}  // namespace csrkern

int main() {
  for (int64_t d : {1, 2, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 200}) {
    csrkern::check_rounding(d, 1 + static_cast<int>(d % 3));
  }
  for (int64_t h : {1, 7, 16, 33, 64, 129, 700}) {
    for (int64_t d : {1, 8, 31, 32, 33, 100}) {
      csrkern::check(h, d, false);
      csrkern::check(h, d, true);
    }
  }
}
