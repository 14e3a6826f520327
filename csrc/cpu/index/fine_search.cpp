// Search by fine codes alone: every document is scored, or those of some cells.
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
#include <cstring>
#include <functional>
#include <limits>
#include <mutex>
#include <numeric>
#include <vector>

#include "csrkern/fine.hpp"
#include "csrkern/index.hpp"
#include "csrkern/parallel.hpp"
#include "index/fine_cells.hpp"
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
// Documents after which bars are raised: four times as many each time, up to the last.
constexpr int64_t kFirstRound = 32, kLastRound = 4096;
constexpr int64_t kScoredTogether = 256;
// Queries whose cells are read together.
constexpr int64_t kCellQueries = 1024;

// Fine codes of documents of one segment.
struct Run {
  const Segment& segment;
  const uint8_t* codes;  // [n, fine_bytes]
  int64_t n;
  int64_t first;                  // document, if they follow each other
  const int64_t* docs = nullptr;  // [n] if not

  const IndexView& view() const { return segment.index->view(); }
  const uint8_t* code(int64_t row) const { return codes + row * view().fine_bytes; }
  int64_t doc(int64_t row) const { return docs == nullptr ? first + row : docs[row]; }
};

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
  bool full() const { return static_cast<int64_t>(hits_.size()) == wanted_; }

 private:
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

  // Writes the whole numbers of a book, [kWords].
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
  void consider(const Run& run, int64_t row, uint16_t sum) {
    if (!allows(run, row)) return;
    double score = low_ + step_ * sum;
    if (all_.scales != nullptr) score *= all_.scales[run.code(row)[all_.books]];
    found_.push_back({row, score - std::fabs(score) * kMargin});
  }

  // Scores the documents that were noted, all of one run.
  void settle(const Run& run) {
    for (const Noted& noted : found_) {
      best.add({score(run.code(noted.row)), id_of(run.view(), run.doc(noted.row)), 0});
    }
    found_.clear();
    bar_ = std::max<double>(bar_, best.bar());
  }

  float score(const uint8_t* code) const {
    return fine_score(code, all_.books, tables_, offset(), all_.scales);
  }

  // Scores documents one after the other.
  void scan(const Run& run) {
    const int64_t bytes = run.view().fine_bytes;
    float sums[kScoredTogether];
    for (int64_t row = 0; row < run.n; row += kScoredTogether) {
      const int64_t n = std::min(kScoredTogether, run.n - row);
      const uint8_t* code = run.code(row);
      kernels().fine.add(code, bytes, all_.books, tables_, n, sums);
      for (int64_t j = 0; j < n; ++j, code += bytes) {
        const float score = finished_score(sums[j], code, all_.books, offset(), all_.scales);
        if (score >= best.bar() && allows(run, row + j)) {
          best.add({score, id_of(run.view(), run.doc(row + j)), 0});
        }
      }
    }
  }

  // Returns the words whose documents it reads, the best one first.
  std::vector<uint8_t> words() const {
    // Keys ascend with the entry, NaN least; of equal ones, with lower words.
    uint64_t keys[kWords];
    for (int64_t w = 0; w < kWords; ++w) {
      const float entry = tables_[w] + 0.0f;  // -0 is 0
      uint32_t bits = 0;
      if (entry == entry) {
        std::memcpy(&bits, &entry, sizeof(bits));
        bits ^= bits >> 31 != 0 ? ~uint32_t{0} : uint32_t{1} << 31;
      }
      keys[w] = uint64_t{bits} << 8 | (kWords - 1 - w);
    }
    std::nth_element(keys, keys + all_.probes - 1, keys + kWords, std::greater<>());
    std::swap(keys[0], *std::max_element(keys, keys + all_.probes));
    std::vector<uint8_t> words(all_.probes);
    for (int64_t i = 0; i < all_.probes; ++i) words[i] = kWords - 1 - (keys[i] & (kWords - 1));
    return words;
  }

 private:
  struct Noted {
    int64_t row;
    double score;  // at least this
  };

  bool allows(const Run& run, int64_t row) const {
    const Segment& segment = run.segment;
    if (segment.allowed == nullptr) return true;
    const int64_t doc = run.doc(row);
    return segment.allowed[i_ * segment.allowed_stride + doc / 64] >> (doc % 64) & 1;
  }

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

