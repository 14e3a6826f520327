#include "index/batch.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace csrkern {
namespace {

// The lowest bar, and one that queries without entries do not reach.
constexpr int16_t kLowest = -32'767, kHighest = kMostSum;

// Documents that the first batch is expected to score for a query; later ones know better. Costs in
// nanoseconds: of a row with a candidate, and of a candidate.
constexpr double kExpectedScored = 100, kNsStop = 60, kNsAdded = 8;

// The documents of one query whose sums reach its bar so far.
class Candidates {
 public:
  Candidates(const ForwardIndex& forward, const RoundedRows& rounded, const BatchQuery& query,
             int64_t n_docs, RowScratch& s)
      : forward_(forward),
        query_(query),
        s_(s),
        wanted_(query.best->top_k()),
        more_(std::max(kMore, wanted_)),
        most_kept_(n_docs / 16),
        full_(wanted_ + more_) {
    double squares = 0, largest = 0;
    for (const QueryTerm& t : query.terms) {
      squares += static_cast<double>(t.weight) * t.weight;
      largest = std::max<double>(largest, t.weight);
    }
    if (squares == 0 || rounded.scale() == 0) {
      give_up();
      return;
    }
    const double norms = std::sqrt(squares) * rounded.norm();
    most_score_ = norms / rounded.scale();
    scale_ = std::min(kQueryNumber / largest, kMostSum / (norms * rounded.ceiling()));
    unit_ = rounded.scale() * scale_;
    double kept = 0, error = 0;
    for (const QueryTerm& t : query.terms) {
      const double scaled = t.weight * scale_, b = number(t.weight);
      kept += b * b;
      error += (scaled - b) * (scaled - b);
    }
    distance_ = rounded.error() * std::sqrt(kept) + rounded.norm() * std::sqrt(error);
    // What float32 sums of so many products may be off, for each of two documents.
    const auto products = static_cast<double>(
        std::min<int64_t>(static_cast<int64_t>(query.terms.size()), rounded.longest()) + 2);
    distance_ += 2 * products * 0x1p-23 * most_score_ * unit_ + 1;
    // Where scores may overflow or lose their precision, the bounds do not hold.
    if (distance_ > kMostSum || !(unit_ < 0x1p100 && unit_ > 0x1p-100)) {
      give_up();
      return;
    }
    raise(float_of(query.best->bar()));
  }

  // The number that stands for a weight.
  int8_t number(float weight) const { return static_cast<int8_t>(std::lround(weight * scale_)); }
  int16_t bar() const { return bar_; }
  // Too many documents reached the bar, or it could not be computed.
  bool given_up() const { return given_up_; }

  // The score that the last hit has at least, as a share of what norms allow.
  double share() const { return most_score_ > 0 ? reached_ / most_score_ : 0; }
  int64_t added() const { return added_; }
  int64_t scored() const { return scored_; }

  void add(int64_t doc, int16_t sum) {
    if (given_up_) return;
    ++added_;
    found_.push_back({static_cast<int32_t>(doc), sum, kUnknown});
    if (static_cast<int64_t>(found_.size()) >= full_) settle();
  }

  // Adds the hits to those of the query.
  void finish(const IndexView& view, int64_t first_doc) {
    if (static_cast<int64_t>(found_.size()) >= wanted_) settle();
    score(found_.size());
    std::sort(found_.begin(), found_.end(),
              [](const Candidate& a, const Candidate& b) { return a.doc < b.doc; });
    TopHits& best = *query_.best;
    for (const Candidate& c : found_) {
      if (bits_of(c.score) >= best.bar()) {
        best.add(c.score, id_of(view, c.doc), first_doc + c.doc);
      }
      best.settle_rarely();
    }
    best.settle();
  }

 private:
  // After this many more candidates the bar is raised.
  static constexpr int64_t kMore = 128;
  static constexpr float kUnknown = -1;

  struct Candidate {
    int32_t doc;
    int16_t sum;
    float score;
  };

  void give_up() {
    given_up_ = true;
    bar_ = kHighest;
    found_.clear();
  }

  // `reached`: a score that enough documents have.
  void raise(float reached) {
    const double bar = std::floor(reached * unit_ - distance_);
    bar_ = std::max(bar_, static_cast<int16_t>(std::clamp<double>(bar, kLowest, kHighest)));
    reached_ = std::max(reached_, reached);
  }

  // Scores the first n candidates.
  void score(size_t n) {
    constexpr size_t kTogether = 32;
    const RowScorer scorer(forward_, query_.terms, s_);
    for (size_t begin = 0; begin < n; begin += kTogether) {
      const size_t end = std::min(n, begin + kTogether);
      for (size_t i = begin; i < end; ++i) {
        if (found_[i].score == kUnknown) forward_.prefetch(found_[i].doc);
      }
      for (size_t i = begin; i < end; ++i) {
        Candidate& c = found_[i];
        if (c.score != kUnknown) continue;
        c.score = std::min(scorer.score(c.doc), query_.best->most());
        ++scored_;
      }
    }
  }

  // Raises the bar to what the documents with the largest sums reach, and drops what is below.
  void settle() {
    const auto kth = found_.begin() + wanted_;
    std::nth_element(found_.begin(), kth - 1, found_.end(),
                     [](const Candidate& a, const Candidate& b) { return a.sum > b.sum; });
    score(wanted_);
    raise(std::min_element(found_.begin(), kth, [](const Candidate& a, const Candidate& b) {
            return a.score < b.score;
          })->score);
    const auto too_low = [this](const Candidate& c) { return c.sum < bar_; };
    found_.erase(std::remove_if(found_.begin(), found_.end(), too_low), found_.end());
    const auto left = static_cast<int64_t>(found_.size());
    full_ = left + more_;
    if (left > most_kept_) give_up();
  }

