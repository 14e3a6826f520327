// Exact maximum-inner-product search over sparse codes, by inverted lists cut into windows.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "csrkern/index_groups.hpp"
#include "csrkern/index_values.hpp"
#include "csrkern/made_once.hpp"

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
  bool is_signed = false;          // values may be negative, as for similarity_top_k
};

constexpr int64_t kNeighbors = 32;

// The arrays of an index, in memory or in a mapped file. A term is a latent that some document
// uses. A posting-list slice holds the postings of one term in one window of documents: first the
// local document numbers (uint16, ascending), then the values, contiguous; in uint4 as
// index_groups.hpp says. An index of clustered documents also stores the largest value of each term
// in each block of documents.
struct IndexView {
  int64_t n_docs;
  int32_t dim;
  int32_t window;  // documents a window, at most 65,536
  int64_t n_windows;
  int64_t n_terms;
  ValueType type;
  const int32_t* terms;       // [n_terms] latents, ascending
  const uint64_t* offsets;    // [n_terms * n_windows + 1] postings, or words, before each slice
  const uint8_t* postings;    // [offsets.back() * posting_bytes(type)]
  const uint32_t* checksums;  // [n_terms] CRC-32C of each term's postings
  const int64_t* ids;         // [n_docs], or null: the row number is the id

  int32_t block = 0;                // documents a block, a divisor of window; 0: no maxima
  const uint8_t* maxima = nullptr;  // [n_terms, block_pitch()], times scales: at least the value
  const float* scales = nullptr;    // [n_terms]

  const float* norms = nullptr;  // [n_docs], or null: what dense scores are divided by

  int64_t fine_bytes = 0;         // of a fine code; 0: there are none
  const uint8_t* fine = nullptr;  // [n_docs, fine_bytes]

  int32_t exponent = 0;  // squares are at most 2^exponent

  // [n_docs, kNeighbors] documents that are like each one, n_docs or more for none; or null.
  const uint32_t* neighbors = nullptr;

  int64_t n_blocks() const { return block == 0 ? 0 : (n_docs + block - 1) / block; }
  int64_t block_pitch() const { return (n_blocks() + 63) / 64 * 64; }
  const uint8_t* maxima_of(int64_t term) const { return maxima + term * block_pitch(); }

  const uint32_t* neighbors_of(int64_t doc) const { return neighbors + doc * kNeighbors; }
  const uint8_t* slice(uint64_t offset) const { return postings + offset * posting_bytes(type); }
  float unit() const { return unit_of(type, exponent); }

  // The postings of the slice from *offset on.
  uint64_t n_in_slice(const uint64_t* offset) const {
    const uint64_t n = offset[1] - offset[0];
    return is_grouped(type) ? postings_of_words(n) : n;
  }
  // The postings of a list, from its first slice on.
  uint64_t n_in_list(const uint64_t* offsets_of_term) const {
    if (!is_grouped(type)) return offsets_of_term[n_windows] - offsets_of_term[0];
    uint64_t n = 0;
    for (int64_t w = 0; w < n_windows; ++w) n += n_in_slice(offsets_of_term + w);
    return n;
  }
  uint64_t n_postings() const {
    if (!is_grouped(type)) return offsets[n_terms * n_windows];
    uint64_t n = 0;
    for (int64_t t = 0; t < n_terms; ++t) n += n_in_list(offsets + t * n_windows);
    return n;
  }
};

// Returns whether a file may claim that many documents. All but a million need a posting, or an
// array with a row for each document, so that a small file cannot make us allocate much.
inline bool plausible_documents(int64_t n_docs, uint64_t n_postings, bool with_rows) {
  constexpr int64_t kMostUnseen = 1 << 20;
  return with_rows || n_docs <= kMostUnseen ||
         static_cast<uint64_t>(n_docs - kMostUnseen) <= n_postings;
}

// Page-aligned, uninitialized memory in huge pages where the system grants them.
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

// Inverts `docs`, after L2 normalization if `normalize`. Rounds values to `type`; positive values
// stay positive. Throws std::invalid_argument if an entry is out of range, negative, not finite,
// too large for `type` (and `exponent`) or repeated in its row. With `block` > 0, also finds the
// maxima of blocks of that many documents.
BuiltIndex build_index(const SparseRows& docs, int32_t window, int32_t block, ValueType type,
                       bool normalize, int num_threads, int32_t exponent = 0);