// What a thread needs for batches, in memory that stays.
struct Lines {
  Lines(int64_t books, int64_t queries) {
    static thread_local Buffer memory;
    const size_t bytes = ((books + 1) * kFineBatch + books * queries) * kWords * sizeof(uint16_t);
    if (memory.bytes() < bytes) memory = Buffer(bytes);
    bars = reinterpret_cast<uint16_t*>(memory.data());
    numbers = bars + kWords * kFineBatch;
    rows = numbers + books * kWords * kFineBatch;
  }
  uint16_t* bars;     // [kWords, kFineBatch]
  uint16_t* numbers;  // [books, kWords, kFineBatch], of a batch
  uint16_t* rows;     // [queries, books, kWords], of all
};

// Scans a run for the queries of `lines`, of which there are at most kFineBatch.
void scan_together(const Run& run, const FineQueries& all, const std::vector<double>& lengths,
                   const Lines& lines, const std::vector<Query*>& queries) {
  const auto n_queries = static_cast<int>(queries.size());
  if (n_queries == 0) return;
  const auto n_bars = static_cast<int64_t>(lengths.size());
  const FineLines read = {run.codes, run.view().fine_bytes, all.books, lines.numbers, lines.bars};
  const FineKernels& fine = kernels().fine;
  alignas(64) uint16_t sums[kFineBatch];
  double slopes[kFineBatch], starts[kFineBatch];
  // Of unused columns, where anything may stand.
  std::fill_n(slopes, kFineBatch, 0.0);
  std::fill_n(starts, kFineBatch, -2 * kMostSum);
  const uint32_t used = ~uint32_t{0} >> (kFineBatch - n_queries);
  const bool have_bars = std::all_of(queries.begin(), queries.end(),
                                     [](const Query* query) { return query->best.full(); });
  int64_t round = have_bars ? kLastRound : kFirstRound;
  for (int64_t row = 0; row < run.n; round = std::min(4 * round, kLastRound)) {
    for (int q = 0; q < n_queries; ++q) queries[q]->raise(slopes + q, starts + q);
    fine.raise(slopes, starts, lengths.data(), n_bars, lines.bars);
    const int64_t stop = std::min(run.n, row + round);
    for (; row < stop; ++row) {
      uint32_t reached = 0;
      row = fine.find(read, row, stop, sums, &reached);
      if (row == stop) break;
      for (reached &= used; reached != 0; reached &= reached - 1) {
        const int q = __builtin_ctz(reached);
        queries[q]->consider(run, row, sums[q]);
      }
    }
  }
  double slope, start;
  for (Query* query : queries) {
    query->raise(&slope, &start);
    query->settle(run);
  }
}

// Queries that a thread searches for, with the numbers of those that batches can bound.
class Group {
 public:
  Group(const FineQueries& all, int64_t first, int64_t n, int64_t wanted,
        const std::vector<double>& lengths)
      : all_(all), lengths_(lengths), bounded_(n, false), lines_(all.books, n) {
    queries_.reserve(n);
    for (int64_t i = first; i < first + n; ++i) queries_.emplace_back(all, i, wanted);
    if (n < kFewestTogether) return;
    for (int64_t q = 0; q < n; ++q) {
      bounded_[q] = queries_[q].bound(lengths);
      for (int64_t m = 0; bounded_[q] && m < all.books; ++m) {
        queries_[q].round(m, numbers_of(q) + m * kWords);
      }
    }
  }

