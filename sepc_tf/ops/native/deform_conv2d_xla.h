// The kernels of deform_conv2d_kernel.h as XLA custom calls for the CPU.
//
// XLA gives a custom call its buffers and a string made while tracing, here the Problem as numbers.
// Shapes were checked where that string was made (deform_conv2d/native.py). Included once, by
// deform_conv2d_op.cc: a second source file would double the time of the build.

#pragma once

#include <dlfcn.h>

#include <sstream>
#include <string>

#include "deform_conv2d_kernel.h"
#include "tensorflow/core/platform/cpu_info.h"
#include "tensorflow/core/platform/env.h"
#include "tensorflow/core/platform/threadpool.h"

namespace sepc_tf {
namespace {

struct Call {
  Problem p;
  bool modulated;
  int threads;  // 0: as many as the process may use

  Call(const char* numbers, size_t size) {
    std::istringstream in(std::string(numbers, size));
    in >> p.batch >> p.height >> p.width >> p.channels >> p.out_height >> p.out_width >>
        p.out_channels >> p.kernel_h >> p.kernel_w >> p.stride_h >> p.stride_w >> p.pad_top >>
        p.pad_left >> p.dilation_h >> p.dilation_w >> p.groups >> p.offset_groups >> modulated >>
        threads;
  }
};

// XLA does not pass its own threads to a custom call. The calling thread takes part in the work.
struct OwnThreads {
  const int count;

  explicit OwnThreads(int threads)
      : count(threads > 0 ? threads : tensorflow::port::MaxParallelism()) {}

  void operator()(int64_t n, const std::function<void(int64_t)>& fn) const {
    using Pool = tensorflow::thread::ThreadPool;
    static Pool* pool = new Pool(tensorflow::Env::Default(), "sepc_tf", count);
    if (n <= 1 || count <= 1) {
      for (int64_t i = 0; i < n; ++i) fn(i);
      return;
    }
    pool->ParallelFor(n, Pool::SchedulingParams(Pool::SchedulingStrategy::kFixedBlockSize, {}, 1),
                      [&fn](int64_t begin, int64_t end) {
                        for (int64_t i = begin; i < end; ++i) fn(i);
                      });
  }
};

class Buffer {
 public:
  explicit Buffer(int64_t floats)
      : data_(static_cast<float*>(std::aligned_alloc(64, RoundUp(floats * 4, 64)))) {
    if (data_ == nullptr && floats > 0) throw std::bad_alloc();
  }
  ~Buffer() { std::free(data_); }
  float* get() const { return data_; }

 private:
  float* data_;
};

const float* In(const void** in, int i) { return static_cast<const float*>(in[i]); }

}  // namespace
}  // namespace sepc_tf

extern "C" {

// x, offset, kernel[, mask] -> y
void SepcDeformConv2DForward(void* out, const void** in, const char* numbers, size_t size,
                             void* /*status*/) {
  using namespace sepc_tf;
  const Call call(numbers, size);
  const OwnThreads threads(call.threads);
  const Buffer packed(PackedSize(call.p));
  Forward(call.p, In(in, 0), In(in, 1), call.modulated ? In(in, 3) : nullptr, In(in, 2),
          static_cast<float*>(out), packed.get(), threads.count, threads);
}

// x, offset, kernel[, mask], gradient by y -> gradients by x, offset, kernel[, mask]
void SepcDeformConv2DGradient(void* out, const void** in, const char* numbers, size_t size,
                              void* /*status*/) {
  using namespace sepc_tf;
  const Call call(numbers, size);
  const Problem& p = call.p;
  const OwnThreads threads(call.threads);
  const Split split(p, threads.count);
  const Buffer packed(PackedSize(p));
  const Buffer partial_kernels(split.PartialKernels(p)), partial_offsets(split.PartialOffsets(p));
  float** gradients = static_cast<float**>(out);
  const bool modulated = call.modulated;
  Backward(p, split, In(in, 0), In(in, 1), modulated ? In(in, 3) : nullptr, In(in, 2),
           In(in, modulated ? 4 : 3), gradients[0], gradients[1],
           modulated ? gradients[3] : nullptr, gradients[2], packed.get(), partial_kernels.get(),
           partial_offsets.get(), threads);
}

// Makes the two known to XLA; false if this TensorFlow has no such registry.
//
// Looked up instead of linked, so that a TensorFlow without it still loads this library.
bool SepcRegisterCustomCalls() {
  void* tensorflow = dlopen("libtensorflow_cc.so.2", RTLD_NOLOAD | RTLD_LAZY);
  if (tensorflow == nullptr) return false;
  // xla::CustomCallTargetRegistry::Global() and ::Register(name, function, platform)
  using Global = void* (*)();
  using Register = void (*)(void*, const std::string&, void*, const std::string&);
  const auto global = reinterpret_cast<Global>(
      dlsym(tensorflow, "_ZN3xla24CustomCallTargetRegistry6GlobalEv"));
  const auto add = reinterpret_cast<Register>(
      dlsym(tensorflow,
            "_ZN3xla24CustomCallTargetRegistry8RegisterERKNSt7__cxx1112basic_stringIcSt11char_"
            "traitsIcESaIcEEEPvS8_"));
  if (global == nullptr || add == nullptr) return false;
  add(global(), "SepcDeformConv2DForward", reinterpret_cast<void*>(&SepcDeformConv2DForward),
      "Host");
  add(global(), "SepcDeformConv2DGradient", reinterpret_cast<void*>(&SepcDeformConv2DGradient),
      "Host");
  return true;
}

}  // extern "C"
