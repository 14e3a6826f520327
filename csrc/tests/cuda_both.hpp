// The same codes in an index on the CPU and on a simulated GPU, and the same questions to both.
#pragma once

#include <cmath>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "csrkern/cuda_index.hpp"
#include "csrkern/index.hpp"
#include "owned_index.hpp"
#include "simulated_cuda.hpp"

namespace csrkern {

inline cuda::Rows cuda_rows(const OwnedCodes& codes) {
  return {
      codes.n, codes.k, nullptr, cuda::Number::float32, codes.values.data(), codes.indices.data()};
}

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// How a search is asked for, of either index.
struct Asked {
  int64_t top_k = 10;
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

inline Answers search_cpu(const Index& index, const OwnedCodes& queries, const Asked& asked) {
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
  options.top_k = asked.top_k;
  options.normalize = asked.normalize;
  options.query_k = asked.query_k;
  options.min_score = asked.min_score;
  Answers answers{std::vector<float>(n * asked.top_k), std::vector<int64_t>(n * asked.top_k)};
  search({segment}, rows_of(queries), options, answers.scores.data(), answers.ids.data());
  return answers;
}

inline Answers search_cuda(const cuda::Index& index, const OwnedCodes& queries, const Asked& asked,
                           cuda::Way way) {
  const int64_t n = queries.n, n_docs = index.n_docs();
  const size_t bytes = index.workspace_bytes(n, queries.k, asked.top_k);
  Exact<unsigned char> workspace(bytes, 0x5a);
  Answers answers{std::vector<float>(n * asked.top_k), std::vector<int64_t>(n * asked.top_k)};
  cuda::SearchRequest request{};
  request.queries = {
      n, queries.k, nullptr, cuda::Number::float32, queries.values.data(), queries.indices.data()};
  request.top_k = asked.top_k;
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
  Both(const OwnedCodes& codes, const Form& form, std::vector<int64_t> ids = {},
       const float* norms = nullptr)
      : owned(rows_of(codes), 4096, 0, form.type, form.normalize, ids, 1),
        cpu(with_norms(owned.view(), norms), true) {
    options.dim = static_cast<int32_t>(codes.dim);
    options.type = form.type;
    options.exponent = 4;
    options.impact_bits = form.impact_bits;
    options.block = form.block;
    const int64_t* given = ids.empty() ? nullptr : ids.data();
    const cuda::RowFacts facts{given, 0, norms};
    // From the stored codes, as an index on the CPU is transferred ...
    const Documents docs(cpu);
    const cuda::Rows stored{codes.n,
                            0,
                            docs.starts.data(),
                            cuda::Number::float32,
                            docs.values.data(),
                            docs.latents.data()};
    gpu = std::make_unique<cuda::Index>(0, stored, facts, options, nullptr);
    CHECK(gpu->bytes() ==
          cuda::memory_need(codes.n, gpu->entries(), options, given != nullptr, norms != nullptr)
              .resident);
    // ... and from the codes themselves.
    cuda::IndexOptions raw = options;
    raw.normalize = form.normalize;
    built = std::make_unique<cuda::Index>(0, cuda_rows(codes), facts, raw, nullptr);
    CHECK(built->bytes() == gpu->bytes() && built->row_width() == gpu->row_width());
  }

  void check(const OwnedCodes& queries, const Asked& asked) const {
    const Answers expected = search_cpu(cpu, queries, asked);
    CHECK(search_cuda(*gpu, queries, asked, cuda::Way::walk) == expected);
    CHECK(search_cuda(*gpu, queries, asked, cuda::Way::gather) == expected);
    CHECK(search_cuda(*built, queries, asked, cuda::Way::cheaper) == expected);
  }

  static IndexView with_norms(IndexView view, const float* norms) {
    view.norms = norms;
    return view;
  }

  OwnedIndex owned;
  Index cpu;
  cuda::IndexOptions options{};
  std::unique_ptr<cuda::Index> gpu, built;
};

}  // namespace csrkern
