// The TensorFlow operations around deform_conv2d_kernel.h: shapes, checks, allocation, threads.

#include <memory>
#include <string>
#include <vector>

#include "deform_conv2d_kernel.h"
#include "deform_conv2d_xla.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "tensorflow/core/framework/tensor.h"
#include "tensorflow/core/platform/threadpool.h"

namespace sepc_tf {
namespace {

namespace tf = ::tensorflow;

// `paddings` is (top, bottom, left, right), or empty for SAME.
struct Settings {
  std::vector<int64_t> strides, paddings, dilations;
  tf::int64 groups, offset_groups;
  bool modulated;

  tf::Status Read(tf::OpKernelConstruction* context) {
    std::vector<tf::int64> values[3];
    const char* names[3] = {"strides", "paddings", "dilations"};
    std::vector<int64_t>* fields[3] = {&strides, &paddings, &dilations};
    for (int i = 0; i < 3; ++i) {
      tf::Status status = context->GetAttr(names[i], &values[i]);
      if (!status.ok()) return status;
      fields[i]->assign(values[i].begin(), values[i].end());
    }
    tf::Status status = context->GetAttr("groups", &groups);
    if (status.ok()) status = context->GetAttr("offset_groups", &offset_groups);
    if (status.ok()) status = context->GetAttr("modulated", &modulated);
    if (!status.ok()) return status;
    const auto positive = [](const std::vector<int64_t>& v) {
      return v.size() == 2 && v[0] > 0 && v[1] > 0;
    };
    bool padding_fits = paddings.empty() || paddings.size() == 4;
    for (int64_t side : paddings) padding_fits = padding_fits && side >= 0;
    if (!positive(strides) || !positive(dilations) || !padding_fits || groups < 1 ||
        offset_groups < 1) {
      return tf::errors::InvalidArgument("deform_conv2d: settings out of range");
    }
    return tf::Status();
  }
};

std::string Name(const tf::TensorShape& shape) { return shape.DebugString(); }

// Output size and padding before, along one axis.
void Axis(int64_t size, int64_t kernel, int64_t stride, int64_t dilation, const int64_t* padding,
          int64_t* out, int64_t* before) {
  const int64_t extent = (kernel - 1) * dilation + 1;
  if (padding == nullptr) {
    *out = (size + stride - 1) / stride;
    *before = std::max<int64_t>(0, (*out - 1) * stride + extent - size) / 2;
  } else {
    const int64_t room = size + padding[0] + padding[1] - extent;
    *out = room < 0 ? 0 : room / stride + 1;
    *before = padding[0];
  }
}

tf::Status Describe(const Settings& s, const tf::Tensor& x, const tf::Tensor& offset,
                    const tf::Tensor& mask, const tf::Tensor& kernel, Problem* p) {
  using tf::errors::InvalidArgument;
  if (x.dims() != 4 || offset.dims() != 4 || kernel.dims() != 4) {
    return InvalidArgument("deform_conv2d: x, offset and kernel: expected rank 4, got ",
                           Name(x.shape()), ", ", Name(offset.shape()), ", ", Name(kernel.shape()));
  }
  p->batch = x.dim_size(0), p->height = x.dim_size(1), p->width = x.dim_size(2);
  p->channels = x.dim_size(3);
  p->kernel_h = kernel.dim_size(0), p->kernel_w = kernel.dim_size(1);
  p->out_channels = kernel.dim_size(3);
  p->groups = s.groups, p->offset_groups = s.offset_groups;
  p->stride_h = s.strides[0], p->stride_w = s.strides[1];
  p->dilation_h = s.dilations[0], p->dilation_w = s.dilations[1];
  if (p->height < 1 || p->width < 1 || p->channels < 1 || kernel.NumElements() == 0) {
    return InvalidArgument("deform_conv2d: x and kernel: expected non-empty maps, got ",
                           Name(x.shape()), ", ", Name(kernel.shape()));
  }
  if (p->channels % p->groups || p->channels % p->offset_groups || p->out_channels % p->groups ||
      kernel.dim_size(2) * p->groups != p->channels) {
    return InvalidArgument("deform_conv2d: kernel: channels of x ", Name(x.shape()), " and kernel ",
                           Name(kernel.shape()), " do not fit groups=", s.groups,
                           ", offset_groups=", s.offset_groups);
  }
  const int64_t* padding = s.paddings.empty() ? nullptr : s.paddings.data();
  Axis(p->height, p->kernel_h, p->stride_h, p->dilation_h, padding, &p->out_height, &p->pad_top);
  Axis(p->width, p->kernel_w, p->stride_w, p->dilation_w, padding ? padding + 2 : nullptr,
       &p->out_width, &p->pad_left);
  // Positions are int32 before the (float) displacement is added.
  const int64_t extent = std::max((p->kernel_h - 1) * p->dilation_h, (p->kernel_w - 1) * p->dilation_w);
  if (std::max(p->height, p->width) + extent + std::max(p->pad_top, p->pad_left) > (1 << 24)) {
    return InvalidArgument("deform_conv2d: x: expected sizes below 2^24, got ", Name(x.shape()));
  }
  const int64_t fields = p->offset_groups * p->taps();
  tf::TensorShape expected({p->batch, p->out_height, p->out_width, fields * 2});
  if (offset.shape() != expected) {
    return InvalidArgument("deform_conv2d: offset: expected shape ", Name(expected), ", got ",
                           Name(offset.shape()));
  }
  expected.set_dim(3, fields);
  if (s.modulated && mask.shape() != expected) {
    return InvalidArgument("deform_conv2d: mask: expected shape ", Name(expected), ", got ",
                           Name(mask.shape()));
  }
  return tf::Status();
}

struct Threads {
  explicit Threads(tf::OpKernelContext* context)
      : pool(context->device()->tensorflow_cpu_worker_threads()->workers),
        count(context->device()->tensorflow_cpu_worker_threads()->num_threads) {}

