// Deformable convolution on the CPU, forward and backward, fused with the matrix products.
//
// Layouts are those of sepc_tf/ops/deform_conv2d: x [N, H, W, C], offset [N, Ho, Wo, G, K, 2],
// mask [N, Ho, Wo, G, K], kernel [K, C/groups, D], y [N, Ho, Wo, D], with K = kh * kw taps,
// G offset groups and P = N * Ho * Wo output pixels.
//
// Forward, for a block of pixels: sample one tap into a small buffer that stays in the L2 cache,
// multiply it with the kernel of that tap, accumulate. Backward, for a block of channels (owned by
// one thread, so that scattered gradients need no locks) and a few taps: the product with the
// transposed kernel, then in one sweep the samples, their dot products with the gradient (for
// offsets and mask) and the scatter to x; then the product that is the gradient of the kernel.
// The K * C columns never exist. No TensorFlow here: the caller passes a parallel-for.

#ifndef SEPC_TF_OPS_NATIVE_DEFORM_CONV2D_KERNEL_H_
#define SEPC_TF_OPS_NATIVE_DEFORM_CONV2D_KERNEL_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <new>
#include <vector>

namespace sepc_tf {

// Vectors of the machine the file is compiled on (-march=native). kRows x 2 accumulators, two
// vectors of the right operand and one broadcast fill the registers.
#if defined(__AVX512F__)
constexpr int kLanes = 16, kRows = 14;
#elif defined(__AVX__)
constexpr int kLanes = 8, kRows = 6;
#elif defined(__aarch64__)
constexpr int kLanes = 4, kRows = 14;
#else
constexpr int kLanes = 4, kRows = 6;
#endif
constexpr int kPanel = 2 * kLanes;  // columns of a packed panel

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef float UnalignedVec __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));

inline Vec Load(const float* p) { return *reinterpret_cast<const UnalignedVec*>(p); }
inline void Store(float* p, Vec v) { *reinterpret_cast<UnalignedVec*>(p) = v; }
inline float Sum(Vec v) {
  float total = 0;
  for (int i = 0; i < kLanes; ++i) total += v[i];
  return total;
}

constexpr int64_t kMaxPixels = 112;  // pixels of a block, a multiple of every kRows above but 6
constexpr int64_t kDepth = 256;      // channels sampled or multiplied at a time
// Row pitch of the left operand: an odd number of cache lines, so that rows do not share L1 sets.
constexpr int64_t kPitch = kDepth + 16;

inline int64_t RoundUp(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }
inline int64_t DivUp(int64_t value, int64_t unit) { return (value + unit - 1) / unit; }

// Runs fn(i) for i in [0, n), possibly in parallel.
using ParallelFor = std::function<void(int64_t, const std::function<void(int64_t)>&)>;

struct Problem {
  int64_t batch, height, width, channels;
  int64_t out_height, out_width, out_channels;
  int64_t kernel_h, kernel_w;
  int64_t stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w;
  int64_t groups, offset_groups;

  int64_t taps() const { return kernel_h * kernel_w; }
  int64_t pixels() const { return batch * out_height * out_width; }
  int64_t group_channels() const { return channels / groups; }
  int64_t group_outputs() const { return out_channels / groups; }
  int64_t sample_channels() const { return channels / offset_groups; }
};

// A buffer that a thread keeps between calls, so that blocks do not page-fault it in again.
class Scratch {
 public:
  ~Scratch() { std::free(data_); }
  float* Get(int64_t floats) {
    if (floats > size_) {
      std::free(data_);
      size_ = 0;
      const size_t bytes = RoundUp(floats * 4, 4096);
      data_ = static_cast<float*>(std::aligned_alloc(4096, bytes));
      if (data_ == nullptr) throw std::bad_alloc();
      std::memset(data_, 0, bytes);
      size_ = floats;
    }
    return data_;
  }

 private:
  float* data_ = nullptr;
  int64_t size_ = 0;
};

inline Scratch& ThreadScratch() {
  static thread_local Scratch scratch;
  return scratch;
}

// ---------------------------------------------------------------- matrix products

