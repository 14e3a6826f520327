#include <algorithm>
#include <atomic>
#include <cmath>
#include <functional>
#include <numeric>

#include "csrkern/fine.hpp"
#include "csrkern/parallel.hpp"
#include "index/batch.hpp"
#include "index/scan.hpp"
#include "index/walk.hpp"

namespace csrkern {
namespace {

// Below this, waking a second thread (10 to 50 us) costs more than it saves.
constexpr int64_t kPostingsWorthSplitting = 400'000;

// A batch of fewer queries does not gain; so many queries tell whether it does.
constexpr int64_t kFewestTogether = 4, kSample = 8;

// A document of a shortlist, to be found and scored again: 380 to 730 ns.
constexpr double kNsShortlisted = 500;
// A document on a walk, beside its score.
constexpr double kNsMet = 60;

// A query, and how it is searched.
struct Asked {
  std::vector<Entry> entries;  // that lists are read for
  bool rescored;
  int64_t wanted;  // hits, before they are scored again
  double bound_share;
  bool strong;
  int64_t width;
};

// A search of several indexes together; one thread or several work on a query.
class Search {
 public:
  Search(const std::vector<Segment>& segments, const SparseRows& queries,
         const SearchOptions& options)
      : segments_(segments), queries_(queries), options_(options) {
    check_starts(queries, "queries");
    for (const Segment& segment : segments) {
      first_docs_.push_back(n_docs_);
      n_docs_ += segment.index->view().n_docs;
      n_windows_ += segment.index->view().n_windows;
      largest_window_ = std::max<int64_t>(largest_window_, segment.index->view().window);
      clustered_ |= segment.index->view().block > 0;
      if (options.shortlist > 0 && options.tables == nullptr) {
        segment.index->forward(options.num_threads);
      }
      if (options.strong) segment.index->strong(options.num_threads);
      walkable_.push_back(is_walkable(segment));
      if (walkable_.back()) segment.index->sample(options.num_threads);
      // With and without it, different documents are scored beside those that reach the bar.
      if (options.bound_share < 1 && segment.index->view().block > 0) segment.index->directory();
    }
    // Ids of several segments, or of clustered documents, are not in order.
    in_order_ = segments.size() == 1 && segments[0].index->ids_ascend() && !clustered_;
  }

  // Returns the hits of query i, best first.
  std::vector<Hit> find(int64_t i) const {
    Scratch& s = reserved_scratch();
    Asked query = ask(i);
    TopHits best = no_hits(query);
    const bool walked = search_segments(i, query, best, s);
    if (walked && !is_near(query, best)) {
      query.width = 0;
      best = no_hits(query);
      search_segments(i, query, best, s);
    }
    return finish(i, query, best.hits());
  }

  // The same with all threads, window by window.
  std::vector<Hit> find_split(int64_t i) const {
    const Asked query = ask(i);
    std::vector<SegmentSearch> searches;
    searches.reserve(segments_.size());
    std::vector<std::pair<size_t, int64_t>> windows;
    int64_t postings = 0;
    for (size_t g = 0; g < segments_.size(); ++g) {
      searches.push_back(segment_search(g, i, query));
      const int64_t n_postings = searches.back().n_postings();
      if (n_postings == 0) continue;  // nothing bounds how many windows such a file may claim
      postings += n_postings;
      const int64_t n_windows = lists(g, query).view().n_windows;
      for (int64_t w = 0; w < n_windows; ++w) windows.push_back({g, w});
    }
    if (postings < kPostingsWorthSplitting) return find(i);
    const TopHits none = no_hits(query);
    std::vector<TopHits> best(options_.num_threads, none);
    std::atomic<uint32_t> bar{none.bar()};
    const auto n = static_cast<int64_t>(windows.size());
    parallel_for(n, 1, options_.num_threads, [&](int64_t at, int64_t, int thread) {
      TopHits& mine = best[thread];
      mine.raise(bar.load(std::memory_order_relaxed));
      const auto [g, window] = windows[at];
      searches[g].scan(window, mine, reserved_scratch());
      uint32_t seen = bar.load(std::memory_order_relaxed);
      while (seen < mine.shared_bar() &&
             !bar.compare_exchange_weak(seen, mine.shared_bar(), std::memory_order_relaxed)) {
      }
    });
    std::vector<Hit> all;
    for (TopHits& mine : best) all.insert(all.end(), mine.hits().begin(), mine.hits().end());
    return finish(i, query, all);
  }

