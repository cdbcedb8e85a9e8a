// Runs the kernels of deform_conv2d_kernel.h on random problems and compares every number with a
// plain definition in double precision. test_fuzz_kernel.py compiles it with sanitizers:
//
//   fuzz_kernel SECONDS SEED
//
// All buffers are of the exact size, outputs and scratch start as NaN, and every parallel loop has
// threads of its own, so that none inherits a larger scratch from another problem.

#include <atomic>
#include <chrono>
#include <cstdio>
#include <limits>
#include <random>
#include <thread>
#include <vector>

#include "deform_conv2d_kernel.h"

namespace {

using sepc_tf::Problem;
using Floats = std::vector<float>;

// Of the sum of the magnitudes of the terms of a number. One of ten thousand terms that is missing
// is 1e-4 of it.
constexpr double kTolerance = 2e-6;

std::mt19937_64 generator;

int64_t Draw(int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(generator);
}

Floats Normal(int64_t size) {
  std::normal_distribution<float> normal;
  Floats values(size);
  for (float& value : values) value = normal(generator);
  return values;
}

Floats Unset(int64_t size) { return Floats(size, std::numeric_limits<float>::quiet_NaN()); }

struct Case {
  Problem p;
  bool modulated;
  int threads;
  Floats x, offset, mask, kernel, grad_y;