// Returns an order of the rows [n] that puts similar rows next to each other: each row goes to the
// most similar of a sample of rows. Returns an empty order if the mean cosine of some rows with
// that row is below `least_similarity`. The result does not depend on the number of threads.
std::vector<int64_t> cluster_order(const SparseRows& docs, double least_similarity,
                                   int num_threads);

// Returns the CRC-32C of everything that an index stores about one term.
uint32_t checksum_of_term(const IndexView& view, int64_t term);

// Maps latents to terms: by a table if there are few enough latents, else by binary search.
class TermFinder {
 public:
  TermFinder() = default;
  TermFinder(const int32_t* terms, int64_t n_terms, int32_t dim);

  // Returns the term of a latent in 0..dim-1, or -1.
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
  int64_t postings = 0;         // in all of their lists
  int64_t blocks_scored = 0;    // individually
  int64_t windows_scanned = 0;  // completely
};

struct Costs;
class DenseLists;
class Directory;
class FineCells;
class ForwardIndex;
class RoundedRows;
class Sample;
class StrongLists;

struct OwnedRows {
  std::vector<int64_t> starts;
  std::vector<int32_t> latents;
  std::vector<float> values;
};

// A searchable index over arrays that outlive it. Any thread may call any method.
class Index {
 public:
  // Checks everything but the postings, in time proportional to the offsets. If the postings are
  // not `trusted` (they come from a file), each list is checked before its first use.
  // Throws std::invalid_argument that names the fault.
  Index(const IndexView& view, bool trusted);
  ~Index();

  // csrkern::search for this index only, with `allowed` [n_docs, in words of 64].
  void search(const SparseRows& queries, int64_t top_k, bool normalize, const uint64_t* allowed,
              int num_threads, float* scores, int64_t* ids) const;

  // Returns what the search for query i reads; `costs` as for SegmentSearch.
  SearchCost profile(const SparseRows& queries, int64_t i, int64_t top_k, bool normalize,
                     const Costs* costs = nullptr) const;

  // Returns the expected speedup of searches for these queries over scans of all windows, which
  // the maxima of blocks make possible.
  double gain_of_blocks(const SparseRows& queries, bool normalize) const;

  // Checks all postings now. Throws std::invalid_argument that names a damaged list.
  void verify(int num_threads) const;

  // Writes the stored codes as rows: starts [n_docs + 1], and the latents of each document,
  // ascending, with their values [offsets.back()].
  void rows(int64_t* starts, int32_t* latents, float* values) const;

  // Returns the same for chosen documents: from the lists if they are few, else from the forward
  // index.
  OwnedRows rows_of(const int64_t* docs, int64_t n) const;

  // Returns the term of a latent and checks its list, or returns -1 if no document uses it.
  int64_t checked_term(int32_t latent) const;

  // Returns the stored value of a latent in a document, 0 if it has none.
  float value(int64_t doc, int32_t latent) const;

  // Returns the forward index: the codes by document, for scoring chosen documents. The first call
  // builds it.
  const ForwardIndex& forward(int num_threads) const;
  // Returns the directory of blocks, made now if need be; of a clustered index.
  const Directory& directory() const;
  // Returns the rows for batches of queries if they exist, or if searches have lost as much time
  // without them as building them takes. Otherwise notes the loss and returns null.
  const RoundedRows* rounded_if_worth(int64_t ns_lost, int num_threads) const;
  const RoundedRows* rounded() const { return rounded_.get(); }
  // The same for the lists of many postings, of which searches use the ones they need.
  const DenseLists* dense_if_worth(double ns_lost) const;
  int64_t dense_bytes() const;
  // Returns an index of the strongest postings of each list, see strong_lists.hpp; of lists in
  // groups this one. The first call builds it.
  const Index& strong(int num_threads) const;
  // Returns the documents by the first word of their fine codes, made now if need be; of an index
  // with fine codes.
  const FineCells& cells() const;
  // Returns some documents from which walks begin, see sample.hpp; made now if need be.
  const Sample& sample(int num_threads) const;
  // Bytes of the forward index, its rounded values, the directory of blocks, the strongest
  // postings, the cells and the sample, where they have been built.
  int64_t forward_bytes() const;

  const IndexView& view() const { return view_; }
  bool ids_ascend() const { return ids_ascend_; }

 private:
  friend class SegmentSearch;

