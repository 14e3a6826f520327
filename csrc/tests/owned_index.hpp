// An index whose arrays tests may forge, and the search that every other must agree with.
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "csrkern/index.hpp"
#include "exact_memory.hpp"
#include "owned_codes.hpp"

namespace csrkern {

inline SparseRows rows_of(const OwnedCodes& codes) {
  return {codes.n,
          static_cast<int32_t>(codes.dim),
          codes.k,
          nullptr,
          codes.values.data(),
          codes.indices.data()};
}

struct QueryEntry {
  float value;
  int32_t latent;
};

inline std::vector<QueryEntry> query_of(const OwnedCodes& codes, int64_t i) {
  std::vector<QueryEntry> entries;
  for (int64_t s = i * codes.k; s < (i + 1) * codes.k; ++s) {
    if (codes.values[s] != 0) entries.push_back({codes.values[s], codes.indices[s]});
  }
  return entries;
}

constexpr ValueType kValueTypes[] = {ValueType::float16, ValueType::float32, ValueType::uint8,
                                     ValueType::uint4};

struct OwnedIndex {
  OwnedIndex(const SparseRows& docs, int32_t window, int32_t block, ValueType type, bool normalize,
             std::vector<int64_t> given_ids, int num_threads, int32_t exponent = 4) {
    if (is_grouped(type)) block = 0;
    const BuiltIndex built =
        build_index(docs, window, block, type, normalize, num_threads, exponent);
    sizes.n_docs = docs.n;
    sizes.dim = docs.dim;
    sizes.window = window;
    sizes.n_windows = (docs.n + window - 1) / window;
    sizes.type = type;
    sizes.block = block;
    sizes.exponent = exponent;
    terms = Exact<int32_t>(built.terms);
    offsets = Exact<uint64_t>(built.offsets);
    checksums = Exact<uint32_t>(built.checksums);
    scales = Exact<float>(built.scales);
    ids = Exact<int64_t>(given_ids);
    postings = Exact<uint8_t>(built.postings.bytes());
    std::copy_n(built.postings.data(), postings.size(), postings.data());
    maxima = Exact<uint8_t>(built.maxima.bytes());
    std::copy_n(built.maxima.data(), maxima.size(), maxima.data());
  }

  IndexView view() const {
    IndexView view = sizes;
    view.n_terms = static_cast<int64_t>(terms.size());
    view.terms = terms.data();
    view.offsets = offsets.data();
    view.postings = postings.data();
    view.checksums = checksums.data();
    view.ids = ids.size() == 0 ? nullptr : ids.data();
    view.neighbors = neighbors.size() == 0 ? nullptr : neighbors.data();
    if (view.block > 0) {
      view.maxima = maxima.data();
      view.scales = scales.data();
    }
    return view;
  }

  // What a forger does who knows the format.
  void correct_checksums() {
    for (size_t t = 0; t < terms.size(); ++t) {
      checksums[t] = checksum_of_term(view(), static_cast<int64_t>(t));
    }
  }

  IndexView sizes{};
  Exact<int32_t> terms;
  Exact<uint64_t> offsets;
  Exact<uint32_t> checksums;
  Exact<uint8_t> postings;
  Exact<int64_t> ids;  // none: the document numbers
  Exact<uint8_t> maxima;
  Exact<float> scales;
  Exact<uint32_t> neighbors;  // none, or [n_docs, kNeighbors]
};

// The documents of an index, as it returns them.
struct Documents {
  explicit Documents(const Index& index)
      : starts(index.view().n_docs + 1),
        latents(index.view().n_postings()),
        values(latents.size()) {
    index.rows(starts.data(), latents.data(), values.data());
  }

  Exact<int64_t> starts;
  Exact<int32_t> latents;
  Exact<float> values;
};

struct Answer {
  float score;
  int64_t id;

  bool operator==(const Answer& other) const { return score == other.score && id == other.id; }
};

// The best `top_k` documents, by scoring every document.
inline std::vector<Answer> plain_search(const IndexView& view, const Documents& docs,
                                        std::vector<QueryEntry> query, int64_t top_k,
                                        bool normalize, const uint64_t* allowed) {
  const auto put_in_order = [&] {
    std::sort(query.begin(), query.end(), [](const QueryEntry& a, const QueryEntry& b) {
      return a.value > b.value || (a.value == b.value && a.latent < b.latent);
    });
  };
  put_in_order();
  if (normalize) {
    double square = 0;
    for (const QueryEntry& e : query) square += static_cast<double>(e.value) * e.value;
    const double scale = square > 0 ? 1 / std::sqrt(square) : 0;
    for (QueryEntry& e : query) e.value = static_cast<float>(e.value * scale);
    put_in_order();
  }
  std::vector<Answer> answers;
  for (int64_t doc = 0; doc < view.n_docs; ++doc) {
    if (allowed != nullptr && (allowed[doc / 64] >> doc % 64 & 1) == 0) continue;
    float score = 0;
    for (const QueryEntry& entry : query) {
      for (int64_t i = docs.starts[doc]; i < docs.starts[doc + 1]; ++i) {
        if (docs.latents[i] == entry.latent) score += docs.values[i] * entry.value;
      }
    }
    score = std::min(score, most_score(normalize));
    if (score > 0) answers.push_back({score, view.ids == nullptr ? doc : view.ids[doc]});
  }
  std::sort(answers.begin(), answers.end(), [](const Answer& a, const Answer& b) {
    return a.score > b.score || (a.score == b.score && a.id < b.id);
  });
  answers.resize(top_k, {-std::numeric_limits<float>::infinity(), -1});
  return answers;
}

}  // namespace csrkern
