// The forward index: codes by document, for scores of chosen documents.
#pragma once

#include <cstdint>
#include <vector>

#include "csrkern/index.hpp"
#include "isa/kernels.hpp"

namespace csrkern {

// A row holds the terms of a document, ascending, then their values, contiguous.
class ForwardIndex {
 public:
  // The lists of the index must have been checked.
  ForwardIndex(const IndexView& view, int num_threads);

  struct Row {
    const uint8_t* terms;   // uint16 where these suffice, else uint32
    const uint8_t* values;  // as in the lists
    int64_t n;
  };

  Row row(int64_t doc) const {
    const uint64_t begin = starts_[doc];
    const int64_t n = static_cast<int64_t>(starts_[doc + 1] - begin);
    const uint8_t* terms = entries_.data() + begin * (term_bytes_ + value_bytes_);
    return {terms, terms + n * term_bytes_, n};
  }

  void prefetch(int64_t doc) const;
  bool short_terms() const { return term_bytes_ == 2; }
  // Converts the values of a row to float32.
  void read(const Row& row, float* values) const {
    kernels().index.of[static_cast<int>(type_)].read(row.values, row.n, unit_, values);
  }
  int64_t longest() const { return longest_; }
  int64_t n_terms() const { return n_terms_; }
  int64_t n_entries() const { return static_cast<int64_t>(starts_.back()); }
  int64_t first_entry(int64_t doc) const { return static_cast<int64_t>(starts_[doc]); }
  // The rows with other numbers for values; only with short terms.
  ByteRows byte_rows(const uint8_t* numbers) const {
    return {starts_.data(), entries_.data(), term_bytes_ + value_bytes_, numbers};
  }
  int64_t bytes() const { return static_cast<int64_t>(entries_.bytes() + starts_.size() * 8); }

 private:
  ValueType type_;
  float unit_;
  int64_t n_terms_, longest_ = 0, term_bytes_, value_bytes_;
  std::vector<uint64_t> starts_;  // [n_docs + 1] entries before each row
  Buffer entries_;
};

// Memory for the scorers below; `ranks` and `query` are all zero between uses.
struct RowScratch {
  std::vector<uint16_t> ranks;
  std::vector<float> weights, products, values, query;
  std::vector<uint64_t> met;
};

// Scores documents as a scan does: adds products in the order of the query's terms.
class RowScorer {
 public:
  static constexpr size_t kMostTerms = 65'535;

  RowScorer(const ForwardIndex& forward, const std::vector<QueryTerm>& terms, RowScratch& s);
  ~RowScorer();
  float score(int64_t doc) const;

 private:
  template <class Term>
  float add_up(const ForwardIndex::Row& row, const float* values) const;

  const ForwardIndex& forward_;
  const std::vector<QueryTerm>& terms_;
  RowScratch& s_;
};

// Scores documents in the order of their own terms, in kLanes sums: in a quarter of the time, and
// off by the rounding of sums.
class NearScorer {
 public:
  NearScorer(const ForwardIndex& forward, const std::vector<QueryTerm>& terms, RowScratch& s);
  ~NearScorer();
  float score(int64_t doc) const;

 private:
  static constexpr int64_t kLanes = 8;

  template <class Term>
  float add_up(const ForwardIndex::Row& row) const;

  const ForwardIndex& forward_;
  const std::vector<QueryTerm>& terms_;
  RowScratch& s_;
};

// Returns the sum over a document's entries, by ascending latent, of dense[latent] times value.
float dense_score(const ForwardIndex& forward, const int32_t* latents, int64_t doc,
                  const float* dense, std::vector<float>& values);

// Appends the entries of a document.
void append_row(const ForwardIndex& forward, const int32_t* latents, int64_t doc, OwnedRows& rows);

}  // namespace csrkern
