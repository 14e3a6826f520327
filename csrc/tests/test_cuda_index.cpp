// The CUDA kernels, simulated, against the CPU index: same ids, same bits of scores.
#include <functional>

#include "cuda_both.hpp"

namespace csrkern {
namespace {

// Codes of k slots, filled by `fill(row, latents, values)`.
OwnedCodes make_codes(int64_t n, int64_t k, int64_t dim,
                      const std::function<void(int64_t, int32_t*, float*)>& fill) {
  OwnedCodes codes{Exact<float>(n * k), Exact<int32_t>(n * k), n, k, dim};
  for (int64_t i = 0; i < n; ++i)
    fill(i, codes.indices.data() + i * k, codes.values.data() + i * k);
  return codes;
}

void test_forms() {
  const OwnedCodes codes = random_codes(1000, 12, 90, 1), queries = random_codes(9, 12, 90, 2);
  for (const ValueType type : kValueTypes) {
    for (const bool normalize : {false, true}) {
      for (const int32_t bits : {8, 16}) {
        for (const uint32_t block : {64u, 448u, 14336u}) {
          const Both both(codes, {type, normalize, bits, block});
          for (const int64_t top_k : {1, 10, 300}) {
            Asked asked;
            asked.top_k = top_k;
            asked.normalize = normalize;
            both.check(queries, asked);
          }
        }
      }
    }
  }
}

void test_options() {
  const int64_t n = 1500;
  const OwnedCodes codes = random_codes(n, 9, 60, 3), queries = random_codes(8, 9, 60, 4);
  std::vector<int64_t> ids(n);
  for (int64_t i = 0; i < n; ++i) ids[i] = 5 + 3 * i + (i > 700) * (int64_t{1} << 40);
  // In one block, so that more candidates come than there is room for, filtered or not.
  const Both both(codes, {ValueType::float16, false, 16, 2048}, ids);
  for (const int64_t top_k : {1, 25, 512, 513, 1024}) {
    Asked asked;
    asked.top_k = top_k;
    asked.normalize = top_k == 25;
    both.check(queries, asked);
    asked.query_k = 2;
    asked.min_score = 0.4f;
    both.check(queries, asked);
    asked.min_score = 1e30f;
    both.check(queries, asked);
    asked.min_score = -kInfinity;
    asked.query_k = cuda::kMostEntries;
    Random random(top_k);
    asked.allowed.assign(n, 0);
    for (int64_t i = 0; i < n; ++i) asked.allowed[i] = random.below(20) == 0;
    both.check(queries, asked);
    asked.allowed.assign(n * queries.n, 0);
    for (auto& byte : asked.allowed) byte = random.below(3) != 0;
    std::fill_n(asked.allowed.begin() + n, n, 0);  // one query may find nothing
    both.check(queries, asked);
  }
}

void test_sizes() {
  // One document, a block and one more or less, and no document that any query meets.
  for (const int64_t n : {1, 63, 64, 65, 128, 640, 641}) {
    const OwnedCodes codes = random_codes(n, 5, 40, n), queries = random_codes(4, 7, 40, 5);
    Asked asked;
    asked.top_k = 70;
    Both(codes, {}).check(queries, asked);
  }
  const OwnedCodes none = random_codes(0, 5, 40, 1), queries = random_codes(4, 7, 40, 5);
  Both(none, {}).check(queries, {});
  const OwnedCodes no_queries = random_codes(0, 7, 40, 1);
  Both(random_codes(90, 5, 40, 1), {}).check(no_queries, {});
  // More queries than are searched at once, for so many hits.
  const OwnedCodes many = random_codes(600, 3, 40, 6);
  Asked asked;
  asked.top_k = 1024;
  Both(random_codes(40, 5, 40, 1), {}).check(many, asked);
}

void test_adversarial() {
  Random random(7);
  const int64_t n = 2000, k = 6, dim = 50;
  const auto spread = [&](int32_t first, int32_t* latents) {
    for (int64_t s = 0; s < k; ++s) latents[s] = static_cast<int32_t>(first + 7 * s) % 49;
  };
  std::vector<std::pair<const char*, OwnedCodes>> kinds;
  kinds.emplace_back("a hot latent in every row",
                     make_codes(n, k, dim, [&](auto i, auto* l, auto* v) {
                       spread(static_cast<int32_t>(i), l);
                       l[0] = 49;
                       for (int64_t s = 0; s < k; ++s) v[s] = s == 0 ? 1 : random.positive();
                     }));
  kinds.emplace_back("all rows equal", make_codes(n, k, dim, [&](auto, auto* l, auto* v) {
                       spread(0, l);
                       for (int64_t s = 0; s < k; ++s) v[s] = 0.3f;
                     }));
  kinds.emplace_back("few scores", make_codes(n, k, dim, [&](auto i, auto* l, auto* v) {
                       spread(static_cast<int32_t>(i % 3), l);
                       for (int64_t s = 0; s < k; ++s)
                         v[s] = static_cast<float>(random.below(3)) / 2;
                     }));
  kinds.emplace_back("scores that differ in the last bits",
                     make_codes(n, k, dim, [&](auto, auto* l, auto* v) {
                       spread(0, l);
                       for (int64_t s = 0; s < k; ++s)
                         v[s] = 1 + static_cast<float>(random.below(8)) * 0x1p-10f;
                     }));
  kinds.emplace_back("most lists empty", make_codes(n, k, dim, [&](auto i, auto* l, auto* v) {
                       l[0] = i % 2;
                       v[0] = random.positive();
                     }));
  kinds.emplace_back("one large value", make_codes(n, k, dim, [&](auto i, auto* l, auto* v) {
                       spread(static_cast<int32_t>(i), l);
                       for (int64_t s = 0; s < k; ++s)
                         v[s] = i == 1234 ? 60000 : 1e-3f * random.positive();
                     }));
  kinds.emplace_back("denormal values", make_codes(n, k, dim, [&](auto i, auto* l, auto* v) {
                       spread(static_cast<int32_t>(i), l);
                       for (int64_t s = 0; s < k; ++s)
                         v[s] = 1e-43f * static_cast<float>(random.below(90));
                     }));
  kinds.emplace_back("the smallest values, whose products are rounded by halves",
                     make_codes(n, k, dim, [&](auto i, auto* l, auto* v) {
                       spread(static_cast<int32_t>(i), l);
                       for (int64_t s = 0; s < k; ++s)
                         v[s] = 0x1p-149f * static_cast<float>(random.below(4));
                     }));
  kinds.emplace_back("scores near the largest float",
                     make_codes(n, k, dim, [&](auto i, auto* l, auto* v) {
                       spread(static_cast<int32_t>(i), l);
                       for (int64_t s = 0; s < k; ++s)
                         v[s] = random.below(2) ? 3e38f : 1e19f * random.positive();
                     }));
  const OwnedCodes queries = make_codes(6, 8, dim, [&](auto i, auto* l, auto* v) {
    for (int64_t s = 0; s < 8; ++s) l[s] = static_cast<int32_t>(s == 0 ? 49 : 7 * s - 7 + i % 3);
    for (int64_t s = 0; s < 8 && i != 3; ++s) v[s] = i == 4 ? 1e-38f : random.positive();
  });  // the one at 3 is all zero
  for (const auto& [name, codes] : kinds) {
    float largest = 0;
    for (const float v : codes.values) largest = std::max(largest, v);
    for (const ValueType type : {ValueType::float16, ValueType::float32}) {
      if (type == ValueType::float16 && largest > 60000) continue;
      for (const int32_t bits : {8, 16}) {
        const Both both(codes, {type, false, bits, bits == 8 ? 192u : 2048u});
        for (const int64_t top_k : {1, 7, 700}) {
          Asked asked;
          asked.top_k = top_k;
          both.check(queries, asked);
        }
      }
    }
    std::printf("%s: equal\n", name);
  }
}

// A query of more latents than a table of the gather scan holds, over more latents than 16 bits.
void test_wide() {
  const OwnedCodes codes = random_codes(700, 20, 70000, 8);
  const OwnedCodes queries = random_codes(3, 900, 70000, 9);
  OwnedCodes near = random_codes(700, 300, 400, 10);
  for (int32_t& latent : near.indices) latent *= 170;
  near.dim = 70000;
  OwnedCodes long_queries = random_codes(3, 390, 400, 11);
  for (int32_t& latent : long_queries.indices) latent *= 170;
  long_queries.dim = 70000;
  Asked asked;
  asked.normalize = true;
  Both(codes, {ValueType::float32, false, 16, 256}).check(queries, asked);
  Both(near, {ValueType::float16, true, 8, 256}).check(long_queries, asked);
}

void test_work() {
  const OwnedCodes codes = random_codes(600, 6, 40, 12), queries = random_codes(5, 6, 40, 13);
  const Both both(codes, {});
  cuda::SearchRequest request{};
  std::vector<float> scores(50);
  std::vector<int64_t> ids(50);
  request.queries = {
      5, 6, nullptr, cuda::Number::float32, queries.values.data(), queries.indices.data()};
  request.top_k = 10;
  request.scores = scores.data();
  request.ids = ids.data();
  request.count_work = true;
  int64_t postings = 0;
  const Documents docs(both.cpu);
  for (int64_t q = 0; q < 5; ++q) {
    for (const QueryEntry& e : query_of(queries, q)) {
      for (const int32_t latent : docs.latents) postings += latent == e.latent;
    }
  }
  request.way = cuda::Way::walk;
  both.gpu->search_from_host(request);
  cuda::Work work = both.gpu->take_work(nullptr);
  CHECK(work.gathers == 0 && work.walks > 0 && static_cast<int64_t>(work.postings) == postings);
  request.way = cuda::Way::gather;
  both.gpu->search_from_host(request);
  work = both.gpu->take_work(nullptr);
  CHECK(work.walks == 0 && work.gathers > 0 && work.entries > 0 && work.postings == 0);
  CHECK(both.gpu->take_work(nullptr).gathers == 0);
  both.gpu->calibrate();
  CHECK(both.gpu->gather_cost() > 0);
}

// Few queries take all processors at once, then twice as many blocks in each round that follows.
void test_launches() {
  const OwnedCodes codes = random_codes(64 * 186, 4, 30, 17);
  const Both both(codes, {});
  for (const int64_t n : {1, 2}) {
    const OwnedCodes queries = random_codes(n, 4, 30, 18);
    Answers answers = search_cuda(*both.gpu, queries, {}, cuda::Way::walk);
    CHECK(answers == search_cpu(both.cpu, queries, {}));
    cuda::SearchRequest request{};
    request.queries = {
        n, 4, nullptr, cuda::Number::float32, queries.values.data(), queries.indices.data()};
    request.top_k = 10;
    request.scores = answers.scores.data();
    request.ids = answers.ids.data();
    const int before = cuda::simulated.launches;
    both.gpu->search_from_host(request);
    // One for queries; a search and a merge of 6, 12, ... 96 blocks of documents, or of 3, 6,
    // ... 93.
    CHECK(cuda::simulated.launches - before == (n == 1 ? 11 : 13));
  }
}

// Scores by dense queries are those of the CPU, in another order.
void test_dense() {
  const int64_t n = 700, dim = 60, k = 9, m = 7, most = 40;
  const OwnedCodes codes = random_codes(n, k, dim, 20), queries = random_codes(m, k, dim, 21);
  Random random(22);
  Exact<float> norms(n), dense(m * dim), offsets(m);
  for (float& norm : norms) norm = 0.5f + random.positive();
  for (float& number : dense) number = random.symmetric();
  for (float& offset : offsets) offset = random.symmetric();
  std::fill_n(dense.begin() + dim, dim, 3e38f);  // sums to infinity,
  std::fill_n(dense.begin() + 2 * dim, dim / 2, -3e38f);
  std::fill_n(dense.begin() + 2 * dim + dim / 2, dim / 2, 3e38f);  // or of both signs
  for (const bool normed : {false, true}) {
    const Both both(codes, {ValueType::uint8, true, 16, 64}, {}, normed ? norms.data() : nullptr);
    for (const bool with_offsets : {false, true}) {
      const float* added = with_offsets ? offsets.data() : nullptr;
      SearchOptions options;
      options.top_k = options.shortlist = most;
      options.dense = dense.data();
      options.offsets = added;
      Answers expected{std::vector<float>(m * most), std::vector<int64_t>(m * most)};
      search({{&both.cpu, nullptr}}, rows_of(queries), options, expected.scores.data(),
             expected.ids.data());
      cuda::SearchRequest request{};
      request.queries = {
          m, k, nullptr, cuda::Number::float32, queries.values.data(), queries.indices.data()};
      request.top_k = most;
      request.dense = dense.data();
      request.offsets = added;
      Exact<float> scores(m * most), found(m * most);
      Exact<int64_t> ids(m * most);
      request.scores = scores.data();
      request.ids = ids.data();
      request.dense_scores = found.data();
      both.gpu->search_from_host(request);
      for (int64_t q = 0; q < m; ++q) {
        std::vector<std::pair<float, int64_t>> hits;
        for (int64_t i = q * most; i < (q + 1) * most; ++i) {
          if (ids[i] >= 0) hits.push_back({-found[i], ids[i]});
          CHECK(ids[i] >= 0 || found[i] == -kInfinity);
        }
        std::sort(hits.begin(), hits.end());
        CHECK(!hits.empty());
        for (size_t i = 0; i < hits.size(); ++i) {
          CHECK(expected.scores[q * most + i] == -hits[i].first);
          CHECK(expected.ids[q * most + i] == hits[i].second);
        }
      }
    }
  }
}

// Nobody checks queries on a device: a latent that occurs twice counts twice, in both ways.
void test_latents_twice() {
  const OwnedCodes codes = random_codes(500, 6, 40, 23);
  OwnedCodes queries = random_codes(20, 8, 40, 24);
  for (int64_t q = 0; q < queries.n; ++q) {
    int32_t* latents = queries.indices.data() + q * 8;
    latents[1] = latents[2] = latents[0];
    latents[4] = latents[3];
  }
  const Both both(codes, {ValueType::float32, false, 16, 128});
  for (const int64_t top_k : {1, 5, 200}) {
    Asked asked;
    asked.top_k = top_k;
    const Answers walked = search_cuda(*both.gpu, queries, asked, cuda::Way::walk);
    CHECK(search_cuda(*both.gpu, queries, asked, cuda::Way::gather) == walked);
    CHECK(walked.ids[0] >= 0);
  }
}

// What is for the second device is there, whichever is current.
void test_devices() {
  const OwnedCodes codes = random_codes(300, 6, 40, 25), queries = random_codes(4, 6, 40, 26);
  const size_t first = cuda::simulated_bytes_in_use(0);
  const auto index = cuda::Index::from_host(1, cuda_rows(codes), {}, {40, ValueType::float16});
  CHECK(index->device() == 1 && cuda::simulated_bytes_in_use(1) == index->bytes());
  search_cuda(*index, queries, {}, cuda::Way::cheaper);
  CHECK(cuda::simulated_bytes_in_use(1) > index->bytes());  // with memory for searches
  CHECK(cuda::simulated_bytes_in_use(0) == first && cuda::current_device() == 0);
}

template <class Change>
void refused(const Change& change, const std::string& word, ValueType type = ValueType::float16) {
  OwnedCodes codes = random_codes(300, 4, 30, 14);
  std::fill(codes.values.begin(), codes.values.end(), 0.5f);
  for (int64_t i = 0; i < 1200; ++i) codes.indices[i] = static_cast<int32_t>(i % 4);
  change(codes);
  cuda::IndexOptions options{30, type};
  try {
    cuda::Index index(0, cuda_rows(codes), {}, options, nullptr);
  } catch (const std::invalid_argument& error) {
    CHECK(std::string(error.what()).find(word) != std::string::npos);
    CHECK(std::string(error.what()).find("row 250") != std::string::npos);
    return;
  }
  CHECK(!"refused");
}

void test_errors() {
  refused([](OwnedCodes& codes) { codes.indices[1001] = 30; }, "0..29");
  refused([](OwnedCodes& codes) { codes.indices[1001] = -1; }, "0..29");
  refused([](OwnedCodes& codes) { codes.values[1001] = -1; }, "not negative");
  refused([](OwnedCodes& codes) { codes.values[1001] = std::nanf(""); }, "finite");
  refused([](OwnedCodes& codes) { codes.values[1001] = 70000; }, "float16");
  refused([](OwnedCodes& codes) { codes.values[1001] = 1.5f; }, "exceeds 2^0", ValueType::uint8);
  refused([](OwnedCodes& codes) { codes.indices[1001] = codes.indices[1002]; }, "twice");

  const OwnedCodes codes = random_codes(3000, 8, 60, 15), queries = random_codes(5, 8, 60, 16);
  const Both both(codes, {});
  const size_t used = cuda::simulated_bytes_in_use(), total = cuda::simulated.total_bytes;
  const auto build = [&](int device) {
    cuda::Index index(device, cuda_rows(codes), {}, both.options, nullptr);
  };
  // Out of memory at every point of a build, and in a search: nothing leaks, the index works on.
  for (size_t room = 0; room < 1200000; room += 3001) {
    cuda::simulated.total_bytes = used + room;
    try {
      build(0);
      CHECK(room >=
            cuda::memory_need(codes.n, both.gpu->entries(), both.options, false, false).resident);
    } catch (const cuda::OutOfMemory& error) {
      CHECK(std::string(error.what()).find("bytes") != std::string::npos);
    }
    CHECK(cuda::simulated_bytes_in_use() == used);
  }
  cuda::simulated.total_bytes = used;
  CHECK_THROWS(both.check(queries, {}), cuda::OutOfMemory);
  cuda::simulated.total_bytes = total;
  both.check(queries, {});
  CHECK_THROWS(build(7), cuda::Error);
  CHECK_THROWS(build(-1), cuda::Error);
  Asked asked;
  asked.top_k = 1025;
  CHECK_THROWS(search_cuda(*both.gpu, queries, asked, cuda::Way::walk), std::invalid_argument);

  // Queries on the device cannot be refused: what is not valid in them is passed over.
  OwnedCodes odd = random_codes(5, 8, 60, 16), even = random_codes(5, 8, 60, 16);
  for (int64_t i = 0; i < 5; ++i) {
    even.values[i * 8 + 7] = 0;
    odd.values[i * 8 + 7] = i == 0 ? std::nanf("") : i == 1 ? -1.0f : i == 2 ? kInfinity : 1.0f;
    if (i > 2) odd.indices[i * 8 + 7] = i == 3 ? 60 : -5;
  }
  CHECK(search_cuda(*both.gpu, odd, {}, cuda::Way::cheaper) == search_cpu(both.cpu, even, {}));
}

}  // namespace
}  // namespace csrkern

int main() {
  using namespace csrkern;
  test_forms();
  test_options();
  test_sizes();
  test_adversarial();
  test_wide();
  test_work();
  test_launches();
  test_dense();
  test_latents_twice();
  test_devices();
  test_errors();
  std::puts("cuda index: ok");
}
