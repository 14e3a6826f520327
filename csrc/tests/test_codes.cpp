#include "check.hpp"
#include "csrkern/codes.hpp"
#include "owned_codes.hpp"

namespace csrkern {
namespace {

void check(int64_t n, int64_t k, int64_t dim) {
  const OwnedCodes codes = random_codes(n, k, dim, n + k + dim);
  for (int threads : {1, 2, 3, 5}) {
    const OwnedPostings got(codes, threads);
    int64_t place = 0;
    std::vector<std::vector<int64_t>> lists(dim);
    for (int64_t e = 0; e < n * k; ++e) {
      if (codes.values[e] != 0) lists[codes.indices[e]].push_back(e);
    }
    for (int64_t latent = 0; latent < dim; ++latent) {
      CHECK(got.starts[latent] == place);
      for (int64_t e : lists[latent]) {
        CHECK(got.rows[place] == e / k && got.slots[place] == e % k);
        CHECK(got.values[place++] == codes.values[e]);
      }
    }
    CHECK(got.starts[dim] == place);
    for (; place < n * k; ++place) CHECK(got.rows[place] == -1);  // left alone
  }
}

}  // namespace
}  // namespace csrkern

int main() {
  for (int64_t n : {0, 1, 2, 17, 300}) {
    for (int64_t k : {1, 3, 16}) csrkern::check(n, k, 16 + n);
  }
  csrkern::check(5, 1, 1);
  csrkern::check(20'001, 5, 40);  // several parts
}
