// The searches of several indexes as one, and what they may be asked beyond the best top_k.
#include <cmath>

#include "check.hpp"
#include "csrkern/index.hpp"
#include "owned_codes.hpp"
#include "owned_index.hpp"

namespace csrkern {
namespace {

constexpr int64_t kDim = 40;

bool better(const Answer& a, const Answer& b) {
  return a.score > b.score || (a.score == b.score && a.id < b.id);
}

// Two indexes of different form, and queries.
struct Library {
  Library(ValueType first_type, ValueType second_type)
      : codes{random_codes(300, 6, kDim, 1), random_codes(150, 4, kDim, 2)},
        queries(random_codes(7, 8, kDim, 3)),
        owned{OwnedIndex(rows_of(codes[0]), 64, 0, first_type, false, {}, 1),
              OwnedIndex(rows_of(codes[1]), 128, 64, second_type, false, high_ids(), 1)},
        first(owned[0].view(), false),
        second(owned[1].view(), false),
        allowed(5, 0x7777777777777777) {}

  static std::vector<int64_t> high_ids() {
    std::vector<int64_t> ids(150);
    for (size_t i = 0; i < ids.size(); ++i) ids[i] = 1000 - static_cast<int64_t>(i);
    return ids;
  }

  std::vector<Segment> segments() const { return {{&first, allowed.data()}, {&second}}; }

  // All that the strongest `most` entries of query i find.
  std::vector<Answer> all(int64_t i, size_t most) const {
    std::vector<QueryEntry> query = query_of(queries, i);
    std::sort(query.begin(), query.end(), [](const QueryEntry& a, const QueryEntry& b) {
      return a.value > b.value || (a.value == b.value && a.latent < b.latent);
    });
    query.resize(std::min(most, query.size()));
    std::vector<Answer> answers;
    for (const Index* index : {&first, &second}) {
      const std::vector<Answer> some =
          plain_search(index->view(), Documents(*index), query, index->view().n_docs, false,
                       index == &first ? allowed.data() : nullptr);
      for (const Answer& answer : some) {
        if (answer.id >= 0) answers.push_back(answer);
      }
    }
    std::sort(answers.begin(), answers.end(), better);
    return answers;
  }

  OwnedCodes codes[2];
  OwnedCodes queries;
  OwnedIndex owned[2];
  Index first, second;
  Exact<uint64_t> allowed;  // of the documents of the first
};

void check_found(const Library& library, const SearchOptions& options,
                 const std::vector<std::vector<Answer>>& want) {
  const int64_t n = library.queries.n, top_k = options.top_k;
  const Exact<float> scores(n * top_k, std::nanf(""));
  const Exact<int64_t> ids(n * top_k, -2);
  search(library.segments(), rows_of(library.queries), options, scores.data(), ids.data());
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t place = 0; place < top_k; ++place) {
      const Answer got{scores[i * top_k + place], ids[i * top_k + place]};
      const bool missing = place >= static_cast<int64_t>(want[i].size());
      CHECK((got == (missing ? Answer{-INFINITY, -1} : want[i][place])));
    }
  }
}

// The last block of documents need not be full, and the bits end with the documents.
void check_filter_of_blocks() {
  const OwnedCodes codes = random_codes(1030, 6, kDim, 4), queries = random_codes(9, 8, kDim, 5);
  const OwnedIndex owned(rows_of(codes), 1024, 256, ValueType::float32, false, {}, 1);
  const Index index(owned.view(), false);
  Exact<uint64_t> allowed((1030 + 63) / 64, ~uint64_t{0});
  allowed[16] = 0;  // none of the last block
  Exact<float> scores(queries.n * 3, 0);
  Exact<int64_t> ids(queries.n * 3, -2);
  SearchOptions options;
  options.top_k = 3;
  options.num_threads = 1;
  search({{&index, allowed.data()}}, rows_of(queries), options, scores.data(), ids.data());
  const Documents docs(index);
  for (int64_t i = 0; i < queries.n; ++i) {
    const std::vector<Answer> want =
        plain_search(index.view(), docs, query_of(queries, i), 3, false, allowed.data());
    for (int64_t place = 0; place < 3; ++place) {
      CHECK((Answer{scores[i * 3 + place], ids[i * 3 + place]} == want[place]));
    }
  }
}

void check_plain_and_limited(const Library& library, SearchOptions options) {
  for (size_t most : {size_t{1}, size_t{3}, size_t{100}}) {
    for (float min_score : {-INFINITY, 0.3f, 100.0f}) {
      options.query_k = static_cast<int64_t>(most);
      options.min_score = min_score;
      std::vector<std::vector<Answer>> want(library.queries.n);
      for (int64_t i = 0; i < library.queries.n; ++i) {
        for (const Answer& answer : library.all(i, most)) {
          if (answer.score >= min_score) want[i].push_back(answer);
        }
      }
      for (int64_t top_k : {int64_t{1}, int64_t{10}, int64_t{600}}) {
        options.top_k = top_k;
        check_found(library, options, want);
      }
      const Ragged all = search_all(library.segments(), rows_of(library.queries), options);
      for (int64_t i = 0; i < library.queries.n; ++i) {
        CHECK(all.starts[i + 1] - all.starts[i] == static_cast<int64_t>(want[i].size()));
        for (size_t j = 0; j < want[i].size(); ++j) {
          CHECK((want[i][j] == Answer{all.scores[all.starts[i] + j], all.ids[all.starts[i] + j]}));
        }
      }
    }
  }
}

