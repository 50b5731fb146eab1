#include "cpu/soft_dtw.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <numeric>
#include <vector>

#include "cpu/soft_dtw_group.h"
#include "cpu/threads.h"

namespace speechft::cpu {
namespace {

struct InstructionSet {
  const char* name;
  int lanes;
  int64_t (*workspace)(int64_t rows, int64_t columns, bool want_alignment);
  void (*group)(const SoftDtwBatch&, const SoftDtwGroup&, float* workspace);
  void (*gradient)(const SoftDtwBatch&, int64_t pair);
};

#if defined(__GNUC__) && !defined(__clang__)
constexpr int BASELINE_LANES = 4;
#else
constexpr int BASELINE_LANES = 1;
#endif

constexpr InstructionSet BASELINE{"baseline", BASELINE_LANES, soft_dtw_workspace_baseline,
                                  soft_dtw_group_baseline, soft_dtw_gradient_baseline};

// What this processor can run, widest first.
const std::vector<InstructionSet>& runnable() {
  static const std::vector<InstructionSet> sets = [] {
    std::vector<InstructionSet> found;
#ifdef SPEECHFT_X86_VECTORS
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
      found.push_back({"avx512", 16, soft_dtw_workspace_avx512, soft_dtw_group_avx512, soft_dtw_gradient_avx512});
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
      found.push_back({"avx2", 8, soft_dtw_workspace_avx2, soft_dtw_group_avx2, soft_dtw_gradient_avx2});
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

constexpr int64_t ALIGNMENT = 64;

int64_t bytes_per_thread(const std::vector<SoftDtwBatch>& batches) {
  int64_t floats = 0;
  for (const SoftDtwBatch& batch : batches)
    floats = std::max(floats,
                      current().workspace(batch.rows, batch.columns, batch.want_alignment));
  const int64_t bytes = floats * static_cast<int64_t>(sizeof(float));
  return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

int threads_for(const std::vector<SoftDtwBatch>& batches, int threads) {
  int64_t groups = 0;
  const int lanes = current().lanes;
  for (const SoftDtwBatch& batch : batches) groups += (batch.pairs + lanes - 1) / lanes;
  return static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, groups)));
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

int64_t soft_dtw_workspace_bytes(const std::vector<SoftDtwBatch>& batches, int threads) {
  return bytes_per_thread(batches) * threads_for(batches, threads) + ALIGNMENT;
}

void soft_dtw(const std::vector<SoftDtwBatch>& batches, int threads, void* workspace) {
  const InstructionSet& set = current();
  std::vector<Task> tasks;
  for (const SoftDtwBatch& batch : batches) add_tasks(batch, set.lanes, tasks);
  // The largest first, so that no thread is left with one at the end.
  std::stable_sort(tasks.begin(), tasks.end(),
                   [](const Task& a, const Task& b) { return a.area > b.area; });
  const int64_t bytes = bytes_per_thread(batches);
  const auto address = reinterpret_cast<uintptr_t>(workspace);
  unsigned char* aligned =
      static_cast<unsigned char*>(workspace) + (ALIGNMENT - address % ALIGNMENT) % ALIGNMENT;
  in_parallel(static_cast<int64_t>(tasks.size()), threads, [&](int64_t k, int thread) {
    set.group(*tasks[k].batch, tasks[k].group, reinterpret_cast<float*>(aligned + bytes * thread));
  });
}

void soft_dtw_gradient(const std::vector<SoftDtwBatch>& batches, int threads) {
  const InstructionSet& set = current();
  in_parallel(batches.empty() ? 0 : batches[0].pairs, threads, [&](int64_t pair, int) {
    for (const SoftDtwBatch& batch : batches)
      if (!batch.dense[pair]) set.gradient(batch, pair);
  });
}

}  // namespace speechft::cpu