// c[Rows][Vecs * kLanes] (+)= a * b over `depth`. Element (i, k) of a is a[i * row + k * a_step],
// row being kPitch or 1.
template <int Rows, int Vecs, int64_t Row>
void Tile(int64_t depth, const float* a, int64_t a_step, const float* b, int64_t b_step, float* c,
          int64_t c_row, bool fresh) {
  Vec sum[Rows][Vecs];
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 2
    for (int j = 0; j < Vecs; ++j) sum[i][j] = fresh ? Vec{} : Load(c + i * c_row + j * kLanes);
  }
  for (int64_t k = 0; k < depth; ++k) {
    Vec right[Vecs];
#pragma GCC unroll 2
    for (int j = 0; j < Vecs; ++j) right[j] = Load(b + j * kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
      const Vec left = a[i * Row] - Vec{};
#pragma GCC unroll 2
      for (int j = 0; j < Vecs; ++j) sum[i][j] += left * right[j];
    }
    a += a_step;
    b += b_step;
  }
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 2
    for (int j = 0; j < Vecs; ++j) Store(c + i * c_row + j * kLanes, sum[i][j]);
  }
}

using TileFn = void (*)(int64_t, const float*, int64_t, const float*, int64_t, float*, int64_t,
                        bool);

template <int Vecs, int64_t Row, int Rows = kRows>
TileFn PickTile(int rows) {
  if constexpr (Rows == 1) {
    return Tile<1, Vecs, Row>;
  } else {
    return rows == Rows ? Tile<Rows, Vecs, Row> : PickTile<Vecs, Row, Rows - 1>(rows);
  }
}

// The right operand: `panel(j)` holds columns [j * kPanel, ...), each row `step` floats after the
// one before. Packed panels are contiguous (step = their width), others are columns of a matrix.
struct Right {
  const float* data;
  int64_t rows;  // of the packed matrix
  int64_t step;  // 0: packed
};

// c[m][n] (+)= a[m][depth] * b[depth][n], n a multiple of kLanes.
template <int64_t Row>
void Multiply(int64_t m, int64_t n, int64_t depth, const float* a, int64_t a_step, Right b,
              int64_t b_row, float* c, int64_t c_row, bool fresh) {
  const int64_t tiles = DivUp(m, kRows);
  const int64_t rows = m / tiles, longer = m % tiles;  // even tiles: no thin last one
  for (int64_t column = 0; column < n; column += kPanel) {
    const int64_t width = std::min<int64_t>(kPanel, n - column);
    const int64_t step = b.step ? b.step : width;
    const float* panel = (b.step ? b.data + column : b.data + column * b.rows) + b_row * step;
    const TileFn large = width == kPanel ? PickTile<2, Row>(rows + 1 > kRows ? kRows : rows + 1)
                                         : PickTile<1, Row>(rows + 1 > kRows ? kRows : rows + 1);
    const TileFn small = width == kPanel ? PickTile<2, Row>(rows) : PickTile<1, Row>(rows);
    for (int64_t tile = 0, i = 0; tile < tiles; ++tile) {
      const bool is_large = tile < longer;
      (is_large ? large : small)(depth, a + i * Row, a_step, panel, step, c + i * c_row + column,
                                 c_row, fresh);
      i += rows + is_large;
    }
  }
}

// Packs rows x columns, element (r, c) = source[r * row_stride + c * column_stride], in panels.
inline void PackPanel(const float* source, int64_t row_stride, int64_t column_stride, int64_t rows,
                      int64_t columns, int64_t first, float* packed) {
  const int64_t padded = RoundUp(columns, kLanes);
  const int64_t width = std::min<int64_t>(kPanel, padded - first);
  const int64_t filled = std::min(width, columns - first);
  float* out = packed + first * rows;
  source += first * column_stride;
  if (column_stride == 1) {
    for (int64_t r = 0; r < rows; ++r, out += width) {
      std::memcpy(out, source + r * row_stride, filled * 4);
      if (filled < width) std::memset(out + filled, 0, (width - filled) * 4);
    }
    return;
  }
  if (filled < width) std::memset(out, 0, rows * width * 4);
  constexpr int64_t kStrip = 16;  // one cache line of the source at a time
  for (int64_t r0 = 0; r0 < rows; r0 += kStrip) {
    const int64_t r1 = std::min(rows, r0 + kStrip);
    for (int64_t c = 0; c < filled; ++c) {
      const float* from = source + c * column_stride;
      for (int64_t r = r0; r < r1; ++r) out[r * width + c] = from[r * row_stride];
    }
  }
}