  // Finds the hits of queries [begin, end), at most kBatch: all queries together in the segments
  // that have rounded rows or dense lists, one by one in the others.
  void find_together(int64_t begin, int64_t end, const std::vector<const RoundedRows*>& rounded,
                     const std::function<void(int64_t, const std::vector<Hit>&)>& keep) const {
    Scratch& s = reserved_scratch();
    std::vector<Asked> asked;
    std::vector<TopHits> best;
    for (int64_t i = begin; i < end; ++i) {
      asked.push_back(ask(i));
      best.push_back(no_hits(asked.back()));
    }
    for (size_t g = 0; g < segments_.size(); ++g) {
      const Segment& segment = segments_[g];
      if (rounded[g] != nullptr) {
        const std::vector<BatchQuery> queries = batch_queries(g, asked, best);
        if (ns_saved_by_batch(segment.index->view(), rounded[g], queries, end - begin) > 0) {
          BatchSearch(*segment.index, *rounded[g], segment.allowed, first_docs_[g]).run(queries, s);
          continue;
        }
      }
      std::vector<SegmentSearch> searches;
      searches.reserve(end - begin);
      for (int64_t i = begin; i < end; ++i) {
        searches.push_back(segment_search(g, i, asked[i - begin]));
      }
      if (shares_lists(segment)) {
        // Window by window: what queries share stays in a cache, 1.2 times as fast at a million.
        for (int64_t w = 0; w < segment.index->view().n_windows; ++w) {
          for (int64_t i = 0; i < end - begin; ++i) {
            if (i + 1 < end - begin) searches[i + 1].fetch_slices(w);
            searches[i].scan(w, best[i], s);
          }
        }
        continue;
      }
      for (int64_t i = 0; i < end - begin; ++i) {
        SearchCost cost;
        searches[i].run(best[i], s, cost);
      }
    }
    for (int64_t i = begin; i < end; ++i) {
      keep(i, finish(i, asked[i - begin], best[i - begin].hits()));
    }
  }

  // Calls keep(i, hits) for every query, from any thread.
  void run(const std::function<void(int64_t, const std::vector<Hit>&)>& keep) const {
    const int threads = options_.num_threads;
    const bool filtered = std::any_of(segments_.begin(), segments_.end(),
                                      [](const Segment& s) { return s.allowed != nullptr; });
    if (threads > 1 && queries_.n < threads && n_windows_ >= 2 * threads && !clustered_ &&
        !filtered && options_.width == 0) {
      // A loop of one thread, so that denormals count outside of the windows, too.
      parallel_for(1, 1, 1, [&](int64_t, int64_t, int) {
        for (int64_t i = 0; i < queries_.n; ++i) keep(i, find_split(i));
      });
      return;
    }
    const int64_t batch = std::min<int64_t>(queries_.n / threads, kBatch);
    const std::vector<const RoundedRows*> rounded = rounded_rows(batch);
    bool together = false;
    for (size_t g = 0; g < segments_.size(); ++g) {
      together |= rounded[g] != nullptr || shares_lists(segments_[g]);
    }
    if (together && batch >= kFewestTogether) {
      parallel_for(queries_.n, batch, threads, [&](int64_t begin, int64_t end, int) {
        find_together(begin, end, rounded, keep);
      });
      return;
    }
    const int64_t grain = std::max<int64_t>(1, std::min<int64_t>(16, queries_.n / (8 * threads)));
    parallel_for(queries_.n, grain, threads, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) keep(i, find(i));
    });
  }