  void verify_term(int64_t term) const;
  // Returns the forward index if it exists, or if past searches have lost as much time without it
  // as building it takes. Otherwise notes the loss and returns null.
  const ForwardIndex* forward_if_worth(int64_t ns_lost) const;
  // The same for the directory of blocks; an index that was just built has one from the start.
  const Directory* directory_if_worth() const;
  void note_blocks(int64_t ns_lost) const { directory_.lose(ns_lost); }

  IndexView view_;
  bool ids_ascend_ = true;
  TermFinder finder_;
  std::unique_ptr<std::atomic<uint8_t>[]> verified_;  // [n_terms], null: all trusted
  MadeOnce<ForwardIndex> forward_;
  MadeOnce<RoundedRows> rounded_;  // points into forward_
  MadeOnce<DenseLists> dense_;
  MadeOnce<Directory> directory_;
  MadeOnce<StrongLists> strong_;
  MadeOnce<FineCells> cells_;
  MadeOnce<Sample> sample_;
};

// One of the indexes that are searched together. Only documents whose bits are set are found.
struct Segment {
  const Index* index;
  const uint64_t* allowed = nullptr;  // [n_docs, in words of 64] or [queries, the same]; null: all
  int64_t allowed_stride = 0;         // words from one query's bits to the next; 0: one for all
};

struct SearchOptions {
  int64_t top_k = 10;
  bool normalize = false;                                     // L2-normalize queries: cosines
  int64_t query_k = std::numeric_limits<int64_t>::max();      // strongest entries that count
  float min_score = -std::numeric_limits<float>::infinity();  // of hits
  int num_threads = 1;
  // If > 0, this many of the best documents are scored again and sorted by the new score.
  int64_t shortlist = 0;
  double kept = 1;         // share of a query's squared norm that finds the shortlist, or a way in
  double bound_share = 1;  // factor on the bounds of blocks; 1: no hit is missed
  bool strong = false;     // read the strongest postings of each list only
  // If > 0, documents whose neighbors are scored on a walk over indexes that have some, see
  // walk.hpp.
  int64_t width = 0;
  // Of the query's norm: a query whose tenth hit, found on a walk, scores less is searched exactly.
  double least = 0;
  // Queries of fewer or more entries are searched exactly, without the four above.
  int64_t fewest = 0, most = std::numeric_limits<int64_t>::max();
  const float* dense = nullptr;    // [queries, dim] new scores, or null: by the whole query
  const float* offsets = nullptr;  // [queries] added to dense and fine scores, or null
  // [queries, books, kWords]: new scores by the fine codes instead, or null.
  const float* tables = nullptr;
  int64_t books = 0;              // bytes of a fine code that choose words
  const float* scales = nullptr;  // [kWords] factors of scores, chosen by one byte more, or null
};

// Finds the best `top_k` documents of each query: scores [n, top_k] and ids [n, top_k], best first,
// ties by lower id. Documents of score 0 are left out; missing places hold (-inf, -1). A score is
// summed in float32 over the query's entries by value descending, then by latent; a cosine above 1
// becomes 1. A dense score is summed over the document's latents, ascending; then the offset is
// added and the sum divided by the document's norm. A fine score is summed over the bytes of the
// document's fine code; then the offset is added and the sum multiplied by its scale.
void search(const std::vector<Segment>& segments, const SparseRows& queries,
            const SearchOptions& options, float* scores, int64_t* ids);

// The same among `docs`, as if in an index of float32 values. Values of both may be negative; only
// scores above 0 are hits. No sum of products may overflow, unless all values are positive.
void similarity_top_k(SparseRows queries, SparseRows docs, int32_t window,
                      const SearchOptions& options, float* scores, int64_t* ids);

// Returns the expected mean time of a query on one thread in nanoseconds, from what it reads, once
// the index has made all that such searches are worth: alone or in a full batch, whichever is less.
double expected_ns(const std::vector<Segment>& segments, const SparseRows& queries,
                   const SearchOptions& options);

struct Ragged {
  std::vector<int64_t> starts;  // [queries + 1]
  std::vector<float> scores;    // [starts.back()]
  std::vector<int64_t> ids;
};

// Finds all documents of a score above 0; ignores `top_k`, `shortlist` and `width`.
Ragged search_all(const std::vector<Segment>& segments, const SparseRows& queries,
                  const SearchOptions& options);

// Returns the CRC-32C (Castagnoli) of `bytes` bytes.
uint32_t crc32c(const void* data, size_t bytes);

}  // namespace csrkern
