// Builds the arrays of an index from rows in device memory.
#include <cstdio>
#include <limits>
#include <string>

#include "index_build.hpp"
#include "index_state.hpp"

namespace csrkern::cuda {
namespace {

// Counts of entries must fit in 32 bits, also after a thread has stepped past the last one.
constexpr uint64_t kMostOnDevice = (uint64_t{1} << 32) - 1024;

uint32_t blocks_for(int64_t items, int64_t each) {
  return static_cast<uint32_t>((items + each - 1) / each);
}

uint64_t lists_of(int64_t n, const IndexOptions& options) {
  return (static_cast<uint64_t>(n) + options.block - 1) / options.block * options.dim;
}

uint64_t tiles_of(uint64_t n) { return n / kScanTile + 1; }

// Writes offsets [n + 1] from counts [n]; returns the total.
uint64_t scan(const uint32_t* counts, uint64_t n, uint32_t* offsets, Stream stream) {
  const uint64_t tiles = tiles_of(n);
  const DeviceMemory sums((tiles + 1) * sizeof(uint64_t), "sums of counts");
  auto* sum = sums.as<uint64_t>();
  const size_t shared = kScanThreads * sizeof(uint32_t);
  launch(SumTiles{counts, n, sum}, static_cast<uint32_t>(tiles), shared, stream);
  launch(ScanSums{sum, tiles}, 1, 0, stream);
  launch(ScanTiles{counts, n, sum, offsets}, static_cast<uint32_t>(tiles), shared, stream);
  uint64_t total = 0;
  copy(&total, sum + tiles, sizeof(total), stream, "the number of postings");
  wait(stream, "adding up counts");
  return total;
}

std::string amount(size_t bytes) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.2f GiB", static_cast<double>(bytes) / (1 << 30));
  return bytes < 1 << 26 ? std::to_string(bytes) + " bytes" : text;
}

// `rows`: bytes of the rows that it is built from, if these are still to be allocated.
void expect_room(int64_t n, int64_t entries, const IndexOptions& options, const RowFacts& facts,
                 size_t rows, int device) {
  const DeviceInfo info = device_info(device);
  MemoryNeed need = memory_need(n, entries, options, facts.ids != nullptr, facts.norms != nullptr);
  need.building += rows;
  if (need.building <= info.free_bytes) return;
  throw OutOfMemory("an index of " + std::to_string(n) + " codes needs " + amount(need.building) +
                    " of device memory to be built and keeps " + amount(need.resident) +
                    " of it; device " + std::to_string(device) + " (" + info.name + ") has " +
                    amount(info.free_bytes) + " free of " + amount(info.total_bytes) +
                    "; search it in slices or on more devices");
}

[[noreturn]] void refuse(uint64_t fault, const IndexOptions& options) {
  const std::string row = " in row " + std::to_string(fault >> 8);
  switch (fault & 0xff) {
    case kLatent:
      throw std::invalid_argument("codes: expected latents in 0.." +
                                  std::to_string(options.dim - 1) + row);
    case kValue:
      throw std::invalid_argument("codes: expected finite values that are not negative" + row);
    case kTooLarge:
      if (is_squares(options.type)) {
        throw std::invalid_argument(
            "codes: a value" + row + " exceeds 2^" + std::to_string(options.exponent) +
            ", the largest that the index can hold; build it with largest=");
      }
      throw std::invalid_argument("codes: a value" + row +
                                  " does not fit in float16; build with dtype='float32'");
    default:
      throw std::invalid_argument("codes: a latent occurs twice" + row +
                                  "; sum or drop duplicates first");
  }
}

void expect_valid(const DeviceMemory& fault, const IndexOptions& options, Stream stream) {
  uint64_t found = 0;
  copy(&found, fault.as<void>(), sizeof(found), stream, "the check of rows");
  wait(stream, "checking rows");
  if (found != ~uint64_t{0}) refuse(found, options);
}

}  // namespace

MemoryNeed memory_need(int64_t n, int64_t entries, const IndexOptions& options, bool own_ids,
                       bool norms) {
  const size_t docs = n, lists = lists_of(n, options);
  const size_t posting = options.impact_bits == 16 ? 4 : 3;
  MemoryNeed need{};
  need.resident = (docs + 1) * sizeof(uint32_t) + options.dim * sizeof(float) +
                  entries * (latent_bytes(options) + value_bytes(options.type) + posting) +
                  (lists + 1) * sizeof(uint32_t) + (own_ids ? docs * sizeof(int64_t) : 0) +
                  (norms ? docs * sizeof(float) : 0) + sizeof(Work);
  need.building = need.resident + docs * (sizeof(double) + sizeof(uint32_t)) +
                  lists * sizeof(uint32_t) +
                  (tiles_of(lists > docs ? lists : docs) + 2) * sizeof(uint64_t);
  return need;
}