// A shortlist of all, found with part of the query, in the order of the whole query.
void check_scored_again(const Library& library, SearchOptions options) {
  options.top_k = 20;
  for (int64_t shortlist : {int64_t{25}, int64_t{1000}}) {
    options.shortlist = shortlist;
    std::vector<std::vector<Answer>> want(library.queries.n);
    for (int64_t i = 0; i < library.queries.n; ++i) {
      want[i] = library.all(i, 100);
      if (static_cast<int64_t>(want[i].size()) > shortlist) want[i].resize(shortlist);
    }
    options.kept = 1;
    check_found(library, options, want);
  }
  // A millionth of the squared norm: the strongest entry alone.
  options.kept = 1e-6;
  std::vector<std::vector<Answer>> want(library.queries.n);
  for (int64_t i = 0; i < library.queries.n; ++i) {
    const std::vector<Answer> found = library.all(i, 1);
    for (const Answer& answer : library.all(i, 100)) {
      const auto same = [&](const Answer& other) { return other.id == answer.id; };
      if (std::any_of(found.begin(), found.end(), same)) want[i].push_back(answer);
    }
  }
  check_found(library, options, want);
}

// By a dense query, over the document's latents in order.
void check_scored_densely(const Library& library, SearchOptions options) {
  const int64_t n = library.queries.n;
  Random random(4);
  const Exact<float> dense(n * kDim), offsets(n);
  for (float& v : dense) v = random.symmetric();
  for (float& v : offsets) v = random.symmetric();
  options.top_k = 20;
  options.shortlist = 1000;
  options.dense = dense.data();
  options.offsets = offsets.data();
  std::vector<std::vector<Answer>> want(n);
  for (int64_t i = 0; i < n; ++i) {
    for (const Answer& answer : library.all(i, 100)) {
      const bool in_second = answer.id > 800;
      const int64_t doc = in_second ? 1000 - answer.id : answer.id;
      const Index& index = in_second ? library.second : library.first;
      float score = 0;
      for (int32_t latent = 0; latent < kDim; ++latent) {
        score += dense[i * kDim + latent] * index.value(doc, latent);
      }
      want[i].push_back({score + offsets[i], answer.id});
    }
    std::sort(want[i].begin(), want[i].end(), better);
  }
  check_found(library, options, want);
}

// A strong list is the first hits of a query for its latent alone.
void check_strong_lists(ValueType type, int32_t block) {
  const OwnedCodes codes = random_codes(1030, 6, kDim, 4);
  const OwnedIndex owned(rows_of(codes), 256, block, type, false, {}, 1);
  const Index index(owned.view(), false);
  const int64_t most = is_grouped(type) ? codes.n : codes.n / 25;
  const OwnedCodes queries{Exact<float>(kDim, 1), Exact<int32_t>(kDim), kDim, 1, kDim};
  for (int32_t latent = 0; latent < kDim; ++latent) queries.indices[latent] = latent;
  SearchOptions options;
  options.top_k = codes.n;
  options.num_threads = 2;
  const Exact<float> want(kDim * codes.n), got(kDim * codes.n);
  const Exact<int64_t> want_ids(kDim * codes.n), ids(kDim * codes.n);
  search({{&index}}, rows_of(queries), options, want.data(), want_ids.data());
  options.strong = true;
  search({{&index}}, rows_of(queries), options, got.data(), ids.data());
  for (int64_t i = 0; i < kDim * codes.n; ++i) {
    const bool kept = i % codes.n < most;
    CHECK(ids[i] == (kept ? want_ids[i] : -1) && got[i] == (kept ? want[i] : -INFINITY));
  }
}

// Queries may use every latent there is, be it more than 65,536.
void check_very_long_query() {
  const int64_t k = 66'000;
  const OwnedCodes all = random_codes(1, k, k, 5);
  const OwnedIndex owned(rows_of(all), 64, 0, ValueType::float32, false, {}, 1);
  const Index index(owned.view(), false);
  SearchOptions options;
  options.top_k = 1;
  const Exact<float> scores(2);
  const Exact<int64_t> ids(2, -2);
  search({{&index}}, rows_of(all), options, scores.data(), ids.data());
  options.shortlist = 1;
  search({{&index}}, rows_of(all), options, scores.data() + 1, ids.data() + 1);
  CHECK(ids[0] == 0 && ids[1] == 0 && scores[0] > 0 && scores[0] == scores[1]);
}

}  // namespace
}  // namespace csrkern

int main() {
  using namespace csrkern;
  for (int threads : {1, 3}) {
    for (const Library& library : {Library(ValueType::float16, ValueType::float32),
                                   Library(ValueType::uint8, ValueType::float32)}) {
      SearchOptions options;
      options.num_threads = threads;
      check_plain_and_limited(library, options);
      check_scored_again(library, options);
      check_scored_densely(library, options);
    }
  }
  check_filter_of_blocks();
  check_very_long_query();
  for (ValueType type : {ValueType::float32, ValueType::float16, ValueType::uint8}) {
    check_strong_lists(type, 0);
    check_strong_lists(type, 64);
  }
  check_strong_lists(ValueType::uint4, 0);
}
