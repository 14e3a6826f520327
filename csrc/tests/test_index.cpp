#include <cmath>
#include <cstring>
#include <functional>
#include <thread>

#include "check.hpp"
#include "csrkern/index.hpp"
#include "isa/kernels.hpp"
#include "owned_codes.hpp"
#include "owned_index.hpp"

namespace csrkern {
namespace {

using Refused = std::invalid_argument;
constexpr float kTooLargeForHalf = 65520;

// An index holds what it was given, rounded.
void check_documents(const OwnedCodes& codes, ValueType type, int32_t exponent, bool normalize,
                     const Documents& docs) {
  for (int64_t i = 0; i < codes.n; ++i) {
    std::vector<QueryEntry> row = query_of(codes, i);
    double square = 0;
    for (const QueryEntry& e : row) square += static_cast<double>(e.value) * e.value;
    std::sort(row.begin(), row.end(),
              [](const QueryEntry& a, const QueryEntry& b) { return a.latent < b.latent; });
    CHECK(docs.starts[i + 1] - docs.starts[i] == static_cast<int64_t>(row.size()));
    for (size_t j = 0; j < row.size(); ++j) {
      const int64_t at = docs.starts[i] + static_cast<int64_t>(j);
      float value = row[j].value;
      if (normalize) value = scaled_value(value, 1 / std::sqrt(square));
      if (type == ValueType::float16) {
        uint16_t half;
        kernels().index.to_half(&value, 1, &half);
        value = half_to_float(half == 0 ? 1 : half);
      } else if (is_squares(type)) {
        const float unit = unit_of(type, exponent);
        value = csrkern::square(number_of(value, unit), unit);
      }
      CHECK(docs.latents[at] == row[j].latent && docs.values[at] == value);
    }
  }
}

// Searches with and without filters give what scoring every document gives.
void check_searches(const OwnedIndex& owned, const OwnedCodes& queries, bool normalize,
                    int num_threads) {
  const IndexView view = owned.view();
  const Index index(view, false);
  const Documents docs(index);
  const size_t words = (view.n_docs + 63) / 64;
  const Exact<uint64_t> none(words), some(words, 0x8421084210842108);
  for (const uint64_t* allowed : {static_cast<uint64_t*>(nullptr), none.data(), some.data()}) {
    for (int64_t top_k : {int64_t{1}, int64_t{7}, view.n_docs + 5}) {
      const Exact<float> scores(queries.n * top_k, std::nanf(""));
      const Exact<int64_t> ids(queries.n * top_k, -2);
      index.search(rows_of(queries), top_k, normalize, allowed, num_threads, scores.data(),
                   ids.data());
      for (int64_t i = 0; i < queries.n; ++i) {
        const std::vector<Answer> want =
            plain_search(view, docs, query_of(queries, i), top_k, normalize, allowed);
        for (int64_t place = 0; place < top_k; ++place) {
          const int64_t at = i * top_k + place;
          CHECK((want[place] == Answer{scores[at], ids[at]}));
        }
      }
    }
  }
}

std::vector<int64_t> some_ids(int kind, int64_t n) {
  std::vector<int64_t> ids(kind == 0 ? 0 : n);
  for (size_t i = 0; i < ids.size(); ++i) {
    ids[i] = kind == 1 ? 3 * static_cast<int64_t>(i) + 5 : n - static_cast<int64_t>(i);
  }
  return ids;
}

void check_all_forms() {
  int turn = 0;
  for (int64_t n : {0, 1, 63, 64, 65, 130, 1000}) {
    const OwnedCodes codes = random_codes(n, 6, 40, n), queries = random_codes(9, 8, 40, n + 1);
    for (int32_t window : {64, 128}) {
      for (int32_t block : {0, 64}) {
        for (ValueType type : kValueTypes) {
          if (n == 0 && block > 0) continue;
          const bool normalize = ++turn % 2 == 0;
          const int threads = 1 + turn % 3;
          const OwnedIndex owned(rows_of(codes), window, block, type, normalize,
                                 some_ids(turn % 3, n), threads);
          const Index index(owned.view(), false);
          index.verify(threads);
          check_documents(codes, type, owned.sizes.exponent, normalize, Documents(index));
          check_searches(owned, queries, normalize, threads);
        }
      }
    }
  }
}

// One query whose postings are worth dividing among threads.
void check_split_query() {
  const OwnedCodes codes = random_codes(60'000, 10, 10, 1), query = random_codes(1, 10, 10, 2);
  const OwnedIndex owned(rows_of(codes), 8192, 0, ValueType::float16, false, {}, 2);
  check_searches(owned, query, false, 2);
}

void check_clusters() {
  const OwnedCodes codes = random_codes(700, 6, 50, 3), queries = random_codes(5, 6, 50, 4);
  SparseRows rows = rows_of(codes);
  const std::vector<int64_t> order = cluster_order(rows, 0, 1);
  CHECK(order == cluster_order(rows, 0, 3));
  std::vector<int64_t> sorted = order;
  std::sort(sorted.begin(), sorted.end());
  for (int64_t i = 0; i < rows.n; ++i) CHECK(sorted[i] == i);
  const Exact<int64_t> exact_order(order);
  rows.order = exact_order.data();
  const OwnedIndex owned(rows, 128, 64, ValueType::float32, false, order, 2);
  check_searches(owned, queries, false, 2);
}

// Searches of a loaded index come to use a directory of its blocks, and find the same.
void check_directory() {
  const OwnedCodes codes = random_codes(700, 6, 50, 3), queries = random_codes(5, 6, 50, 4);
  const OwnedIndex owned(rows_of(codes), 128, 64, ValueType::float16, false, {}, 1);
  const Index built(owned.view(), true), loaded(owned.view(), false);
  const int64_t top_k = 3, places = queries.n * top_k;
  const auto search = [&](const Index& index) {
    std::vector<float> scores(places);
    std::vector<int64_t> ids(places);
    index.search(rows_of(queries), top_k, false, nullptr, 1, scores.data(), ids.data());
    std::vector<Answer> found;
    for (int64_t at = 0; at < places; ++at) found.push_back({scores[at], ids[at]});
    return found;
  };
  const std::vector<Answer> first = search(loaded);
  CHECK(loaded.forward_bytes() == 0);
  CHECK(first == search(built));
  CHECK(built.forward_bytes() > 0);
  for (int turn = 0; turn < 1000 && loaded.forward_bytes() == 0; ++turn) {
    CHECK(first == search(loaded));
  }
  CHECK(loaded.forward_bytes() == built.forward_bytes());
  CHECK(first == search(loaded));
}

// Beside a value of 1e38, others vanish when a query is brought to norm 1.
void check_vanishing_values() {
  const OwnedCodes codes = random_codes(200, 4, 30, 10);
  OwnedIndex wide(rows_of(codes), 64, 64, ValueType::float16, true, {}, 1);
  wide.sizes.dim = 1000;
  for (int32_t strong : {1, 999}) {  // a latent of some documents, or of none
    check_searches(wide, {Exact<float>{1e38f, 1e-30f}, Exact<int32_t>{strong, 0}, 1, 2, 1000}, true,
                   1);
  }
}

// Weak values of documents are rounded up to the least that there is, and found.
void check_weak_values() {
  const Exact<float> values{60'000.0f, 1e-8f, 1e-45f, 3e38f, 1e-30f, 0.0f};
  const Exact<int32_t> indices{3, 1, 2, 0, 4, 1};
  for (ValueType type : kValueTypes) {
    for (bool normalize : {false, true}) {
      if (!normalize && type != ValueType::float32) continue;  // 3e38 would not fit
      OwnedIndex owned({2, 5, 3, nullptr, values.data(), indices.data()}, 64, 0, type, normalize,
                       {}, 1);
      const Documents docs{Index(owned.view(), false)};
      CHECK(docs.starts[1] == 3 && docs.starts[2] == 5);
      for (float value : docs.values) CHECK(value > 0);
    }
  }
  OwnedIndex owned({1, 5, 3, nullptr, values.data(), indices.data()}, 64, 0, ValueType::float16,
                   false, {}, 1);
  const Documents docs{Index(owned.view(), false)};
  CHECK(docs.values[0] == 0x1p-24f && docs.values[1] == 0x1p-24f);
}

// A file may claim any number of documents if none of them has a term.
void check_claimed_documents() {
  OwnedIndex empty(rows_of(random_codes(0, 1, 40, 12)), 64, 0, ValueType::float16, false, {}, 1);
  empty.sizes.n_docs = int64_t{1} << 40;
  empty.sizes.n_windows = empty.sizes.n_docs / 64;
  const Index index(empty.view(), false);
  index.verify(2);
  const OwnedCodes query = random_codes(1, 4, 40, 13);
  const Exact<float> scores(3);
  const Exact<int64_t> ids(3);
  index.search(rows_of(query), 3, false, nullptr, 2, scores.data(), ids.data());
  for (int64_t id : ids) CHECK(id == -1);
}

// Threads search an index whose lists are still to be checked.
void check_concurrent_searches() {
  const OwnedCodes codes = random_codes(500, 6, 40, 5), queries = random_codes(8, 6, 40, 6);
  const OwnedIndex owned(rows_of(codes), 64, 64, ValueType::float16, true, {}, 1);
  for (int round = 0; round < 5; ++round) {
    const Index index(owned.view(), false);
    std::vector<std::thread> callers;
    std::vector<Exact<int64_t>> ids(4, Exact<int64_t>(queries.n * 5, -2));
    for (int c = 0; c < 4; ++c) {
      callers.emplace_back([&, c] {
        const Exact<float> scores(queries.n * 5);
        index.search(rows_of(queries), 5, true, nullptr, 1 + c % 3, scores.data(), ids[c].data());
        index.verify(2);
      });
    }
    for (std::thread& caller : callers) caller.join();
    for (int c = 1; c < 4; ++c) CHECK(std::equal(ids[0].begin(), ids[0].end(), ids[c].begin()));
  }
}

void check_refused_codes() {
  const OwnedCodes good = random_codes(70, 5, 40, 7);
  const OwnedIndex owned(rows_of(good), 64, 0, ValueType::float16, false, {}, 1);
  const Index index(owned.view(), true);
  const auto refused = [&](size_t at, float value, int32_t latent) {
    OwnedCodes bad = good;
    bad.values[at] = value;
    bad.indices[at] = latent;
    CHECK_THROWS(build_index(rows_of(bad), 64, 0, ValueType::float16, false, 2), Refused);
    const Exact<float> scores(bad.n * 3);
    const Exact<int64_t> ids(bad.n * 3);
    if (value != kTooLargeForHalf) {  // which a query may hold
      CHECK_THROWS(index.search(rows_of(bad), 3, false, nullptr, 2, scores.data(), ids.data()),
                   Refused);
    }
  };
  OwnedCodes large = good;
  large.values[3] = 2;
  build_index(rows_of(large), 64, 0, ValueType::uint8, false, 1, 1);
  large.values[3] = std::nextafter(2.0f, 3.0f);
  CHECK_THROWS(build_index(rows_of(large), 64, 0, ValueType::uint8, false, 1, 1), Refused);
  for (size_t at : {size_t{0}, size_t{149}, good.values.size() - 1}) {
    for (int32_t latent : {-1, 40, INT32_MAX, INT32_MIN}) refused(at, 1, latent);
    for (float value : {-1.0f, std::nanf(""), INFINITY, -INFINITY, kTooLargeForHalf})
      refused(at, value, 3);
  }
  OwnedCodes twice = good;
  twice.values[0] = twice.values[1] = 1;
  twice.indices[0] = twice.indices[1] = 7;
  CHECK_THROWS(build_index(rows_of(twice), 64, 0, ValueType::float16, false, 1), Refused);
  check_searches(owned, random_codes(3, 5, 40, 8), false, 2);  // no trace is left of the refused

  for (const Exact<int64_t>& starts : {Exact<int64_t>{1, 2, 3}, Exact<int64_t>{0, 2, 1}}) {
    SparseRows rows = rows_of(good);
    rows.n = 2;
    rows.starts = starts.data();
    CHECK_THROWS(build_index(rows, 64, 0, ValueType::float16, false, 1), Refused);
    CHECK_THROWS(cluster_order(rows, 0, 1), Refused);
  }
}

// Each lie is found: when the index is made, by a list's checksum, or, where that is right too, by
// what the list says.
enum class Lie { of_sizes, with_old_checksum, with_new_checksum };

void check_forged_arrays() {
  const OwnedCodes codes = random_codes(150, 6, 40, 9);
  for (ValueType type : {ValueType::float16, ValueType::float32, ValueType::uint8}) {
    const OwnedIndex good(rows_of(codes), 128, 64, type, false, {}, 1);
    const auto refused = [&](Lie lie, const std::function<void(OwnedIndex&)>& forge) {
      OwnedIndex forged = good;
      forge(forged);
      if (lie == Lie::of_sizes) {
        CHECK_THROWS(Index(forged.view(), false), Refused);
        return;
      }
      if (lie == Lie::with_new_checksum) forged.correct_checksums();
      const Index index(forged.view(), false);
      CHECK_THROWS(index.verify(1), Refused);
    };
    const uint64_t first = good.offsets[1];  // postings in the first list's first window
    CHECK(first > 2 && good.offsets[2] > first);
    const auto put = [](Exact<uint8_t>& bytes, uint64_t at, auto value) {
      std::memcpy(bytes.data() + at, &value, sizeof(value));
    };
    for (int32_t latent : {-1, INT32_MIN, good.terms[1]}) {
      refused(Lie::of_sizes, [&](OwnedIndex& x) { x.terms[0] = latent; });
    }
    refused(Lie::of_sizes, [&](OwnedIndex& x) { x.terms[x.terms.size() - 1] = x.sizes.dim; });
    refused(Lie::of_sizes, [&](OwnedIndex& x) { x.offsets[0] = 1; });
    for (uint64_t offset : {uint64_t{200}, UINT64_MAX, uint64_t{1} << 63, good.offsets[2] + 1}) {
      refused(Lie::of_sizes, [&](OwnedIndex& x) { x.offsets[1] = offset; });
    }
    for (size_t at = 0; at < good.postings.size(); ++at) {
      refused(Lie::with_old_checksum, [&](OwnedIndex& x) { x.postings[at] ^= 1; });
    }
    refused(Lie::with_old_checksum, [&](OwnedIndex& x) { x.checksums[3] ^= 1; });
    refused(Lie::with_old_checksum, [&](OwnedIndex& x) { x.maxima[0] ^= 1; });
    refused(Lie::with_old_checksum, [&](OwnedIndex& x) { x.scales[2] *= 2; });
    refused(Lie::with_new_checksum,
            [&](OwnedIndex& x) { put(x.postings, 2 * (first - 1), uint16_t{128}); });
    refused(Lie::with_new_checksum, [&](OwnedIndex& x) { put(x.postings, 2, uint16_t{0}); });
    refused(Lie::with_new_checksum, [&](OwnedIndex& x) { put(x.postings, 0, uint16_t{65535}); });
    // Document 150 is past the last, which the second window does not fill.
    const uint64_t second = first * posting_bytes(type), last = good.offsets[2] - first - 1;
    refused(Lie::with_new_checksum,
            [&](OwnedIndex& x) { put(x.postings, second + 2 * last, uint16_t{150 - 128}); });
    if (is_squares(type)) {  // of which every number is a good one
      for (int32_t exponent : {kLeastExponent - 1, kMostExponent + 1, INT32_MIN, INT32_MAX}) {
        refused(Lie::of_sizes, [&](OwnedIndex& x) { x.sizes.exponent = exponent; });
      }
    }
    for (float value : {0.0f, -0.0f, -1.0f, INFINITY, std::nanf(""), 60'000.0f}) {
      if (is_squares(type)) break;
      refused(Lie::with_new_checksum, [&](OwnedIndex& x) {
        uint16_t half;
        kernels().index.to_half(&value, 1, &half);
        if (type == ValueType::float16) {
          put(x.postings, 2 * first, half);
        } else {
          put(x.postings, 2 * first, value);
        }
      });
    }
    refused(Lie::with_new_checksum,
            [&](OwnedIndex& x) { std::fill(x.maxima.begin(), x.maxima.begin() + 2, 0); });
    for (float scale : {0.0f, -1.0f, INFINITY, std::nanf(""), good.scales[0] / 2}) {
      refused(Lie::with_new_checksum, [&](OwnedIndex& x) { x.scales[0] = scale; });
    }
  }
}

// The same of lists in groups, with counts in one byte and in two.
void check_forged_groups() {
  for (const int64_t n : {150, 700}) {
    OwnedCodes codes{Exact<float>(n, 0.0f), Exact<int32_t>(n, 0), n, 1, 4};
    for (int64_t i = 0; i < n; ++i) codes.values[i] = i % 3 == 0 ? 1.0f : 3.0f;  // numbers 3 and 6
    const OwnedIndex good(rows_of(codes), 1024, 0, ValueType::uint4, false, {}, 1);
    const int64_t header = n < 256 ? 16 : 32, count_bytes = header / kGroups;
    CHECK(static_cast<int64_t>(good.postings.size()) == header + 2 * n);
    CHECK(good.offsets[1] * 2 == good.postings.size());
    const auto refused = [&](bool of_sizes, const std::function<void(OwnedIndex&)>& forge) {
      OwnedIndex forged = good;
      forge(forged);
      if (of_sizes) {
        CHECK_THROWS(Index(forged.view(), false), Refused);
        return;
      }
      CHECK_THROWS(Index(forged.view(), false).verify(1), Refused);
      forged.correct_checksums();
      CHECK_THROWS(Index(forged.view(), false).verify(1), Refused);
    };
    const auto put = [&](OwnedIndex& x, int64_t place, uint16_t id) {
      std::memcpy(x.postings.data() + header + 2 * place, &id, 2);
    };
    const int64_t first = (n + 2) / 3;  // postings of the first group
    refused(false, [&](OwnedIndex& x) { ++x.postings[3 * count_bytes]; });
    refused(false, [&](OwnedIndex& x) { ++x.postings[0]; });
    refused(false, [&](OwnedIndex& x) { --x.postings[6 * count_bytes]; });
    refused(false, [&](OwnedIndex& x) { put(x, 0, 4); });           // not ascending
    refused(false, [&](OwnedIndex& x) { put(x, first, 0); });       // in two groups
    refused(false, [&](OwnedIndex& x) { put(x, first - 1, n); });   // past the last
    refused(false, [&](OwnedIndex& x) { put(x, n - 1, 65'535); });  // past any window
    for (uint64_t words : {uint64_t{1}, uint64_t{8}, uint64_t{264}, uint64_t{271}, UINT64_MAX}) {
      refused(true, [&](OwnedIndex& x) { x.offsets[1] = words; });
    }
    refused(true, [&](OwnedIndex& x) { x.sizes.block = 64; });
    for (int32_t exponent : {kLeastExponent - 1, kMostExponent + 1}) {
      refused(true, [&](OwnedIndex& x) { x.sizes.exponent = exponent; });
    }
    CHECK_THROWS(build_index(rows_of(codes), 1024, 64, ValueType::uint4, false, 1, 4), Refused);
    CHECK_THROWS(build_index(rows_of(codes), 65'536, 0, ValueType::uint4, false, 1, 4), Refused);
  }
}

// Slices of every length around those where the form of a slice changes, and groups longer than
// what is written out at once.
void check_lengths_of_groups() {
  for (uint64_t n = 0; n < 70'000; ++n) CHECK(postings_of_words(words_of_postings(n)) == n);
  for (int64_t n : {1, 15, 16, 17, 63, 64, 65, 255, 256, 257, 4095, 4096, 4097, 9000, 65'000}) {
    for (const bool one_group : {true, false}) {
      OwnedCodes codes{Exact<float>(2 * n, 0.0f), Exact<int32_t>(2 * n, 0), n, 2, 2};
      for (int64_t i = 0; i < n; ++i) {
        codes.values[2 * i] = one_group ? 1.0f : 0.02f + static_cast<float>(i % 97) / 7;
        codes.values[2 * i + 1] = one_group ? 2.0f : 0.02f + static_cast<float>(i % 89) / 7;
        codes.indices[2 * i + 1] = 1;
      }
      const OwnedIndex owned(rows_of(codes), kMostGrouped, 0, ValueType::uint4, false, {}, 1);
      const Index index(owned.view(), false);
      index.verify(1);
      check_documents(codes, ValueType::uint4, owned.sizes.exponent, false, Documents(index));
      check_searches(owned, random_codes(2, 2, 2, 5), false, 1);
    }
  }
}

void check_signed_rows() {
  OwnedCodes docs = random_codes(900, 6, 40, 1), queries = random_codes(9, 6, 40, 2);
  for (OwnedCodes* codes : {&docs, &queries}) {
    for (int64_t e = 0; e < codes->n * codes->k; e += 3) codes->values[e] *= -1;
  }
  SearchOptions options;
  options.top_k = 7;
  const Exact<float> scores(queries.n * options.top_k, std::nanf(""));
  const Exact<int64_t> ids(queries.n * options.top_k, -2);
  similarity_top_k(rows_of(queries), rows_of(docs), 256, options, scores.data(), ids.data());
  for (int64_t i = 0; i < queries.n; ++i) {
    std::vector<std::pair<float, int64_t>> want;  // negated scores, to be sorted
    std::vector<std::pair<float, int32_t>> entries;
    for (int64_t s = i * queries.k; s < (i + 1) * queries.k; ++s) {
      entries.push_back({-queries.values[s], queries.indices[s]});
    }
    std::sort(entries.begin(), entries.end());
    for (int64_t doc = 0; doc < docs.n; ++doc) {
      const std::vector<double> row = docs.row(doc);
      float score = 0;
      for (const auto& [value, latent] : entries) score -= value * static_cast<float>(row[latent]);
      if (score > 0) want.push_back({-score, doc});
    }
    std::sort(want.begin(), want.end());
    for (int64_t j = 0; j < options.top_k; ++j) {
      const auto n = static_cast<int64_t>(want.size());
      CHECK(scores[i * options.top_k + j] == (j < n ? -want[j].first : -INFINITY));
      CHECK(ids[i * options.top_k + j] == (j < n ? want[j].second : -1));
    }
  }
}

}  // namespace
}  // namespace csrkern

int main() {
  csrkern::check_signed_rows();
  csrkern::check_all_forms();
  csrkern::check_split_query();
  csrkern::check_clusters();
  csrkern::check_directory();
  csrkern::check_vanishing_values();
  csrkern::check_weak_values();
  csrkern::check_claimed_documents();
  csrkern::check_concurrent_searches();
  csrkern::check_refused_codes();
  csrkern::check_forged_arrays();
  csrkern::check_forged_groups();
  csrkern::check_lengths_of_groups();
}