  void Print() const {
    std::printf(
        "x %ldx%ldx%ldx%ld, out %ldx%ldx%ld, kernel %ldx%ld, strides %ld %ld, padding %ld %ld, "
        "dilations %ld %ld, groups %ld, offset groups %ld, mask %d, threads %d\n",
        p.batch, p.height, p.width, p.channels, p.out_height, p.out_width, p.out_channels,
        p.kernel_h, p.kernel_w, p.stride_h, p.stride_w, p.pad_top, p.pad_left, p.dilation_h,
        p.dilation_w, p.groups, p.offset_groups, modulated, threads);
  }
};

// Displacements: small, whole, to the borders of the map, and wild ones.
Floats Offsets(const Problem& p) {
  Floats offset = Normal(p.pixels() * p.offset_groups * p.taps() * 2);
  const float scale = std::vector<float>{0.3f, 2.0f, 8.0f}[Draw(0, 2)];
  const float inf = std::numeric_limits<float>::infinity();
  const std::vector<float> wild = {1e3f,  -1e3f, 1e9f, -1e9f, 2.2e9f, -2.2e9f,     1e19f,
                                   3e38f, -3e38f, inf,  -inf,  -0.0f,  std::nanf(""), 1e-38f};
  const int64_t rarity = Draw(0, 1) ? 10 : 1000000;
  const bool whole = Draw(0, 3) == 0;
  for (float& value : offset) {
    value *= scale;
    if (whole) value = std::round(value);
    if (Draw(0, rarity - 1) == 0) value = wild[Draw(0, wild.size() - 1)];
    if (Draw(0, 20 * rarity) == 0) value = std::nextafter(std::round(value), Draw(0, 1) ? inf : -inf);
  }
  return offset;
}

Case DrawCase(bool wide_input, bool wide_output) {
  Case c;
  Problem& p = c.p;
  p.groups = p.offset_groups = 1;
  if (Draw(0, 1)) p.groups = Draw(1, 5);
  if (Draw(0, 1)) p.offset_groups = Draw(1, 5);
  const int64_t unit = p.groups * p.offset_groups;
  p.channels = unit * Draw(1, (wide_input ? 700 : 40) / unit);
  p.out_channels = p.groups * Draw(1, (wide_output ? 700 : 40) / p.groups);
  p.kernel_h = Draw(1, 4), p.kernel_w = Draw(1, 4);
  p.stride_h = Draw(1, 3), p.stride_w = Draw(1, 3);
  p.dilation_h = Draw(1, 3), p.dilation_w = Draw(1, 3);
  p.pad_top = Draw(0, 4), p.pad_left = Draw(0, 4);
  p.batch = Draw(1, 3);
  // So many pixels that the definition takes some million multiplications.
  const int64_t a_pixel = p.taps() * p.channels * p.out_channels / p.groups;
  const int64_t pixels = std::max<int64_t>(1, 1000000 / a_pixel / p.batch);
  p.out_height = Draw(1, std::min<int64_t>(30, pixels));
  p.out_width = Draw(1, std::min<int64_t>(30, std::max<int64_t>(1, pixels / p.out_height)));
  // Maps that reach about as far as the output asks for, or end before.
  p.height = std::max<int64_t>(1, p.out_height * p.stride_h - p.pad_top + Draw(-6, 3));
  p.width = std::max<int64_t>(1, p.out_width * p.stride_w - p.pad_left + Draw(-6, 3));
  c.threads = Draw(1, 8);
  c.modulated = Draw(0, 1);
  c.x = Normal(p.batch * p.height * p.width * p.channels);
  c.offset = Offsets(p);
  if (c.modulated) c.mask = Normal(p.pixels() * p.offset_groups * p.taps());
  c.kernel = Normal(p.taps() * p.group_channels() * p.out_channels);
  c.grad_y = Normal(p.pixels() * p.out_channels);
  return c;
}

// ---------------------------------------------------------------- the definition

// A number and the magnitude of the terms that made it.
struct Number {
  double value = 0, magnitude = 0;
  Number() = default;
  Number(double v) : value(v), magnitude(std::fabs(v)) {}
  Number(double v, double m) : value(v), magnitude(m) {}
};
Number operator*(Number a, Number b) {
  return {a.value * b.value, a.magnitude * b.magnitude};
}
void operator+=(Number& a, Number b) {
  a.value += b.value;
  a.magnitude += b.magnitude;
}
using Numbers = std::vector<Number>;

struct Results {
  Numbers y, grad_x, grad_offset, grad_mask, grad_kernel;
};

Results Define(const Case& c) {
  const Problem& p = c.p;
  const int64_t in = p.group_channels(), out = p.group_outputs(), taps = p.taps();
  const int64_t fields = p.offset_groups * taps;
  Results r;
  r.y.resize(p.pixels() * p.out_channels);
  r.grad_x.resize(c.x.size());
  r.grad_offset.resize(c.offset.size());
  r.grad_mask.resize(c.mask.size());
  r.grad_kernel.resize(c.kernel.size());
  Numbers columns(p.channels), gradients(p.channels);
  for (int64_t pixel = 0; pixel < p.pixels(); ++pixel) {
    const int64_t n = pixel / (p.out_height * p.out_width);
    const int64_t i = pixel / p.out_width % p.out_height, j = pixel % p.out_width;
    for (int64_t tap = 0; tap < taps; ++tap) {
      const int64_t grid_y = i * p.stride_h - p.pad_top + tap / p.kernel_w * p.dilation_h;
      const int64_t grid_x = j * p.stride_w - p.pad_left + tap % p.kernel_w * p.dilation_w;
      std::fill(columns.begin(), columns.end(), Number());
      std::fill(gradients.begin(), gradients.end(), Number());
      // Gradients of the samples: the transposed product.
      for (int64_t channel = 0; channel < p.channels; ++channel) {
        const int64_t first = channel / in * out;
        const float* row = &c.kernel[(tap * in + channel % in) * p.out_channels];
        for (int64_t d = first; d < first + out; ++d) {
          gradients[channel] += Number(row[d]) * Number(c.grad_y[pixel * p.out_channels + d]);
        }
      }
      for (int64_t group = 0; group < p.offset_groups; ++group) {
        const int64_t field = pixel * fields + group * taps + tap;
        // Positions are float32 by definition.
        const float y = c.offset[field * 2] + static_cast<float>(grid_y);
        const float x = c.offset[field * 2 + 1] + static_cast<float>(grid_x);
        if (!(y > -1 && y < p.height && x > -1 && x < p.width)) continue;
        const Number mask = c.modulated ? Number(c.mask[field]) : Number(1);
        for (int dy = 0; dy < 2; ++dy) {
          for (int dx = 0; dx < 2; ++dx) {
            const int64_t row = static_cast<int64_t>(std::floor(y)) + dy;
            const int64_t column = static_cast<int64_t>(std::floor(x)) + dx;
            if (row < 0 || row >= p.height || column < 0 || column >= p.width) continue;
            const double low_y = y - std::floor(static_cast<double>(y));
            const double low_x = x - std::floor(static_cast<double>(x));
            // Magnitude 1: a weight is a difference of numbers up to 1.
            const Number weight_y(dy ? low_y : 1 - low_y, 1), weight_x(dx ? low_x : 1 - low_x, 1);
            const Number slope_y(dy ? 1 : -1), slope_x(dx ? 1 : -1);
            for (int64_t k = 0; k < p.sample_channels(); ++k) {
              const int64_t channel = group * p.sample_channels() + k;
              const int64_t at = ((n * p.height + row) * p.width + column) * p.channels + channel;
              const Number value = c.x[at], gradient = gradients[channel];
              columns[channel] += weight_y * weight_x * mask * value;
              r.grad_x[at] += weight_y * weight_x * mask * gradient;
              r.grad_offset[field * 2] += slope_y * weight_x * mask * value * gradient;
              r.grad_offset[field * 2 + 1] += weight_y * slope_x * mask * value * gradient;
              if (c.modulated) r.grad_mask[field] += weight_y * weight_x * value * gradient;
            }
          }
        }
      }
      for (int64_t channel = 0; channel < p.channels; ++channel) {
        const int64_t first = channel / in * out, row = (tap * in + channel % in) * p.out_channels;
        for (int64_t d = first; d < first + out; ++d) {
          const int64_t at = pixel * p.out_channels + d;
          r.y[at] += columns[channel] * Number(c.kernel[row + d]);
          r.grad_kernel[row + d] += columns[channel] * Number(c.grad_y[at]);
        }
      }
    }
  }
  return r;
}

// ---------------------------------------------------------------- the kernels

// Each loop in threads of its own, tasks in any order.
struct FreshThreads {
  int count;

