// The search of one index for one query.
#pragma once

#include <utility>
#include <vector>

#include "csrkern/costs.hpp"
#include "csrkern/index_rows.hpp"
#include "index/dense_lists.hpp"
#include "index/directory.hpp"
#include "index/forward.hpp"
#include "index/query.hpp"

namespace csrkern {

constexpr int64_t kStep = 64;     // documents that the scan kernels take at once
constexpr int kBlocksAtOnce = 8;  // prefetched together

inline int64_t id_of(const IndexView& view, int64_t doc) {
  return view.ids == nullptr ? doc : view.ids[doc];
}

inline int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// Documents [begin, end) of a window, and their postings in the lists of the query's terms.
struct Stretch {
  int64_t window = 0;
  int32_t first_block = 0;
  int32_t begin = 0, end = 0;
  std::vector<SliceRange> ranges;
};

// A document on a walk, and whether its neighbors have been scored.
struct Stop {
  float score;
  uint32_t doc;
  bool left;
};

// Memory for walks; `met` is all zero between them.
struct WalkScratch {
  std::vector<uint64_t> met;       // a bit for each document
  std::vector<uint32_t> met_docs;  // whose bits are set
  std::vector<uint32_t> fresh;     // to be scored
  std::vector<Stop> stops;
};

// Memory of a thread for scoring windows; scores are all zero between windows.
struct Scratch {
  void reserve(int64_t window);
  // Returns room for lines [terms, kBatch], all zero, to be left so.
  int8_t* batch_lines(int64_t n_terms);

  int64_t capacity = 0;
  Buffer scores;
  std::vector<float> taken;
  std::vector<uint16_t> ids;
  std::vector<uint32_t> maxima;
  std::vector<int32_t> blocks;
  Buffer lines;
  std::vector<const Directory::Run*> runs;
  Stretch now, next;  // being scored, being prefetched
  Stretch ahead[kBlocksAtOnce];
  BlockBounds bounds;
  RowScratch rows;
  WalkScratch walk;
};

// Returns this thread's scratch.
Scratch& scratch();

inline double ns_of_scan(const Costs& costs, const IndexView& view, double postings) {
  return costs.posting * postings + costs.document * view.n_docs;
}

// Returns the expected time of a document that is scored by the forward index.
inline double ns_of_row(const Costs& costs, const IndexView& view) {
  const double entries = static_cast<double>(view.offsets[view.n_terms * view.n_windows]);
  return costs.row + costs.entry * entries / static_cast<double>(view.n_docs);
}

// Returns the expected time of a search that reads this much.
inline double ns_of(const Costs& costs, const IndexView& view, const SearchCost& cost) {
  if (cost.terms == 0) return 0;
  return cost.terms * (costs.directory_term * cost.blocks_scored + costs.bound * view.n_blocks()) +
         ns_of_scan(costs, view, cost.postings) * cost.windows_scanned / view.n_windows;
}

// Returns the terms of the entries whose latents the index has. Checks each list before its first
// use.
std::vector<QueryTerm> find_terms(const Index& index, const std::vector<Entry>& entries);

// A search of one index for one query. Documents are numbered from `first_doc`.
class SegmentSearch {
 public:
  // `terms`: of the query, by descending weight. `bound_share`: see SearchOptions. `costs`: by
  // which it chooses; null: those of this processor.
  SegmentSearch(const Index& index, std::vector<QueryTerm> terms, const uint64_t* allowed,
                int64_t first_doc, double bound_share = 1, const Costs* costs = nullptr)
      : index_(index),
        view_(index.view_),
        terms_(std::move(terms)),
        allowed_(allowed),
        first_doc_(first_doc),
        bound_share_(bound_share),
        costs_(costs),
        value_kernels_(choose_value_kernels()),
        dense_(choose_dense()) {}

  // Scores all windows in order, or only the blocks or documents that can matter.
  void run(TopHits& best, Scratch& s, SearchCost& cost);

  // The same; returns what it reads.
  SearchCost run_counted(TopHits& best, Scratch& s);
  // Returns what scans of all windows read.
  SearchCost cost_of_scans() const;
  // Returns the expected time of scans of all windows, with dense lists where the index makes them.
  double ns_of_scans() const;
  int64_t n_postings() const;  // in the lists of the terms

