#include "cpu/soft_dtw.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <numeric>
#include <thread>
#include <vector>

#include "cpu/soft_dtw_group.h"

namespace speechft::cpu {
namespace {

struct InstructionSet {
  const char* name;
  int lanes;
  int64_t (*workspace)(int64_t rows, int64_t columns, bool want_alignment);
  void (*group)(const SoftDtwBatch&, const SoftDtwGroup&, float* workspace);
};

#if defined(__GNUC__) && !defined(__clang__)
constexpr int BASELINE_LANES = 4;
#else
constexpr int BASELINE_LANES = 1;
#endif

constexpr InstructionSet BASELINE{"baseline", BASELINE_LANES, soft_dtw_workspace_baseline,
                                  soft_dtw_group_baseline};

// What this processor can run, widest first.
const std::vector<InstructionSet>& runnable() {
  static const std::vector<InstructionSet> sets = [] {
    std::vector<InstructionSet> found;
#ifdef SPEECHFT_X86_VECTORS
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
      found.push_back({"avx512", 16, soft_dtw_workspace_avx512, soft_dtw_group_avx512});
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
      found.push_back({"avx2", 8, soft_dtw_workspace_avx2, soft_dtw_group_avx2});
#endif
    found.push_back(BASELINE);
    return found;
  }();
  return sets;
}

std::atomic<int> chosen{0};

const InstructionSet& current() { return runnable()[chosen.load()]; }

struct Task {
  const SoftDtwBatch* batch;
  SoftDtwGroup group;
  int64_t area;
};

// Groups of pairs of one batch, in the order of their area, so that the lanes of a group end
// together.
void add_tasks(const SoftDtwBatch& batch, int lanes, std::vector<Task>& tasks) {
  const auto area = [&](int64_t pair) { return batch.x_lengths[pair] * batch.y_lengths[pair]; };
  std::vector<int64_t> order(batch.pairs);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return area(a) > area(b); });
  for (int64_t start = 0; start < batch.pairs; start += lanes) {
    SoftDtwGroup group{};
    group.count = static_cast<int>(std::min<int64_t>(lanes, batch.pairs - start));
    for (int lane = 0; lane < lanes; ++lane) {
      const int64_t pair = order[start + (lane < group.count ? lane : 0)];
      group.pairs[lane] = pair;
      group.x_lengths[lane] = batch.x_lengths[pair];
      group.y_lengths[lane] = batch.y_lengths[pair];
    }
    tasks.push_back({&batch, group, area(order[start])});
  }
}

}  // namespace

int soft_dtw_lanes() { return current().lanes; }

const char* soft_dtw_instruction_set() { return current().name; }

bool soft_dtw_set_instruction_set(const char* name) {
  const auto& sets = runnable();
  if (!*name) {
    chosen = 0;
    return true;
  }
  for (size_t k = 0; k < sets.size(); ++k)
    if (!std::strcmp(sets[k].name, name)) {
      chosen = static_cast<int>(k);
      return true;
    }
  return false;
}

void soft_dtw(const std::vector<SoftDtwBatch>& batches, int threads) {
  const InstructionSet& set = current();
  std::vector<Task> tasks;
  int64_t floats = 0;
  for (const SoftDtwBatch& batch : batches) {
    add_tasks(batch, set.lanes, tasks);
    floats = std::max(floats, set.workspace(batch.rows, batch.columns, batch.want_alignment));
  }
  // The largest first, so that no thread is left with one at the end.
  std::stable_sort(tasks.begin(), tasks.end(),
                   [](const Task& a, const Task& b) { return a.area > b.area; });
  threads = std::max(1, std::min<int>(threads, static_cast<int>(tasks.size())));
  // One allocation, made by the caller's thread, so that the allocator can hand it out again.
  constexpr size_t ALIGNMENT = 64;
  const size_t bytes = (floats * sizeof(float) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
  const std::unique_ptr<unsigned char[]> memory(new unsigned char[bytes * threads + ALIGNMENT]);
  const auto address = reinterpret_cast<uintptr_t>(memory.get());
  unsigned char* aligned = memory.get() + (ALIGNMENT - address % ALIGNMENT) % ALIGNMENT;

  std::atomic<size_t> next{0};
  const auto work = [&](int thread) {
    float* workspace = reinterpret_cast<float*>(aligned + bytes * thread);
    for (size_t k; (k = next++) < tasks.size();)
      set.group(*tasks[k].batch, tasks[k].group, workspace);
  };
  std::vector<std::thread> helpers;
  for (int thread = 1; thread < threads; ++thread) helpers.emplace_back(work, thread);
  work(0);
  for (auto& helper : helpers) helper.join();
}

}  // namespace speechft::cpu
