// Searches: the order of launches, and the memory that they share.
#include <algorithm>
#include <chrono>
#include <cstring>
#include <limits>
#include <string>

#include "index_build.hpp"
#include "index_dense.hpp"
#include "index_query.hpp"
#include "index_search.hpp"
#include "index_state.hpp"

namespace csrkern::cuda {
namespace {

// Blocks of documents between two merges: their number doubles, up to this or as many as there is
// memory for the hits of few queries. A merge raises the bar to the top_k-th best so far, so that
// few more documents are scored.
constexpr uint32_t kRoundBlocks = 64;
constexpr size_t kFewQueriesBytes = size_t{16} << 20;
// Memory for queries and for hits between two merges; larger batches are divided.
constexpr size_t kBatchBytes = size_t{256} << 20;
constexpr uint32_t kMostQueries = 1 << 16;  // at once

// How a batch is divided.
struct BatchShape {
  uint32_t queries;       // at once
  uint32_t grid;          // thread blocks of a search
  uint32_t first_round;   // blocks of documents
  uint32_t round_blocks;  // in any round, at most
  size_t shared;
};

// Hands out aligned arrays of a workspace, or adds up what it must hold.
class Arena {
 public:
  explicit Arena(unsigned char* memory) : memory_(memory) {}

  template <class T>
  T* take(uint64_t count) {
    const size_t at = used_;
    used_ += (count * sizeof(T) + 255) / 256 * 256;
    return memory_ == nullptr ? nullptr : reinterpret_cast<T*>(memory_ + at);
  }
  size_t used() const { return used_; }

 private:
  unsigned char* memory_;
  size_t used_ = 0;
};

BatchShape shape_of(const DeviceInfo& info, const IndexArrays& index, int64_t n_queries,
                    uint32_t slots, uint32_t top_k) {
  BatchShape shape{};
  const size_t each = sizeof(uint64_t) * top_k * (1 + kRoundBlocks) +
                      slots * (2 * sizeof(Entry) + sizeof(uint32_t));
  const auto fit_memory = static_cast<int64_t>(kBatchBytes / each);
  shape.queries = static_cast<uint32_t>(
      std::max<int64_t>(1, std::min<int64_t>({n_queries, fit_memory, kMostQueries})));
  shape.shared = SearchBlocks<16>::shared_bytes(index.block, top_k);
  if (shape.shared > info.shared_bytes) {
    throw std::invalid_argument("blocks of " + std::to_string(index.block) + " documents need " +
                                std::to_string(shape.shared) + " bytes of shared memory, and " +
                                info.name + " has " + std::to_string(info.shared_bytes) +
                                "; build with a smaller block");
  }
  // The driver keeps 1 KiB per thread block; registers are for kPerProcessor.
  const auto fit = static_cast<uint32_t>(info.shared_total / (shape.shared + 1024));
  shape.grid =
      info.processors * std::max(1u, std::min<uint32_t>(fit, SearchBlocks<16>::kPerProcessor));
  shape.first_round = (shape.grid + shape.queries - 1) / shape.queries;
  const auto fit_hits =
      static_cast<uint32_t>(kFewQueriesBytes / (sizeof(uint64_t) * top_k * shape.queries));
  shape.round_blocks = std::max({shape.first_round, kRoundBlocks, fit_hits});
  return shape;
}

Batch batch_of(Arena& arena, const BatchShape& shape, uint32_t slots, uint32_t top_k,
               uint32_t n_blocks) {
  Batch batch{};
  batch.slots = slots;
  batch.top_k = top_k;
  batch.keys_pitch = top_k * (1 + std::min(shape.round_blocks, std::max(n_blocks, 1u)));
  const uint64_t queries = shape.queries, all = queries * slots;
  batch.unsorted = arena.take<Entry>(all);
  batch.entries = arena.take<Entry>(all);
  batch.weights = arena.take<uint32_t>(all);
  batch.facts = arena.take<QueryFacts>(queries);
  batch.bars = arena.take<uint32_t>(queries);
  batch.n_keys = arena.take<uint32_t>(queries);
  batch.keys = arena.take<uint64_t>(queries * batch.keys_pitch);
  return batch;
}

uint32_t lanes_for(int64_t entries, int64_t n) {
  uint32_t lanes = 1;
  while (lanes < 32 && lanes * n < entries) lanes *= 2;
  return lanes;
}

// These check the numbers of a search.
uint32_t check_top_k(int64_t top_k) {
  if (top_k < 1 || top_k > kMostHits) {
    throw std::invalid_argument("top_k: expected 1.." + std::to_string(kMostHits) +
                                " on a GPU, got " + std::to_string(top_k));
  }
  return static_cast<uint32_t>(top_k);
}

uint32_t check_width(int64_t width) {
  if (width < 0 || width > kMostEntries) {
    throw std::invalid_argument("queries: expected at most " + std::to_string(kMostEntries) +
                                " slots each on a GPU, got " + std::to_string(width));
  }
  return static_cast<uint32_t>(width);
}

template <int kBits>
void search_rounds(const IndexArrays& index, const Batch& batch, const BatchShape& shape,
                   size_t most_shared, SearchBlocks<kBits> search, MergeKeys merge, Stream stream) {
  allow_shared<SearchBlocks<kBits>>(most_shared);
  const size_t merge_shared = MergeKeys::shared_bytes(batch.top_k);
  float* const scores = merge.scores;
  uint32_t size = shape.first_round;
  search.first_block = 0;
  do {
    search.n_blocks = std::min(size, index.n_blocks - search.first_block);
    launch(search, std::min(shape.grid, batch.n_queries * search.n_blocks), shape.shared, stream);
    search.first_block += search.n_blocks;
    merge.scores = search.first_block == index.n_blocks ? scores : nullptr;
    launch(merge, batch.n_queries, merge_shared, stream);
    size = std::min(2 * size, shape.round_blocks);
  } while (search.first_block < index.n_blocks);
}

// Scratch memory from an index's pool, for as long as this lives.
class Borrowed {
 public:
  Borrowed(std::mutex& lending, std::vector<Scratch>& pool) : lending_(lending), pool_(pool) {
    const std::lock_guard<std::mutex> lock(lending_);
    if (pool_.empty()) return;
    own_ = std::move(pool_.back());
    pool_.pop_back();
  }
  ~Borrowed() {
    const std::lock_guard<std::mutex> lock(lending_);
    pool_.push_back(std::move(own_));
  }

