#include "check.hpp"
#include "csrkern/codes.hpp"
#include "owned_codes.hpp"

namespace csrkern {
namespace {

void check(int64_t n, int64_t k, int64_t dim) {
  const OwnedCodes codes = with_wild_padding(random_codes(n, k, dim, n + k + dim));
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

void check_out_of_range() {
  const OwnedCodes codes = random_codes(40, 3, 16, 1);
  check_latents(codes.view(), 2);
  check_refused(codes, [](const OwnedCodes& bad) { check_latents(bad.view(), 2); });
  check_refused(codes, [](const OwnedCodes& bad) { OwnedPostings postings(bad, 2); });
  check_refused(random_codes(20'000, 3, 16, 1),  // several chunks
                [](const OwnedCodes& bad) { OwnedPostings postings(bad, 3); });
  for (int64_t dim : {int64_t{1} << 31, int64_t{1} << 40}) {
    OwnedCodes many{Exact<float>(1, 1.0f), Exact<int32_t>(1, 0x7fffffff), 1, 1, dim};
    check_latents(many.view(), 1);
    many.indices[0] = -1;
    CHECK_THROWS(check_latents(many.view(), 1), std::out_of_range);
  }
  const Codes none{nullptr, nullptr, int64_t{1} << 31, 0, 4};
  Exact<int64_t> starts(5);
  CHECK_THROWS(transpose(none, starts.data(), nullptr, nullptr, nullptr, 1), std::length_error);
}

void check_forged_postings() {
  const OwnedCodes codes = random_codes(40, 3, 16, 1);
  const auto check = [&](const OwnedPostings& lists, int64_t entries) {
    check_postings(lists.view(), codes.n, codes.k, codes.dim, entries);
  };
  const OwnedPostings good(codes);
  check(good, good.starts[16]);
  CHECK_THROWS(check(good, good.starts[16] - 1), std::out_of_range);
  const auto check_place = [&](auto member, int64_t at, int64_t number) {
    OwnedPostings forged(codes);
    (forged.*member)[at] = number;
    CHECK_THROWS(check(forged, codes.n * codes.k), std::out_of_range);
  };
  for (int64_t start : {int64_t{-1}, int64_t{1} << 40}) {
    for (int64_t at : {0, 7, 16}) check_place(&OwnedPostings::starts, at, start);
  }
  for (int64_t number : {40, -1, 1 << 30}) {
    check_place(&OwnedPostings::rows, 0, number);
    check_place(&OwnedPostings::slots, good.starts[16] - 1, number);
  }
}

}  // namespace
}  // namespace csrkern

int main() {
  csrkern::check_out_of_range();
  csrkern::check_forged_postings();
  for (int64_t n : {0, 1, 2, 17, 300}) {
    for (int64_t k : {1, 3, 16}) csrkern::check(n, k, 16 + n);
  }
  csrkern::check(5, 1, 1);
  csrkern::check(20'001, 5, 40);  // several chunks
}