  void operator()(int64_t n, const std::function<void(int64_t)>& fn) const {
    if (n <= 1 || count <= 1) {
      for (int64_t i = 0; i < n; ++i) fn(i);
      return;
    }
    using Scheduling = tf::thread::ThreadPool::SchedulingParams;
    pool->ParallelFor(
        n, Scheduling(tf::thread::ThreadPool::SchedulingStrategy::kFixedBlockSize, {}, 1),
        [&fn](tf::int64 begin, tf::int64 end) {
          for (tf::int64 i = begin; i < end; ++i) fn(i);
        });
  }

  tf::thread::ThreadPool* pool;
  int count;
};

class ForwardOp : public tf::OpKernel {
 public:
  explicit ForwardOp(tf::OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, settings_.Read(context));
  }

  void Compute(tf::OpKernelContext* context) override {
    const tf::Tensor &x = context->input(0), &offset = context->input(1);
    const tf::Tensor &mask = context->input(2), &kernel = context->input(3);
    Problem p;
    OP_REQUIRES_OK(context, Describe(settings_, x, offset, mask, kernel, &p));
    tf::Tensor* y = nullptr;
    OP_REQUIRES_OK(context,
                   context->allocate_output(
                       0, {p.batch, p.out_height, p.out_width, p.out_channels}, &y));
    if (y->NumElements() == 0) return;
    tf::Tensor packed;
    OP_REQUIRES_OK(context, context->allocate_temp(tf::DT_FLOAT, {PackedSize(p)}, &packed));
    const Threads threads(context);
    Forward(p, x.flat<float>().data(), offset.flat<float>().data(),
            settings_.modulated ? mask.flat<float>().data() : nullptr, kernel.flat<float>().data(),
            y->flat<float>().data(), packed.flat<float>().data(), threads.count, threads);
  }

 private:
  Settings settings_;
};

class BackwardOp : public tf::OpKernel {
 public:
  explicit BackwardOp(tf::OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, settings_.Read(context));
  }

