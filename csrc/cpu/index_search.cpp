#include <algorithm>
#include <atomic>
#include <cstring>
#include <functional>
#include <limits>

#include "csrkern/index.hpp"
#include "csrkern/index_kernels.hpp"
#include "csrkern/index_rows.hpp"
#include "csrkern/parallel.hpp"

namespace csrkern {
namespace {

constexpr int64_t kStep = 64;  // documents that the scan kernels take at once

int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

struct Hit {
  float score;
  int64_t id;
};

bool better(const Hit& a, const Hit& b) {
  return a.score > b.score || (a.score == b.score && a.id < b.id);
}

// The best hits so far, and the bar that a score's bits must reach to matter.
class TopHits {
 public:
  TopHits(int64_t topk, bool ids_ascend) : topk_(topk), ids_ascend_(ids_ascend) {}

  void add(float score, int64_t id) { hits_.push_back({score, id}); }

  // Drops what is not among the best topk and raises the bar.
  void settle() {
    if (static_cast<int64_t>(hits_.size()) < topk_) return;
    std::nth_element(hits_.begin(), hits_.begin() + (topk_ - 1), hits_.end(), better);
    hits_.resize(topk_);
    // Where ids ascend a later document loses every tie, so only a greater score matters.
    raise(bits_of(hits_.back().score) + (ids_ascend_ ? 1 : 0));
  }

  void raise(uint32_t bar) { bar_ = std::max(bar_, bar); }
  uint32_t bar() const { return bar_; }
  // A bar that holds for documents of any number.
  uint32_t shared_bar() const { return full() ? bits_of(hits_.back().score) : 1; }
  int64_t topk() const { return topk_; }
  bool full() const { return static_cast<int64_t>(hits_.size()) >= topk_; }
  std::vector<Hit>& hits() { return hits_; }

 private:
  int64_t topk_;
  bool ids_ascend_;
  uint32_t bar_ = 1;  // any score above 0
  std::vector<Hit> hits_;
};

// What a thread needs to score a window; scores are all zero between windows.
struct Scratch {
  void reserve(int64_t window) {
    const int64_t slots = round_up(window, kStep) + kSpareSlots;
    if (slots <= capacity) return;
    capacity = 0;
    scores = Buffer(slots * sizeof(float));
    taken.resize(slots);
    ids.resize(slots);
    maxima.resize(slots);
    capacity = slots;
  }

  int64_t capacity = 0;
  Buffer scores;
  std::vector<float> taken;
  std::vector<uint16_t> ids;
  std::vector<uint32_t> maxima;
  std::vector<Entry> entries;
  std::vector<QueryTerm> terms;
};

Scratch& scratch() {
  static thread_local Scratch mine;
  return mine;
}

}  // namespace

// One query against some windows of an index.
class QuerySearch {
 public:
  QuerySearch(const Index& index, const std::vector<QueryTerm>& terms)
      : index_(index), terms_(terms) {}

  // The terms of a query's entries, each list checked before its first use.
  static void find_terms(const Index& index, const std::vector<Entry>& entries,
                         std::vector<QueryTerm>& terms) {
    terms.clear();
    for (const Entry& e : entries) {
      const int64_t t = index.finder_.find(e.latent);
      if (t < 0) continue;
      index.verify_term(t);
      terms.push_back({index.view_.offsets + t * index.view_.n_windows, e.value});
    }
  }

  // Adds the window's best documents to `best`.
  void scan(int64_t window, TopHits& best, Scratch& s) const {
    const IndexView& view = index_.view_;
    const int64_t base = window * view.window;
    const int64_t n = round_up(std::min<int64_t>(view.window, view.n_docs - base), kStep);
    float* scores = reinterpret_cast<float*>(s.scores.data());
    const auto score = view.type == ValueType::float16 ? kernels_.score_half : kernels_.score_float;
    const int32_t spare = static_cast<int32_t>(round_up(view.window, kStep));
    score(view.postings, terms_.data(), static_cast<int>(terms_.size()), window, spare, scores);
    if (!best.full()) raise_by_lanes(scores, n, best, s);
    const int64_t count = kernels_.take(scores, n, best.bar(), s.ids.data(), s.taken.data());
    if (count == 0) return;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t doc = base + s.ids[i];
      best.add(s.taken[i], view.ids == nullptr ? doc : view.ids[doc]);
    }
    best.settle();
  }

