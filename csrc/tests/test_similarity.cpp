#include "check.hpp"
#include "csrkern/similarity.hpp"
#include "owned_codes.hpp"

namespace csrkern {
namespace {

void check(int64_t n, int64_t m, int64_t k, int num_threads) {
  const int64_t dim = 20;
  const OwnedCodes a = with_wild_padding(random_codes(n, k, dim, m));
  const OwnedCodes b = with_wild_padding(random_codes(m, k + 1, dim, n + 1));
  const OwnedPostings postings(b);
  const Exact<float> out(n * m, std::nanf(""));
  similarity(a.view(), postings.view(), m, out.data(), num_threads);
  std::vector<double> dense_b;  // [m, dim]
  for (int64_t j = 0; j < m; ++j) {
    const std::vector<double> row = b.row(j);
    dense_b.insert(dense_b.end(), row.begin(), row.end());
  }
  for (int64_t i = 0; i < n; ++i) {
    const std::vector<double> row = a.row(i);
    for (int64_t j = 0; j < m; ++j) {
      double score = 0;
      for (int64_t l = 0; l < dim; ++l) score += row[l] * dense_b[j * dim + l];
      CHECK(close(out[i * m + j], score, 1e-6));
    }
  }

  Random random(1);
  const Exact<float> grad(n * m);
  for (float& g : grad) g = random.symmetric();
  const Exact<float> by_rows(n * k, std::nanf("")), by_columns(n * k, std::nanf(""));
  similarity_backward(a.view(), postings.view(), m, {grad.data(), m, 1}, by_rows.data(),
                      num_threads);
  Exact<float> turned(n * m);
  for (int64_t i = 0; i < n * m; ++i) turned[i % m * n + i / m] = grad[i];
  similarity_backward(a.view(), postings.view(), m, {turned.data(), 1, n}, by_columns.data(),
                      num_threads);
  for (int64_t e = 0; e < n * k; ++e) {
    double sum = 0, size = 0;
    for (int64_t j = 0; j < m && a.values[e] != 0; ++j) {
      const double term = grad[e / k * m + j] * dense_b[j * dim + a.indices[e]];
      sum += term;
      size += std::abs(term);
    }
    CHECK(std::abs(by_rows[e] - sum) <= 1e-5 * size);
    CHECK(by_rows[e] == by_columns[e]);
  }
}

void check_out_of_range() {
  const OwnedCodes b = random_codes(30, 4, 20, 2);
  const OwnedPostings postings(b);
  const Exact<float> out(9 * 30), grad_values(9 * 4);
  const OwnedCodes a = random_codes(9, 4, 20, 1);
  check_refused(a, [&](const OwnedCodes& codes) {
    similarity(codes.view(), postings.view(), 30, out.data(), 2);
  });
  check_refused(a, [&](const OwnedCodes& codes) {
    similarity_backward(codes.view(), postings.view(), 30, {out.data(), 30, 1}, grad_values.data(),
                        2);
  });
}

}  // namespace
}  // namespace csrkern

int main() {
  csrkern::check_out_of_range();
  for (int64_t n : {0, 1, 2, 33, 65}) {
    for (int64_t m : {0, 1, 16, 100}) {
      for (int64_t k : {1, 4, 19}) csrkern::check(n, m, k, 1 + static_cast<int>(n % 3));
    }
  }
  // A window holds 16,384 rows.
  for (int64_t m : {16'383, 16'384, 16'385, 32'769}) csrkern::check(3, m, 4, 2);
}
