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
};

// Scores the best of the index's sample, by the entries that make up a share `kept` of the query's
// squared norm; then again and again the neighbors of the best document whose neighbors have not
// been scored, until those of the best `width` have. Adds the best of these to `best`: as many as
// it holds, of those that are `allowed` [n_docs, in words of 64] or, if null, of all; numbers begin
// at `first_doc`. `entries`: of the query, by descending value, at most RowScorer::kMostTerms. The
// index has neighbors.
WalkCost walk(const Index& index, const std::vector<Entry>& entries, double kept, int64_t width,
              const uint64_t* allowed, int64_t first_doc, TopHits& best, Scratch& s);

}  // namespace csrkern
