// Costs: measured once by whoever comes first, and replaced while others read them.
#include <iterator>
#include <thread>
#include <vector>

#include "check.hpp"
#include "csrkern/costs.hpp"

using namespace csrkern;

namespace {

void test_threads_measure_once() {
  std::vector<const Costs*> found(4);
  std::vector<std::thread> threads;
  CHECK(!costs_were_measured());
  for (const Costs*& mine : found) threads.emplace_back([&mine] { mine = &costs(); });
  for (std::thread& thread : threads) thread.join();
  CHECK(costs_were_measured());
  for (const Costs* mine : found) CHECK(mine == found[0]);
  for (const auto& [name, cost] : kCosts) {
    const double usual = kUsualCosts.*cost, measured = costs().*cost;
    CHECK(usual / 8 <= measured && measured <= usual * 8);
  }
}

void test_costs_are_replaced_while_they_are_read() {
  const Costs& before = costs();
  const double posting = before.posting;
  std::thread reader([] {
    for (int i = 0; i < 1000; ++i) CHECK(costs().posting > 0);
  });
  for (int i = 1; i <= 100; ++i) {
    Costs given = kUsualCosts;
    given.posting = i;
    set_costs(given);
    CHECK(costs().posting == i);
  }
  reader.join();
  CHECK(before.posting == posting);  // who holds the old ones may still read them
}

void test_every_cost_has_a_name() { CHECK(sizeof(Costs) == sizeof(double) * std::size(kCosts)); }

}  // namespace

int main() {
  test_threads_measure_once();
  test_costs_are_replaced_while_they_are_read();
  test_every_cost_has_a_name();
}