  // Makes lines of up to kFineBatch queries, for `scan`.
  void take(const int32_t* chosen, int64_t n) {
    together_.clear();
    alone_.clear();
    const uint16_t* rows[kFineBatch];
    std::fill_n(rows, kFineBatch, lines_.rows);
    for (int64_t j = 0; j < n; ++j) {
      Query* query = &queries_[chosen[j]];
      if (n < kFewestTogether || !bounded_[chosen[j]]) {
        alone_.push_back(query);
      } else {
        rows[together_.size()] = numbers_of(chosen[j]);
        together_.push_back(query);
      }
    }
    if (!together_.empty()) kernels().fine.interleave(rows, all_.books * kWords, lines_.numbers);
  }

  void scan(const Run& run) {
    scan_together(run, all_, lengths_, lines_, together_);
    for (Query* query : alone_) query->scan(run);
  }

  const std::vector<Query>& queries() const { return queries_; }

 private:
  uint16_t* numbers_of(int64_t q) { return lines_.rows + q * all_.books * kWords; }

  const FineQueries& all_;
  const std::vector<double>& lengths_;
  std::vector<Query> queries_;
  std::vector<bool> bounded_;  // by whole numbers, for batches
  Lines lines_;
  std::vector<Query*> together_, alone_;
};

// Scans the cells of each query's words; those of its best word first, so that the bars are high
// in the others.
void scan_cells(const std::vector<Segment>& segments, Group& group) {
  std::vector<std::vector<int32_t>> asked(2 * kWords);
  for (size_t q = 0; q < group.queries().size(); ++q) {
    int64_t rank = 0;
    for (const uint8_t word : group.queries()[q].words()) {
      asked[(rank++ == 0 ? 0 : kWords) + word].push_back(static_cast<int32_t>(q));
    }
  }
  std::vector<std::vector<int64_t>> docs(segments.size());
  std::vector<std::vector<uint8_t>> codes(segments.size());
  for (size_t i = 0; i < asked.size(); ++i) {
    const auto n = static_cast<int64_t>(asked[i].size());
    if (n == 0) continue;
    for (size_t s = 0; s < segments.size(); ++s) {
      const Index& index = *segments[s].index;
      index.cells().read(index.view(), i % kWords, &docs[s], &codes[s]);
    }
    for (int64_t q = 0; q < n; q += kFineBatch) {
      group.take(asked[i].data() + q, std::min(kFineBatch, n - q));
      for (size_t s = 0; s < segments.size(); ++s) {
        const auto held = static_cast<int64_t>(docs[s].size());
        group.scan({segments[s], codes[s].data(), held, 0, docs[s].data()});
      }
    }
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
  const bool in_cells = all.probes < kWords;
  const int64_t most = in_cells ? kCellQueries : kFineBatch;
  const int64_t size = std::clamp<int64_t>((all.n + threads - 1) / threads, 1, most);
  const int64_t n_groups = (all.n + size - 1) / size;
  const int64_t n_ranges = n_groups >= threads || in_cells
                               ? 1
                               : std::clamp<int64_t>(n_docs / kWorthSplitting, 1, threads);
  std::vector<std::vector<Hit>> found(all.n);
  std::vector<std::mutex> guards(n_groups);
  parallel_for(n_groups * n_ranges, 1, static_cast<int>(threads), [&](int64_t t, int64_t, int) {
    const int64_t first = t / n_ranges * size, range = t % n_ranges;
    Group group(all, first, std::min(size, all.n - first), wanted, lengths);
    if (in_cells) {
      scan_cells(segments, group);
    } else {
      std::vector<int32_t> everyone(group.queries().size());
      std::iota(everyone.begin(), everyone.end(), 0);
      group.take(everyone.data(), static_cast<int64_t>(everyone.size()));
      for (const Segment& segment : segments) {
        const IndexView& view = segment.index->view();
        const int64_t begin = view.n_docs * range / n_ranges;
        const int64_t end = view.n_docs * (range + 1) / n_ranges;
        group.scan({segment, view.fine + begin * view.fine_bytes, end - begin, begin});
      }
    }
    const std::lock_guard<std::mutex> lock(guards[t / n_ranges]);
    for (size_t q = 0; q < group.queries().size(); ++q) {
      const std::vector<Hit>& hits = group.queries()[q].best.hits();
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
