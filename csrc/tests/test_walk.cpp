// Walks along the graph of an index: with a graph that reaches all documents they find what an
// exact search finds; what a file may claim does no harm.
#include <algorithm>
#include <cmath>

#include "check.hpp"
#include "csrkern/index.hpp"
#include "owned_codes.hpp"
#include "owned_index.hpp"

namespace csrkern {
namespace {

constexpr int64_t kDim = 60, kDocs = 900, kQueries = 9;

// Each document's neighbors are those that follow it, around a circle.
Exact<uint32_t> circle(int64_t n) {
  Exact<uint32_t> neighbors(n * kNeighbors);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < kNeighbors; ++j) {
      neighbors[i * kNeighbors + j] = static_cast<uint32_t>((i + j + 1) % n);
    }
  }
  return neighbors;
}

struct Found {
  Found(const std::vector<Segment>& segments, const OwnedCodes& queries, SearchOptions options)
      : scores(queries.n * options.top_k), ids(scores.size()) {
    search(segments, rows_of(queries), options, scores.data(), ids.data());
  }
  // Of documents whose scores are as good as equal, a walk may leave out others.
  bool as_good_as(const Found& other) const {
    return std::equal(scores.begin(), scores.end(), other.scores.begin(),
                      [](float a, float b) { return a == b || std::abs(a - b) <= 1e-6f * b; });
  }
  bool operator==(const Found& other) const {
    return std::equal(scores.begin(), scores.end(), other.scores.begin()) &&
           std::equal(ids.begin(), ids.end(), other.ids.begin());
  }
  Exact<float> scores;
  Exact<int64_t> ids;
};

void check_walks(ValueType type, int32_t block, bool normalize) {
  const OwnedCodes codes = random_codes(kDocs, 7, kDim, 1), later = random_codes(200, 7, kDim, 2);
  const OwnedCodes queries = random_codes(kQueries, 9, kDim, 3);
  std::vector<int64_t> ids(kDocs);
  for (int64_t i = 0; i < kDocs; ++i) ids[i] = 5000 - i;
  OwnedIndex owned(rows_of(codes), 256, block, type, normalize, ids, 1);
  owned.neighbors = circle(kDocs);
  const OwnedIndex plain(rows_of(later), 256, 0, type, normalize, {}, 1);
  const Index first(owned.view(), false), second(plain.view(), false);
  const Exact<uint64_t> most((kDocs + 63) / 64, ~uint64_t{0x11}), few(most.size(), 0x11);

  SearchOptions exact;
  exact.top_k = 10;
  exact.normalize = normalize;
  const std::vector<const uint64_t*> filters{nullptr, most.data(), few.data()};
  for (const uint64_t* allowed : filters) {
    const std::vector<Segment> segments = {{&first, allowed}, {&second}};
    const Found want(segments, queries, exact);
    for (int threads : {1, 3}) {
      SearchOptions options = exact;
      options.num_threads = threads;
      options.width = kDocs;
      options.kept = 0.7;
      CHECK(Found(segments, queries, options).as_good_as(want));
      options.width = 1;
      const Found near(segments, queries, options);
      options.num_threads = 4 - threads;
      CHECK(Found(segments, queries, options) == near);
      // Few documents that are allowed are found by their lists.
      CHECK((near == want) == (allowed == few.data()));
      // Hits that are not as near as they should be.
      options.least = 1e9;
      CHECK(Found(segments, queries, options) == want);
      options.least = 1e-9;
      CHECK(Found(segments, queries, options) == near);
      options.fewest = 100;
      CHECK(Found(segments, queries, options) == want);
      options.fewest = 0;
      CHECK(expected_ns(segments, rows_of(queries), options) > 0);
    }
  }
}

// Numbers of documents that are not there, and the same ones again and again.
void check_tampered() {
  const OwnedCodes codes = random_codes(kDocs, 7, kDim, 1);
  OwnedIndex owned(rows_of(codes), 256, 0, ValueType::float16, true, {}, 1);
  owned.neighbors = circle(kDocs);
  for (size_t i = 0; i < owned.neighbors.size(); ++i) {
    if (i % 3 == 0) owned.neighbors[i] = static_cast<uint32_t>(kDocs) + (i % 2 ? 0 : 0xffff0000u);
    if (i % 3 == 1) owned.neighbors[i] = 5;
  }
  const Index index(owned.view(), false);
  SearchOptions options;
  options.width = 50;
  const Found found({{&index}}, random_codes(kQueries, 9, kDim, 3), options);
  for (int64_t id : found.ids) CHECK(id >= -1 && id < kDocs);
}

// As in check_very_long_query: such a query is searched exactly.
void check_very_long_query() {
  const int64_t k = 66'000;
  const OwnedCodes all = random_codes(1, k, k, 5);
  OwnedIndex owned(rows_of(all), 64, 0, ValueType::float32, false, {}, 1);
  owned.neighbors = Exact<uint32_t>(kNeighbors, 1);
  const Index index(owned.view(), false);
  SearchOptions options;
  options.top_k = 1;
  const Found want({{&index}}, all, options);
  options.width = 3;
  CHECK(Found({{&index}}, all, options) == want && want.ids[0] == 0);
}

}  // namespace
}  // namespace csrkern

int main() {
  using namespace csrkern;
  for (ValueType type : kValueTypes) {
    check_walks(type, 0, false);
    check_walks(type, 64, true);
  }
  check_tampered();
  check_very_long_query();
}