Index::Index(int device, const Rows& rows, const RowFacts& facts, const IndexOptions& options,
             Stream stream)
    : arrays_(std::make_unique<Arrays>()) {
  if (rows.n < 0 || rows.n >= int64_t{1} << 32 || rows.width < 0 || options.dim < 1 ||
      options.block < 64 || options.block > 65536 || options.block % 64 != 0 ||
      (options.impact_bits != 8 && options.impact_bits != 16) ||
      options.exponent < kLeastExponent || options.exponent > kMostExponent) {
    throw std::invalid_argument(
        "expected fewer than 2^32 codes, blocks of 64 to 65,536 documents, a multiple of 64, "
        "impacts of 8 or 16 bits, and an exponent of -94 to 127");
  }
  const UseDevice use(device);
  Arrays& own = *arrays_;
  own.device = device;
  own.info = device_info(device);
  own.options = options;
  own.n = rows.n;
  const float unit = unit_of(options.type, options.exponent);
  const float limit =
      is_squares(options.type) ? power_of_two(options.exponent) : std::numeric_limits<float>::max();
  const RowReader reader{rows, options.dim, options.type, unit, limit, options.normalize};

  const DeviceMemory row_scales(rows.n * sizeof(double), "norms of codes");
  const DeviceMemory lengths(rows.n * sizeof(uint32_t), "lengths of codes");
  const DeviceMemory fault(sizeof(uint64_t), "the check of codes");
  const uint64_t none = ~uint64_t{0};
  copy(fault.as<void>(), &none, sizeof(none), stream, "the check of codes");
  launch(MeasureRows{reader, row_scales.as<double>(), lengths.as<uint32_t>(), fault.as<uint64_t>()},
         blocks_for(rows.n, MeasureRows::kThreads), 0, stream);
  expect_valid(fault, options, stream);
  own.starts = DeviceMemory((rows.n + 1) * sizeof(uint32_t), "starts of codes");
  const uint64_t entries = scan(lengths.as<uint32_t>(), rows.n, own.starts.as<uint32_t>(), stream);
  if (entries > kMostOnDevice) {
    throw std::invalid_argument("codes: expected at most " + std::to_string(kMostOnDevice) +
                                " entries on one device, got " + std::to_string(entries) +
                                "; use slices or more devices");
  }
  own.entries = static_cast<int64_t>(entries);
  // Little of this has been allocated already.
  expect_room(rows.n, own.entries, options, facts, 0, device);

  IndexArrays& view = own.view;
  view.n_docs = static_cast<uint32_t>(rows.n);
  view.dim = options.dim;
  view.block = options.block;
  view.n_blocks = blocks_for(rows.n, options.block);
  view.type = options.type;
  view.unit = unit;
  view.wide = latent_bytes(options) == 4;
  view.starts = own.starts.as<uint32_t>();
  view.first_id = facts.first_id;
  own.latents = DeviceMemory(entries * latent_bytes(options), "latents of codes");
  own.values = DeviceMemory(entries * value_bytes(options.type), "values of codes");
  view.latents = own.latents.as<void>();
  view.values = own.values.as<void>();
  const auto keep = [&](const void* given, size_t bytes, const char* what) {
    DeviceMemory memory(given == nullptr ? 0 : bytes, what);
    copy(memory.as<void>(), given, memory.bytes(), stream, what);
    return memory;
  };
  own.ids = keep(facts.ids, rows.n * sizeof(int64_t), "ids");
  own.norms = keep(facts.norms, rows.n * sizeof(float), "norms");
  view.ids = own.ids.as<int64_t>();
  view.norms = own.norms.as<float>();
  const uint32_t warps = blocks_for(rows.n, PlaceRows::kThreads / 32);
  launch(PlaceRows{reader, row_scales.as<double>(), view.starts, view.wide, own.latents.as<void>(),
                   own.values.as<void>(), fault.as<uint64_t>()},
         warps, 0, stream);
  expect_valid(fault, options, stream);

  const uint64_t lists = lists_of(rows.n, options);
  own.scales = DeviceMemory(options.dim * sizeof(float), "scales of latents");
  view.scales = own.scales.as<float>();
  own.work = DeviceMemory(sizeof(Work), "counts of work");
  clear(own.work.as<void>(), sizeof(Work), stream, "counts of work");
  const DeviceMemory counts(lists * sizeof(uint32_t), "lengths of lists");
  clear(counts.as<void>(), counts.bytes(), stream, "lengths of lists");
  clear(own.scales.as<void>(), own.scales.bytes(), stream, "scales of latents");
  const DeviceMemory longest(sizeof(uint32_t), "the longest row");
  clear(longest.as<void>(), longest.bytes(), stream, "the longest row");
  launch(
      CountPostings{view, counts.as<uint32_t>(), own.scales.as<uint32_t>(), longest.as<uint32_t>()},
      warps, 0, stream);
  copy(&own.row_width, longest.as<void>(), sizeof(own.row_width), stream, "the longest row");
  own.offsets = DeviceMemory((lists + 1) * sizeof(uint32_t), "offsets of lists");
  scan(counts.as<uint32_t>(), lists, own.offsets.as<uint32_t>(), stream);
  view.offsets = own.offsets.as<uint32_t>();
  if (options.impact_bits == 16) {
    own.postings = DeviceMemory(entries * sizeof(uint32_t), "postings");
  } else {
    own.postings = DeviceMemory(entries * sizeof(uint16_t), "postings");
    own.impacts = DeviceMemory(entries, "impacts");
  }
  view.words = own.postings.as<uint32_t>();
  view.numbers = own.postings.as<uint16_t>();
  view.impacts = own.impacts.as<uint8_t>();
  launch(
      PlacePostings{view, counts.as<uint32_t>(), options.impact_bits, own.postings.as<uint32_t>(),
                    own.postings.as<uint16_t>(), own.impacts.as<uint8_t>()},
      warps, 0, stream);
  wait(stream, "building the index");
}

