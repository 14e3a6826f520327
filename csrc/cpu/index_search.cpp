#include <atomic>
#include <functional>
#include <limits>

#include "csrkern/index_rows.hpp"
#include "csrkern/parallel.hpp"
#include "index_query.hpp"

namespace csrkern {
namespace {

constexpr int64_t kEnoughForABar = 8192;
constexpr int64_t kStep = 64;  // documents that the scan kernels take at once

int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// Documents [begin, end) of a window, and their postings in the query's lists.
struct Stretch {
  int64_t window = 0;
  int32_t begin = 0, end = 0;
  std::vector<Part> parts;
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
  std::vector<int32_t> latents;
  std::vector<QueryTerm> terms;
  std::vector<int32_t> blocks;
  Stretch now, next;  // being scored, being fetched
  BlockBounds bounds;
};

Scratch& scratch() {
  static thread_local Scratch mine;
  return mine;
}

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

// What decides between single blocks and whole windows: a posting of a scan, a document of a
// scan, a term of a block (mostly waiting for memory), a term of a block's bound.
constexpr double kNsPosting = 0.6, kNsDocument = 0.05, kNsBlockTerm = 100, kNsBound = 0.05;

int64_t postings_of(const std::vector<QueryTerm>& terms, int64_t n_windows) {
  int64_t total = 0;
  for (const QueryTerm& t : terms) total += t.offsets[n_windows] - t.offsets[0];
  return total;
}

}  // namespace

// The search for one query, by one thread or, window by window, by several.
class QuerySearch {
 public:
  QuerySearch(const Index& index, const uint64_t* allowed)
      : index_(index), view_(index.view_), allowed_(allowed) {}

  // Reads a query; each list is checked before its first use.
  void read(const SparseRows& queries, int64_t i, bool normalize, Scratch& s) const {
    read_query(queries, i, normalize, s.entries, s.latents);
    s.terms.clear();
    for (const Entry& e : s.entries) {
      const int64_t t = index_.finder_.find(e.latent);
      if (t < 0) continue;
      index_.verify_term(t);
      s.terms.push_back({view_.offsets + t * view_.n_windows, e.value, t});
    }
  }

  // All windows in order, or only the blocks that can matter.
  void run(TopHits& best, Scratch& s, SearchCost& cost) const {
    if (s.terms.empty()) return;
    if (view_.block > 0 && s.terms.size() <= BlockBounds::kMostTerms) {
      run_blocks(best, s, cost);
    } else {
      for (int64_t w = 0; w < view_.n_windows; ++w) scan(w, s.terms, best, s);
      cost.windows_scanned = view_.n_windows;
    }
  }

  // Scores a window from end to end; blocks that `bounds` calls done are left out of `best`.
  void scan(int64_t window, const std::vector<QueryTerm>& terms, TopHits& best, Scratch& s,
            const BlockBounds* bounds = nullptr) const {
    const int64_t n = std::min<int64_t>(view_.window, view_.n_docs - window * view_.window);
    if (!any_allowed(window * view_.window, n)) return;
    const auto score = is_half() ? kernels_.score_half : kernels_.score_float;
    score(view_.postings, terms.data(), static_cast<int>(terms.size()), window, spare(), scores(s));
    take(window, 0, n, best, s, bounds);
  }

 private:
  bool is_half() const { return view_.type == ValueType::float16; }
  int32_t spare() const { return static_cast<int32_t>(round_up(view_.window, kStep)); }
  static float* scores(Scratch& s) { return reinterpret_cast<float*>(s.scores.data()); }

  // The blocks of the highest bounds first, so that the bar they set rules out most others.
  void run_blocks(TopHits& best, Scratch& s, SearchCost& cost) const {
    s.bounds.compute(view_, s.terms);
    s.bounds.take_best(4 + 4 * best.topk() / view_.block, s.blocks);
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
  }

  // How many of a window's blocks take, one by one, as long as a scan of the window.
  double blocks_worth_a_scan(const std::vector<QueryTerm>& terms) const {
    const double scan = kNsPosting * postings_of(terms, view_.n_windows) / view_.n_windows +
                        kNsDocument * view_.window;
    return scan / (kNsBlockTerm * terms.size());
  }