  void Compute(tf::OpKernelContext* context) override {
    const tf::Tensor &x = context->input(0), &offset = context->input(1);
    const tf::Tensor &mask = context->input(2), &kernel = context->input(3);
    const tf::Tensor& grad_y = context->input(4);
    Problem p;
    OP_REQUIRES_OK(context, Describe(settings_, x, offset, mask, kernel, &p));
    const tf::TensorShape expected({p.batch, p.out_height, p.out_width, p.out_channels});
    OP_REQUIRES(context, grad_y.shape() == expected,
                tf::errors::InvalidArgument("deform_conv2d: upstream gradient: expected shape ",
                                            Name(expected), ", got ", Name(grad_y.shape())));
    tf::Tensor *grad_x, *grad_offset, *grad_mask, *grad_kernel;
    OP_REQUIRES_OK(context, context->allocate_output(0, x.shape(), &grad_x));
    OP_REQUIRES_OK(context, context->allocate_output(1, offset.shape(), &grad_offset));
    OP_REQUIRES_OK(context, context->allocate_output(2, mask.shape(), &grad_mask));
    OP_REQUIRES_OK(context, context->allocate_output(3, kernel.shape(), &grad_kernel));
    if (grad_y.NumElements() == 0) {
      for (tf::Tensor* t : {grad_x, grad_offset, grad_mask, grad_kernel}) {
        std::fill_n(t->flat<float>().data(), t->NumElements(), 0.0f);
      }
      return;
    }
    const Threads threads(context);
    const Split split(p, threads.count);
    tf::Tensor packed, partial_kernels, partial_offsets;
    OP_REQUIRES_OK(context, context->allocate_temp(tf::DT_FLOAT, {PackedSize(p)}, &packed));
    OP_REQUIRES_OK(context, context->allocate_temp(tf::DT_FLOAT, {split.PartialKernels(p)},
                                                   &partial_kernels));
    OP_REQUIRES_OK(context, context->allocate_temp(tf::DT_FLOAT, {split.PartialOffsets(p)},
                                                   &partial_offsets));
    const bool modulated = settings_.modulated;
    Backward(p, split, x.flat<float>().data(), offset.flat<float>().data(),
             modulated ? mask.flat<float>().data() : nullptr, kernel.flat<float>().data(),
             grad_y.flat<float>().data(), grad_x->flat<float>().data(),
             grad_offset->flat<float>().data(),
             modulated ? grad_mask->flat<float>().data() : nullptr,
             grad_kernel->flat<float>().data(), packed.flat<float>().data(),
             partial_kernels.flat<float>().data(), partial_offsets.flat<float>().data(), threads);
  }

 private:
  Settings settings_;
};

// Channels only; the caller in Python knows the rest and states it.
tf::Status ForwardShape(tf::shape_inference::InferenceContext* context) {
  tf::shape_inference::ShapeHandle offset, kernel;
  tf::Status status = context->WithRank(context->input(1), 4, &offset);
  if (status.ok()) status = context->WithRank(context->input(3), 4, &kernel);
  if (!status.ok()) return status;
  context->set_output(0, context->MakeShape({context->Dim(offset, 0), context->Dim(offset, 1),
                                             context->Dim(offset, 2), context->Dim(kernel, 3)}));
  return tf::Status();
}

tf::Status BackwardShape(tf::shape_inference::InferenceContext* context) {
  for (int i = 0; i < 4; ++i) context->set_output(i, context->input(i));
  return tf::Status();
}

REGISTER_OP("SepcDeformConv2D")
    .Input("x: float")
    .Input("offset: float")
    .Input("mask: float")
    .Input("kernel: float")
    .Output("y: float")
    .Attr("strides: list(int)")
    .Attr("paddings: list(int)")
    .Attr("dilations: list(int)")
    .Attr("groups: int")
    .Attr("offset_groups: int")
    .Attr("modulated: bool")
    .SetShapeFn(ForwardShape);

REGISTER_OP("SepcDeformConv2DBackward")
    .Input("x: float")
    .Input("offset: float")
    .Input("mask: float")
    .Input("kernel: float")
    .Input("grad_y: float")
    .Output("grad_x: float")
    .Output("grad_offset: float")
    .Output("grad_mask: float")
    .Output("grad_kernel: float")
    .Attr("strides: list(int)")
    .Attr("paddings: list(int)")
    .Attr("dilations: list(int)")
    .Attr("groups: int")
    .Attr("offset_groups: int")
    .Attr("modulated: bool")
    .SetShapeFn(BackwardShape);

REGISTER_KERNEL_BUILDER(Name("SepcDeformConv2D").Device(tf::DEVICE_CPU), ForwardOp);
REGISTER_KERNEL_BUILDER(Name("SepcDeformConv2DBackward").Device(tf::DEVICE_CPU), BackwardOp);

}  // namespace
}  // namespace sepc_tf