  Stream stream() {
    if (own_.stream == nullptr) own_.stream = make_stream();
    return own_.stream;
  }
  unsigned char* memory(size_t bytes) {
    if (own_.memory.bytes() < bytes) {
      own_.memory = DeviceMemory();
      own_.memory = DeviceMemory(bytes, "a search");
    }
    return own_.memory.as<unsigned char>();
  }

 private:
  std::mutex& lending_;
  std::vector<Scratch>& pool_;
  Scratch own_;
};

}  // namespace

std::vector<KernelNeed> kernel_needs(uint32_t block, int64_t given) {
  const uint32_t top_k = check_top_k(given);
  const size_t scan = kScanThreads * sizeof(uint32_t);
  return {
      {"SearchBlocks<16>", SearchBlocks<16>::kThreads,
       SearchBlocks<16>::shared_bytes(block, top_k)},
      {"SearchBlocks<8>", SearchBlocks<8>::kThreads, SearchBlocks<8>::shared_bytes(block, top_k)},
      {"MergeKeys", MergeKeys::kThreads, MergeKeys::shared_bytes(top_k)},
      {"PrepareQueries", PrepareQueries::kThreads, sizeof(PrepareQueries::Shared)},
      {"ScoreDense", ScoreDense::kThreads, 0},
      {"MeasureRows", MeasureRows::kThreads, 0},
      {"PlaceRows", PlaceRows::kThreads, 0},
      {"CountPostings", CountPostings::kThreads, 0},
      {"PlacePostings", PlacePostings::kThreads, 0},
      {"SumTiles", SumTiles::kThreads, scan},
      {"ScanSums", ScanSums::kThreads, 0},
      {"ScanTiles", ScanTiles::kThreads, scan},
  };
}

size_t Index::workspace_bytes(int64_t n_queries, int64_t width, int64_t top_k) const {
  const IndexArrays& view = arrays_->view;
  const uint32_t hits = check_top_k(top_k), slots = check_width(width);
  const BatchShape shape = shape_of(arrays_->info, view, n_queries, slots, hits);
  Arena arena(nullptr);
  batch_of(arena, shape, slots, hits, view.n_blocks);
  return arena.used();
}

void Index::search(const SearchRequest& request, Stream stream) const {
  const Arrays& own = *arrays_;
  const Rows& queries = request.queries;
  const uint32_t top_k = check_top_k(request.top_k), slots = check_width(queries.width);
  if (queries.n == 0) return;
  if (request.workspace_bytes < workspace_bytes(queries.n, queries.width, request.top_k)) {
    throw std::invalid_argument("expected a workspace of workspace_bytes()");
  }
  const UseDevice use(own.device);
  const BatchShape shape = shape_of(own.info, own.view, queries.n, slots, top_k);
  Arena arena(request.workspace);
  Batch batch = batch_of(arena, shape, slots, top_k, own.view.n_blocks);
  batch.most_score = most_score(request.normalize);
  const size_t number = queries.type == Number::float32 ? 4 : 2;
  const float least = std::max(request.min_score, std::numeric_limits<float>::denorm_min());
  uint32_t least_bits;
  std::memcpy(&least_bits, &least, sizeof(least_bits));
  const auto query_k = static_cast<uint32_t>(std::min<int64_t>(request.query_k, slots));
  const uint32_t lanes = lanes_for(own.entries, own.n);
  const float gather_above = request.way == Way::cheaper ? own.gather_cost
                             : request.way == Way::walk  ? std::numeric_limits<float>::infinity()
                                                         : -1;
  auto* work = request.count_work ? own.work.as<uint64_t>() : nullptr;

  for (int64_t first = 0; first < queries.n; first += shape.queries) {
    batch.n_queries = static_cast<uint32_t>(std::min<int64_t>(shape.queries, queries.n - first));
    const auto* values = static_cast<const unsigned char*>(queries.values) + first * slots * number;
    const int32_t* indices = queries.indices + first * slots;
    const uint8_t* allowed = request.allowed;
    if (allowed != nullptr) allowed += first * request.allowed_stride;
    launch(PrepareQueries{own.view, batch, queries.type, values, indices, query_k, least_bits,
                          own.options.impact_bits, request.normalize},
           batch.n_queries, sizeof(PrepareQueries::Shared), stream);
    const MergeKeys merge{batch, own.view.ids, own.view.first_id, request.scores + first * top_k,
                          request.ids + first * top_k};
    const auto run = [&](auto search) {
      search_rounds(own.view, batch, shape, own.info.shared_bytes, search, merge, stream);
    };
    if (own.options.impact_bits == 16) {
      run(SearchBlocks<16>{own.view, batch, 0, 0, lanes, gather_above, allowed,
                           request.allowed_stride, work});
    } else {
      run(SearchBlocks<8>{own.view, batch, 0, 0, lanes, gather_above, allowed,
                          request.allowed_stride, work});
    }
    if (request.dense == nullptr) continue;
    const float* offsets = request.offsets == nullptr ? nullptr : request.offsets + first;
    const uint64_t hits = static_cast<uint64_t>(batch.n_queries) * top_k;
    launch(ScoreDense{own.view, batch, request.dense + first * own.options.dim, offsets,
                      request.dense_scores + first * top_k},
           static_cast<uint32_t>((hits + ScoreDense::kThreads - 1) / ScoreDense::kThreads), 0,
           stream);
  }
}

void Index::search_from_host(SearchRequest request) const {
  Arrays& own = *arrays_;
  const UseDevice use(own.device);
  Borrowed scratch(own.lending, own.scratch);
  const Stream stream = scratch.stream();
  const int64_t n = request.queries.n, slots = n * request.queries.width;
  const int64_t hits = n * request.top_k;
  const int64_t mask = request.allowed == nullptr    ? 0
                       : request.allowed_stride == 0 ? own.n
                                                     : n * request.allowed_stride;
  request.workspace_bytes = workspace_bytes(n, request.queries.width, request.top_k);
  const auto lay_out = [&](unsigned char* memory) {
    Arena arena(memory);
    SearchRequest there = request;
    there.queries.values = arena.take<float>(slots);
    there.queries.indices = arena.take<int32_t>(slots);
    there.scores = arena.take<float>(hits);
    there.ids = arena.take<int64_t>(hits);
    there.workspace = arena.take<unsigned char>(request.workspace_bytes);
    const uint8_t* allowed = arena.take<uint8_t>(mask);
    if (request.allowed != nullptr) there.allowed = allowed;
    if (request.dense != nullptr) {
      there.dense = arena.take<float>(n * own.options.dim);
      there.dense_scores = arena.take<float>(hits);
    }
    if (request.offsets != nullptr) there.offsets = arena.take<float>(n);
    return std::make_pair(there, arena.used());
  };
  const SearchRequest there = lay_out(scratch.memory(lay_out(nullptr).second)).first;
  const auto upload = [&](const void* to, const void* from, size_t bytes) {
    copy(const_cast<void*>(to), from, bytes, stream, "queries");
  };
  upload(there.queries.values, request.queries.values, slots * sizeof(float));
  upload(there.queries.indices, request.queries.indices, slots * sizeof(int32_t));
  if (mask > 0) upload(there.allowed, request.allowed, mask);
  if (request.dense != nullptr) {
    upload(there.dense, request.dense, n * own.options.dim * sizeof(float));
    if (request.offsets != nullptr) upload(there.offsets, request.offsets, n * sizeof(float));
  }
  search(there, stream);
  copy(request.scores, there.scores, hits * sizeof(float), stream, "scores");
  copy(request.ids, there.ids, hits * sizeof(int64_t), stream, "ids");
  if (request.dense != nullptr) {
    copy(request.dense_scores, there.dense_scores, hits * sizeof(float), stream, "scores");
  }
  wait(stream, "a search");
}

Work Index::take_work(Stream stream) const {
  const UseDevice use(arrays_->device);
  Work work{};
  copy(&work, arrays_->work.as<void>(), sizeof(work), stream, "counts of work");
  clear(arrays_->work.as<void>(), sizeof(work), stream, "counts of work");
  wait(stream, "counting work");
  return work;
}

void Index::calibrate() {
  Arrays& own = *arrays_;
  const int64_t n = std::min<int64_t>(own.n, 64), width = own.row_width;
  if (n == 0 || width == 0 || width > kMostEntries) return;
  const UseDevice use(own.device);
  // Evenly spaced documents, as queries.
  std::vector<float> values(n * width);
  std::vector<int32_t> indices(n * width);
  std::vector<unsigned char> stored(width * 4);
  for (int64_t i = 0; i < n; ++i) {
    const int64_t doc = i * own.n / n;
    uint32_t range[2];
    copy(range, own.view.starts + doc, sizeof(range), nullptr, "a code");
    wait(nullptr, "a code");
    const size_t length = range[1] - range[0];
    const auto fetch = [&](const void* array, size_t each) {
      const auto* from = static_cast<const unsigned char*>(array) + range[0] * each;
      copy(stored.data(), from, length * each, nullptr, "a code");
      wait(nullptr, "a code");
    };
    fetch(own.view.latents, latent_bytes(own.options));
    for (size_t e = 0; e < length; ++e) {
      indices[i * width + e] = own.view.wide ? reinterpret_cast<uint32_t*>(stored.data())[e]
                                             : reinterpret_cast<uint16_t*>(stored.data())[e];
    }
    // Any positive values will do: only the lengths of lists matter.
    std::fill_n(values.begin() + i * width, length, 1.0f);
  }
  std::vector<float> scores(n * 10);
  std::vector<int64_t> ids(n * 10);
  SearchRequest request{};
  request.queries = {n, width, nullptr, Number::float32, values.data(), indices.data()};
  request.top_k = 10;
  request.scores = scores.data();
  request.ids = ids.data();
  const auto time = [&] {
    search_from_host(request);  // the first loads the kernels
    take_work(nullptr);
    const auto begin = std::chrono::steady_clock::now();
    search_from_host(request);  // waits
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  };
  const std::vector<float> nothing(n * width);
  request.queries.values = nothing.data();
  const double overhead = time();
  request.queries.values = values.data();
  request.count_work = true;
  request.way = Way::walk;
  const double walking = time() - overhead;
  const uint64_t postings = take_work(nullptr).postings;
  request.way = Way::gather;
  const double gathering = time() - overhead;
  const uint64_t entries = take_work(nullptr).entries;
  if (walking <= 0 || gathering <= 0 || postings == 0 || entries == 0) return;
  own.gather_cost = static_cast<float>(gathering / entries / (walking / postings));
}

}  // namespace csrkern::cuda
