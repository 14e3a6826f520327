// The search of clustered codes: only the blocks of documents whose bounds reach the bar.
#include <algorithm>

#include "index/scan.hpp"

namespace csrkern {
namespace {

// Raises `bound` of each range, a number of postings that are below document x, to all that are;
// at most `most` more are.
void narrow(int32_t x, uint32_t most, uint32_t SliceRange::* bound,
            std::vector<SliceRange>& ranges) {
  uint32_t step = 1;
  while (step <= most / 2) step *= 2;
  for (; step > 0; step /= 2) {
    for (SliceRange& r : ranges) {
      const uint32_t probe = std::min(r.*bound + step, r.n) - 1;
      uint16_t id;
      std::memcpy(&id, r.slice + 2 * probe, 2);
      const uint32_t below = -static_cast<uint32_t>(id < x);
      r.*bound = (r.*bound & ~below) | ((probe + 1) & below);
    }
  }
}

void prefetch(const uint8_t* begin, const uint8_t* end) {
  for (const uint8_t* at = begin; at < end; at += 64) __builtin_prefetch(at);
  __builtin_prefetch(end - 1);
}

}  // namespace

void SegmentSearch::run_blocks(TopHits& best, Scratch& s, SearchCost& cost) const {
  s.bounds.compute(view_, terms_, bound_share_);
  // Without a limit on the number of hits, there is no bar to raise.
  const int64_t first = best.top_k() < view_.n_docs ? 4 + 4 * best.top_k() / view_.block : 0;
  s.bounds.take_best(first, s.blocks);
  cost.blocks_scored += s.blocks.size();
  score_blocks(s.blocks.data(), s.blocks.data() + s.blocks.size(), best, s);
  s.bounds.find(best.bar(), s.blocks);
  const int64_t per_window = view_.window / view_.block;
  const double worth_scanning = s.blocks.empty() ? 0 : blocks_worth_a_scan();
  const int32_t* const end = s.blocks.data() + s.blocks.size();
  for (const int32_t* block = s.blocks.data(); block < end;) {
    const int64_t window = *block / per_window;
    const int32_t* const next = std::lower_bound(block, std::min(end, block + per_window),
                                                 static_cast<int32_t>((window + 1) * per_window));
    if (next - block > worth_scanning) {
      scan(window, best, s, &s.bounds);
      ++cost.windows_scanned;
    } else {
      cost.blocks_scored += score_blocks(block, next, best, s);
    }
    block = next;
  }
  if (directory_ == nullptr) {
    const double saved = (costs().block_term - costs().directory_term) * terms_.size();
    index_.note_blocks(static_cast<int64_t>(saved * cost.blocks_scored));
  }
}

double SegmentSearch::blocks_worth_a_scan() const {
  const double scan =
      costs().posting * n_postings() / view_.n_windows + costs().document * view_.window;
  return scan / (ns_block_term() * n_terms());
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
      const int32_t last = last_neighbor(block, end);
      block += last - first + 1;
      if (!reaches(first, last, best, s)) continue;
      if (!any_allowed(first * int64_t{view_.block}, (last - first + 1) * int64_t{view_.block})) {
        continue;
      }
      ahead = true;
      scored += last - first + 1;
      find_ranges(first, last, s.next);
    }
    if (any) score_stretch(s.now, best, s);
  }
  return scored;
}

int32_t SegmentSearch::last_neighbor(const int32_t* block, const int32_t* end) const {
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
    look_up_ranges(n, s);
    for (int i = 0; i < n; ++i) score_stretch(s.ahead[i], best, s);
  }
  return scored;
}

// In loops without branches that wait, so that the cache misses of all blocks and terms overlap.
void SegmentSearch::look_up_ranges(int n, Scratch& s) const {
  const size_t m = terms_.size();
  const int64_t bytes = value_bytes(view_.type);
  for (int i = 0; i < n; ++i) {
    for (const QueryTerm& t : terms_) directory_->prefetch_word(s.ahead[i].first_block, t.term);
  }
  s.runs.resize(n * m);
  for (int i = 0; i < n; ++i) {
    const Directory::Run** runs = s.runs.data() + i * m;
    for (size_t j = 0; j < m; ++j) {
      runs[j] = directory_->find(s.ahead[i].first_block, terms_[j].term);
      __builtin_prefetch(runs[j]);
    }
  }
  for (int i = 0; i < n; ++i) {
    const Directory::Run* const* runs = s.runs.data() + i * m;
    Stretch& stretch = s.ahead[i];
    stretch.ranges.resize(m);
    SliceRange* range = stretch.ranges.data();
    for (size_t j = 0; j < m; ++j) {
      if (runs[j] == nullptr) continue;
      const QueryTerm& t = terms_[j];
      const uint64_t offset = t.offsets[stretch.window];
      const uint32_t n_all = static_cast<uint32_t>(t.offsets[stretch.window + 1] - offset);
      *range = {view_.slice(offset), n_all, runs[j]->begin, runs[j]->begin + runs[j]->more + 1u,
                t.weight};
      prefetch(range->slice + 2 * range->from, range->slice + 2 * range->to);
      const uint8_t* values = range->slice + 2 * n_all;
      prefetch(values + range->from * bytes, values + range->to * bytes);
      ++range;
    }
    stretch.ranges.resize(range - stretch.ranges.data());
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

void SegmentSearch::find_ranges(int32_t first, int32_t last, Stretch& stretch) const {
  set_bounds(first, last, stretch);
  stretch.ranges.clear();
  uint32_t longest = 0;
  for (const QueryTerm& t : terms_) {
    const uint8_t* maxima = view_.maxima_of(t.term);
    uint8_t any = 0;
    for (int32_t b = first; b <= last; ++b) any |= maxima[b];
    const uint64_t offset = t.offsets[stretch.window];
    const uint32_t n = static_cast<uint32_t>(t.offsets[stretch.window + 1] - offset);
    if (any == 0 || n == 0) continue;
    stretch.ranges.push_back({view_.slice(offset), n, 0, n, t.weight});
    longest = std::max(longest, n);
  }
  // All binary searches advance together, without branches, so that their cache misses overlap.
  const int64_t bytes = value_bytes(view_.type);
  narrow(stretch.begin, longest, &SliceRange::from, stretch.ranges);
  for (const SliceRange& r : stretch.ranges) {
    __builtin_prefetch(r.slice + 2 * r.n + r.from * bytes);
  }
  const uint32_t most = static_cast<uint32_t>(stretch.end - stretch.begin);
  for (SliceRange& r : stretch.ranges) r.to = r.from;
  narrow(stretch.end, std::min(longest, most), &SliceRange::to, stretch.ranges);
  for (const SliceRange& r : stretch.ranges) {
    const uint8_t* values = r.slice + 2 * r.n;
    for (uint32_t i = r.from; i < r.to; i += 32) __builtin_prefetch(values + i * bytes);
  }
}

void SegmentSearch::score_stretch(const Stretch& now, TopHits& best, Scratch& s) const {
  value_kernels_.score_ranges(now.ranges.data(), static_cast<int>(now.ranges.size()), spare(),
                              view_.unit(), scores(s));
  take(now.window, now.begin, now.end, best, s, nullptr);
}

}  // namespace csrkern