  // Scores those of the blocks that still reach the bar, neighbours in one go. The postings
  // of the next blocks are on their way from memory while these are scored.
  int64_t score_blocks(const int32_t* block, const int32_t* end, TopHits& best, Scratch& s) const {
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
      if (any) score_stretch(best, s);
    }
    return scored;
  }

  // The last of the blocks that follow *block without a gap within its window.
  int32_t last_neighbour(const int32_t* block, const int32_t* end) const {
    const int32_t per_window = view_.window / view_.block;
    int32_t last = *block;
    while (++block < end && *block == last + 1 && *block % per_window != 0) ++last;
    return last;
  }

  bool reaches(int32_t first, int32_t last, const TopHits& best, const Scratch& s) const {
    const uint16_t least = s.bounds.least(best.bar());
    for (int32_t b = first; b <= last; ++b) {
      if (s.bounds.done(b) || s.bounds.reaches(b, least)) return true;
    }
    return false;
  }

  // The postings of some neighbouring blocks. Terms that none of their documents has are left
  // out; their segments need not be searched.
  void find_parts(int32_t first, int32_t last, const std::vector<QueryTerm>& terms,
                  Stretch& stretch) const {
    const int32_t per_window = view_.window / view_.block;
    stretch.window = first / per_window;
    stretch.begin = first % per_window * view_.block;
    stretch.end = static_cast<int32_t>(std::min<int64_t>(
        (last % per_window + 1) * view_.block, view_.n_docs - stretch.window * view_.window));
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
    const int64_t value_bytes = posting_bytes(view_.type) - 2;
    narrow(stretch.begin, longest, &Part::from, stretch.parts);
    for (const Part& p : stretch.parts) {
      __builtin_prefetch(p.segment + 2 * p.n + p.from * value_bytes);
    }
    const uint32_t most = static_cast<uint32_t>(stretch.end - stretch.begin);
    for (Part& p : stretch.parts) p.to = p.from;
    narrow(stretch.end, std::min(longest, most), &Part::to, stretch.parts);
    for (const Part& p : stretch.parts) {
      const uint8_t* values = p.segment + 2 * p.n;
      for (uint32_t i = p.from; i < p.to; i += 32) __builtin_prefetch(values + i * value_bytes);
    }
  }

  // Moves `bound` of each part, the number of postings known to be below document x, up to
  // what it is; at most `most` postings are yet to be told.
  static void narrow(int32_t x, uint32_t most, uint32_t Part::* bound, std::vector<Part>& parts) {
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

  void score_stretch(TopHits& best, Scratch& s) const {
    const auto score = is_half() ? kernels_.score_half_parts : kernels_.score_float_parts;
    score(s.now.parts.data(), static_cast<int>(s.now.parts.size()), spare(), scores(s));
    take(s.now.window, s.now.begin, s.now.end, best, s, nullptr);
  }

  // Moves the best scores of documents [begin, end) to `best` and zeroes them all.
  void take(int64_t window, int64_t begin, int64_t end, TopHits& best, Scratch& s,
            const BlockBounds* bounds) const {
    float* const from = scores(s) + begin;
    const int64_t n = round_up(end - begin, kStep);
    const int64_t base = window * view_.window + begin;
    if (allowed_ != nullptr) kernels_.keep(from, n, allowed_ + base / 64);
    if (!best.full()) raise_by_lanes(from, n, best, s);
    const int64_t count = kernels_.take(from, n, best.bar(), s.ids.data(), s.taken.data());
    if (count == 0) return;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t doc = base + s.ids[i];
      if (bounds != nullptr && bounds->done(doc / view_.block)) continue;
      best.add(s.taken[i], view_.ids == nullptr ? doc : view_.ids[doc]);
    }
    best.settle();
  }

  // The k-th largest of the maxima of disjoint sets of documents is a score that k documents
  // reach: a bar for the first window, where all else would have to be sorted. A quarter of a
  // window will do.
  void raise_by_lanes(const float* scores, int64_t n, TopHits& best, Scratch& s) const {
    const int64_t topk = best.topk();
    const int64_t lanes = round_up(4 * topk, kStep);
    if (lanes > n / 2) return;
    n = std::min(n, std::max(2 * lanes, kEnoughForABar));
    kernels_.lane_maxima(scores, n, lanes, s.maxima.data());
    uint32_t* maxima = s.maxima.data();
    std::nth_element(maxima, maxima + (topk - 1), maxima + lanes, std::greater<uint32_t>());
    best.raise(maxima[topk - 1]);
  }

