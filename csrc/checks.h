// Checks of the tensors that reach a kernel: everything that an address is computed from.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <initializer_list>
#include <sstream>
#include <stdexcept>
#include <type_traits>

namespace cdgen {

template <typename... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

// Throws an error with a message of one line, made of the parts that follow the condition.
#define CDGEN_CHECK(condition, ...)      \
  do {                                   \
    if (!(condition)) fail(__VA_ARGS__); \
  } while (false)

inline bool has_shape(const torch::stable::Tensor& t, std::initializer_list<int64_t> shape) {
  if (t.dim() != static_cast<int64_t>(shape.size())) return false;
  int64_t dim = 0;
  for (int64_t size : shape)
    if (t.size(dim++) != size) return false;
  return true;
}

inline bool is_floating(torch::headeronly::ScalarType dtype) {
  using torch::headeronly::ScalarType;
  return dtype == ScalarType::Float || dtype == ScalarType::Half || dtype == ScalarType::BFloat16;
}

// Returns the elements of a contiguous tensor of the given shape, whose dtype is that of T.
template <typename T>
const T* elements(const torch::stable::Tensor& t, std::initializer_list<int64_t> shape, const char* name) {
  using torch::headeronly::ScalarType;
  constexpr ScalarType dtype = std::is_same_v<T, float>     ? ScalarType::Float
                               : std::is_same_v<T, int32_t> ? ScalarType::Int
                                                            : ScalarType::Long;
  constexpr const char* dtype_name = std::is_same_v<T, float>     ? "float32"
                                     : std::is_same_v<T, int32_t> ? "int32"
                                                                  : "int64";
  CDGEN_CHECK(t.is_cpu() && t.scalar_type() == dtype && has_shape(t, shape) && t.is_contiguous(), name,
              ": expected a contiguous ", dtype_name, " tensor on the CPU with the shape of the other arguments");
  return static_cast<const T*>(t.const_data_ptr());
}

}  // namespace cdgen
