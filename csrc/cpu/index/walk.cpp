#include "index/walk.hpp"

#include <algorithm>

#include "csrkern/float_bits.hpp"
#include "index/forward.hpp"
#include "index/sample.hpp"

namespace csrkern {
namespace {

constexpr int64_t kEntrances = 8;

// Documents that have been met.
class Met {
 public:
  Met(WalkScratch& s, int64_t n_docs) : s_(s) {
    const auto words = static_cast<size_t>((n_docs + 63) / 64);
    if (s.met.size() < words) s.met.resize(words);
  }
  ~Met() {
    for (const uint32_t doc : s_.met_docs) s_.met[doc / 64] = 0;
    s_.met_docs.clear();
  }
  Met(const Met&) = delete;

  // Returns whether the document is met for the first time.
  bool add(uint32_t doc) {
    uint64_t& word = s_.met[doc / 64];
    const uint64_t bit = uint64_t{1} << (doc % 64);
    if ((word & bit) != 0) return false;
    word |= bit;
    s_.met_docs.push_back(doc);
    return true;
  }
  int64_t n() const { return static_cast<int64_t>(s_.met_docs.size()); }

 private:
  WalkScratch& s_;
};

bool ahead(const Stop& a, const Stop& b) {
  return a.score > b.score || (a.score == b.score && a.doc < b.doc);
}

// The best documents so far, best first, at most `most`. The best `width` are left in turn.
class Stops {
 public:
  Stops(std::vector<Stop>& stops, int64_t width, int64_t most)
      : stops_(stops), width_(static_cast<size_t>(width)), most_(static_cast<size_t>(most)) {
    stops_.clear();
  }

  // Returns whether the document is one of the best `width`.
  bool add(Stop stop) {
    if (stops_.size() == most_) {
      if (!ahead(stop, stops_.back())) return false;
      stops_.pop_back();
    }
    const auto at = std::upper_bound(stops_.begin(), stops_.end(), stop, ahead);
    const auto place = static_cast<size_t>(at - stops_.begin());
    first_open_ = std::min(first_open_, place);
    stops_.insert(at, stop);
    return place < width_;
  }

  // Returns the best document that has not been left yet, and notes that it is; null if all are.
  const Stop* leave() {
    const size_t end = std::min(width_, stops_.size());
    while (first_open_ < end && stops_[first_open_].left) ++first_open_;
    if (first_open_ >= end) return nullptr;
    stops_[first_open_].left = true;
    return &stops_[first_open_];
  }

 private:
  std::vector<Stop>& stops_;
  size_t width_, most_, first_open_ = 0;
};

bool is_allowed(const uint64_t* allowed, int64_t doc) {
  return allowed == nullptr || (allowed[doc / 64] >> (doc % 64) & 1) != 0;
}

}  // namespace

WalkCost walk(const Index& index, const std::vector<Entry>& entries, const WalkOptions& options,
              int64_t first_doc, TopHits& best, Scratch& s) {
  const IndexView& view = index.view();
  const ForwardIndex& forward = index.forward(1);
  const Sample& sample = index.sample(1);
  TopHits entrances(kEntrances, true, best.most());
  const std::vector<Entry> of_sample =
      options.kept < 1 ? strongest(entries, options.kept) : entries;
  SegmentSearch search(sample.index(), find_terms(sample.index(), of_sample), nullptr, 0, 1,
                       &kUsualCosts);
  WalkCost cost;
  cost.ns_of_sample = search.ns_of_scans();
  SearchCost unused;
  s.reserve(sample.index().view().window);
  search.run(entrances, s, unused);
  entrances.settle();
  if (!entrances.full()) return cost;

  Met met(s.walk, view.n_docs);
  Stops stops(s.walk.stops, options.width, options.most);
  std::vector<uint32_t>& fresh = s.walk.fresh;
  fresh.clear();
  for (const Hit& hit : entrances.hits()) {
    const auto doc = static_cast<uint32_t>(sample.document(hit.doc));
    forward.prefetch(doc);
    met.add(doc);
    fresh.push_back(doc);
  }
  const std::vector<QueryTerm> terms = find_terms(index, entries);
  const NearScorer near(forward, terms, s.rows);
  for (;;) {
    for (const uint32_t doc : fresh) {
      if (stops.add({near.score(doc), doc, false})) __builtin_prefetch(view.neighbors_of(doc));
    }
    const Stop* stop = stops.leave();
    if (stop == nullptr) break;
    fresh.clear();
    const uint32_t* neighbors = view.neighbors_of(stop->doc);
    for (int64_t j = 0; j < kNeighbors; ++j) {
      const uint32_t doc = neighbors[j];
      // Beyond all documents: there is none, or the file has been tampered with.
      if (doc >= view.n_docs || !met.add(doc)) continue;
      forward.prefetch(doc);
      fresh.push_back(doc);
    }
  }
  cost.documents = met.n();
  std::vector<Stop>& found = s.walk.stops;
  const auto left_out = [&](const Stop& stop) { return !is_allowed(options.allowed, stop.doc); };
  found.erase(std::remove_if(found.begin(), found.end(), left_out), found.end());
  const auto wanted = static_cast<size_t>(best.top_k());
  cost.found = found.size() >= wanted;
  if (!cost.found) return cost;
  const RowScorer scorer(forward, terms, s.rows);
  for (size_t i = 0; i < wanted; ++i) {
    const int64_t doc = found[i].doc;
    const float score = std::min(scorer.score(doc), best.most());
    if (bits_of(score) >= best.bar()) best.add(score, id_of(view, doc), first_doc + doc);
  }
  return cost;
}

}  // namespace csrkern
