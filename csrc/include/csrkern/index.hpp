// Exact maximum-inner-product search over sparse codes, by inverted lists cut into windows.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <mutex>
#include <vector>

#include "csrkern/index_values.hpp"

namespace csrkern {

// n sparse rows over `dim` latents. Row i owns the entries [i * width, (i + 1) * width) or, if
// `starts` [n + 1] is given, [starts[i], starts[i + 1]). An entry of value 0 is an empty slot.
struct SparseRows {
  int64_t n;
  int32_t dim;
  int64_t width;
  const int64_t* starts;
  const float* values;
  const int32_t* indices;
  const int64_t* order = nullptr;  // [n]: row i is the order[i]-th; null: as they stand
};

// The arrays of an index, wherever they live. A term is a latent that some document uses. A
// segment is the postings of one term in one window of documents: its local document numbers
// (uint16, ascending), then its values, in one piece. An index of
// clustered documents also knows the largest value of each term in each block of documents.
struct IndexView {
  int64_t n_docs;
  int32_t dim;
  int32_t window;  // documents a window, at most 65,536
  int64_t n_windows;
  int64_t n_terms;
  ValueType type;
  const int32_t* terms;       // [n_terms] latents, ascending
  const uint64_t* offsets;    // [n_terms * n_windows + 1] postings before each segment
  const uint8_t* postings;    // [offsets.back() * posting_bytes(type)]
  const uint32_t* checksums;  // [n_terms] CRC-32C of each term's postings
  const int64_t* ids;         // [n_docs], or null: the row number is the id

  int32_t block = 0;                // documents a block, a divisor of window; 0: no maxima
  const uint8_t* maxima = nullptr;  // [n_terms, block_pitch()], times scales: at least the value
  const float* scales = nullptr;    // [n_terms]

  const float* norms = nullptr;  // [n_docs], or null: what dense scores are divided by

  int32_t exponent = 0;  // uint8 and uint16 values are at most 2^exponent

  int64_t n_blocks() const { return block == 0 ? 0 : (n_docs + block - 1) / block; }
  int64_t block_pitch() const { return (n_blocks() + 63) / 64 * 64; }
  const uint8_t* maxima_of(int64_t term) const { return maxima + term * block_pitch(); }

  const uint8_t* segment(uint64_t offset) const { return postings + offset * posting_bytes(type); }
  float unit() const { return unit_of(type, exponent); }
};

// Whether a file may claim that many documents: each has a posting or an id, but for a million, so
// that what it makes us allocate is in proportion to its size.
inline bool plausible_documents(int64_t n_docs, uint64_t n_postings, bool with_ids) {
  constexpr int64_t kMostUnseen = 1 << 20;
  return with_ids || n_docs <= kMostUnseen ||
         static_cast<uint64_t>(n_docs - kMostUnseen) <= n_postings;
}

// Page-aligned memory that asks for huge pages, uninitialised.
class Buffer {
 public:
  explicit Buffer(size_t bytes = 0);
  Buffer(Buffer&& other) noexcept : data_(other.data_), bytes_(other.bytes_) {
    other.data_ = nullptr;
    other.bytes_ = 0;
  }
  Buffer& operator=(Buffer&& other) noexcept;
  Buffer(const Buffer&) = delete;
  ~Buffer();

  uint8_t* data() const { return static_cast<uint8_t*>(data_); }
  size_t bytes() const { return bytes_; }

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

struct BuiltIndex {
  std::vector<int32_t> terms;
  std::vector<uint64_t> offsets;
  std::vector<uint32_t> checksums;
  Buffer postings;
  Buffer maxima;
  std::vector<float> scales;
};

// Inverts `docs`, with rows at L2 norm 1 if `normalize`. Values are rounded to `type`, to a
// positive number wherever they are positive. Throws std::invalid_argument if an entry is out of
// range, negative, not finite, too large for `type` (and `exponent`) or given twice in its row.
// With `block` > 0, maxima of blocks of that many documents are found too.
BuiltIndex build_index(const SparseRows& docs, int32_t window, int32_t block, ValueType type,
                       bool normalize, int num_threads, int32_t exponent = 0);

// An order of the rows [n] in which similar rows stand together: each goes to the most similar
// of a sample of the rows. Empty if the mean cosine of some rows with that one is less than
// `least_similarity`. The same for any number of threads.
std::vector<int64_t> cluster_order(const SparseRows& docs, double least_similarity,
                                   int num_threads);

// The CRC-32C of all that an index holds about one term.
uint32_t checksum_of_term(const IndexView& view, int64_t term);

// From latent to term: a table where the latents are few enough, else a binary search.
class TermFinder {
 public:
  TermFinder() = default;
  TermFinder(const int32_t* terms, int64_t n_terms, int32_t dim);

  // The term of a latent in 0..dim-1, or -1.
  int64_t find(int32_t latent) const {
    if (!table_.empty()) return table_[latent];
    return search(latent);
  }

 private:
  int64_t search(int32_t latent) const;