  // False if a filter lets none of n documents from `first` on pass.
  bool any_allowed(int64_t first, int64_t n) const {
    if (allowed_ == nullptr) return true;
    const uint64_t* words = allowed_ + first / 64;
    return std::any_of(words, words + (n + 63) / 64, [](uint64_t word) { return word != 0; });
  }

  const Index& index_;
  const IndexView& view_;
  const uint64_t* allowed_;
  const IndexKernels& kernels_ = index_kernels();
};

void Index::search(const SparseRows& queries, int64_t topk, bool normalize, const uint64_t* allowed,
                   int num_threads, float* scores, int64_t* ids) const {
  check_starts(queries, "queries");
  const QuerySearch query(*this, allowed);
  // Blocks are not visited in order.
  const bool in_order = ids_ascend_ && view_.block == 0;

  const auto search_alone = [&](int64_t i) {
    Scratch& s = scratch();
    s.reserve(view_.window);
    query.read(queries, i, normalize, s);
    TopHits best(topk, in_order);
    SearchCost cost;
    query.run(best, s, cost);
    write_out(best.hits(), topk, scores + i * topk, ids + i * topk);
  };

  const auto search_split = [&](int64_t i) {
    query.read(queries, i, normalize, scratch());
    const std::vector<QueryTerm> terms = scratch().terms;
    if (postings_of(terms, view_.n_windows) < kPostingsWorthSplitting) return search_alone(i);
    std::vector<TopHits> best(num_threads, TopHits(topk, in_order));
    std::atomic<uint32_t> bar{1};
    parallel_for(view_.n_windows, 1, num_threads, [&](int64_t w, int64_t, int thread) {
      Scratch& s = scratch();
      s.reserve(view_.window);
      TopHits& mine = best[thread];
      mine.raise(bar.load(std::memory_order_relaxed));
      query.scan(w, terms, mine, s);
      uint32_t seen = bar.load(std::memory_order_relaxed);
      while (seen < mine.shared_bar() &&
             !bar.compare_exchange_weak(seen, mine.shared_bar(), std::memory_order_relaxed)) {
      }
    });
    std::vector<Hit> all;
    for (TopHits& part : best) all.insert(all.end(), part.hits().begin(), part.hits().end());
    write_out(all, topk, scores + i * topk, ids + i * topk);
  };

  if (num_threads > 1 && queries.n < num_threads && view_.n_windows >= 2 * num_threads &&
      view_.block == 0) {
    for (int64_t i = 0; i < queries.n; ++i) search_split(i);
    return;
  }
  const int64_t grain = std::max<int64_t>(1, std::min<int64_t>(16, queries.n / (8 * num_threads)));
  parallel_for(queries.n, grain, num_threads, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) search_alone(i);
  });
}

SearchCost Index::explain(const SparseRows& queries, int64_t i, int64_t topk,
                          bool normalize) const {
  check_starts(queries, "queries");
  SearchCost cost;
  const QuerySearch query(*this, nullptr);
  Scratch& s = scratch();
  s.reserve(view_.window);
  query.read(queries, i, normalize, s);
  TopHits best(topk, ids_ascend_ && view_.block == 0);
  query.run(best, s, cost);
  cost.terms = s.terms.size();
  cost.postings = postings_of(s.terms, view_.n_windows);
  return cost;
}

double Index::gain_of_blocks(const SparseRows& queries, bool normalize) const {
  double scans = 0, blocks = 0;
  for (int64_t i = 0; i < queries.n; ++i) {
    const SearchCost cost = explain(queries, i, 10, normalize);
    const double scan = kNsPosting * cost.postings + kNsDocument * view_.n_docs;
    scans += scan;
    blocks += cost.terms * (kNsBlockTerm * cost.blocks_scored + kNsBound * view_.n_blocks()) +
              scan * cost.windows_scanned / view_.n_windows;
  }
  return blocks > 0 ? scans / blocks : 1;
}

}  // namespace csrkern