  double expected_ns() const {
    const int64_t n = queries_.n;
    if (n == 0) return 0;
    const auto n_segments = static_cast<int64_t>(segments_.size());
    std::vector<double> ns(n * n_segments);
    std::vector<Asked> asked(n);
    for (const Segment& segment : segments_) {
      if (segment.index->view().block > 0) segment.index->directory();
    }
    parallel_for(n, 1, options_.num_threads, [&](int64_t i, int64_t, int) {
      Scratch& s = reserved_scratch();
      asked[i] = ask(i);
      TopHits best = no_hits(asked[i]);
      bool walked = false;
      for (int64_t g = 0; g < n_segments; ++g) {
        walked |= walks(g, asked[i]);
        ns[g * n + i] = ns_of_segment(g, i, asked[i], best, s);
      }
      if (!walked || is_near(asked[i], best)) return;
      asked[i].width = 0;
      best = no_hits(asked[i]);
      for (int64_t g = 0; g < n_segments; ++g) {
        ns[g * n + i] += ns_of_segment(g, i, asked[i], best, s);
      }
    });
    double total = 0;
    for (const Asked& query : asked) total += query.rescored ? kNsShortlisted * query.wanted : 0;
    for (int64_t g = 0; g < n_segments; ++g) {
      const double alone = std::accumulate(ns.begin() + g * n, ns.begin() + (g + 1) * n, 0.0);
      const IndexView& view = segments_[g].index->view();
      const bool batched = !options_.strong && options_.width == 0 &&
                           fits_batches(view, segments_[g].allowed, most_wanted()) &&
                           std::all_of(asked.begin(), asked.end(), [](const Asked& query) {
                             return query.entries.size() <= RowScorer::kMostTerms;
                           });
      total += batched ? std::min(alone, n * expected_ns_in_batch(view)) : alone;
    }
    return total / static_cast<double>(n);
  }

 private:
  // Returns whether a segment was walked.
  bool search_segments(int64_t i, const Asked& query, TopHits& best, Scratch& s) const {
    bool walked = false;
    for (size_t g = 0; g < segments_.size(); ++g) {
      if (walks(g, query) && walk_segment(g, query, best, s).found) {
        walked = true;
        continue;
      }
      SearchCost cost;
      segment_search(g, i, query).run(best, s, cost);
    }
    return walked;
  }

  // The expected time of the same in one segment.
  double ns_of_segment(size_t g, int64_t i, const Asked& query, TopHits& best, Scratch& s) const {
    double ns = 0;
    if (walks(g, query)) {
      const WalkCost cost = walk_segment(g, query, best, s);
      ns = ns_of(segments_[g].index->view(), cost);
      if (cost.found) return ns;
    }
    SegmentSearch search = segment_search(g, i, query, true);
    const IndexView& view = lists(g, query).view();
    const bool known = view.block == 0;  // without searching
    return ns + (known ? search.ns_of_scans()
                       : csrkern::ns_of(kUsualCosts, view, search.run_counted(best, s)));
  }

  // Returns whether the hits of walks are as near as those of the queries that were measured.
  bool is_near(const Asked& query, TopHits& best) const {
    if (options_.least == 0) return true;
    std::vector<float> scores;
    for (const Hit& hit : best.hits()) scores.push_back(hit.score);
    if (static_cast<int64_t>(scores.size()) < kLeastFound) return false;
    const auto last = scores.begin() + (kLeastFound - 1);
    std::nth_element(scores.begin(), last, scores.end(), std::greater<float>());
    double square = 0;
    for (const Entry& e : query.entries) square += static_cast<double>(e.value) * e.value;
    return *last >= options_.least * std::sqrt(square);
  }

  std::vector<BatchQuery> batch_queries(size_t g, const std::vector<Asked>& asked,
                                        std::vector<TopHits>& best) const {
    std::vector<BatchQuery> queries;
    for (size_t i = 0; i < asked.size(); ++i) {
      queries.push_back({find_terms(*segments_[g].index, asked[i].entries), &best[i]});
    }
    return queries;
  }

  // Returns whether many queries read the same long lists. Where they do not, the slices that one
  // query reads next would be fetched in vain: 0.7 times as fast.
  bool shares_lists(const Segment& segment) const {
    return segment.allowed == nullptr && !options_.strong && options_.width == 0 &&
           segment.index->dense_bytes() > 0;
  }

  // Returns the rows of each segment, or null where batches of this many queries do not gain by
  // them, which the first few queries tell.
  std::vector<const RoundedRows*> rounded_rows(int64_t batch) const {
    std::vector<const RoundedRows*> rounded(segments_.size(), nullptr);
    if (batch < kFewestTogether || queries_.is_signed || options_.strong || options_.width > 0) {
      return rounded;
    }
    const int64_t n_sample = std::min(batch, kSample);
    std::vector<Asked> asked;
    std::vector<TopHits> best;
    for (size_t g = 0; g < segments_.size(); ++g) {
      const Segment& segment = segments_[g];
      const IndexView& view = segment.index->view();
      if (segment.allowed_stride > 0 || !fits_batches(view, segment.allowed, most_wanted()))
        continue;
      while (static_cast<int64_t>(asked.size()) < n_sample) {
        asked.push_back(ask(static_cast<int64_t>(asked.size())));
        best.push_back(no_hits(asked.back()));
      }
      const double saved =
          ns_saved_by_batch(view, segment.index->rounded(), batch_queries(g, asked, best), batch);
      if (saved <= 0) continue;
      const double in_all = saved * static_cast<double>(queries_.n) / static_cast<double>(batch);
      rounded[g] =
          segment.index->rounded_if_worth(static_cast<int64_t>(in_all), options_.num_threads);
    }
    return rounded;
  }