// ---------------------------------------------------------------- samples

// The pixels of a block: where their undisplaced sampling grid starts.
struct Block {
  int64_t first, size;
  int64_t image[kMaxPixels];  // first row of the image in the table [N * H * W]
  int32_t y[kMaxPixels], x[kMaxPixels];

  Block(const Problem& p, int64_t first_, int64_t size_) : first(first_), size(size_) {
    int64_t wo = first % p.out_width, ho = first / p.out_width % p.out_height;
    int64_t n = first / (p.out_width * p.out_height);
    for (int64_t m = 0; m < size; ++m) {
      image[m] = n * p.height * p.width;
      y[m] = static_cast<int32_t>(ho * p.stride_h - p.pad_top);
      x[m] = static_cast<int32_t>(wo * p.stride_w - p.pad_left);
      if (++wo == p.out_width) {
        wo = 0;
        if (++ho == p.out_height) ho = 0, ++n;
      }
    }
  }
};

// The four neighbours of one tap and offset group, for every pixel of a block. A neighbour or a
// sample outside the map has weight and slopes 0 and points at some row inside.
struct Samples {
  int64_t row[4][kMaxPixels];  // start in x, in floats
  float weight[4][kMaxPixels];  // with the mask
  // For gradients, without the mask: the weights and their derivatives by y and x.
  float plain[4][kMaxPixels], slope_y[4][kMaxPixels], slope_x[4][kMaxPixels];
  float mask[kMaxPixels];

  template <bool Gradients>
  void Compute(const Problem& p, const Block& block, const float* offset, const float* mask_in,
               int64_t tap, int64_t offset_group) {
    const int64_t fields = p.offset_groups * p.taps();
    const int64_t field = offset_group * p.taps() + tap;
    const int32_t tap_y = static_cast<int32_t>(tap / p.kernel_w * p.dilation_h);
    const int32_t tap_x = static_cast<int32_t>(tap % p.kernel_w * p.dilation_w);
    const float height = static_cast<float>(p.height), width = static_cast<float>(p.width);
    const int32_t last_y = static_cast<int32_t>(p.height - 1);
    const int32_t last_x = static_cast<int32_t>(p.width - 1);
    const float* displacement = offset + (block.first * fields + field) * 2;
    if (mask_in != nullptr) {
      const float* factor = mask_in + block.first * fields + field;
      for (int64_t m = 0; m < block.size; ++m) mask[m] = factor[m * fields];
    } else {
      for (int64_t m = 0; m < block.size; ++m) mask[m] = 1.0f;
    }
    for (int64_t m = 0; m < block.size; ++m) {
      float y = displacement[m * fields * 2] + static_cast<float>(block.y[m] + tap_y);
      float x = displacement[m * fields * 2 + 1] + static_cast<float>(block.x[m] + tap_x);
      // False for NaN too, which must not reach the conversion to an integer.
      const bool inside = (y > -1.0f) & (y < height) & (x > -1.0f) & (x < width);
      y = inside ? y : 0.0f;
      x = inside ? x : 0.0f;
      const float floor_y = std::floor(y), floor_x = std::floor(x);
      const int32_t y0 = static_cast<int32_t>(floor_y), x0 = static_cast<int32_t>(floor_x);
      const float scale = inside ? 1.0f : 0.0f;
      const float top = y0 >= 0 ? scale : 0.0f, bottom = y0 < last_y ? scale : 0.0f;
      const float left = x0 >= 0 ? 1.0f : 0.0f, right = x0 < last_x ? 1.0f : 0.0f;
      const float low_y = y - floor_y, low_x = x - floor_x;
      const float wy0 = top * (1.0f - low_y), wy1 = bottom * low_y;
      const float wx0 = left * (1.0f - low_x), wx1 = right * low_x;
      const float factor = mask[m];
      weight[0][m] = wy0 * wx0 * factor;
      weight[1][m] = wy0 * wx1 * factor;
      weight[2][m] = wy1 * wx0 * factor;
      weight[3][m] = wy1 * wx1 * factor;
      if (Gradients) {
        plain[0][m] = wy0 * wx0;
        plain[1][m] = wy0 * wx1;
        plain[2][m] = wy1 * wx0;
        plain[3][m] = wy1 * wx1;
        slope_y[0][m] = -top * wx0;
        slope_y[1][m] = -top * wx1;
        slope_y[2][m] = bottom * wx0;
        slope_y[3][m] = bottom * wx1;
        slope_x[0][m] = -left * wy0;
        slope_x[1][m] = right * wy0;
        slope_x[2][m] = -left * wy1;
        slope_x[3][m] = right * wy1;
      }
      const int32_t row_y0 = y0 < 0 ? 0 : y0, row_y1 = y0 < last_y ? y0 + 1 : last_y;
      const int32_t row_x0 = x0 < 0 ? 0 : x0, row_x1 = x0 < last_x ? x0 + 1 : last_x;
      const int64_t start0 = block.image[m] + row_y0 * p.width;
      const int64_t start1 = block.image[m] + row_y1 * p.width;
      row[0][m] = (start0 + row_x0) * p.channels;
      row[1][m] = (start0 + row_x1) * p.channels;
      row[2][m] = (start1 + row_x0) * p.channels;
      row[3][m] = (start1 + row_x1) * p.channels;
    }
  }
};

