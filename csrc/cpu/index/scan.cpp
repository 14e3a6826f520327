#include "index/scan.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace csrkern {
namespace {

constexpr int64_t kEnoughForABar = 8192;
constexpr uint64_t kFirstBytes = 256;   // of a slice, fetched while another query is scored
constexpr double kBlocksExpected = 20;  // that a search of clustered codes scores, unfiltered

}  // namespace

void Scratch::reserve(int64_t window) {
  const int64_t slots = round_up(window, kStep) + kSpareSlots;
  if (slots <= capacity) return;
  capacity = 0;
  scores = Buffer(slots * sizeof(float));
  taken.resize(slots);
  ids.resize(slots);
  maxima.resize(slots);
  capacity = slots;
}

int8_t* Scratch::batch_lines(int64_t n_terms) {
  const auto bytes = static_cast<size_t>(n_terms * kBatch);
  if (lines.bytes() < bytes) lines = Buffer(bytes);
  return reinterpret_cast<int8_t*>(lines.data());
}

Scratch& scratch() {
  static thread_local Scratch mine;
  return mine;
}

std::vector<QueryTerm> find_terms(const Index& index, const std::vector<Entry>& entries) {
  const IndexView& view = index.view();
  std::vector<QueryTerm> terms;
  terms.reserve(entries.size());
  for (const Entry& e : entries) {
    const int64_t t = index.checked_term(e.latent);
    if (t >= 0) terms.push_back({view.offsets + t * view.n_windows, e.value, t});
  }
  return terms;
}

int64_t SegmentSearch::n_postings() const {
  int64_t total = 0;
  for (const QueryTerm& t : terms_) total += view_.n_in_list(t.offsets);
  return total;
}

void SegmentSearch::run(TopHits& best, Scratch& s, SearchCost& cost) {
  if (terms_.empty()) return;
  if (view_.block > 0) directory_ = index_.directory_if_worth();
  if (run_listed(best, s)) return;
  if (view_.block > 0 && terms_.size() <= BlockBounds::kMostTerms) {
    run_blocks(best, s, cost);
  } else {
    for (int64_t w = 0; w < view_.n_windows; ++w) scan(w, best, s);
    cost.windows_scanned = view_.n_windows;
  }
}

const ValueKernels& SegmentSearch::choose_value_kernels() const {
  // Whether the product is exact. The least normal number may be a smaller one, rounded up.
  const auto exact = [this](const QueryTerm& term) {
    const float scaled = term.weight * view_.unit();
    return scaled > std::numeric_limits<float>::min() && std::isfinite(scaled);
  };
  const bool simple =
      !is_squares(view_.type) || terms_.empty() || (exact(terms_.front()) && exact(terms_.back()));
  return (simple ? kernels_ : kPortable.index).of[static_cast<int>(view_.type)];
}

double SegmentSearch::ns_saved_by_dense() const {
  double ns = 0;
  for (const QueryTerm& t : terms_) {
    const uint64_t n = t.offsets[view_.n_windows] - t.offsets[0];
    if (!DenseLists::takes(view_, n)) continue;
    ns += costs().posting * static_cast<double>(n) -
          costs().dense * static_cast<double>(view_.n_docs);
  }
  return ns;
}

const DenseLists* SegmentSearch::choose_dense() const {
  const double ns_lost = ns_saved_by_dense();
  return ns_lost > 0 ? index_.dense_if_worth(ns_lost) : nullptr;
}

SearchCost SegmentSearch::run_counted(TopHits& best, Scratch& s) {
  SearchCost cost = cost_of_scans();
  cost.windows_scanned = 0;
  run(best, s, cost);
  return cost;
}

SearchCost SegmentSearch::cost_of_scans() const {
  SearchCost cost;
  cost.terms = n_terms();
  cost.postings = n_postings();
  cost.windows_scanned = view_.n_windows;
  return cost;
}

double SegmentSearch::ns_of_scans() const {
  if (terms_.empty()) return 0;
  return ns_of_scan(costs(), view_, static_cast<double>(n_postings())) -
         std::max(0.0, ns_saved_by_dense());
}

void SegmentSearch::scan(int64_t window, TopHits& best, Scratch& s,
                         const BlockBounds* bounds) const {
  const int64_t n = std::min<int64_t>(view_.window, view_.n_docs - window * view_.window);
  if (terms_.empty() || !any_allowed(window * view_.window, n)) return;
  score_window(window, n, scores(s));
  take(window, 0, n, best, s, bounds);
}

void SegmentSearch::fetch_slices(int64_t window) const {
  const auto bytes = static_cast<uint64_t>(posting_bytes(view_.type));
  for (const QueryTerm& t : terms_) {
    if (dense_ != nullptr && dense_->find(t.term, window) != nullptr) continue;
    const uint64_t* offset = t.offsets + window;
    const uint8_t* slice = view_.slice(offset[0]);
    const uint64_t n = std::min((offset[1] - offset[0]) * bytes, kFirstBytes);
    for (uint64_t i = 0; i < n; i += 64) __builtin_prefetch(slice + i, 0, 2);
  }
}

void SegmentSearch::score_window(int64_t window, int64_t n, float* scores) const {
  int first = 0;  // of the terms before t that are still to be added, in this order
  const auto add_lists = [&](int t) {
    if (t == first) return;
    value_kernels_.score(view_.postings, terms_.data() + first, t - first, window,
                         window + 1 == view_.n_windows, spare(), view_.unit(), scores);
  };
  for (int t = 0; dense_ != nullptr && t < n_terms(); ++t) {
    const uint8_t* values = dense_->find(terms_[t].term, window);
    if (values == nullptr) continue;
    add_lists(t);
    value_kernels_.add_dense(values, round_up(n, kStep), terms_[t].weight, scores);
    first = t + 1;
  }
  add_lists(n_terms());
}