  Scratch& reserved_scratch() const {
    Scratch& s = scratch();
    s.reserve(largest_window_);
    return s;
  }

  std::vector<Entry> all_entries(int64_t i) const {
    return read_query(queries_, i, options_.normalize, options_.query_k);
  }

  Asked ask(int64_t i) const {
    std::vector<Entry> entries = all_entries(i);
    const auto n = static_cast<int64_t>(entries.size());
    if (n < options_.fewest || n > options_.most) {
      return {std::move(entries), false, at_most_all(options_.top_k), 1, false, 0};
    }
    if (options_.kept < 1 && options_.width == 0) entries = strongest(entries, options_.kept);
    const bool rescored = options_.shortlist > 0;
    const int64_t wanted =
        options_.width > 0 ? std::max(most_wanted(), kLeastFound) : most_wanted();
    return {std::move(entries),   rescored,        wanted,
            options_.bound_share, options_.strong, options_.width};
  }

  // Where more than a tenth of the documents are not allowed, a walk misses too many of the others.
  bool is_walkable(const Segment& segment) const {
    return options_.width > 0 && segment.index->view().neighbors != nullptr &&
           segment.allowed_stride == 0 &&
           10 * n_allowed(segment) >= 9 * segment.index->view().n_docs;
  }

  static int64_t n_allowed(const Segment& segment) {
    const int64_t n = segment.index->view().n_docs;
    if (segment.allowed == nullptr) return n;
    int64_t allowed = 0;
    for (int64_t w = 0; w < (n + 63) / 64; ++w) allowed += __builtin_popcountll(segment.allowed[w]);
    return allowed;
  }

  bool walks(size_t g, const Asked& query) const {
    return query.width > 0 && walkable_[g] && query.entries.size() <= RowScorer::kMostTerms;
  }

  // Documents that are not allowed take places of their own.
  WalkCost walk_segment(size_t g, const Asked& query, TopHits& best, Scratch& s) const {
    const Segment& segment = segments_[g];
    const int64_t n = segment.index->view().n_docs;
    const int64_t allowed = std::max<int64_t>(1, n_allowed(segment));
    const auto among_all = [&](int64_t wanted) {
      return (std::min(wanted, n) * n + allowed - 1) / allowed;
    };
    const int64_t width = among_all(query.width);
    const int64_t most = std::max(width, among_all(query.wanted));
    const WalkOptions options{options_.kept, width, most, segment.allowed};
    return walk(*segment.index, query.entries, options, first_docs_[g], best, s);
  }

  static double ns_of(const IndexView& view, const WalkCost& cost) {
    const double of_document = ns_of_row(kUsualCosts, view) + kNsMet;
    return cost.ns_of_sample + of_document * static_cast<double>(cost.documents);
  }

  int64_t at_most_all(int64_t n) const { return std::min(n, std::max<int64_t>(n_docs_, 1)); }
  int64_t most_wanted() const {
    return at_most_all(options_.shortlist > 0 ? options_.shortlist : options_.top_k);
  }

  // Returns the index whose lists are read for a query.
  const Index& lists(size_t g, const Asked& query) const {
    const Index& whole = *segments_[g].index;
    return query.strong ? whole.strong(1) : whole;
  }

  // `plans`: to find a plan, which may not depend on the processor. Nor may what is left out where
  // bounds are lowered: a window that is scanned leaves out less than its blocks.
  SegmentSearch segment_search(size_t g, int64_t i, const Asked& query, bool plans = false) const {
    const Costs* costs = plans || query.bound_share < 1 ? &kUsualCosts : nullptr;
    const Segment& segment = segments_[g];
    const uint64_t* allowed =
        segment.allowed == nullptr ? nullptr : segment.allowed + i * segment.allowed_stride;
    const Index& index = lists(g, query);
    return SegmentSearch(index, find_terms(index, query.entries), allowed, first_docs_[g],
                         query.bound_share, costs);
  }