// column[m][0..count) = sum of the weighted neighbours, channels [channel, channel + count).
inline void SampleColumn(const Samples& s, int64_t pixels, const float* x, int64_t channel,
                         int64_t count, float* column, int64_t pitch) {
  for (int64_t m = 0; m < pixels; ++m) {
    const float w0 = s.weight[0][m], w1 = s.weight[1][m];
    const float w2 = s.weight[2][m], w3 = s.weight[3][m];
    const float* x0 = x + s.row[0][m] + channel;
    const float* x1 = x + s.row[1][m] + channel;
    const float* x2 = x + s.row[2][m] + channel;
    const float* x3 = x + s.row[3][m] + channel;
    float* out = column + m * pitch;
    int64_t c = 0;
    for (; c + kLanes <= count; c += kLanes) {
      Store(out + c,
            Load(x0 + c) * w0 + Load(x1 + c) * w1 + (Load(x2 + c) * w2 + Load(x3 + c) * w3));
    }
    for (; c < count; ++c) out[c] = x0[c] * w0 + x1[c] * w1 + (x2[c] * w2 + x3[c] * w3);
  }
}

// ---------------------------------------------------------------- forward

inline int64_t PackedSize(const Problem& p) {
  const int64_t forward = p.group_channels() * RoundUp(p.group_outputs(), kLanes);
  const int64_t backward = p.group_outputs() * RoundUp(p.group_channels(), kLanes);
  return p.taps() * p.groups * std::max(forward, backward);
}

