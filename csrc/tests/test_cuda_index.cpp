// The CUDA kernels, simulated, against the CPU index: same ids, same bits of scores.
#include <cmath>
#include <functional>
#include <limits>
#include <string>

#include "csrkern/cuda_index.hpp"
#include "csrkern/index.hpp"
#include "owned_index.hpp"
#include "simulated_cuda.hpp"

namespace csrkern {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// How a search is asked for, of either index.
struct Asked {
  int64_t topk = 10;
  bool normalize = false;
  int64_t query_k = cuda::kMostEntries;
  float min_score = -kInfinity;
  std::vector<uint8_t> allowed;  // [n_docs] or [queries, n_docs]
};

struct Answers {
  std::vector<float> scores;
  std::vector<int64_t> ids;

  bool operator==(const Answers& other) const {
    return ids == other.ids && scores == other.scores;  // none is NaN, nor 0
  }
};

Answers search_cpu(const Index& index, const OwnedCodes& queries, const Asked& asked) {
  const int64_t n = queries.n, n_docs = index.view().n_docs, words = (n_docs + 63) / 64;
  std::vector<uint64_t> bits(words * n + 1);
  for (int64_t q = 0; q < n; ++q) {
    const int64_t row = static_cast<int64_t>(asked.allowed.size()) == n_docs ? 0 : q;
    for (int64_t doc = 0; doc < n_docs && !asked.allowed.empty(); ++doc) {
      const uint64_t bit = asked.allowed[row * n_docs + doc] != 0;
      bits[q * words + doc / 64] |= bit << doc % 64;
    }
  }
  const Segment segment{&index, asked.allowed.empty() ? nullptr : bits.data(), words};
  SearchOptions options;
  options.topk = asked.topk;
  options.normalize = asked.normalize;
  options.query_k = asked.query_k;
  options.min_score = asked.min_score;
  Answers answers{std::vector<float>(n * asked.topk), std::vector<int64_t>(n * asked.topk)};
  search({segment}, rows_of(queries), options, answers.scores.data(), answers.ids.data());
  return answers;
}

Answers search_cuda(const cuda::Index& index, const OwnedCodes& queries, const Asked& asked,
                    cuda::Way way) {
  const int64_t n = queries.n, n_docs = index.n_docs();
  const size_t bytes = index.workspace_bytes(n, queries.k, asked.topk);
  Exact<unsigned char> workspace(bytes, 0x5a);
  Answers answers{std::vector<float>(n * asked.topk), std::vector<int64_t>(n * asked.topk)};
  cuda::SearchRequest request{};
  request.queries = {
      n, queries.k, nullptr, cuda::Number::float32, queries.values.data(), queries.indices.data()};
  request.topk = asked.topk;
  request.normalize = asked.normalize;
  request.query_k = asked.query_k;
  request.min_score = asked.min_score;
  request.scores = answers.scores.data();
  request.ids = answers.ids.data();
  request.way = way;
  Exact<uint8_t> allowed(asked.allowed);
  if (!asked.allowed.empty()) {
    request.allowed = allowed.data();
    request.allowed_stride = static_cast<int64_t>(allowed.size()) == n_docs ? 0 : n_docs;
  }
  request.workspace = workspace.data();
  request.workspace_bytes = bytes;
  index.search(request, nullptr);

  Answers from_host = answers;
  request.scores = from_host.scores.data();
  request.ids = from_host.ids.data();
  index.search_from_host(request);
  CHECK(from_host == answers);
  return answers;
}

struct Form {
  ValueType type = ValueType::float16;
  bool normalize = false;
  int32_t impact_bits = 16;
  uint32_t block = 64;
};

// The same codes on both; `ids` ascend.
struct Both {
  Both(const OwnedCodes& codes, const Form& form, std::vector<int64_t> ids = {})
      : owned(rows_of(codes), 4096, 0, form.type, form.normalize, ids, 1), cpu(owned.view(), true) {
    options.dim = static_cast<int32_t>(codes.dim);
    options.half = form.type == ValueType::float16;
    options.impact_bits = form.impact_bits;
    options.block = form.block;
    const int64_t* given = ids.empty() ? nullptr : ids.data();
    // From the stored codes, as an index on the CPU is transferred ...
    const Documents docs(cpu);
    const cuda::Rows stored{codes.n,
                            0,
                            docs.starts.data(),
                            cuda::Number::float32,
                            docs.values.data(),
                            docs.latents.data()};
    gpu = std::make_unique<cuda::Index>(0, stored, given, 0, options, nullptr);
    CHECK(gpu->bytes() ==
          cuda::memory_need(codes.n, gpu->entries(), options, given != nullptr).resident);
    if (form.type != ValueType::float16 && form.type != ValueType::float32) return;
    // ... and from the codes themselves.
    cuda::IndexOptions raw = options;
    raw.normalize = form.normalize;
    const cuda::Rows rows{codes.n,
                          codes.k,
                          nullptr,
                          cuda::Number::float32,
                          codes.values.data(),
                          codes.indices.data()};
    built = std::make_unique<cuda::Index>(0, rows, given, 0, raw, nullptr);
    CHECK(built->bytes() == gpu->bytes() && built->row_width() == gpu->row_width());
  }

