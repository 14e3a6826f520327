// The inverted index on a GPU: exact search with the same bits as csrkern::search.
//
// No CUDA header is needed to use it: a Stream is a cudaStream_t, device memory a plain pointer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "csrkern/index_values.hpp"

namespace csrkern::cuda {

using Stream = void*;

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct OutOfMemory : Error {
  using Error::Error;
};

enum class Number : int32_t { float32, float16, bfloat16 };

struct DeviceInfo {
  std::string name;
  int32_t processors;
  size_t shared_bytes;  // that a thread block may use
  size_t shared_total;  // of a processor
  size_t free_bytes;
  size_t total_bytes;
};

int count_devices() noexcept;  // 0 where there is no driver
int current_device();          // of this thread
DeviceInfo device_info(int device);

// n sparse rows in device memory: row i owns the entries [i * width, (i + 1) * width) or, if
// `starts` [n + 1] is given, [starts[i], starts[i + 1]). An entry of value 0 is an empty slot.
struct Rows {
  int64_t n;
  int64_t width;
  const int64_t* starts;
  Number type;
  const void* values;
  const int32_t* indices;
};

// Facts about n rows, in the same memory.
struct RowFacts {
  const int64_t* ids = nullptr;  // [n] ascending, or null: first_id and on
  int64_t first_id = 0;
  const float* norms = nullptr;  // [n], or null: what dense scores are divided by
};

struct IndexOptions {
  int32_t dim;
  ValueType type;            // how values are stored
  bool normalize = false;    // L2-normalize rows
  int32_t impact_bits = 16;  // of a value in the lists, 16 or 8
  uint32_t block = 14336;    // documents whose scores a thread block adds up, a multiple of 64
  int32_t exponent = 0;      // squares are at most 2^exponent; see index_values.hpp
};

// Bytes of device memory for codes with this many entries in total: what the index keeps, and what
// it needs while it is built (without the rows that it is built from).
struct MemoryNeed {
  size_t resident;
  size_t building;
};
MemoryNeed memory_need(int64_t n, int64_t entries, const IndexOptions& options, bool own_ids,
                       bool norms);

// For each kernel: the threads of a thread block and the bytes of shared memory that it needs.
struct KernelNeed {
  const char* kernel;
  int threads;
  size_t shared;
};
std::vector<KernelNeed> kernel_needs(uint32_t block, int64_t top_k);

constexpr int64_t kMostHits = 1024;      // that a search may ask for
constexpr int64_t kMostEntries = 16384;  // slots of a query

// How documents are scored: by walking their postings, or by gathering the entries of all documents
// (for queries with long lists). In each block of documents the cheaper way, or always one.
enum class Way : int32_t { cheaper, walk, gather };

struct SearchRequest {
  Rows queries;  // without starts
  int64_t top_k;
  bool normalize = false;
  int64_t query_k = kMostEntries;      // strongest entries that count
  float min_score = 0;                 // of hits
  const uint8_t* allowed = nullptr;    // [n_docs] or [queries, n_docs], not 0: may be found
  int64_t allowed_stride = 0;          // from one query's bytes to the next; 0: one for all
  float* scores = nullptr;             // [queries, top_k], out
  int64_t* ids = nullptr;              // [queries, top_k], out
  unsigned char* workspace = nullptr;  // of workspace_bytes()
  size_t workspace_bytes = 0;
  Way way = Way::cheaper;
  bool count_work = false;  // see Work
  // Hits are also scored by dense queries, as csrkern::search scores a shortlist.
  const float* dense = nullptr;    // [queries, dim], or null
  const float* offsets = nullptr;  // [queries] added to these scores, or null
  float* dense_scores = nullptr;   // [queries, top_k], out, in the order of `scores`
};

// The work of searches with `count_work`: (query, block) pairs by walk and by gather, and the
// postings and entries that these read.
struct Work {
  uint64_t walks, gathers, postings, entries;
};

class Index {
 public:
  // Builds from rows in memory of `device`, by ascending id; waits for the stream. Copies the
  // facts. Throws std::invalid_argument if a row is not valid, and OutOfMemory, with the numbers,
  // if the index does not fit.
  Index(int device, const Rows& rows, const RowFacts& facts, const IndexOptions& options,
        Stream stream);
  ~Index();

  // Builds from rows and facts in host memory, which are copied to the device meanwhile.
  static std::unique_ptr<Index> from_host(int device, const Rows& rows, const RowFacts& facts,
                                          const IndexOptions& options);

  // Finds the best `top_k` documents of each query, as csrkern::search does. Everything is in
  // device memory; launches kernels and waits for nothing. Invalid entries (latents out of range,
  // values that are negative, infinite or NaN) are skipped: checking them would synchronize with
  // the device. A repeated latent counts twice.
  void search(const SearchRequest& request, Stream stream) const;

  size_t workspace_bytes(int64_t n_queries, int64_t width, int64_t top_k) const;

  // The same with everything in host memory; the index has its own workspace.
  void search_from_host(SearchRequest request) const;

  // Times searches for some of the documents both ways and sets gather_cost().
  void calibrate();

  Work take_work(Stream stream) const;  // since the last call; waits

  int device() const;
  int64_t n_docs() const;
  int64_t entries() const;
  int64_t row_width() const;  // the most entries of a document
  size_t bytes() const;       // of device memory that it holds
  const IndexOptions& options() const;

  // Returns the cost of an entry in a gather, in postings of a walk.
  float gather_cost() const;

 private:
  struct Arrays;
  std::unique_ptr<Arrays> arrays_;
};

}  // namespace csrkern::cuda