// `packed`: PackedSize(p) floats of scratch. `mask` may be null.
inline void Forward(const Problem& p, const float* x, const float* offset, const float* mask,
                    const float* kernel, float* y, float* packed, int threads,
                    const ParallelFor& parallel_for) {
  const int64_t in = p.group_channels(), out = p.group_outputs();
  const int64_t out_padded = RoundUp(out, kLanes);
  const int64_t row_padded = p.groups * out_padded;
  const int64_t panels = DivUp(out_padded, kPanel);
  parallel_for(p.taps() * p.groups * panels, [&](int64_t i) {
    const int64_t panel = i % panels, group = i / panels % p.groups, tap = i / panels / p.groups;
    PackPanel(kernel + tap * in * p.out_channels + group * out, p.out_channels, 1, in, out,
              panel * kPanel, packed + (tap * p.groups + group) * in * out_padded);
  });

  // Blocks of equal size, a whole number of them per thread.
  const int64_t per_thread = DivUp(p.pixels(), threads);
  const int64_t most = std::max<int64_t>(kRows, std::min(kMaxPixels, (1 << 17) / row_padded));
  const int64_t block_size =
      std::min<int64_t>(kMaxPixels, RoundUp(DivUp(per_thread, DivUp(per_thread, most)), kRows));
  parallel_for(DivUp(p.pixels(), block_size), [&](int64_t index) {
    const int64_t first = index * block_size;
    const Block block(p, first, std::min(block_size, p.pixels() - first));
    float* column = ThreadScratch().Get(kMaxPixels * (kPitch + row_padded) + kPanel);
    float* sums = column + kMaxPixels * kPitch;
    Samples samples;
    for (int64_t tap = 0; tap < p.taps(); ++tap) {
      int64_t sampled_group = -1;
      for (int64_t c0 = 0; c0 < p.channels; c0 += kDepth) {
        const int64_t c1 = std::min(p.channels, c0 + kDepth);
        for (int64_t c = c0; c < c1;) {
          const int64_t group = c / p.sample_channels();
          const int64_t end = std::min(c1, (group + 1) * p.sample_channels());
          if (group != sampled_group) samples.Compute<false>(p, block, offset, mask, tap, group);
          sampled_group = group;
          SampleColumn(samples, block.size, x, c, end - c, column + c - c0, kPitch);
          c = end;
        }
        for (int64_t c = c0; c < c1;) {
          const int64_t group = c / in, within = c % in;
          const int64_t end = std::min(c1, (group + 1) * in);
          const Right right{packed + (tap * p.groups + group) * in * out_padded, in, 0};
          Multiply<kPitch>(block.size, out_padded, end - c, column + c - c0, 1, right, within,
                           sums + group * out_padded, row_padded, tap == 0 && within == 0);
          c = end;
        }
      }
    }
    for (int64_t m = 0; m < block.size; ++m) {
      for (int64_t group = 0; group < p.groups; ++group) {
        std::memcpy(y + (first + m) * p.out_channels + group * out,
                    sums + m * row_padded + group * out_padded, out * 4);
      }
    }
  });
}

// ---------------------------------------------------------------- backward

// Output channels cut in pieces of at most kDepth: whole convolution groups, or parts of one group.
struct Chunks {
  int64_t out, groups_per_chunk, chunks_per_group, count;

  explicit Chunks(const Problem& p)
      : out(p.group_outputs()),
        groups_per_chunk(std::max<int64_t>(1, kDepth / out)),
        chunks_per_group(DivUp(out, kDepth)),
        count(DivUp(p.groups, groups_per_chunk) * chunks_per_group) {}
  // Outputs [first, last) of a chunk.
  int64_t First(int64_t chunk) const {
    return chunk / chunks_per_group * groups_per_chunk * out + chunk % chunks_per_group * kDepth;
  }
  int64_t Last(const Problem& p, int64_t chunk) const {
    const int64_t group_end = (chunk / chunks_per_group + 1) * groups_per_chunk * out;
    return std::min({First(chunk) + ChunkSize(), group_end, p.out_channels});
  }
  // The chunk that holds output `o`.
  int64_t Of(int64_t o) const {
    const int64_t start = o / (groups_per_chunk * out);
    return start * chunks_per_group + (o - start * groups_per_chunk * out) / ChunkSize();
  }
  int64_t ChunkSize() const { return chunks_per_group > 1 ? kDepth : groups_per_chunk * out; }
};

// How the backward pass is split into independent tasks: blocks of channels, each over some images.
struct Split {
  int64_t block;         // channels of a block
  int64_t blocks;        // number of them
  int64_t image_groups;  // each holds the same images for every block
  bool shared_offsets;   // several blocks contribute to the same offset gradient

  Split(const Problem& p, int threads) {
    // A block holds whole convolution groups, or whole panels of the only one; and whole offset
    // groups, or part of the only one.
    const int64_t wanted = std::max<int64_t>(threads, DivUp(p.channels, kDepth));
    block = p.channels;
    if (p.offset_groups == 1) {
      const int64_t unit = p.groups == 1 ? kPanel : p.group_channels();
      block = std::min(p.channels, RoundUp(DivUp(p.channels, wanted), unit));
    } else {
      const int64_t per_block = std::max<int64_t>(1, p.offset_groups / wanted);
      const int64_t size = per_block * p.sample_channels();
      const int64_t unit = p.groups == 1 ? kPanel : p.group_channels();
      if (size % unit == 0) block = size;
    }
    blocks = DivUp(p.channels, block);
    image_groups = std::min(p.batch, DivUp(threads, blocks));
    shared_offsets = p.offset_groups == 1 && blocks > 1;
  }
  // Floats of scratch for partial gradients of the kernel and of the offsets with the mask.
  int64_t PartialKernels(const Problem& p) const {
    return image_groups > 1 ? image_groups * p.taps() * p.group_channels() * p.out_channels : 0;
  }
  int64_t PartialOffsets(const Problem& p) const {
    return shared_offsets ? blocks * p.pixels() * p.taps() * 3 : 0;
  }
};