double SegmentSearch::ns_of_filtered(double scan_ns, int64_t listed) const {
  if (view_.block == 0) return scan_ns;
  // The fewer documents may be hits, the lower is the bar that the best of them set.
  const double blocks = std::min(static_cast<double>(view_.n_blocks()),
                                 kBlocksExpected * view_.n_docs / std::max<double>(listed, 1));
  const double of_term = costs().bound * view_.n_blocks() + ns_block_term() * blocks;
  return std::min(scan_ns, n_terms() * of_term);
}

bool SegmentSearch::run_listed(TopHits& best, Scratch& s) const {
  if (allowed_ == nullptr || terms_.size() > RowScorer::kMostTerms) return false;
  const double scan_ns = ns_of_scan(costs(), view_, n_postings());
  const double row_ns = ns_of_row(costs(), view_);
  int64_t listed = 0;
  for (int64_t w = 0; w < (view_.n_docs + 63) / 64; ++w) {
    if (allowed_[w] == 0) continue;
    listed += __builtin_popcountll(allowed_[w]);
    if (listed * row_ns > ns_of_filtered(scan_ns, listed)) return false;
  }
  const double saved = ns_of_filtered(scan_ns, listed) - listed * row_ns;
  const ForwardIndex* forward = index_.forward_if_worth(static_cast<int64_t>(saved));
  if (forward == nullptr) return false;
  score_listed(*forward, best, s);
  return true;
}

void SegmentSearch::score_listed(const ForwardIndex& forward, TopHits& best, Scratch& s) const {
  RowScorer scorer(forward, terms_, s.rows);
  constexpr int kAhead = 32;  // rows that are prefetched together
  int64_t docs[kAhead];
  int n = 0;
  const auto score_those = [&] {
    for (int i = 0; i < n; ++i) forward.prefetch(docs[i]);
    for (int i = 0; i < n; ++i) {
      const float score = std::min(scorer.score(docs[i]), best.most());
      if (bits_of(score) >= best.bar())
        best.add(score, id_of(view_, docs[i]), first_doc_ + docs[i]);
      best.settle_rarely();
    }
    n = 0;
  };
  for (int64_t w = 0; w < (view_.n_docs + 63) / 64; ++w) {
    uint64_t bits = allowed_[w];
    // Those after the last document may be set.
    if (view_.n_docs - w * 64 < 64) bits &= (uint64_t{1} << (view_.n_docs % 64)) - 1;
    for (; bits != 0; bits &= bits - 1) {
      docs[n++] = w * 64 + __builtin_ctzll(bits);
      if (n == kAhead) score_those();
    }
  }
  score_those();
  best.settle();
}

void SegmentSearch::keep_allowed(float* scores, int64_t n, const uint64_t* bits) const {
  constexpr uint64_t kFull = ~uint64_t{0};
  for (int64_t w = 0; w < n / 64;) {
    if (bits[w] == kFull) {
      ++w;
      continue;
    }
    const int64_t begin = w;
    while (w < n / 64 && bits[w] != kFull) ++w;
    kernels_.keep(scores + begin * 64, (w - begin) * 64, bits + begin);
  }
}

void SegmentSearch::take(int64_t window, int64_t begin, int64_t end, TopHits& best, Scratch& s,
                         const BlockBounds* bounds) const {
  float* const from = scores(s) + begin;
  const int64_t n = round_up(end - begin, kStep);
  const int64_t base = window * view_.window + begin;
  if (allowed_ != nullptr) keep_allowed(from, n, allowed_ + base / 64);
  if (!best.full()) raise_by_lanes(from, n, best, s);
  const int64_t count = kernels_.take(from, n, best.bar(), s.ids.data(), s.taken.data());
  if (count == 0) return;
  // Scores that top_k others of this window exceed are not sorted with the hits.
  if (count > best.top_k()) {
    static_assert(sizeof(float) == sizeof(uint32_t));
    std::memcpy(s.maxima.data(), s.taken.data(), count * sizeof(float));
    best.raise_by_sums(reached_by(s.maxima.data(), count, best.top_k()));
  }
  for (int64_t i = 0; i < count; ++i) {
    const float score = std::min(s.taken[i], best.most());
    if (bits_of(score) < best.bar()) continue;
    const int64_t doc = base + s.ids[i];
    if (bounds != nullptr && bounds->done(doc / view_.block)) continue;
    best.add(score, id_of(view_, doc), first_doc_ + doc);
  }
  best.settle();
}

void SegmentSearch::raise_by_lanes(const float* scores, int64_t n, TopHits& best,
                                   Scratch& s) const {
  const int64_t top_k = best.top_k();
  const int64_t lanes = round_up(4 * top_k, kStep);
  if (lanes > n / 2) return;
  n = std::min(n, std::max(2 * lanes, kEnoughForABar));
  kernels_.lane_maxima(scores, n, lanes, s.maxima.data());
  best.raise_by_sums(reached_by(s.maxima.data(), lanes, top_k));
}

bool SegmentSearch::any_allowed(int64_t first, int64_t n) const {
  if (allowed_ == nullptr) return true;
  const int64_t end = std::min(first + n, view_.n_docs);  // the last block need not be full
  return std::any_of(allowed_ + first / 64, allowed_ + (end + 63) / 64,
                     [](uint64_t word) { return word != 0; });
}

}  // namespace csrkern
