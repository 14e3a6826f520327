#include "index_scan.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace csrkern {
namespace {

constexpr int64_t kEnoughForABar = 8192;

// Moves `bound` of each part, the number of postings known to be below document x, up to
// what it is; at most `most` postings are yet to be told.
void narrow(int32_t x, uint32_t most, uint32_t Part::* bound, std::vector<Part>& parts) {
  uint32_t step = 1;
  while (step <= most / 2) step *= 2;
  for (; step > 0; step /= 2) {
    for (Part& p : parts) {
      const uint32_t probe = std::min(p.*bound + step, p.n) - 1;
      uint16_t id;
      std::memcpy(&id, p.segment + 2 * probe, 2);
      const uint32_t below = -static_cast<uint32_t>(id < x);
      p.*bound = (p.*bound & ~below) | ((probe + 1) & below);
    }
  }
}

void prefetch(const uint8_t* begin, const uint8_t* end) {
  for (const uint8_t* at = begin; at < end; at += 64) __builtin_prefetch(at);
  __builtin_prefetch(end - 1);
}

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

Scratch& scratch() {
  static thread_local Scratch mine;
  return mine;
}

int64_t postings_of(const std::vector<QueryTerm>& terms, int64_t n_windows) {
  int64_t total = 0;
  for (const QueryTerm& t : terms) total += t.offsets[n_windows] - t.offsets[0];
  return total;
}

void SegmentSearch::find_terms(const std::vector<Entry>& entries,
                               std::vector<QueryTerm>& terms) const {
  terms.clear();
  for (const Entry& e : entries) {
    const int64_t t = index_.finder_.find(e.latent);
    if (t < 0) continue;
    index_.verify_term(t);
    terms.push_back({view_.offsets + t * view_.n_windows, e.value, t});
  }
}

void SegmentSearch::run(TopHits& best, Scratch& s, SearchCost& cost) {
  if (s.terms.empty()) return;
  if (view_.block > 0) directory_ = index_.directory_if_worth();
  if (run_listed(best, s)) return;
  if (view_.block > 0 && s.terms.size() <= BlockBounds::kMostTerms) {
    run_blocks(best, s, cost);
  } else {
    for (int64_t w = 0; w < view_.n_windows; ++w) scan(w, s.terms, best, s);
    cost.windows_scanned = view_.n_windows;
  }
}

const ValueKernels& SegmentSearch::of_values(const std::vector<QueryTerm>& terms) const {
  const bool simple = !is_squares(view_.type) || terms.empty() ||
                      (std::isnormal(terms.front().weight * view_.unit()) &&
                       std::isnormal(terms.back().weight * view_.unit()));
  return (simple ? kernels_ : kIndexKernelsPortable).of[static_cast<int>(view_.type)];
}

void SegmentSearch::scan(int64_t window, const std::vector<QueryTerm>& terms, TopHits& best,
                         Scratch& s, const BlockBounds* bounds) const {
  const int64_t n = std::min<int64_t>(view_.window, view_.n_docs - window * view_.window);
  if (!any_allowed(window * view_.window, n)) return;
  of_values(terms).score(view_.postings, terms.data(), static_cast<int>(terms.size()), window,
                         window + 1 == view_.n_windows, spare(), view_.unit(), scores(s));
  take(window, 0, n, best, s, bounds);
}

bool SegmentSearch::run_listed(TopHits& best, Scratch& s) const {
  if (allowed_ == nullptr || s.terms.size() > RowScorer::kMostTerms) return false;
  const double n_postings = postings_of(s.terms, view_.n_windows);
  double scan_ns = kNsPosting * n_postings + kNsDocument * view_.n_docs;
  if (view_.block > 0) {
    scan_ns = std::min(scan_ns, s.terms.size() * (kNsBound * view_.n_blocks() +
                                                  ns_block_term() * kBlocksExpected));
  }
  const double row_ns =
      kNsRow +
      kNsEntry * static_cast<double>(view_.offsets[view_.n_terms * view_.n_windows]) / view_.n_docs;
  const int64_t most = static_cast<int64_t>(scan_ns / row_ns);
  int64_t listed = 0;
  for (int64_t w = 0; listed <= most && w < (view_.n_docs + 63) / 64; ++w) {
    if (allowed_[w] != 0) listed += __builtin_popcountll(allowed_[w]);
  }
  if (listed > most) return false;
  const Forward* forward = index_.forward_if_worth(static_cast<int64_t>(scan_ns - listed * row_ns));
  if (forward == nullptr) return false;
  score_listed(*forward, best, s);
  return true;
}

void SegmentSearch::score_listed(const Forward& forward, TopHits& best, Scratch& s) const {
  RowScorer scorer(forward, s.terms, s.rows);
  constexpr int kAhead = 32;  // rows on their way from memory together
  int64_t docs[kAhead];
  int n = 0;
  const auto score_those = [&] {
    for (int i = 0; i < n; ++i) forward.prefetch(docs[i]);
    for (int i = 0; i < n; ++i) {
      const float score = scorer.score(docs[i]);
      if (bits_of(score) >= best.bar()) best.add(score, id_of(docs[i]), first_doc_ + docs[i]);
      best.settle_rarely();
    }
    n = 0;
  };
  for (int64_t w = 0; w < (view_.n_docs + 63) / 64; ++w) {
    for (uint64_t bits = allowed_[w]; bits != 0; bits &= bits - 1) {
      docs[n++] = w * 64 + __builtin_ctzll(bits);
      if (n == kAhead) score_those();
    }
  }
  score_those();
  best.settle();
}

void SegmentSearch::run_blocks(TopHits& best, Scratch& s, SearchCost& cost) const {
  s.bounds.compute(view_, s.terms);
  // With no limit on what is found, no bar is to be raised.
  const int64_t first = best.topk() < view_.n_docs ? 4 + 4 * best.topk() / view_.block : 0;
  s.bounds.take_best(first, s.blocks);
  cost.blocks_scored += s.blocks.size();
  score_blocks(s.blocks.data(), s.blocks.data() + s.blocks.size(), best, s);
  s.bounds.find(best.bar(), s.blocks);
  const int64_t per_window = view_.window / view_.block;
  const double worth_scanning = s.blocks.empty() ? 0 : blocks_worth_a_scan(s.terms);
  const int32_t* const end = s.blocks.data() + s.blocks.size();
  for (const int32_t* block = s.blocks.data(); block < end;) {
    const int64_t window = *block / per_window;
    const int32_t* const next = std::lower_bound(block, std::min(end, block + per_window),
                                                 static_cast<int32_t>((window + 1) * per_window));
    if (next - block > worth_scanning) {
      scan(window, s.terms, best, s, &s.bounds);
      ++cost.windows_scanned;
    } else {
      cost.blocks_scored += score_blocks(block, next, best, s);
    }
    block = next;
  }
  if (directory_ == nullptr) {
    const double saved = (kNsBlockTerm - kNsDirectoryTerm) * s.terms.size();
    index_.note_blocks(static_cast<int64_t>(saved * cost.blocks_scored));
  }
}

double SegmentSearch::blocks_worth_a_scan(const std::vector<QueryTerm>& terms) const {
  const double scan = kNsPosting * postings_of(terms, view_.n_windows) / view_.n_windows +
                      kNsDocument * view_.window;
  return scan / (ns_block_term() * terms.size());
}

int64_t SegmentSearch::score_blocks(const int32_t* block, const int32_t* end, TopHits& best,
                                    Scratch& s) const {
  if (directory_ != nullptr) return look_up_blocks(block, end, best, s);
  int64_t scored = 0;
  bool ahead = false;
  while (ahead || block < end) {
    std::swap(s.now, s.next);
    const bool any = ahead;
    ahead = false;
    while (!ahead && block < end) {
      const int32_t first = *block;
      const int32_t last = last_neighbour(block, end);
      block += last - first + 1;
      if (!reaches(first, last, best, s)) continue;
      if (!any_allowed(first * int64_t{view_.block}, (last - first + 1) * int64_t{view_.block})) {
        continue;
      }
      ahead = true;
      scored += last - first + 1;
      find_parts(first, last, s.terms, s.next);
    }
    if (any) score_stretch(s.now, best, s);
  }
  return scored;
}

int32_t SegmentSearch::last_neighbour(const int32_t* block, const int32_t* end) const {
  const int32_t per_window = view_.window / view_.block;
  int32_t last = *block;
  while (++block < end && *block == last + 1 && *block % per_window != 0) ++last;
  return last;
}

bool SegmentSearch::reaches(int32_t first, int32_t last, const TopHits& best,
                            const Scratch& s) const {
  const uint16_t least = s.bounds.least(best.bar());
  for (int32_t b = first; b <= last; ++b) {
    if (s.bounds.done(b) || s.bounds.reaches(b, least)) return true;
  }
  return false;
}

int64_t SegmentSearch::look_up_blocks(const int32_t* block, const int32_t* end, TopHits& best,
                                      Scratch& s) const {
  int64_t scored = 0;
  while (block < end) {
    int n = 0;
    for (; n < kBlocksAtOnce && block < end; ++block) {
      if (!reaches(*block, *block, best, s)) continue;
      if (!any_allowed(*block * int64_t{view_.block}, view_.block)) continue;
      set_bounds(*block, *block, s.ahead[n++]);
    }
    scored += n;
    look_up_parts(n, s);
    for (int i = 0; i < n; ++i) score_stretch(s.ahead[i], best, s);
  }
  return scored;
}

// In loops without jumps or waits, so that the cache misses of all blocks and terms overlap.
void SegmentSearch::look_up_parts(int n, Scratch& s) const {
  const size_t m = s.terms.size();
  const int64_t bytes = value_bytes(view_.type);
  for (int i = 0; i < n; ++i) {
    for (const QueryTerm& t : s.terms) directory_->prefetch_word(s.ahead[i].first_block, t.term);
  }
  s.runs.resize(n * m);
  for (int i = 0; i < n; ++i) {
    const Directory::Run** runs = s.runs.data() + i * m;
    for (size_t j = 0; j < m; ++j) {
      runs[j] = directory_->find(s.ahead[i].first_block, s.terms[j].term);
      __builtin_prefetch(runs[j]);
    }
  }
  for (int i = 0; i < n; ++i) {
    const Directory::Run* const* runs = s.runs.data() + i * m;
    Stretch& stretch = s.ahead[i];
    stretch.parts.resize(m);
    Part* part = stretch.parts.data();
    for (size_t j = 0; j < m; ++j) {
      if (runs[j] == nullptr) continue;
      const QueryTerm& t = s.terms[j];
      const uint64_t offset = t.offsets[stretch.window];
      const uint32_t n_all = static_cast<uint32_t>(t.offsets[stretch.window + 1] - offset);
      *part = {view_.segment(offset), n_all, runs[j]->begin, runs[j]->begin + runs[j]->more + 1u,
               t.weight};
      prefetch(part->segment + 2 * part->from, part->segment + 2 * part->to);
      const uint8_t* values = part->segment + 2 * n_all;
      prefetch(values + part->from * bytes, values + part->to * bytes);
      ++part;
    }
    stretch.parts.resize(part - stretch.parts.data());
  }
}

void SegmentSearch::set_bounds(int32_t first, int32_t last, Stretch& stretch) const {
  const int32_t per_window = view_.window / view_.block;
  stretch.first_block = first;
  stretch.window = first / per_window;
  stretch.begin = first % per_window * view_.block;
  stretch.end = static_cast<int32_t>(std::min<int64_t>(
      (last % per_window + 1) * view_.block, view_.n_docs - stretch.window * view_.window));
}

void SegmentSearch::find_parts(int32_t first, int32_t last, const std::vector<QueryTerm>& terms,
                               Stretch& stretch) const {
  set_bounds(first, last, stretch);
  stretch.parts.clear();
  uint32_t longest = 0;
  for (const QueryTerm& t : terms) {
    const uint8_t* maxima = view_.maxima_of(t.term);
    uint8_t any = 0;
    for (int32_t b = first; b <= last; ++b) any |= maxima[b];
    const uint64_t offset = t.offsets[stretch.window];
    const uint32_t n = static_cast<uint32_t>(t.offsets[stretch.window + 1] - offset);
    if (any == 0 || n == 0) continue;
    stretch.parts.push_back({view_.segment(offset), n, 0, n, t.weight});
    longest = std::max(longest, n);
  }
  // All searches advance in step and without jumps, so that their cache misses overlap.
  const int64_t bytes = value_bytes(view_.type);
  narrow(stretch.begin, longest, &Part::from, stretch.parts);
  for (const Part& p : stretch.parts) {
    __builtin_prefetch(p.segment + 2 * p.n + p.from * bytes);
  }
  const uint32_t most = static_cast<uint32_t>(stretch.end - stretch.begin);
  for (Part& p : stretch.parts) p.to = p.from;
  narrow(stretch.end, std::min(longest, most), &Part::to, stretch.parts);
  for (const Part& p : stretch.parts) {
    const uint8_t* values = p.segment + 2 * p.n;
    for (uint32_t i = p.from; i < p.to; i += 32) __builtin_prefetch(values + i * bytes);
  }
}

void SegmentSearch::score_stretch(const Stretch& now, TopHits& best, Scratch& s) const {
  of_values(s.terms).score_parts(now.parts.data(), static_cast<int>(now.parts.size()), spare(),
                                 view_.unit(), scores(s));
  take(now.window, now.begin, now.end, best, s, nullptr);
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
  // Scores that topk others of this window exceed need not be sorted with the hits.
  if (count > best.topk()) {
    static_assert(sizeof(float) == sizeof(uint32_t));
    std::memcpy(s.maxima.data(), s.taken.data(), count * sizeof(float));
    best.raise(reached_by(s.maxima.data(), count, best.topk()));
  }
  for (int64_t i = 0; i < count; ++i) {
    if (bits_of(s.taken[i]) < best.bar()) continue;
    const int64_t doc = base + s.ids[i];
    if (bounds != nullptr && bounds->done(doc / view_.block)) continue;
    best.add(s.taken[i], id_of(doc), first_doc_ + doc);
  }
  best.settle();
}

void SegmentSearch::raise_by_lanes(const float* scores, int64_t n, TopHits& best,
                                   Scratch& s) const {
  const int64_t topk = best.topk();
  const int64_t lanes = round_up(4 * topk, kStep);
  if (lanes > n / 2) return;
  n = std::min(n, std::max(2 * lanes, kEnoughForABar));
  kernels_.lane_maxima(scores, n, lanes, s.maxima.data());
  best.raise(reached_by(s.maxima.data(), lanes, topk));
}

bool SegmentSearch::any_allowed(int64_t first, int64_t n) const {
  if (allowed_ == nullptr) return true;
  const uint64_t* words = allowed_ + first / 64;
  return std::any_of(words, words + (n + 63) / 64, [](uint64_t word) { return word != 0; });
}

}  // namespace csrkern