// Channels [channel, channel + count) of one tap: the columns, their dot products with
// column_gradient (per neighbour, written to dots [pixels][4]) and the scatter into grad_x.
inline void SweepSamples(const Samples& s, int64_t pixels, const float* x, int64_t channel,
                         int64_t count, float* column, const float* column_gradient, int64_t pitch,
                         float* grad_x, float (*dots)[4]) {
  for (int64_t m = 0; m < pixels; ++m) {
    const float w0 = s.weight[0][m], w1 = s.weight[1][m];
    const float w2 = s.weight[2][m], w3 = s.weight[3][m];
    const float* x0 = x + s.row[0][m] + channel;
    const float* x1 = x + s.row[1][m] + channel;
    const float* x2 = x + s.row[2][m] + channel;
    const float* x3 = x + s.row[3][m] + channel;
    float* g0 = grad_x + s.row[0][m] + channel;
    float* g1 = grad_x + s.row[1][m] + channel;
    float* g2 = grad_x + s.row[2][m] + channel;
    float* g3 = grad_x + s.row[3][m] + channel;
    float* out = column + m * pitch;
    const float* gradient = column_gradient + m * pitch;
    Vec d0{}, d1{}, d2{}, d3{};
    int64_t c = 0;
    // Neighbours clipped at the border may be the same row: each sum is stored before the next.
    for (; c + kLanes <= count; c += kLanes) {
      const Vec g = Load(gradient + c);
      const Vec v0 = Load(x0 + c), v1 = Load(x1 + c), v2 = Load(x2 + c), v3 = Load(x3 + c);
      Store(out + c, v0 * w0 + v1 * w1 + (v2 * w2 + v3 * w3));
      d0 += v0 * g;
      d1 += v1 * g;
      d2 += v2 * g;
      d3 += v3 * g;
      Store(g0 + c, Load(g0 + c) + g * w0);
      Store(g1 + c, Load(g1 + c) + g * w1);
      Store(g2 + c, Load(g2 + c) + g * w2);
      Store(g3 + c, Load(g3 + c) + g * w3);
    }
    float r0 = Sum(d0), r1 = Sum(d1), r2 = Sum(d2), r3 = Sum(d3);
    for (; c < count; ++c) {
      const float g = gradient[c];
      out[c] = x0[c] * w0 + x1[c] * w1 + (x2[c] * w2 + x3[c] * w3);
      r0 += x0[c] * g;
      r1 += x1[c] * g;
      r2 += x2[c] * g;
      r3 += x3[c] * g;
      g0[c] += g * w0;
      g1[c] += g * w1;
      g2[c] += g * w2;
      g3[c] += g * w3;
    }
    dots[m][0] = r0;
    dots[m][1] = r1;
    dots[m][2] = r2;
    dots[m][3] = r3;
  }
}