  const int32_t* terms_ = nullptr;
  int64_t n_terms_ = 0;
  std::vector<int32_t> table_;
};

struct SearchCost {
  int64_t terms = 0;            // entries of the query whose latent some document uses
  int64_t postings = 0;         // in their lists altogether
  int64_t blocks_scored = 0;    // one by one
  int64_t windows_scanned = 0;  // from end to end
};

class Directory;
class Forward;

struct OwnedRows {
  std::vector<int64_t> starts;
  std::vector<int32_t> latents;
  std::vector<float> values;
};

// A searchable index over arrays that outlive it. All methods are safe from any thread.
class Index {
 public:
  // Checks everything but the postings, in time proportional to the offsets. Postings that
  // are not `trusted` (they come from a file) are checked list by list before first use.
  // Throws std::invalid_argument naming what is wrong.
  Index(const IndexView& view, bool trusted);
  ~Index();

  // csrkern::search for an index that is alone, with `allowed` [n_docs, in words of 64].
  void search(const SparseRows& queries, int64_t topk, bool normalize, const uint64_t* allowed,
              int num_threads, float* scores, int64_t* ids) const;

  // What the search for the i-th of the queries reads.
  SearchCost explain(const SparseRows& queries, int64_t i, int64_t topk, bool normalize) const;

  // How many times as fast as scans of all windows searches for these queries should be,
  // thanks to the maxima of blocks.
  double gain_of_blocks(const SparseRows& queries, bool normalize) const;

  // Checks all postings now. Throws std::invalid_argument naming the first damaged list.
  void verify(int num_threads) const;

  // The stored codes as rows: starts [n_docs + 1], and for each document its latents,
  // ascending, and their values [offsets.back()].
  void rows(int64_t* starts, int32_t* latents, float* values) const;

  // The same for chosen documents, by the forward copy.
  OwnedRows rows_of(const int64_t* docs, int64_t n) const;

  // The term of a latent, its list checked, or -1 if no document uses it.
  int64_t checked_term(int32_t latent) const;

  // The stored value of a latent in a document, 0 if it has none.
  float value(int64_t doc, int32_t latent) const;

  // The codes by document, for scoring chosen documents; made when first asked for.
  const Forward& forward(int num_threads) const;
  // What searches have made in memory beside the index: the copy, and where blocks' postings are.
  int64_t forward_bytes() const;

  const IndexView& view() const { return view_; }
  bool ids_ascend() const { return ids_ascend_; }

 private:
  friend class SegmentSearch;

  void verify_term(int64_t term) const;
  // The forward copy, if it is there or past searches have lost as much time for want of it as
  // making it takes; else null, and the loss is noted.
  const Forward* forward_if_worth(int64_t ns_lost) const;
  // The same of where the postings of blocks are; an index just built has it from the start.
  const Directory* directory_if_worth() const;
  void note_blocks(int64_t ns_lost) const { ns_lost_in_blocks_ += ns_lost; }

  IndexView view_;
  bool ids_ascend_ = true;
  TermFinder finder_;
  std::unique_ptr<std::atomic<uint8_t>[]> verified_;  // [n_terms], null: all trusted
  mutable std::mutex making_forward_;
  mutable std::atomic<const Forward*> forward_{nullptr};
  // Time that searches would have saved, had there been a forward copy.
  mutable std::atomic<int64_t> ns_lost_{0};
  mutable std::mutex making_directory_;
  mutable std::atomic<const Directory*> directory_{nullptr};
  mutable std::atomic<int64_t> ns_lost_in_blocks_{0};
};

// One of the indexes that are searched as one. Only documents whose bits are set are found.
struct Segment {
  const Index* index;
  const uint64_t* allowed = nullptr;  // [n_docs, in words of 64] or [queries, the same]; null: all
  int64_t allowed_stride = 0;         // words from one query's bits to the next; 0: one for all
};

struct SearchOptions {
  int64_t topk = 10;
  bool normalize = false;                                     // queries at L2 norm 1: cosines
  int64_t query_k = std::numeric_limits<int64_t>::max();      // strongest entries that count
  float min_score = -std::numeric_limits<float>::infinity();  // of what is found
  int num_threads = 1;
  // With a shortlist, the best that many documents are scored again and sorted by that score.
  int64_t shortlist = 0;
  double kept = 1;                 // share of a query's squared norm that makes its shortlist
  double bound_share = 1;          // of a block's bound that is believed; 1: nothing is missed
  const float* dense = nullptr;    // [queries, dim] score by these, or null: by the whole query
  const float* offsets = nullptr;  // [queries] added to dense scores, or null
};

// The best `topk` documents of each query: scores [n, topk] and ids [n, topk], best first,
// equal scores by lower id, documents of score 0 left out, missing places (-inf, -1). A
// score is summed in float32 over the query's entries by value descending, then by latent, and a
// cosine of more than 1 is 1; a dense score over the document's latents, ascending, plus offset,
// divided by its norm.
void search(const std::vector<Segment>& segments, const SparseRows& queries,
            const SearchOptions& options, float* scores, int64_t* ids);

// What a query should take on one thread, by what a search for it reads: the mean, in nanoseconds.
double expected_ns(const std::vector<Segment>& segments, const SparseRows& queries,
                   const SearchOptions& options);

struct Ragged {
  std::vector<int64_t> starts;  // [queries + 1]
  std::vector<float> scores;    // [starts.back()]
  std::vector<int64_t> ids;
};

// The same without a limit on how many are found; `topk` and `shortlist` do not count.
Ragged search_all(const std::vector<Segment>& segments, const SparseRows& queries,
                  const SearchOptions& options);

// CRC-32C (Castagnoli) of `bytes` bytes.
uint32_t crc32c(const void* data, size_t bytes);

}  // namespace csrkern
