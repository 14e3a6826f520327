// A fast search that goes from document to document, by edges between those that are alike.
#pragma once

#include <cstdint>
#include <vector>

#include "csrkern/index_rows.hpp"
#include "index/scan.hpp"

namespace csrkern {

// What a walk reads.
struct WalkCost {
  double ns_of_sample = 0;  // expected, to search the sample
  int64_t documents = 0;    // scored
  bool found = false;       // as many documents as were wanted
};

// Hits of a walk, of which fewer are the first; those that tell whether a query is like others.
constexpr int64_t kLeastFound = 10;

struct WalkOptions {
  double kept;              // share of the query's squared norm that the sample is searched by
  int64_t width;            // documents whose neighbors are scored, at the end
  int64_t most;             // documents that are remembered, at least `width`
  const uint64_t* allowed;  // [n_docs, in words of 64], or null: all
};

// Scores the best of the index's sample, then again and again the neighbors of the best document
// whose neighbors have not been scored, until those of the best `width` have. Adds the best that
// are allowed to `best`, as many as it holds; numbers begin at `first_doc`. Adds nothing if there
// are fewer, or too few ways in. `entries`: of the query, by descending value, at
// most RowScorer::kMostTerms. The index has neighbors.
WalkCost walk(const Index& index, const std::vector<Entry>& entries, const WalkOptions& options,
              int64_t first_doc, TopHits& best, Scratch& s);

}  // namespace csrkern