// `packed`, `partial_kernels`, `partial_offsets`: scratch of PackedSize(p) and of the sizes that
// Split gives. `mask` and `grad_mask` may be null, together.
inline void Backward(const Problem& p, const Split& split, const float* x, const float* offset,
                     const float* mask, const float* kernel, const float* grad_y, float* grad_x,
                     float* grad_offset, float* grad_mask, float* grad_kernel, float* packed,
                     float* partial_kernels, float* partial_offsets,
                     const ParallelFor& parallel_for) {
  const int64_t in = p.group_channels(), out = p.group_outputs(), taps = p.taps();
  const int64_t in_padded = RoundUp(in, kLanes), out_padded = RoundUp(out, kLanes);
  const int64_t panels = DivUp(in_padded, kPanel);
  const int64_t kernel_size = taps * in * p.out_channels;
  const int64_t fields = p.offset_groups * taps;
  const int64_t image_pixels = p.out_height * p.out_width;
  parallel_for(taps * p.groups * panels, [&](int64_t i) {
    const int64_t panel = i % panels, group = i / panels % p.groups, tap = i / panels / p.groups;
    PackPanel(kernel + tap * in * p.out_channels + group * out, 1, p.out_channels, out, in,
              panel * kPanel, packed + (tap * p.groups + group) * out * in_padded);
  });

  parallel_for(split.blocks * split.image_groups, [&](int64_t task) {
    const int64_t channel_block = task % split.blocks, image_group = task / split.blocks;
    const int64_t c0 = channel_block * split.block;
    const int64_t c1 = std::min(p.channels, c0 + split.block);
    const int64_t image0 = p.batch * image_group / split.image_groups;
    const int64_t image1 = p.batch * (image_group + 1) / split.image_groups;
    const int64_t pixel0 = image0 * image_pixels, pixel1 = image1 * image_pixels;
    float* kernel_out =
        split.image_groups > 1 ? partial_kernels + image_group * kernel_size : grad_kernel;

    const int64_t map = p.height * p.width;
    for (int64_t row = image0 * map; row < image1 * map; ++row) {
      std::memset(grad_x + row * p.channels + c0, 0, (c1 - c0) * 4);
    }

    // Scratch: upstream gradient by chunks of kDepth outputs, columns and their gradient, and the
    // kernel gradient of the taps of one pass.
    const Chunks chunks(p);
    const int64_t pitch = RoundUp(c1 - c0, kLanes) + kLanes;
    const int64_t tap_sums = (c1 - c0) * out_padded;
    const int64_t taps_per_pass = std::max<int64_t>(
        1, std::min<int64_t>(taps, (int64_t{96} << 10) / std::max<int64_t>(1, tap_sums)));
    float* upstream = ThreadScratch().Get(kMaxPixels * (chunks.count * kPitch + 2 * pitch) +
                                          taps_per_pass * tap_sums + 2 * kPanel);
    float* column = upstream + kMaxPixels * chunks.count * kPitch + kPanel;
    float* column_gradient = column + kMaxPixels * pitch;
    float* sums = column_gradient + kMaxPixels * pitch + kPanel;
    Samples samples;
    float dots[kMaxPixels][4];

    for (int64_t tap0 = 0; tap0 < taps; tap0 += taps_per_pass) {
      const int64_t tap1 = std::min(taps, tap0 + taps_per_pass);
      std::memset(sums, 0, (tap1 - tap0) * tap_sums * 4);
      const int64_t block_size =
          DivUp(pixel1 - pixel0, std::max<int64_t>(1, DivUp(pixel1 - pixel0, kMaxPixels)));
      for (int64_t first = pixel0; first < pixel1; first += block_size) {
        const Block block(p, first, std::min(block_size, pixel1 - first));
        for (int64_t chunk = 0; chunk < chunks.count; ++chunk) {
          const int64_t o = chunks.First(chunk), count = chunks.Last(p, chunk) - o;
          for (int64_t m = 0; m < block.size; ++m) {
            std::memcpy(upstream + (chunk * kMaxPixels + m) * kPitch,
                        grad_y + (first + m) * p.out_channels + o, count * 4);
          }
        }
        for (int64_t tap = tap0; tap < tap1; ++tap) {
          // Gradient of the columns: upstream times the transposed kernel, group by group. A
          // padded panel writes past its group, where the next group writes later.
          for (int64_t c = c0; c < c1;) {
            const int64_t group = c / in, within = c % in;
            const int64_t end = std::min(c1, (group + 1) * in);
            const Right whole{packed + (tap * p.groups + group) * out * in_padded, out, 0};
            const Right right{whole.data + within * out, out, 0};
            const int64_t o1 = (group + 1) * out;
            for (int64_t o = group * out; o < o1;) {
              const int64_t chunk = chunks.Of(o), stop = std::min(o1, chunks.Last(p, chunk));
              const float* left = upstream + chunk * kMaxPixels * kPitch + o - chunks.First(chunk);
              Multiply<kPitch>(block.size, RoundUp(end - c, kLanes), stop - o, left, 1, right,
                               o - group * out, column_gradient + c - c0, pitch, o == group * out);
              o = stop;
            }
            c = end;
          }
          // Samples, offset and mask gradients, scatter.
          for (int64_t c = c0; c < c1;) {
            const int64_t group = c / p.sample_channels();
            const int64_t end = std::min(c1, (group + 1) * p.sample_channels());
            samples.Compute<true>(p, block, offset, mask, tap, group);
            SweepSamples(samples, block.size, x, c, end - c, column + c - c0,
                         column_gradient + c - c0, pitch, grad_x, dots);
            const int64_t field = group * taps + tap;
            for (int64_t m = 0; m < block.size; ++m) {
              float dy = 0, dx = 0, dm = 0;
              for (int i = 0; i < 4; ++i) {
                dy += dots[m][i] * samples.slope_y[i][m];
                dx += dots[m][i] * samples.slope_x[i][m];
                dm += dots[m][i] * samples.plain[i][m];
              }
              dy *= samples.mask[m];
              dx *= samples.mask[m];
              const int64_t at = (first + m) * fields + field;
              if (split.shared_offsets) {
                float* partial = partial_offsets + (channel_block * p.pixels() * taps + at) * 3;
                partial[0] = dy;
                partial[1] = dx;
                partial[2] = dm;
              } else {
                grad_offset[at * 2] = dy;
                grad_offset[at * 2 + 1] = dx;
                if (grad_mask != nullptr) grad_mask[at] = dm;
              }
            }
            c = end;
          }
          // Gradient of the kernel: columns transposed times upstream.
          for (int64_t c = c0; c < c1;) {
            const int64_t group = c / in;
            const int64_t end = std::min(c1, (group + 1) * in);
            const int64_t o1 = (group + 1) * out;
            for (int64_t o = group * out; o < o1;) {
              const int64_t chunk = chunks.Of(o), stop = std::min(o1, chunks.Last(p, chunk));
              const Right right{upstream + chunk * kMaxPixels * kPitch + o - chunks.First(chunk), 0,
                                kPitch};
              Multiply<1>(end - c, RoundUp(stop - o, kLanes), block.size, column + c - c0, pitch,
                          right, 0,
                          sums + (tap - tap0) * tap_sums + (c - c0) * out_padded + o - group * out,
                          out_padded, false);
              o = stop;
            }
            c = end;
          }
        }
      }
      for (int64_t tap = tap0; tap < tap1; ++tap) {
        for (int64_t c = c0; c < c1; ++c) {
          const int64_t group = c / in;
          std::memcpy(kernel_out + (tap * in + c % in) * p.out_channels + group * out,
                      sums + (tap - tap0) * tap_sums + (c - c0) * out_padded, out * 4);
        }
      }
    }
  });

  constexpr int64_t kSlice = 1 << 14;
  if (split.image_groups > 1) {
    parallel_for(DivUp(kernel_size, kSlice), [&](int64_t slice) {
      const int64_t end = std::min(kernel_size, (slice + 1) * kSlice);
      for (int64_t i = slice * kSlice; i < end; ++i) {
        float total = 0;
        for (int64_t g = 0; g < split.image_groups; ++g) total += partial_kernels[g * kernel_size + i];
        grad_kernel[i] = total;
      }
    });
  }
  if (split.shared_offsets) {
    const int64_t count = p.pixels() * taps;
    parallel_for(DivUp(count, kSlice), [&](int64_t slice) {
      const int64_t end = std::min(count, (slice + 1) * kSlice);
      for (int64_t i = slice * kSlice; i < end; ++i) {
        float total[3] = {0, 0, 0};
        for (int64_t b = 0; b < split.blocks; ++b) {
          for (int j = 0; j < 3; ++j) total[j] += partial_offsets[(b * count + i) * 3 + j];
        }
        grad_offset[i * 2] = total[0];
        grad_offset[i * 2 + 1] = total[1];
        if (grad_mask != nullptr) grad_mask[i] = total[2];
      }
    });
  }
}

}  // namespace sepc_tf

#endif  // SEPC_TF_OPS_NATIVE_DEFORM_CONV2D_KERNEL_H_
