// Exact maximum-inner-product search over sparse codes, by inverted lists cut into windows.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace csrkern {

enum class ValueType : int32_t { float16, float32 };

// A local document number (uint16) and a value.
inline int64_t posting_bytes(ValueType type) { return type == ValueType::float16 ? 4 : 6; }

// n sparse rows over `dim` latents. Row i owns the entries [i * width, (i + 1) * width) or, if
// `starts` [n + 1] is given, [starts[i], starts[i + 1]). An entry of value 0 is an empty slot.
struct SparseRows {
  int64_t n;
  int32_t dim;
  int64_t width;
  const int64_t* starts;
  const float* values;
  const int32_t* indices;
};

// The arrays of an index, wherever they live. A term is a latent that some document uses. A
// segment is the postings of one term in one window of documents: its local document numbers
// (uint16, ascending), then its values, in one piece.
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

  const uint8_t* segment(uint64_t offset) const { return postings + offset * posting_bytes(type); }
};

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
};

// Inverts `docs`, with rows at L2 norm 1 if `normalize`. Values are rounded to `type`; those
// that become 0 are left out. Throws std::invalid_argument if an entry is out of range,
// negative, not finite, too large for `type` or given twice in its row.
BuiltIndex build_index(const SparseRows& docs, int32_t window, ValueType type, bool normalize,
                       int num_threads);

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

// A searchable index over arrays that outlive it. All methods are safe from any thread.
class Index {
 public:
  // Checks everything but the postings, in time proportional to the offsets. Postings that
  // are not `trusted` (they come from a file) are checked list by list before first use.
  // Throws std::invalid_argument naming what is wrong.
  Index(const IndexView& view, bool trusted);

  // The best `topk` documents of each query: scores [n, topk] and ids [n, topk], best first,
  // equal scores by lower id, documents of score 0 left out, missing places (-inf, -1). A
  // score is summed in float32 over the query's entries by value descending, then by latent.
  void search(const SparseRows& queries, int64_t topk, bool normalize, int num_threads,
              float* scores, int64_t* ids) const;

  // Checks all postings now. Throws std::invalid_argument naming the first damaged list.
  void verify(int num_threads) const;

  // The stored codes as rows: starts [n_docs + 1], and for each document its latents,
  // ascending, and their values [offsets.back()].
  void rows(int64_t* starts, int32_t* latents, float* values) const;

  const IndexView& view() const { return view_; }

 private:
  friend class QuerySearch;

  void verify_term(int64_t term) const;

  IndexView view_;
  bool ids_ascend_ = true;
  TermFinder finder_;
  std::unique_ptr<std::atomic<uint8_t>[]> verified_;  // [n_terms], null: all trusted
};

// CRC-32C (Castagnoli) of `bytes` bytes.
uint32_t crc32c(const void* data, size_t bytes);

}  // namespace csrkern
