// A row of a waveform, a block at a time: all steps are done to a block while it is in the first
// cache. Included once for each instruction set.
//
// A step that needs a level, the peak of a clip or the energies of a mix, ends a sweep over the row:
// the sweep does what lies before it and sums. What a sweep has made is stored only where it costs
// more to make again than to read, which is after a mix.
#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/lanes.h"
#include "cpu/pointwise.h"

namespace speechft::cpu {
namespace {

constexpr int64_t BLOCK = 2048;  // samples: 8 KiB, and as much of noise

// A step with this row's values.
struct Step {
  PointwiseKind kind;
  bool needs_level;
  float value;  // factor; limit, share before; scale; steps in 1
  const PointwiseStep* source;
  int64_t row;
  int64_t mix;  // which of the mixes, or -1
};

// A block of the sum of this row's voices, zero past `count`.
void make_noise(const Step& step, int64_t begin, int64_t count, float* noise) {
  const PointwiseStep& s = *step.source;
  const int64_t* clips = s.first + step.row * s.count;
  const int64_t* starts = s.second + step.row * s.count;
  bool first = true;
  for (int64_t voice = 0; voice < s.count; ++voice) {
    const int64_t clip = clips[voice];
    if (clip < 0) continue;
    const int64_t length = s.counts[clip], offset = s.offsets[clip];
    const float gain = 1.0f / s.levels[clip];
    int64_t at = (starts[voice] + begin) % length;
    for (int64_t done = 0; done < count;) {
      const int64_t run = std::min(count - done, length - at);
      const auto add = [&](const auto* samples) {
        float* out = noise + done;
        if (first)
          for (int64_t t = 0; t < run; ++t) out[t] = static_cast<float>(samples[t]) * gain;
        else
          for (int64_t t = 0; t < run; ++t) out[t] += static_cast<float>(samples[t]) * gain;
      };
      if (s.short_samples)
        add(static_cast<const int16_t*>(s.samples) + offset + at);
      else
        add(static_cast<const float*>(s.samples) + offset + at);
      done += run;
      at = 0;  // after the last sample comes the first
    }
    first = false;
  }
  if (first) count = 0;
  std::fill(noise + count, noise + BLOCK, 0.0f);
}

void clip(float* x, int64_t count, float limit) {
  const F above = splat(limit), below = splat(-limit);
  for (int64_t t = 0; t < count; t += W)
    store(x + t, minimum(maximum(load(x + t), below), above));
}

void quantise(float* x, int64_t count, float steps) {
  const float highest = steps - 1.0f, one = 1.0f / steps;
  if (steps > 4194304.0f) {  // where the trick below has no room
    for (int64_t t = 0; t < count; ++t)
      x[t] = std::min(std::max(std::nearbyint(x[t] * steps), -steps), highest) * one;
    return;
  }
  // 1.5 * 2^23: adding it rounds to the nearest integer, half to even.
  const F magic = splat(12582912.0f);
  for (int64_t t = 0; t < count; t += W) {
    const F v = minimum(maximum(load(x + t) * splat(steps), splat(-steps)), splat(highest));
    store(x + t, ((v + magic) - magic) * splat(one));
  }
}

void mu_law(float* x, int64_t count) {
  const F bias = splat(33.0f), peak = splat(8158.0f);
  for (int64_t t = 0; t < count; t += W) {
    const F v = load(x + t);
    const I sign = bits(v) & splat_int(INT32_MIN);
    const F magnitude = from_bits(bits(v) & splat_int(INT32_MAX)) * splat(8192.0f);
    const I segment = bits(minimum(magnitude, peak) + bias);
    const F kept = from_bits((segment & splat_int(~0x7ffff)) | splat_int(0x40000));
    store(x + t, from_bits(bits((kept - bias) * splat(1.0f / 8192.0f)) | sign));
  }
}

void silence(const Step& step, float* x, int64_t begin, int64_t count) {
  const PointwiseStep& s = *step.source;
  for (int64_t k = step.row * s.count; k < (step.row + 1) * s.count; ++k) {
    const int64_t from = std::max(s.first[k] - begin, int64_t{0});
    const int64_t to = std::min(s.second[k] - begin, count);
    if (from < to) std::fill(x + from, x + to, 0.0f);
  }
}

// `padded` is `count` rounded up to whole vectors, in which x is zero.
void apply(const Step& step, float* x, float* noise, int64_t begin, int64_t count,
           int64_t padded) {
  switch (step.kind) {
    case PointwiseKind::scale:
      for (int64_t t = 0; t < padded; t += W) store(x + t, load(x + t) * splat(step.value));
      return;
    case PointwiseKind::clip:
      return clip(x, padded, step.value);
    case PointwiseKind::mix:
      make_noise(step, begin, count, noise);
      for (int64_t t = 0; t < padded; t += W)
        store(x + t, load(x + t) + splat(step.value) * load(noise + t));
      return;
    case PointwiseKind::silence:
      return silence(step, x, begin, count);
    case PointwiseKind::quantise:
      return quantise(x, padded, step.value);
    case PointwiseKind::mu_law:
      return mu_law(x, padded);
  }
}

double energy(const float* x, int64_t count) {
  F sums[4] = {};
  for (int64_t t = 0; t < count; t += 4 * W)
    for (int k = 0; k < 4 && t + k * W < count; ++k) {
      const F v = load(x + t + k * W);
      sums[k] += v * v;
    }
  return total((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

float peak_of(const float* x, int64_t count) {
  F best = splat(0.0f);
  for (int64_t t = 0; t < count; t += W)
    best = maximum(best, from_bits(bits(load(x + t)) & splat_int(INT32_MAX)));
  return highest(best);
}

// The row's steps, but for those that leave it as it is.
std::vector<Step> steps_of(const PointwiseBatch& b, int64_t row) {
  std::vector<Step> steps;
  int64_t mixes = 0;
  for (int64_t k = 0; k < b.steps_count; ++k) {
    const PointwiseStep& s = b.steps[k];
    Step step{s.kind, false, 0.0f, &s, row, -1};
    switch (s.kind) {
      case PointwiseKind::scale:
        step.value = s.value[row];
        if (step.value == 1.0f) continue;
        break;
      case PointwiseKind::clip:
        step.value = s.value[row];
        step.needs_level = true;
        if (step.value >= 1.0f) continue;
        break;
      case PointwiseKind::mix:
        step.value = s.value[row];
        step.needs_level = true;
        step.mix = mixes++;
        if (!(step.value < std::numeric_limits<float>::infinity())) continue;
        break;
      case PointwiseKind::silence: {
        bool any = false;
        for (int64_t i = row * s.count; i < (row + 1) * s.count; ++i)
          any = any || s.first[i] < s.second[i];
        if (!any) continue;
        break;
      }
      case PointwiseKind::quantise:
        if (s.first[row] == 0) continue;
        step.value = std::ldexp(1.0f, static_cast<int>(s.first[row]) - 1);
        break;
      case PointwiseKind::mu_law:
        if (s.first[row] == 0) continue;
        break;
    }
    steps.push_back(step);
  }
  return steps;
}

void process_row(const PointwiseBatch& b, int64_t row) {
  alignas(64) float x[BLOCK], noise[BLOCK];
  const int64_t length = b.lengths[row];
  const float* source = b.x + row * b.x_stride;
  float* const result = b.y + row * b.width;
  std::vector<Step> steps = steps_of(b, row);
  for (size_t first = 0;;) {
    size_t end = first;
    bool mixed = false;
    for (; end < steps.size() && !steps[end].needs_level; ++end)
      mixed = mixed || steps[end].kind == PointwiseKind::mix;
    const bool last = end == steps.size();
    const bool keep = last || mixed;
    double of_x = 0.0, of_noise = 0.0;
    float peak = 0.0f;
    for (int64_t begin = 0; begin < length; begin += BLOCK) {
      const int64_t count = std::min(BLOCK, length - begin);
      const int64_t padded = (count + W - 1) / W * W;
      std::copy(source + begin, source + begin + count, x);
      std::fill(x + count, x + padded, 0.0f);
      for (size_t k = first; k < end; ++k) apply(steps[k], x, noise, begin, count, padded);
      if (!last && steps[end].kind == PointwiseKind::mix) {
        make_noise(steps[end], begin, count, noise);
        of_x += energy(x, padded);
        of_noise += energy(noise, padded);
      } else if (!last) {
        peak = std::max(peak, peak_of(x, padded));
      }
      if (keep) std::copy(x, x + count, result + begin);
    }
    if (last) break;
    if (keep) source = result, first = end;
    Step& next = steps[end];
    next.needs_level = false;
    if (next.kind == PointwiseKind::clip) {
      next.value *= peak;
    } else if (of_x > 0.0 && of_noise > 0.0) {
      next.value = static_cast<float>(std::sqrt(of_x / of_noise) *
                                      std::pow(10.0, -static_cast<double>(next.value) / 20.0));
    } else {
      b.skipped[row * b.mixes + next.mix] = true;
      steps.erase(steps.begin() + static_cast<int64_t>(end));
    }
  }
  std::fill(result + length, result + b.width, 0.0f);
}

}  // namespace

#define SPEECHFT_JOIN(a, b) a##b
#define SPEECHFT_CONCAT(a, b) SPEECHFT_JOIN(a, b)

void SPEECHFT_CONCAT(pointwise_row_, SPEECHFT_SET)(const PointwiseBatch& batch, int64_t row) {
  process_row(batch, row);
}

}  // namespace speechft::cpu
