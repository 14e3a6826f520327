// The search of one index for many queries at once.
#pragma once

#include <cstdint>
#include <vector>

#include "index/rounded.hpp"
#include "index/scan.hpp"

namespace csrkern {

struct BatchQuery {
  std::vector<QueryTerm> terms;  // by descending weight
  TopHits* best;
};

// A scan of lists takes time for each posting of the query's terms, of which there are
// (entries of a query) * (entries of a document) / (latents) for each document. Here a document
// takes time for each of its entries, whatever the query, and serves kBatch queries in that time.
//
// The weights of a query are rounded to whole numbers, as the values of the rows are. With a, b the
// numbers of a row and of a query, and α, β their errors, the score at these scales is
//     (a + α)·(b + β) = a·b + α·b + (a + α)·β,
// which differs from the sum a·b by at most |α| |b| + |a + α| |β|. Documents whose sum is within
// this distance of a score that k others reach are scored as elsewhere; nothing else depends on the
// rounding. Sums have 16 bits and stay at the largest number where they would exceed it: such a
// document reaches every bar.
class BatchSearch {
 public:
  // Documents are numbered from `first_doc`. `allowed` [n_docs, in words of 64], or null.
  BatchSearch(const Index& index, const RoundedRows& rounded, const uint64_t* allowed,
              int64_t first_doc)
      : index_(index), rounded_(rounded), allowed_(allowed), first_doc_(first_doc) {}

  // Adds the hits of at most kBatch queries to their `best`. Returns for how many of them the lists
  // were scanned after all: so many documents were within the distance.
  int64_t run(const std::vector<BatchQuery>& queries, Scratch& s) const;

 private:
  const Index& index_;
  const RoundedRows& rounded_;
  const uint64_t* allowed_;
  int64_t first_doc_;
};

// Returns whether an index can be searched like this: documents in no clusters, and most of them
// `allowed`.
bool fits_batches(const IndexView& view, const uint64_t* allowed, int64_t top_k);

// Returns the expected time that a batch of `n_queries` like those of a sample saves, which is
// negative if it loses. `rounded` may be null.
double ns_saved_by_batch(const IndexView& view, const RoundedRows* rounded,
                         const std::vector<BatchQuery>& sample, int64_t n_queries);

// Returns the expected time of a query in a full batch, the same on all processors.
double expected_ns_in_batch(const IndexView& view);

}  // namespace csrkern