 private:
  // The k-th largest of the maxima of disjoint sets of documents is a score that k documents
  // reach: a bar for the first window, where all else would have to be sorted.
  void raise_by_lanes(const float* scores, int64_t n, TopHits& best, Scratch& s) const {
    const int64_t topk = best.topk();
    const int64_t lanes = round_up(4 * topk, kStep);
    if (lanes > n / 2) return;
    kernels_.lane_maxima(scores, n, lanes, s.maxima.data());
    uint32_t* maxima = s.maxima.data();
    std::nth_element(maxima, maxima + (topk - 1), maxima + lanes, std::greater<uint32_t>());
    best.raise(maxima[topk - 1]);
  }

  const Index& index_;
  const std::vector<QueryTerm>& terms_;
  const IndexKernels& kernels_ = index_kernels();
};

namespace {

void write_out(std::vector<Hit>& hits, int64_t topk, float* scores, int64_t* ids) {
  std::sort(hits.begin(), hits.end(), better);
  const int64_t found = std::min<int64_t>(topk, hits.size());
  for (int64_t i = 0; i < found; ++i) {
    scores[i] = hits[i].score;
    ids[i] = hits[i].id;
  }
  std::fill(scores + found, scores + topk, -std::numeric_limits<float>::infinity());
  std::fill(ids + found, ids + topk, -1);
}

// Work below which a second thread costs more to wake (10 to 50 us) than it saves.
constexpr int64_t kPostingsWorthSplitting = 400'000;

int64_t postings_of(const std::vector<QueryTerm>& terms, int64_t n_windows) {
  int64_t total = 0;
  for (const QueryTerm& t : terms) total += t.offsets[n_windows] - t.offsets[0];
  return total;
}

}  // namespace

void Index::search(const SparseRows& queries, int64_t topk, bool normalize, int num_threads,
                   float* scores, int64_t* ids) const {
  check_starts(queries, "queries");
  const int64_t n_windows = view_.n_windows;

  const auto search_alone = [&](int64_t i) {
    Scratch& s = scratch();
    s.reserve(view_.window);
    read_query(queries, i, normalize, s.entries);
    QuerySearch::find_terms(*this, s.entries, s.terms);
    TopHits best(topk, ids_ascend_);
    QuerySearch query(*this, s.terms);
    for (int64_t w = 0; w < n_windows && !s.terms.empty(); ++w) query.scan(w, best, s);
    write_out(best.hits(), topk, scores + i * topk, ids + i * topk);
  };

  const auto search_split = [&](int64_t i) {
    std::vector<Entry> entries;
    std::vector<QueryTerm> terms;
    read_query(queries, i, normalize, entries);
    QuerySearch::find_terms(*this, entries, terms);
    if (postings_of(terms, n_windows) < kPostingsWorthSplitting) return search_alone(i);
    std::vector<TopHits> best(num_threads, TopHits(topk, ids_ascend_));
    std::atomic<uint32_t> bar{1};
    QuerySearch query(*this, terms);
    parallel_for(n_windows, 1, num_threads, [&](int64_t w, int64_t, int thread) {
      Scratch& s = scratch();
      s.reserve(view_.window);
      TopHits& mine = best[thread];
      mine.raise(bar.load(std::memory_order_relaxed));
      query.scan(w, mine, s);
      uint32_t seen = bar.load(std::memory_order_relaxed);
      while (seen < mine.shared_bar() &&
             !bar.compare_exchange_weak(seen, mine.shared_bar(), std::memory_order_relaxed)) {
      }
    });
    std::vector<Hit> all;
    for (TopHits& part : best) all.insert(all.end(), part.hits().begin(), part.hits().end());
    write_out(all, topk, scores + i * topk, ids + i * topk);
  };

  if (num_threads > 1 && queries.n < num_threads && n_windows >= 2 * num_threads) {
    for (int64_t i = 0; i < queries.n; ++i) search_split(i);
    return;
  }
  const int64_t grain = std::max<int64_t>(1, std::min<int64_t>(16, queries.n / (8 * num_threads)));
  parallel_for(queries.n, grain, num_threads, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) search_alone(i);
  });
}

}  // namespace csrkern