  const ForwardIndex& forward_;
  const BatchQuery& query_;
  RowScratch& s_;
  int64_t wanted_, more_, most_kept_, full_, added_ = 0, scored_ = 0;
  double scale_ = 0, unit_ = 0, distance_ = 0;  // numbers a weight, sums a score; of sums
  double most_score_ = 0;
  float reached_ = 0;
  int16_t bar_ = kLowest;
  bool given_up_ = false;
  std::vector<Candidate> found_;
};

// The lines of few terms fit in a nearer cache than those of many.
double ns_of_entry(const Costs& costs, int64_t n_terms) {
  if (n_terms <= 1024) return costs.batch_entry_of_1024;
  return n_terms <= 4096 ? costs.batch_entry_of_4096 : costs.batch_entry;
}

// The lines of a batch: zero again when it is done.
class Lines {
 public:
  Lines(const std::vector<BatchQuery>& queries, int64_t n_terms, Scratch& s)
      : queries_(queries), data_(s.batch_lines(n_terms)) {}
  ~Lines() {
    for (const BatchQuery& query : queries_) {
      for (const QueryTerm& t : query.terms) std::memset(data_ + t.term * kBatch, 0, kBatch);
    }
  }
  int8_t* data() const { return data_; }

 private:
  const std::vector<BatchQuery>& queries_;
  int8_t* data_;
};

}  // namespace

int64_t BatchSearch::run(const std::vector<BatchQuery>& queries, Scratch& s) const {
  const IndexView& view = index_.view();
  const ForwardIndex& forward = index_.forward(1);
  const Lines lines(queries, view.n_terms, s);
  std::vector<Candidates> found;
  found.reserve(queries.size());
  int16_t bars[kBatch], sums[kBatch];
  std::fill_n(bars, kBatch, kHighest);
  for (size_t q = 0; q < queries.size(); ++q) {
    found.emplace_back(forward, rounded_, queries[q], view.n_docs, s.rows);
    bars[q] = found[q].bar();
    if (found[q].given_up()) continue;
    for (const QueryTerm& t : queries[q].terms) {
      lines.data()[t.term * kBatch + q] = found[q].number(t.weight);
    }
  }
  const ByteRows rows = rounded_.rows();
  const auto find_row = kernels().index.find_row;
  int64_t stops = 0;
  uint64_t reached;
  for (int64_t doc = 0;; ++doc) {
    doc = find_row(rows, lines.data(), bars, doc, view.n_docs, sums, &reached);
    if (doc == view.n_docs) break;
    ++stops;
    if (allowed_ != nullptr && (allowed_[doc / 64] >> (doc % 64) & 1) == 0) continue;
    for (; reached != 0; reached &= reached - 1) {
      const int q = __builtin_ctzll(reached);
      found[q].add(doc, sums[q]);
      bars[q] = found[q].bar();
    }
  }
  double ns = kNsStop * static_cast<double>(stops), share = 0;
  int64_t given_up = 0;
  for (size_t q = 0; q < queries.size(); ++q) {
    found[q].finish(view, first_doc_);
    ns += kNsAdded * static_cast<double>(found[q].added()) +
          ns_of_row(costs(), view) * static_cast<double>(found[q].scored());
    share += found[q].share();
    if (!found[q].given_up()) continue;
    ++given_up;
    SegmentSearch search(index_, queries[q].terms, allowed_, first_doc_);
    SearchCost cost;
    search.run(*queries[q].best, s, cost);
    ns += ns_of_scan(costs(), view, static_cast<double>(search.n_postings()));
  }
  rounded_.note_candidates(ns / static_cast<double>(queries.size()));
  rounded_.note_share(share / static_cast<double>(queries.size()));
  return given_up;
}

bool fits_batches(const IndexView& view, const uint64_t* allowed, int64_t top_k) {
  if (view.block > 0 || view.n_terms > 65'536 ||
      view.n_docs > std::numeric_limits<int32_t>::max() || top_k > view.n_docs / 64) {
    return false;
  }
  if (allowed == nullptr) return true;
  int64_t n_allowed = 0;
  for (int64_t w = 0; w < (view.n_docs + 63) / 64; ++w)
    n_allowed += __builtin_popcountll(allowed[w]);
  return n_allowed > view.n_docs / 2;
}

double ns_saved_by_batch(const IndexView& view, const RoundedRows* rounded,
                         const std::vector<BatchQuery>& sample, int64_t n_queries) {
  const Costs& costs = csrkern::costs();
  double lists = 0;
  for (const BatchQuery& query : sample) {
    if (query.terms.size() > RowScorer::kMostTerms) return -1;
    lists += costs.document * view.n_docs;
    for (const QueryTerm& t : query.terms) {
      const uint64_t n = t.offsets[view.n_windows] - t.offsets[0];
      lists += DenseLists::takes(view, n) ? costs.dense * static_cast<double>(view.n_docs)
                                          : costs.posting * static_cast<double>(n);
    }
  }
  const auto n = static_cast<double>(n_queries);
  lists *= n / static_cast<double>(sample.size());
  const double entries = static_cast<double>(view.offsets[view.n_terms * view.n_windows]);
  double of_candidates = rounded == nullptr ? -1 : rounded->ns_of_candidates();
  if (of_candidates < 0) of_candidates = kExpectedScored * ns_of_row(costs, view);
  return lists - ns_of_entry(costs, view.n_terms) * entries - n * of_candidates;
}

double expected_ns_in_batch(const IndexView& view) {
  const double entries = static_cast<double>(view.offsets[view.n_terms * view.n_windows]);
  return ns_of_entry(kUsualCosts, view.n_terms) * entries / kBatch +
         kExpectedScored * ns_of_row(kUsualCosts, view);
}

}  // namespace csrkern