  // Fetches the first postings of each slice that a scan of the window reads.
  void fetch_slices(int64_t window) const;
  // Scores a whole window; blocks that are done according to `bounds` are left out of `best`.
  void scan(int64_t window, TopHits& best, Scratch& s, const BlockBounds* bounds = nullptr) const;

 private:
  friend class CostMeter;

  const ValueKernels& choose_value_kernels() const;
  double ns_saved_by_dense() const;
  // Returns the dense lists if a term has one and they exist, or are worth making.
  const DenseLists* choose_dense() const;
  int n_terms() const { return static_cast<int>(terms_.size()); }
  const Costs& costs() const { return costs_ != nullptr ? *costs_ : csrkern::costs(); }
  double ns_block_term() const { return directory_ ? costs().directory_term : costs().block_term; }
  int32_t spare() const { return static_cast<int32_t>(round_up(view_.window, kStep)); }
  static float* scores(Scratch& s) { return reinterpret_cast<float*>(s.scores.data()); }

  // Adds up the lists of n documents of a window.
  void score_window(int64_t window, int64_t n, float* scores) const;
  // Returns the expected time of a search by lists, or blocks, where so many documents may be hits.
  double ns_of_filtered(double scan_ns, int64_t listed) const;
  // If a filter lets few documents pass, scores these individually. Returns false if a scan is
  // faster.
  bool run_listed(TopHits& best, Scratch& s) const;
  void score_listed(const ForwardIndex& forward, TopHits& best, Scratch& s) const;
  // Scores the blocks with the highest bounds first, so that the bar they set rules out most
  // others.
  void run_blocks(TopHits& best, Scratch& s, SearchCost& cost) const;
  // Returns how many blocks, scored individually, take as long as a scan of their window.
  double blocks_worth_a_scan() const;
  // Scores the blocks that still reach the bar, neighbors together, while the postings of the next
  // blocks are prefetched. Returns the number of blocks scored.
  int64_t score_blocks(const int32_t* block, const int32_t* end, TopHits& best, Scratch& s) const;
  // Returns the last of the blocks that follow *block without a gap within its window.
  int32_t last_neighbor(const int32_t* block, const int32_t* end) const;
  bool reaches(int32_t first, int32_t last, const TopHits& best, const Scratch& s) const;
  // The same as score_blocks, a few blocks at a time, with the directory of postings.
  int64_t look_up_blocks(const int32_t* block, const int32_t* end, TopHits& best, Scratch& s) const;
  void look_up_ranges(int n, Scratch& s) const;
  void set_bounds(int32_t first, int32_t last, Stretch& stretch) const;
  // Finds the postings of neighboring blocks. Terms that none of their documents has are left out
  // without a search of their slices.
  void find_ranges(int32_t first, int32_t last, Stretch& stretch) const;
  void score_stretch(const Stretch& now, TopHits& best, Scratch& s) const;
  // Zeroes the scores of documents that are not allowed. After removals nearly all words of bits
  // are full: skipping these makes the mask almost free.
  void keep_allowed(float* scores, int64_t n, const uint64_t* bits) const;
  // Moves the best scores of documents [begin, end) to `best` and zeroes all of them.
  void take(int64_t window, int64_t begin, int64_t end, TopHits& best, Scratch& s,
            const BlockBounds* bounds) const;
  // Raises the bar in the first window, where all documents would have to be sorted: k documents
  // reach the k-th largest of the maxima of disjoint sets. Part of the window is enough.
  void raise_by_lanes(const float* scores, int64_t n, TopHits& best, Scratch& s) const;
  // Returns false if a filter lets none of n documents from `first` on pass.
  bool any_allowed(int64_t first, int64_t n) const;

  const Index& index_;
  const IndexView& view_;
  std::vector<QueryTerm> terms_;
  const uint64_t* allowed_;
  int64_t first_doc_;
  double bound_share_;
  const Costs* costs_;
  const Directory* directory_ = nullptr;
  const IndexKernels& kernels_ = kernels().index;
  const ValueKernels& value_kernels_;
  const DenseLists* dense_;
};

}  // namespace csrkern
