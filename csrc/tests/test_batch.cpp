// Batches of queries find what single queries find, to the bit.
#include <cmath>
#include <cstring>
#include <thread>

#include "check.hpp"
#include "index/batch.hpp"
#include "owned_codes.hpp"
#include "owned_index.hpp"

namespace csrkern {
namespace {

constexpr int64_t kDocs = 5000, kQueries = 40, kDim = 60, kEntries = 9;

// Sums of random rows, against plain loops.
void check_sums(int64_t entry_bytes, int64_t least, int64_t most, bool largest, uint64_t seed) {
  Random random(seed);
  constexpr int64_t kRows = 300, kTerms = 50;
  Exact<uint64_t> starts(kRows + 1);
  for (int64_t row = 0; row < kRows; ++row) {
    starts[row + 1] = starts[row] + least + random.below(most - least + 1);
  }
  Exact<uint8_t> entries(starts[kRows] * entry_bytes), numbers(starts[kRows] + 1);
  const Exact<int8_t> queries(kTerms * kBatch);
  for (int8_t& q : queries) q = static_cast<int8_t>(random.below(kQueryNumber / 6));
  for (int64_t row = 0; row < kRows; ++row) {
    const int64_t begin = starts[row], n = starts[row + 1] - begin;
    for (int64_t j = 0; j < n; ++j) {
      const auto term = static_cast<uint16_t>(random.below(kTerms));
      std::memcpy(entries.data() + begin * entry_bytes + 2 * j, &term, 2);
      numbers[begin + j] = static_cast<uint8_t>(random.below(n < 40 ? 1 + kRowNumber / 6 : 3));
    }
  }
  if (largest) {
    std::fill_n(queries.data(), queries.size() / 2, kQueryNumber);
    std::fill_n(numbers.data(), starts[kRows], kRowNumber);
  }
  const ByteRows rows = {starts.data(), entries.data(), entry_bytes, numbers.data()};
  Exact<int16_t> bars(kBatch), sums(kBatch);
  for (int16_t& bar : bars) bar = static_cast<int16_t>(random.below(4000) + 1000);
  for (int64_t row = 0; row < kRows; ++row) {
    bars[3] = row % 2 == 0 ? kMostSum : -32'767;  // rows that nothing reaches are passed over
    int64_t want[kBatch] = {};
    uint64_t want_reached = 0;
    for (int64_t q = 0; q < kBatch; ++q) {
      for (uint64_t e = starts[row]; e < starts[row + 1]; ++e) {
        uint16_t term;
        std::memcpy(&term, entries.data() + starts[row] * entry_bytes + 2 * (e - starts[row]), 2);
        want[q] += int64_t{numbers[e]} * queries[term * kBatch + q];
      }
      want[q] = std::min(want[q], kMostSum);
      if (want[q] >= bars[q]) want_reached |= uint64_t{1} << q;
    }
    uint64_t reached = 0;
    const int64_t next = kernels().index.find_row(rows, queries.data(), bars.data(), row, row + 1,
                                                  sums.data(), &reached);
    CHECK(next == (want_reached != 0 ? row : row + 1));
    if (want_reached == 0) continue;
    CHECK(reached == want_reached);
    for (int64_t q = 0; q < kBatch; ++q) CHECK(sums[q] == want[q]);
  }
  if (largest) return;  // every row may reach
  std::fill_n(bars.data(), kBatch, static_cast<int16_t>(kMostSum));
  uint64_t reached = 0;
  CHECK(kernels().index.find_row(rows, queries.data(), bars.data(), 0, kRows, sums.data(),
                                 &reached) == kRows);
}

struct Asked {
  ValueType type = ValueType::float16;
  bool normalize = true;
  int64_t top_k = 10;
  float min_score = 0;
  const uint64_t* allowed = nullptr;
  std::vector<int64_t> ids = {};
};

// Returns for how many queries the batch gave up.
int64_t check_same(const OwnedCodes& codes, const OwnedCodes& queries, const Asked& asked) {
  const OwnedIndex owned(rows_of(codes), 1024, 0, asked.type, asked.normalize, asked.ids, 1);
  const Index index(owned.view(), true);
  const RoundedRows rounded(index.forward(1), codes.n, 2);
  Scratch& s = scratch();
  s.reserve(1024);
  TopHits none(asked.top_k, asked.ids.empty(), most_score(asked.normalize));
  if (asked.min_score > 0) none.raise(bits_of(asked.min_score));
  std::vector<TopHits> first(queries.n, none), together(queries.n, none);
  std::vector<BatchQuery> batch;
  for (int64_t i = 0; i < queries.n; ++i) {
    batch.push_back(
        {find_terms(index, read_query(rows_of(queries), i, asked.normalize, queries.dim)),
         &together[i]});
  }
  // The second batch has the scale of what the first found.
  for (int64_t i = 0; i < queries.n; ++i) std::swap(first[i], together[i]);
  BatchSearch(index, rounded, asked.allowed, 100).run(batch, s);
  for (int64_t i = 0; i < queries.n; ++i) std::swap(first[i], together[i]);
  const int64_t given_up = BatchSearch(index, rounded, asked.allowed, 100).run(batch, s);
  for (int64_t i = 0; i < queries.n; ++i) {
    TopHits alone = none;
    SearchCost cost;
    SegmentSearch(index, batch[i].terms, asked.allowed, 100).run(alone, s, cost);
    for (TopHits* hits : {&alone, &first[i], &together[i]}) {
      std::sort(hits->hits().begin(), hits->hits().end(), better);
      if (static_cast<int64_t>(hits->hits().size()) > asked.top_k) hits->hits().resize(asked.top_k);
    }
    for (TopHits* hits : {&first[i], &together[i]}) {
      CHECK(alone.hits().size() == hits->hits().size());
      for (size_t j = 0; j < alone.hits().size(); ++j) {
        const Hit &a = alone.hits()[j], &b = hits->hits()[j];
        CHECK(bits_of(a.score) == bits_of(b.score) && a.id == b.id && a.doc == b.doc);
      }
    }
  }
  return given_up;
}

void check_all_forms() {
  const OwnedCodes codes = random_codes(kDocs, kEntries, kDim, 1);
  const OwnedCodes queries = random_codes(kQueries, kEntries, kDim, 2);
  Exact<uint64_t> allowed((kDocs + 63) / 64, 0xf7ffffffff7fffff);
  std::vector<int64_t> ids(kDocs);
  for (int64_t i = 0; i < kDocs; ++i) ids[i] = (i * 7) % kDocs + 5;
  for (ValueType type : kValueTypes) {
    for (bool normalize : {false, true}) {
      for (int64_t top_k : {1, 10, 70}) {
        Asked asked{type, normalize, top_k};
        CHECK(check_same(codes, queries, asked) < kQueries / 2);
        asked.allowed = allowed.data();
        CHECK(check_same(codes, queries, asked) < kQueries / 2);
        asked.min_score = normalize ? 0.9f : 3.0f;
        asked.ids = ids;
        CHECK(check_same(codes, queries, asked) < kQueries / 2);
      }
    }
  }
  // A full batch, and single queries, of any length.
  for (int64_t n : {int64_t{1}, kBatch}) {
    for (int64_t k : {int64_t{1}, kDim}) check_same(codes, random_codes(n, k, kDim, 3), Asked{});
  }
}

// Documents that rounding cannot tell apart: the best one many times, changed in its last bits.
void check_near_ties() {
  OwnedCodes codes = random_codes(kDocs, kEntries, kDim, 4);
  const OwnedCodes queries = random_codes(kQueries, kEntries, kDim, 5);
  for (int64_t i = 0; i < kQueries; ++i) {
    for (int64_t copy = 0; copy < 30; ++copy) {
      const int64_t doc = (i * 97 + copy * 131) % kDocs;
      for (int64_t e = 0; e < kEntries; ++e) {
        codes.indices[doc * kEntries + e] = queries.indices[i * kEntries + e];
        const float value = queries.values[i * kEntries + e];
        const int change = static_cast<int>(copy + e) % 5 - 2;
        codes.values[doc * kEntries + e] = value * (1 + static_cast<float>(change) * 0x1p-20f);
      }
    }
  }
  for (ValueType type : kValueTypes) {
    for (bool normalize : {false, true}) {
      for (int64_t top_k : {1, 10, 40}) {
        CHECK(check_same(codes, queries, Asked{type, normalize, top_k}) < kQueries);
      }
    }
  }
}

// Scores that overflow, that lose their precision, or that all documents share.
void check_extremes() {
  for (float scale : {0x1p126f, 0x1p60f, 0x1p-60f, 0x1p-130f}) {
    for (float query_scale : {0x1p126f, 1.0f, 0x1p-130f}) {
      OwnedCodes codes = random_codes(kDocs, 4, kDim, 6), queries = random_codes(8, 4, kDim, 7);
      for (float& value : codes.values) value *= scale;
      for (float& value : queries.values) value *= query_scale;
      check_same(codes, queries, Asked{ValueType::float32, false});
      if (scale < 1) check_same(codes, queries, Asked{ValueType::float32, true});
    }
  }
  OwnedCodes same = random_codes(kDocs, 4, kDim, 8);
  for (int64_t i = 0; i < kDocs * 4; ++i) {
    same.indices[i] = static_cast<int32_t>(i % 4);
    same.values[i] = 1;
  }
  OwnedCodes queries = random_codes(8, 4, kDim, 9);
  for (int64_t i = 0; i < 32; ++i) queries.indices[i] = static_cast<int32_t>(i % 4 + i / 16);
  CHECK(check_same(same, queries, Asked{}) > 0);
  // One long row among short ones: the scale is of the longest.
  OwnedCodes uneven = random_codes(kDocs, 4, kDim, 10);
  for (int64_t e = 0; e < 4; ++e) uneven.values[777 * 4 + e] = 1000.0f + static_cast<float>(e);
  check_same(uneven, random_codes(8, 4, kDim, 11), Asked{ValueType::float32, false});
  check_same(random_codes(kDocs, 4, kDim, 12),
             OwnedCodes{Exact<float>(12), Exact<int32_t>(12), 3, 4, kDim}, Asked{});
}

// By the public search, from several threads: the rows are made when they are worth it.
void check_choice() {
  const OwnedCodes codes = random_codes(20'000, 16, 64, 13);
  const OwnedCodes queries = random_codes(256, 16, 64, 14);
  const OwnedIndex owned(rows_of(codes), 4096, 0, ValueType::float16, true, {}, 1);
  const Index index(owned.view(), false), single(owned.view(), false);
  SearchOptions options;
  options.normalize = true;
  const int64_t size = queries.n * options.top_k;
  const Exact<float> want(size);
  const Exact<int64_t> want_ids(size);
  for (int64_t i = 0; i < queries.n; ++i) {
    SparseRows one = rows_of(queries);
    one.n = 1;
    one.values += i * one.width;
    one.indices += i * one.width;
    search({{&single}}, one, options, want.data() + i * options.top_k,
           want_ids.data() + i * options.top_k);
  }
  CHECK(single.forward_bytes() == 0);
  options.num_threads = 2;
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t) {
    threads.emplace_back([&] {
      const Exact<float> scores(size);
      const Exact<int64_t> ids(size);
      for (int turn = 0; turn < 4; ++turn) {
        search({{&index}}, rows_of(queries), options, scores.data(), ids.data());
        CHECK(std::equal(scores.begin(), scores.end(), want.begin()));
        CHECK(std::equal(ids.begin(), ids.end(), want_ids.begin()));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace csrkern

int main() {
  using namespace csrkern;
  for (int64_t entry_bytes : {3, 4, 6}) {
    for (bool largest : {false, true}) {
      check_sums(entry_bytes, 0, 5, largest, 1);
      check_sums(entry_bytes, 1, 1, largest, 2);
      check_sums(entry_bytes, 30, 70, largest, 3);
    }
  }
  check_all_forms();
  check_near_ties();
  check_extremes();
  check_choice();
}