  // Returns no hits, with the initial bar.
  TopHits no_hits(const Asked& query) const {
    TopHits best(query.wanted, in_order_, most_score(options_.normalize));
    if (!query.rescored && options_.min_score > 0) best.raise(bits_of(options_.min_score));
    return best;
  }

  // Drops all but the best n hits.
  static void keep_best(int64_t n, std::vector<Hit>& hits) {
    if (n >= static_cast<int64_t>(hits.size())) return;
    std::nth_element(hits.begin(), hits.begin() + n, hits.end(), better);
    hits.resize(n);
  }

  std::vector<Hit> finish(int64_t i, const Asked& query, std::vector<Hit>& hits) const {
    keep_best(query.wanted, hits);
    if (query.rescored) {
      if (options_.tables != nullptr) {
        score_fine(i, hits);
      } else if (options_.dense != nullptr) {
        score_dense(i, hits);
      } else {
        score_again(i, hits);
      }
      const auto too_low = [&](const Hit& hit) { return hit.score < options_.min_score; };
      hits.erase(std::remove_if(hits.begin(), hits.end(), too_low), hits.end());
      keep_best(options_.top_k, hits);
    }
    std::sort(hits.begin(), hits.end(), better);
    return std::move(hits);
  }

  size_t segment_of(const Hit& hit) const {
    return std::upper_bound(first_docs_.begin(), first_docs_.end(), hit.doc) - first_docs_.begin() -
           1;
  }

  void score_dense(int64_t i, std::vector<Hit>& hits) const {
    const float* dense = options_.dense + i * queries_.dim;
    const float offset = options_.offsets == nullptr ? 0 : options_.offsets[i];
    std::vector<float>& memory = scratch().rows.values;
    for (Hit& hit : hits) {
      const size_t g = segment_of(hit);
      const Index& index = *segments_[g].index;
      const IndexView& view = index.view();
      const int64_t doc = hit.doc - first_docs_[g];
      float score = dense_score(index.forward(1), view.terms, doc, dense, memory) + offset;
      if (view.norms != nullptr) score = view.norms[doc] > 0 ? score / view.norms[doc] : 0;
      // NaN where an overflow of either sign met one of the other.
      hit.score = score == score ? score : -std::numeric_limits<float>::max();
    }
  }

  const uint8_t* fine_code(const Hit& hit) const {
    const size_t g = segment_of(hit);
    const IndexView& view = segments_[g].index->view();
    return view.fine + (hit.doc - first_docs_[g]) * view.fine_bytes;
  }

  void score_fine(int64_t i, std::vector<Hit>& hits) const {
    const float* tables = options_.tables + i * options_.books * kWords;
    const float offset = options_.offsets == nullptr ? 0 : options_.offsets[i];
    for (const Hit& hit : hits) __builtin_prefetch(fine_code(hit));
    for (Hit& hit : hits) {
      hit.score = fine_score(fine_code(hit), options_.books, tables, offset, options_.scales);
    }
  }

  // For queries with too many terms for a RowScorer.
  float slow_score(size_t g, int64_t doc, const std::vector<Entry>& entries) const {
    float score = 0;
    for (const Entry& e : entries) {
      score += segments_[g].index->value(doc - first_docs_[g], e.latent) * e.value;
    }
    return score;
  }

  void score_again(int64_t i, std::vector<Hit>& hits) const {
    RowScratch& memory = scratch().rows;
    const std::vector<Entry> entries = all_entries(i);
    std::sort(hits.begin(), hits.end(), [](const Hit& a, const Hit& b) { return a.doc < b.doc; });
    for (auto hit = hits.begin(); hit != hits.end();) {
      const size_t g = segment_of(*hit);
      const std::vector<QueryTerm> terms = find_terms(*segments_[g].index, entries);
      const ForwardIndex& forward = segments_[g].index->forward(1);
      const int64_t end = first_docs_[g] + segments_[g].index->view().n_docs;
      const auto last = std::find_if(hit, hits.end(), [&](const Hit& h) { return h.doc >= end; });
      for (auto h = hit; h != last; ++h) forward.prefetch(h->doc - first_docs_[g]);
      const float most = most_score(options_.normalize);
      if (terms.size() > RowScorer::kMostTerms) {
        for (; hit != last; ++hit) hit->score = std::min(slow_score(g, hit->doc, entries), most);
        continue;
      }
      const RowScorer scorer(forward, terms, memory);
      for (; hit != last; ++hit) {
        hit->score = std::min(scorer.score(hit->doc - first_docs_[g]), most);
      }
    }
  }