  void operator()(int64_t n, const std::function<void(int64_t)>& fn) const {
    std::atomic<int64_t> next{0};
    std::vector<std::thread> threads;
    for (int i = 0; i < std::min<int64_t>(n, std::min(count, 3)); ++i) {
      threads.emplace_back([&] {
        for (int64_t task = next++; task < n; task = next++) fn(task);
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
};

double worst = 0;

bool Same(const char* name, const Floats& got, const Numbers& want) {
  for (size_t i = 0; i < want.size(); ++i) {
    const double error = std::fabs(got[i] - want[i].value);
    if (!(error <= kTolerance * want[i].magnitude)) {
      std::printf("%s[%zu]: expected %.9g (terms of %.9g in all), got %.9g\n", name, i,
                  want[i].value, want[i].magnitude, got[i]);
      return false;
    }
    if (error > 0) worst = std::max(worst, error / want[i].magnitude);
  }
  return true;
}

bool Run(const Case& c) {
  const Problem& p = c.p;
  const FreshThreads threads{c.threads};
  const Results want = Define(c);
  Floats y = Unset(want.y.size()), packed = Unset(sepc_tf::PackedSize(p));
  const float* mask = c.modulated ? c.mask.data() : nullptr;
  sepc_tf::Forward(p, c.x.data(), c.offset.data(), mask, c.kernel.data(), y.data(), packed.data(),
                   c.threads, threads);
  bool same = Same("y", y, want.y);

  const sepc_tf::Split split(p, c.threads);
  Floats grad_x = Unset(c.x.size()), grad_offset = Unset(c.offset.size());
  Floats grad_mask = Unset(c.mask.size()), grad_kernel = Unset(c.kernel.size());
  Floats kernels = Unset(split.PartialKernels(p)), offsets = Unset(split.PartialOffsets(p));
  packed = Unset(packed.size());
  sepc_tf::Backward(p, split, c.x.data(), c.offset.data(), mask, c.kernel.data(), c.grad_y.data(),
                    grad_x.data(), grad_offset.data(), c.modulated ? grad_mask.data() : nullptr,
                    grad_kernel.data(), packed.data(), kernels.data(), offsets.data(), threads);
  same = Same("grad_x", grad_x, want.grad_x) && same;
  same = Same("grad_offset", grad_offset, want.grad_offset) && same;
  same = Same("grad_mask", grad_mask, want.grad_mask) && same;
  return Same("grad_kernel", grad_kernel, want.grad_kernel) && same;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return std::fprintf(stderr, "usage: fuzz_kernel SECONDS SEED\n"), 2;
  const double seconds = std::atof(argv[1]);
  generator.seed(std::atoll(argv[2]));
  const auto start = std::chrono::steady_clock::now();
  int64_t problems = 0, most = 0;
  while (problems < 10 || std::chrono::duration<double>(std::chrono::steady_clock::now() - start)
                                  .count() < seconds) {
    const Case c = DrawCase(problems & 1, problems & 2);
    if (!Run(c)) return std::printf("problem %ld: ", problems), c.Print(), 1;
    most = std::max(most, c.p.channels);
    ++problems;
  }
  std::printf("%ld problems, up to %ld channels, %d lanes, worst error %.2g\n", problems, most,
              sepc_tf::kLanes, worst);
  return 0;
}
