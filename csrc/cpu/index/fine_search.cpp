// Search by fine codes alone: every document is scored.
//
// A batch of queries is added up at once, in whole numbers of 16 bits; documents whose sums may
// belong to a hit are scored again in float32. A table entry t becomes the number
// n = (t - low) / step, rounded down, where low is the least entry of its book, in float32, whose
// rounding moves n by less than 1/64:
//
//   low + step (n - 1/64)  <=  t  <  low + step (n + 1 + 1/64).
//
// The float32 sum of the entries of a document, plus the offset, differs from the exact one by at
// most error = books * 2^-24 (1 + 2^-8) * (sum over the books of the largest |t|, plus |offset|).
// With N the sum of n over the books, a document scores
//
//   at least (sum of low + offset - error + step (N - books / 64)) * scale, and
//   at most  (sum of low + offset + error + step (N + books + books / 64)) * scale,
//
// each off by 2^-23 of its size at most, for the product is rounded and scales are. As many
// documents as are wanted reach the best of the former; it is the bar, and the latter solved for N
// says which sums reach it. Of that number 1 is taken off for the rounding of these formulas in
// double. Sums beyond 2^100, and steps below 2^-100, alone or times some scale, are left to a plain
// scan: there float32 overflows, or loses what the bounds rely on.
#include <algorithm>
#include <cmath>
#include <limits>
#include <mutex>
#include <vector>

#include "csrkern/fine.hpp"
#include "csrkern/index.hpp"
#include "csrkern/parallel.hpp"
#include "index/scan.hpp"
#include "isa/kernels.hpp"

namespace csrkern {
namespace {

constexpr double kMostSum = 65'534;  // a bar may be above it
constexpr double kMargin = 0x1p-20;  // of a product's size
// Fewer queries are faster one by one.
constexpr int64_t kFewestTogether = 4;
// Documents that are worth a thread.
constexpr int64_t kWorthSplitting = 16'384;
// Documents after which bars are raised: twice as many each time, up to the last.
constexpr int64_t kFirstRound = 32, kLastRound = 4096;
constexpr int64_t kScoredTogether = 256;

// The best documents of one query, a heap with the worst of them in front.
class Best {
 public:
  Best(int64_t wanted, float least) : wanted_(wanted), least_(least) {}

  // A score that is no hit unless it reaches this.
  float bar() const { return full() ? hits_.front().score : least_; }

  void add(const Hit& hit) {
    if (!(hit.score >= least_) || (full() && !better(hit, hits_.front()))) return;
    if (full()) {
      std::pop_heap(hits_.begin(), hits_.end(), better);
      hits_.pop_back();
    }
    hits_.push_back(hit);
    std::push_heap(hits_.begin(), hits_.end(), better);
  }
  const std::vector<Hit>& hits() const { return hits_; }

 private:
  bool full() const { return static_cast<int64_t>(hits_.size()) == wanted_; }

  int64_t wanted_;
  float least_;
  std::vector<Hit> hits_;
};

// One query: its tables, its hits, and, in a batch, the documents that may become some.
class Query {
 public:
  Query(const FineQueries& all, int64_t i, int64_t wanted)
      : all_(all),
        i_(i),
        wanted_(wanted),
        tables_(all.tables + i * all.books * kWords),
        bar_(all.min_score),
        best(wanted, all.min_score) {}