std::unique_ptr<Index> Index::from_host(int device, const Rows& rows, const RowFacts& facts,
                                        const IndexOptions& options) {
  const UseDevice use(device);
  const int64_t n = rows.n;
  const int64_t entries = rows.starts == nullptr ? n * rows.width : rows.starts[n];
  const size_t value = rows.type == Number::float32 ? 4 : 2;
  const size_t starts_bytes = rows.starts == nullptr ? 0 : (n + 1) * sizeof(int64_t);
  const size_t ids_bytes = facts.ids == nullptr ? 0 : n * sizeof(int64_t);
  const size_t norms_bytes = facts.norms == nullptr ? 0 : n * sizeof(float);
  expect_room(n, entries, options, facts,
              entries * (value + sizeof(int32_t)) + starts_bytes + ids_bytes + norms_bytes, device);
  const auto upload = [](const void* from, size_t bytes) {
    DeviceMemory memory(bytes, "codes");
    copy(memory.as<void>(), from, bytes, nullptr, "codes");
    return memory;
  };
  const DeviceMemory values = upload(rows.values, entries * value);
  const DeviceMemory indices = upload(rows.indices, entries * sizeof(int32_t));
  const DeviceMemory starts = upload(rows.starts, starts_bytes);
  const DeviceMemory ids = upload(facts.ids, ids_bytes);
  const DeviceMemory norms = upload(facts.norms, norms_bytes);
  const Rows there{n,         rows.width,        starts.as<int64_t>(),
                   rows.type, values.as<void>(), indices.as<int32_t>()};
  const RowFacts facts_there{ids.as<int64_t>(), facts.first_id, norms.as<float>()};
  return std::make_unique<Index>(device, there, facts_there, options, nullptr);
}

Index::~Index() {
  if (arrays_ == nullptr) return;
  try {
    const UseDevice use(arrays_->device);
    arrays_.reset();
  } catch (const Error&) {
    // The device is lost with its memory.
  }
}

size_t Index::bytes() const {
  const Arrays& own = *arrays_;
  size_t sum = 0;
  for (const DeviceMemory* memory :
       {&own.starts, &own.latents, &own.values, &own.scales, &own.offsets, &own.postings,
        &own.impacts, &own.ids, &own.norms, &own.work}) {
    sum += memory->bytes();
  }
  return sum;
}

int Index::device() const { return arrays_->device; }
int64_t Index::n_docs() const { return arrays_->n; }
int64_t Index::entries() const { return arrays_->entries; }
int64_t Index::row_width() const { return arrays_->row_width; }
const IndexOptions& Index::options() const { return arrays_->options; }
float Index::gather_cost() const { return arrays_->gather_cost; }

}  // namespace csrkern::cuda