  void check(const OwnedCodes& queries, const Asked& asked) const {
    const Answers expected = search_cpu(cpu, queries, asked);
    CHECK(search_cuda(*gpu, queries, asked, cuda::Way::walk) == expected);
    CHECK(search_cuda(*gpu, queries, asked, cuda::Way::gather) == expected);
    const cuda::Index& other = built == nullptr ? *gpu : *built;
    CHECK(search_cuda(other, queries, asked, cuda::Way::cheaper) == expected);
  }

  OwnedIndex owned;
  Index cpu;
  cuda::IndexOptions options{};
  std::unique_ptr<cuda::Index> gpu, built;
};

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
          for (const int64_t topk : {1, 10, 300}) {
            Asked asked;
            asked.topk = topk;
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
  for (const int64_t topk : {1, 25, 512, 513, 1024}) {
    Asked asked;
    asked.topk = topk;
    asked.normalize = topk == 25;
    both.check(queries, asked);
    asked.query_k = 2;
    asked.min_score = 0.4f;
    both.check(queries, asked);
    asked.min_score = 1e30f;
    both.check(queries, asked);
    asked.min_score = -kInfinity;
    asked.query_k = cuda::kMostEntries;
    Random random(topk);
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
    asked.topk = 70;
    Both(codes, {}).check(queries, asked);
  }
  const OwnedCodes none = random_codes(0, 5, 40, 1), queries = random_codes(4, 7, 40, 5);
  Both(none, {}).check(queries, {});
  const OwnedCodes no_queries = random_codes(0, 7, 40, 1);
  Both(random_codes(90, 5, 40, 1), {}).check(no_queries, {});
  // More queries than are searched at once, for so many hits.
  const OwnedCodes many = random_codes(600, 3, 40, 6);
  Asked asked;
  asked.topk = 1024;
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
        for (const int64_t topk : {1, 7, 700}) {
          Asked asked;
          asked.topk = topk;
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
  request.topk = 10;
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

template <class Change>
void refused(const Change& change, const std::string& word) {
  OwnedCodes codes = random_codes(300, 4, 30, 14);
  std::fill(codes.values.begin(), codes.values.end(), 0.5f);
  for (int64_t i = 0; i < 1200; ++i) codes.indices[i] = static_cast<int32_t>(i % 4);
  change(codes);
  const cuda::Rows rows{
      300, 4, nullptr, cuda::Number::float32, codes.values.data(), codes.indices.data()};
  cuda::IndexOptions options{30, true};
  try {
    cuda::Index index(0, rows, nullptr, 0, options, nullptr);
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
  refused([](OwnedCodes& codes) { codes.indices[1001] = codes.indices[1002]; }, "twice");

  const OwnedCodes codes = random_codes(3000, 8, 60, 15), queries = random_codes(5, 8, 60, 16);
  const Both both(codes, {});
  const size_t used = cuda::simulated_bytes_in_use(), total = cuda::simulated.total_bytes;
  const auto build = [&](int device) {
    const cuda::Rows rows{codes.n,
                          codes.k,
                          nullptr,
                          cuda::Number::float32,
                          codes.values.data(),
                          codes.indices.data()};
    cuda::Index index(device, rows, nullptr, 0, both.options, nullptr);
  };
  // Out of memory at every point of a build, and in a search: nothing leaks, the index works on.
  for (size_t room = 0; room < 1200000; room += 3001) {
    cuda::simulated.total_bytes = used + room;
    try {
      build(0);
      CHECK(room >= cuda::memory_need(codes.n, both.gpu->entries(), both.options, false).resident);
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
  asked.topk = 1025;
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
  test_errors();
  std::puts("cuda index: ok");
}
