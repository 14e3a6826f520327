// What the parts of a search take, which decides between ways that find the same.
#pragma once

namespace csrkern {

// In nanoseconds. The numbers here were measured on one processor with AVX2, beside large indexes.
struct Costs {
  double posting = 0.6;        // of a list that is scanned
  double document = 0.05;      // of a scanned window
  double dense = 0.15;         // a document of a dense list
  double block_term = 100;     // a term of a block, mostly waiting for memory
  double directory_term = 50;  // the same with a directory
  double bound = 0.05;         // a term of a block's bound
  double row = 26;             // a document scored by the forward index
  double entry = 1.1;          // an entry of it
  // An entry of a row in a scan for a batch, with up to 1,024 terms, 4,096 and more.
  double batch_entry_of_1024 = 1.07, batch_entry_of_4096 = 1.4, batch_entry = 1.9;
  // A posting when one thread builds the forward index, rounded values, or the directory.
  double forward_posting = 13, rounded_posting = 3, directory_posting = 4;
};

constexpr Costs kUsualCosts;

struct NamedCost {
  const char* name;
  double Costs::* cost;
};

constexpr NamedCost kCosts[] = {
    {"posting", &Costs::posting},
    {"document", &Costs::document},
    {"dense", &Costs::dense},
    {"block_term", &Costs::block_term},
    {"directory_term", &Costs::directory_term},
    {"bound", &Costs::bound},
    {"row", &Costs::row},
    {"entry", &Costs::entry},
    {"batch_entry_of_1024", &Costs::batch_entry_of_1024},
    {"batch_entry_of_4096", &Costs::batch_entry_of_4096},
    {"batch_entry", &Costs::batch_entry},
    {"forward_posting", &Costs::forward_posting},
    {"rounded_posting", &Costs::rounded_posting},
    {"directory_posting", &Costs::directory_posting},
};

// Returns the costs by which searches choose. The first call measures them, in a quarter of a
// second, unless `set_costs` came before it. What is stored, and the plans of fast searches, follow
// kUsualCosts: they may not depend on the processor.
const Costs& costs();

// Returns whether searches have needed the costs and measured them.
bool costs_were_measured();

void set_costs(const Costs& costs);

// Measures all costs now, each within an eighth and eight times the usual one.
Costs measure_costs();

}  // namespace csrkern