  // Finds the bounds, for scales of 1 / lengths. Returns false if they would say nothing.
  bool bound(const std::vector<double>& lengths) {
    lows_.resize(all_.books);
    std::vector<float> highs(all_.books);
    kernels().fine.limits(tables_, all_.books, lows_.data(), highs.data());
    double sum = 0, range = 0, largest = std::fabs(offset());
    for (int64_t m = 0; m < all_.books; ++m) {
      sum += lows_[m];
      range += static_cast<double>(highs[m]) - lows_[m];
      largest += std::max(std::fabs(lows_[m]), std::fabs(highs[m]));
    }
    const auto books = static_cast<double>(all_.books);
    step_ = range / (kMostSum - 2 * books);
    const auto [shortest, longest] = std::minmax_element(lengths.begin(), lengths.end());
    const double most = largest * std::max(1.0, 1 / *shortest);
    const double least = step_ * std::min(1.0, 1 / *longest);
    // NaN fails the comparisons, too.
    if (!(most < 0x1p100 && least > 0x1p-100 && books < 10'000)) return false;
    const double error = books * 0x1.01p-24 * largest;
    low_ = sum + offset() - error - step_ * books / 64;
    high_ = sum + offset() + error + step_ * (books + books / 64 + 1);
    slack_ = (high_ - low_) / *shortest;
    return true;
  }

  // Writes the whole numbers of a book, a column of [kWords, kFineBatch].
  void round(int64_t book, uint16_t* numbers) const {
    const float* table = tables_ + book * kWords;
    kernels().fine.round(table, lows_[book], static_cast<float>(1 / step_), numbers);
  }

  // Raises the bar to what as many documents as are wanted reach for sure, and forgets those that
  // cannot reach it. The least sum that matters is slope * length - start for a scale of 1 /
  // length.
  void raise(double* slope, double* start) {
    if (static_cast<int64_t>(found_.size()) >= wanted_) {
      const auto last = found_.begin() + wanted_ - 1;
      std::nth_element(found_.begin(), last, found_.end(),
                       [](const Noted& a, const Noted& b) { return a.score > b.score; });
      bar_ = std::max(bar_, last->score);
      const double least = bar_ - slack_ - (std::fabs(bar_) + slack_) * 4 * kMargin;
      found_.erase(std::remove_if(found_.begin(), found_.end(),
                                  [=](const Noted& noted) { return noted.score < least; }),
                   found_.end());
    }
    *slope = (bar_ - std::fabs(bar_) * kMargin) / step_;
    *start = high_ / step_;
  }

  // Takes note of a document with this sum.
  void consider(int64_t doc, uint16_t sum, const uint8_t* code) {
    double score = low_ + step_ * sum;
    if (all_.scales != nullptr) score *= all_.scales[code[all_.books]];
    found_.push_back({doc, score - std::fabs(score) * kMargin});
  }

  // Scores the documents that were noted, all of one segment.
  void settle(const IndexView& view) {
    for (const Noted& noted : found_) {
      const uint8_t* code = view.fine + noted.doc * view.fine_bytes;
      best.add({score(code), id_of(view, noted.doc), 0});
    }
    found_.clear();
    bar_ = std::max<double>(bar_, best.bar());
  }

  float score(const uint8_t* code) const {
    return fine_score(code, all_.books, tables_, offset(), all_.scales);
  }

  // Scores documents [begin, end) one after the other.
  void scan(const Segment& segment, int64_t begin, int64_t end) {
    const IndexView& view = segment.index->view();
    float sums[kScoredTogether];
    for (; begin < end; begin += kScoredTogether) {
      const int64_t n = std::min(kScoredTogether, end - begin);
      const uint8_t* code = view.fine + begin * view.fine_bytes;
      kernels().fine.add(code, view.fine_bytes, all_.books, tables_, n, sums);
      for (int64_t j = 0; j < n; ++j, code += view.fine_bytes) {
        const float score = finished_score(sums[j], code, all_.books, offset(), all_.scales);
        if (score >= best.bar() && allows(segment, begin + j)) {
          best.add({score, id_of(view, begin + j), 0});
        }
      }
    }
  }

  bool allows(const Segment& segment, int64_t doc) const {
    if (segment.allowed == nullptr) return true;
    return segment.allowed[i_ * segment.allowed_stride + doc / 64] >> (doc % 64) & 1;
  }

 private:
  struct Noted {
    int64_t doc;
    double score;  // at least this
  };

  float offset() const { return all_.offsets[i_]; }

  const FineQueries& all_;
  int64_t i_, wanted_;
  const float* tables_;
  double step_ = 0, low_ = 0, high_ = 0;  // of a document with N = 0, for a scale of 1
  std::vector<float> lows_;               // the least entry of each book
  double slack_ = 0;                      // between what a document scores at least and at most
  double bar_;
  std::vector<Noted> found_;

 public:
  Best best;
};

// Returns memory for bars [kWords, kFineBatch] and for numbers [books, kWords, kFineBatch].
uint16_t* lines_of_thread(int64_t books) {
  static thread_local Buffer memory;
  const size_t bytes = (books + 1) * kWords * kFineBatch * sizeof(uint16_t);
  if (memory.bytes() < bytes) memory = Buffer(bytes);
  return reinterpret_cast<uint16_t*>(memory.data());
}

// Scans documents [begin, end) of a segment for queries with `numbers`.
void scan_together(const Segment& segment, int64_t begin, int64_t end, const FineQueries& all,
                   const std::vector<double>& lengths, const uint16_t* numbers,
                   std::vector<Query*>& queries, uint16_t* bars) {
  const IndexView& view = segment.index->view();
  const auto n_bars = static_cast<int64_t>(lengths.size());
  const FineLines lines = {view.fine, view.fine_bytes, all.books, numbers, bars};
  const FineKernels& fine = kernels().fine;
  alignas(64) uint16_t sums[kFineBatch];
  double slopes[kFineBatch], starts[kFineBatch];
  // Of unused columns, where anything may stand.
  std::fill_n(slopes, kFineBatch, 0.0);
  std::fill_n(starts, kFineBatch, -2 * kMostSum);
  uint32_t live = 0;
  for (size_t q = 0; q < queries.size(); ++q) live |= uint32_t{queries[q] != nullptr} << q;
  if (live == 0) return;
  int64_t round = kFirstRound;
  for (int64_t doc = begin; doc < end; round = std::min(2 * round, kLastRound)) {
    for (size_t q = 0; q < queries.size(); ++q) {
      if (queries[q] != nullptr) queries[q]->raise(slopes + q, starts + q);
    }
    fine.raise(slopes, starts, lengths.data(), n_bars, bars);
    const int64_t stop = std::min(end, doc + round);
    for (; doc < stop; ++doc) {
      uint32_t reached = 0;
      doc = fine.find(lines, doc, stop, sums, &reached);
      if (doc == stop) break;
      for (reached &= live; reached != 0; reached &= reached - 1) {
        const int q = __builtin_ctz(reached);
        if (queries[q]->allows(segment, doc)) {
          queries[q]->consider(doc, sums[q], view.fine + doc * view.fine_bytes);
        }
      }
    }
  }
  double slope, start;
  for (Query* query : queries) {
    if (query == nullptr) continue;
    query->raise(&slope, &start);
    query->settle(view);
  }
}

}  // namespace

void search_fine(const std::vector<Segment>& segments, const FineQueries& all, float* scores,
                 int64_t* ids) {
  int64_t n_docs = 0;
  for (const Segment& segment : segments) n_docs += segment.index->view().n_docs;
  const int64_t wanted = std::max<int64_t>(std::min(all.top_k, n_docs), 1);
  std::vector<double> lengths(all.scales == nullptr ? 1 : kWords, 1.0);
  for (size_t b = 0; all.scales != nullptr && b < lengths.size(); ++b) lengths[b] /= all.scales[b];
  const int64_t threads = all.num_threads;
  const int64_t group = std::clamp<int64_t>((all.n + threads - 1) / threads, 1, kFineBatch);
  const int64_t n_groups = (all.n + group - 1) / group;
  const int64_t n_ranges =
      n_groups >= threads ? 1 : std::clamp<int64_t>(n_docs / kWorthSplitting, 1, threads);
  std::vector<std::vector<Hit>> found(all.n);
  std::vector<std::mutex> guards(n_groups);
  parallel_for(n_groups * n_ranges, 1, static_cast<int>(threads), [&](int64_t t, int64_t, int) {
    const int64_t first = t / n_ranges * group, range = t % n_ranges;
    std::vector<Query> queries;
    for (int64_t i = first; i < std::min(first + group, all.n); ++i) {
      queries.emplace_back(all, i, wanted);
    }
    std::vector<Query*> together(queries.size(), nullptr);
    uint16_t *bars = nullptr, *numbers = nullptr;
    if (static_cast<int64_t>(queries.size()) >= kFewestTogether) {
      bars = lines_of_thread(all.books);
      numbers = bars + kWords * kFineBatch;
      for (size_t q = 0; q < queries.size(); ++q) {
        if (queries[q].bound(lengths)) together[q] = &queries[q];
      }
      for (int64_t m = 0; m < all.books; ++m) {  // a book stays in the nearest cache
        uint16_t* of_book = numbers + m * kWords * kFineBatch;
        for (size_t q = 0; q < queries.size(); ++q) {
          if (together[q] != nullptr) together[q]->round(m, of_book + q);
        }
      }
    }
    for (const Segment& segment : segments) {
      const int64_t docs = segment.index->view().n_docs;
      const int64_t begin = docs * range / n_ranges, end = docs * (range + 1) / n_ranges;
      if (bars != nullptr)
        scan_together(segment, begin, end, all, lengths, numbers, together, bars);
      for (size_t q = 0; q < queries.size(); ++q) {
        if (together[q] == nullptr) queries[q].scan(segment, begin, end);
      }
    }
    const std::lock_guard<std::mutex> lock(guards[t / n_ranges]);
    for (size_t q = 0; q < queries.size(); ++q) {
      const std::vector<Hit>& hits = queries[q].best.hits();
      std::vector<Hit>& of_all = found[first + static_cast<int64_t>(q)];
      of_all.insert(of_all.end(), hits.begin(), hits.end());
    }
  });
  for (int64_t i = 0; i < all.n; ++i) {
    std::sort(found[i].begin(), found[i].end(), better);
    write_out(found[i], all.top_k, scores + i * all.top_k, ids + i * all.top_k);
  }
}

}  // namespace csrkern
