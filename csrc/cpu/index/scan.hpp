// The search of one index for one query.
#pragma once

#include <utility>
#include <vector>

#include "csrkern/index_rows.hpp"
#include "index/directory.hpp"
#include "index/forward.hpp"
#include "index/query.hpp"

namespace csrkern {

constexpr int64_t kStep = 64;     // documents that the scan kernels take at once
constexpr int kBlocksAtOnce = 8;  // on their way from memory together

inline int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// Documents [begin, end) of a window, and their postings in the query's lists.
struct Stretch {
  int64_t window = 0;
  int32_t first_block = 0;
  int32_t begin = 0, end = 0;
  std::vector<Part> parts;
};

// What a thread needs to score a window; scores are all zero between windows.
struct Scratch {
  void reserve(int64_t window);

  int64_t capacity = 0;
  Buffer scores;
  std::vector<float> taken;
  std::vector<uint16_t> ids;
  std::vector<uint32_t> maxima;
  std::vector<int32_t> blocks;
  std::vector<const Directory::Run*> runs;
  Stretch now, next;  // being scored, being fetched
  Stretch ahead[kBlocksAtOnce];
  BlockBounds bounds;
  RowScratch rows;
};

// This thread's.
Scratch& scratch();

// What decides between single blocks and whole windows: a posting of a scan, a document of a
// scan, a term of a block (mostly waiting for memory) without and with a directory, a term of a
// block's bound.
constexpr double kNsPosting = 0.6, kNsDocument = 0.05, kNsBlockTerm = 100, kNsDirectoryTerm = 50,
                 kNsBound = 0.05;
// And between those and documents one by one: a document, an entry of it, the blocks that a
// search of clustered codes scores.
constexpr double kNsRow = 26, kNsEntry = 1.1, kBlocksExpected = 20;
// A document of a shortlist: 190 to find it, 140 to score it again.
constexpr double kNsShortlisted = 330;

inline double ns_of_scan(const IndexView& view, double postings) {
  return kNsPosting * postings + kNsDocument * view.n_docs;
}

// What a search that read this much should take.
inline double ns_of(const IndexView& view, const SearchCost& cost) {
  if (cost.terms == 0) return 0;
  return cost.terms * (kNsDirectoryTerm * cost.blocks_scored + kNsBound * view.n_blocks()) +
         ns_of_scan(view, cost.postings) * cost.windows_scanned / view.n_windows;
}

// The entries whose latents the index knows, as its terms; each list is checked before its first
// use.
std::vector<QueryTerm> find_terms(const Index& index, const std::vector<Entry>& entries);

// A search of one index for one query; what it finds is numbered from `first_doc`.
class SegmentSearch {
 public:
  // `terms`: of the query, weights descending. `bound_share`: see SearchOptions.
  SegmentSearch(const Index& index, std::vector<QueryTerm> terms, const uint64_t* allowed,
                int64_t first_doc, double bound_share = 1)
      : index_(index),
        view_(index.view_),
        terms_(std::move(terms)),
        allowed_(allowed),
        first_doc_(first_doc),
        bound_share_(bound_share),
        value_kernels_(choose_value_kernels()) {}

  // Scores all windows in order, or only the blocks or documents that can matter.
  void run(TopHits& best, Scratch& s, SearchCost& cost);

  // The same, with all that it reads; and what scans of all windows read.
  SearchCost run_counted(TopHits& best, Scratch& s);
  SearchCost cost_of_scans() const;
  int64_t n_postings() const;  // in the lists of the terms

  // Scores a window from end to end; blocks that `bounds` calls done are left out of `best`.
  void scan(int64_t window, TopHits& best, Scratch& s, const BlockBounds* bounds = nullptr) const;

 private:
  const ValueKernels& choose_value_kernels() const;
  int n_terms() const { return static_cast<int>(terms_.size()); }
  double ns_block_term() const { return directory_ ? kNsDirectoryTerm : kNsBlockTerm; }
  int32_t spare() const { return static_cast<int32_t>(round_up(view_.window, kStep)); }
  static float* scores(Scratch& s) { return reinterpret_cast<float*>(s.scores.data()); }

  // Scores the documents of a filter that lets few pass one by one. False if a scan is faster.
  bool run_listed(TopHits& best, Scratch& s) const;
  void score_listed(const Forward& forward, TopHits& best, Scratch& s) const;
  // The blocks of the highest bounds first, so that the bar they set rules out most others.
  void run_blocks(TopHits& best, Scratch& s, SearchCost& cost) const;
  // How many of a window's blocks take, one by one, as long as a scan of the window.
  double blocks_worth_a_scan() const;
  // Scores those of the blocks that still reach the bar, neighbours in one go. The postings
  // of the next blocks are on their way from memory while these are scored.
  int64_t score_blocks(const int32_t* block, const int32_t* end, TopHits& best, Scratch& s) const;
  // The last of the blocks that follow *block without a gap within its window.
  int32_t last_neighbour(const int32_t* block, const int32_t* end) const;
  bool reaches(int32_t first, int32_t last, const TopHits& best, const Scratch& s) const;
  // The same, a few blocks at a time, where the directory says what their postings are.
  int64_t look_up_blocks(const int32_t* block, const int32_t* end, TopHits& best, Scratch& s) const;
  void look_up_parts(int n, Scratch& s) const;
  void set_bounds(int32_t first, int32_t last, Stretch& stretch) const;
  // The postings of some neighbouring blocks. Terms that none of their documents has are left
  // out; their segments need not be searched.
  void find_parts(int32_t first, int32_t last, Stretch& stretch) const;
  void score_stretch(const Stretch& now, TopHits& best, Scratch& s) const;
  // Zeroes the scores of documents that may not be found. After removals nearly all words of
  // bits are full: passing over them makes the mask all but free.
  void keep_allowed(float* scores, int64_t n, const uint64_t* bits) const;
  // Moves the best scores of documents [begin, end) to `best` and zeroes them all.
  void take(int64_t window, int64_t begin, int64_t end, TopHits& best, Scratch& s,
            const BlockBounds* bounds) const;
  // The k-th largest of the maxima of disjoint sets of documents is a score that k documents
  // reach: a bar for the first window, where all else would have to be sorted. A quarter of a
  // window will do.
  void raise_by_lanes(const float* scores, int64_t n, TopHits& best, Scratch& s) const;
  // False if a filter lets none of n documents from `first` on pass.
  bool any_allowed(int64_t first, int64_t n) const;
  int64_t id_of(int64_t doc) const { return view_.ids == nullptr ? doc : view_.ids[doc]; }

  const Index& index_;
  const IndexView& view_;
  std::vector<QueryTerm> terms_;
  const uint64_t* allowed_;
  int64_t first_doc_;
  double bound_share_;
  const Directory* directory_ = nullptr;
  const IndexKernels& kernels_ = kernels().index;
  const ValueKernels& value_kernels_;
};

}  // namespace csrkern