  const std::vector<Segment>& segments_;
  const SparseRows& queries_;
  const SearchOptions& options_;
  std::vector<int64_t> first_docs_;
  std::vector<bool> walkable_;
  int64_t n_docs_ = 0, n_windows_ = 0, largest_window_ = 64;
  bool clustered_ = false, in_order_ = false;
};

}  // namespace

void search(const std::vector<Segment>& segments, const SparseRows& queries,
            const SearchOptions& options, float* scores, int64_t* ids) {
  Search(segments, queries, options).run([&](int64_t i, const std::vector<Hit>& hits) {
    write_out(hits, options.top_k, scores + i * options.top_k, ids + i * options.top_k);
  });
}

void similarity_top_k(SparseRows queries, SparseRows docs, int32_t window,
                      const SearchOptions& options, float* scores, int64_t* ids) {
  queries.is_signed = docs.is_signed = true;
  const ValueType type = ValueType::float32;
  const BuiltIndex built = build_index(docs, window, 0, type, false, options.num_threads);
  const Index index({docs.n, docs.dim, window, (docs.n + window - 1) / window,
                     static_cast<int64_t>(built.terms.size()), type, built.terms.data(),
                     built.offsets.data(), built.postings.data(), built.checksums.data(), nullptr},
                    true);
  search({{&index}}, queries, options, scores, ids);
}

double expected_ns(const std::vector<Segment>& segments, const SparseRows& queries,
                   const SearchOptions& options) {
  return Search(segments, queries, options).expected_ns();
}

Ragged search_all(const std::vector<Segment>& segments, const SparseRows& queries,
                  const SearchOptions& options) {
  SearchOptions all = options;
  all.top_k = std::numeric_limits<int64_t>::max();
  all.shortlist = 0;
  all.width = 0;
  std::vector<std::vector<Hit>> found(queries.n);
  Search(segments, queries, all).run([&](int64_t i, const std::vector<Hit>& hits) {
    found[i] = hits;
  });
  Ragged result;
  result.starts.assign(queries.n + 1, 0);
  for (int64_t i = 0; i < queries.n; ++i) {
    result.starts[i + 1] = result.starts[i] + static_cast<int64_t>(found[i].size());
  }
  result.scores.resize(result.starts.back());
  result.ids.resize(result.starts.back());
  for (int64_t i = 0; i < queries.n; ++i) {
    const int64_t at = result.starts[i], n = result.starts[i + 1] - at;
    write_out(found[i], n, result.scores.data() + at, result.ids.data() + at);
  }
  return result;
}

void Index::search(const SparseRows& queries, int64_t top_k, bool normalize,
                   const uint64_t* allowed, int num_threads, float* scores, int64_t* ids) const {
  SearchOptions options;
  options.top_k = top_k;
  options.normalize = normalize;
  options.num_threads = num_threads;
  csrkern::search({{this, allowed}}, queries, options, scores, ids);
}

SearchCost Index::profile(const SparseRows& queries, int64_t i, int64_t top_k, bool normalize,
                          const Costs* costs) const {
  check_starts(queries, "queries");
  const std::vector<Entry> entries = read_query(queries, i, normalize, queries.dim);
  Scratch& s = scratch();
  s.reserve(view_.window);
  TopHits best(top_k, ids_ascend_ && view_.block == 0, most_score(normalize));
  return SegmentSearch(*this, find_terms(*this, entries), nullptr, 0, 1, costs)
      .run_counted(best, s);
}

double Index::gain_of_blocks(const SparseRows& queries, bool normalize) const {
  double scans = 0, blocks = 0;
  for (int64_t i = 0; i < queries.n; ++i) {
    const SearchCost cost = profile(queries, i, 10, normalize, &kUsualCosts);
    scans += ns_of_scan(kUsualCosts, view_, cost.postings);
    blocks += ns_of(kUsualCosts, view_, cost);
  }
  return blocks > 0 ? scans / blocks : 1;
}

}  // namespace csrkern
