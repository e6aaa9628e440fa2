// libedgert for C++17: the C library of edgert.h with owners, typed views and exceptions. Header only.
//
//   #include <edgert/edgert.hpp>
//
//   std::vector<float> classify(const std::vector<float> &image) {
//     edgert::session session("model.so");                    // throws edgert::error
//     session.bind_input(0, edgert::span(image));             // reads the caller's memory, without a copy
//     session.run();
//     edgert::span<const float> logits = session.output<float>(0);
//     return {logits.begin(), logits.end()};
//   }
//
// Everything that edgert.h says about threads, memory and alignment holds here. A session is moved, not copied; one
// that was moved from can only be destroyed or assigned to. With a compiler flag that forbids exceptions, what would
// throw prints its sentence and aborts.
#ifndef EDGERT_EDGERT_HPP
#define EDGERT_EDGERT_HPP

#include <edgert/edgert.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace edgert {

// A failed call: its status, and the sentence that says what is wrong and what mends it.
class error : public std::runtime_error {
public:
  error(edgert_status status, const std::string &sentence) : std::runtime_error(sentence), status_(status) {}
  edgert_status status() const noexcept { return status_; }

private:
  edgert_status status_;
};

namespace detail {

[[noreturn]] inline void fail(edgert_status status, const std::string &sentence) {
#if defined(__cpp_exceptions)
  throw error(status, sentence);
#else
  std::fprintf(stderr, "edgert: %s\n", sentence.c_str());
  (void)status;
  std::abort();
#endif
}

inline void require(edgert_status status) {
  if (status != EDGERT_OK) fail(status, edgert_last_error());
}

// The edgert_dtype of a C++ type; half floats travel as their bits, in uint16_t.
template <class T> constexpr bool matches(std::uint32_t dtype) {
  using U = std::remove_cv_t<T>;
  if constexpr (std::is_same_v<U, float>) return dtype == EDGERT_FLOAT32;
  else if constexpr (std::is_same_v<U, double>) return dtype == EDGERT_FLOAT64;
  else if constexpr (std::is_same_v<U, bool>) return dtype == EDGERT_BOOL;
  else if constexpr (std::is_same_v<U, std::int8_t>) return dtype == EDGERT_INT8;
  else if constexpr (std::is_same_v<U, std::uint8_t>) return dtype == EDGERT_UINT8 || dtype == EDGERT_BOOL;
  else if constexpr (std::is_same_v<U, std::int16_t>) return dtype == EDGERT_INT16;
  else if constexpr (std::is_same_v<U, std::uint16_t>) return dtype == EDGERT_UINT16 || dtype == EDGERT_FLOAT16;
  else if constexpr (std::is_same_v<U, std::int32_t>) return dtype == EDGERT_INT32;
  else if constexpr (std::is_same_v<U, std::uint32_t>) return dtype == EDGERT_UINT32;
  else if constexpr (std::is_same_v<U, std::int64_t>) return dtype == EDGERT_INT64;
  else if constexpr (std::is_same_v<U, std::uint64_t>) return dtype == EDGERT_UINT64;
  else return false;
}

} // namespace detail

// Elements in a row that belong to somebody else, as std::span of C++20.
template <class T> class span {
public:
  constexpr span() noexcept = default;
  constexpr span(T *data, std::size_t size) noexcept : data_(data), size_(size) {}
  template <std::size_t N> constexpr span(T (&array)[N]) noexcept : data_(array), size_(N) {}
  // Any container with data() and size(): std::vector, std::array, std::span.
  template <class C, class = std::enable_if_t<std::is_convertible_v<decltype(std::declval<C &>().data()), T *>>>
  constexpr span(C &container) noexcept : data_(container.data()), size_(container.size()) {}

  constexpr T *data() const noexcept { return data_; }
  constexpr std::size_t size() const noexcept { return size_; }
  constexpr std::size_t size_bytes() const noexcept { return size_ * sizeof(T); }
  constexpr bool empty() const noexcept { return size_ == 0; }
  constexpr T *begin() const noexcept { return data_; }
  constexpr T *end() const noexcept { return data_ + size_; }
  constexpr T &operator[](std::size_t index) const noexcept { return data_[index]; }

private:
  T *data_ = nullptr;
  std::size_t size_ = 0;
};

template <class C> span(C &) -> span<std::remove_pointer_t<decltype(std::declval<C &>().data())>>;
template <class T, std::size_t N> span(T (&)[N]) -> span<T>;

// What an input or output is; valid as long as its session.
class tensor {
public:
  explicit tensor(const edgert_tensor *raw) noexcept : raw_(raw) {}
  std::string_view name() const noexcept { return raw_->name; }
  edgert_dtype dtype() const noexcept { return static_cast<edgert_dtype>(raw_->dtype); }
  span<const std::int64_t> shape() const noexcept { return {raw_->shape, raw_->rank}; }
  std::size_t bytes() const noexcept { return static_cast<std::size_t>(raw_->bytes); }
  // real = scale * (q - zero_point); 0 when the tensor is not quantised.
  float scale() const noexcept { return raw_->scale; }
  std::int32_t zero_point() const noexcept { return raw_->zero_point; }

private:
  const edgert_tensor *raw_;
};

// How to open a session; every member has the meaning of edgert_options' of the same name.
struct options {
  std::uint32_t threads = 1;
  std::uint32_t flags = 0;
  span<std::byte> memory = {};

  edgert_options raw() const noexcept {
    edgert_options made = EDGERT_OPTIONS_DEFAULT;
    made.threads = threads;
    made.flags = flags;
    made.memory = memory.data();
    made.memory_bytes = memory.size();
    return made;
  }
};

// A model with its own memory and threads: see edgert_open.
class session {
public:
  explicit session(const std::string &path, const options &how = {}) {
    const edgert_options raw = how.raw();
    detail::require(edgert_open(path.c_str(), &raw, &handle_));
  }

  // A model that is linked into the program: see edgert_open_model.
  explicit session(const edgert_model &model, const options &how = {}) {
    const edgert_options raw = how.raw();
    detail::require(edgert_open_model(&model, &raw, &handle_));
  }

  session(session &&other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  session &operator=(session &&other) noexcept {
    if (this != &other) {
      edgert_close(handle_);
      handle_ = std::exchange(other.handle_, nullptr);
    }
    return *this;
  }
  session(const session &) = delete;
  session &operator=(const session &) = delete;
  ~session() { edgert_close(handle_); }

  std::uint32_t input_count() const noexcept { return edgert_input_count(handle_); }
  std::uint32_t output_count() const noexcept { return edgert_output_count(handle_); }
  tensor input_info(std::uint32_t index) const { return tensor(found(edgert_input(handle_, index), "input")); }
  tensor output_info(std::uint32_t index) const { return tensor(found(edgert_output(handle_, index), "output")); }

  // The index of the input or output called `name`.
  std::uint32_t find_input(const std::string &name) const {
    return named(edgert_find_input(handle_, name.c_str()), "input", name);
  }
  std::uint32_t find_output(const std::string &name) const {
    return named(edgert_find_output(handle_, name.c_str()), "output", name);
  }

  // The session's own buffers, as elements of type T, which must be the tensor's.
  template <class T> span<T> input(std::uint32_t index) {
    return typed<T>(edgert_input_data(handle_, index), input_info(index));
  }
  template <class T> span<const T> output(std::uint32_t index) const {
    return typed<const T>(edgert_output_data(handle_, index), output_info(index));
  }

  // Read an input from, or write an output to, the caller's memory from now on: see edgert_bind_input.
  template <class T> void bind_input(std::uint32_t index, span<T> data) {
    check<T>(input_info(index));
    detail::require(edgert_bind_input(handle_, index, data.data(), data.size_bytes()));
  }
  template <class T> void bind_output(std::uint32_t index, span<T> data) {
    static_assert(!std::is_const_v<T>, "an output is written");
    check<T>(output_info(index));
    detail::require(edgert_bind_output(handle_, index, data.data(), data.size_bytes()));
  }

  void run() { detail::require(edgert_run(handle_)); }

  void start_profile() { detail::require(edgert_profile(handle_, 1)); }
  std::vector<edgert_step_stats> profile() const {
    std::vector<edgert_step_stats> steps(edgert_step_count(handle_));
    for (std::uint32_t i = 0; i < steps.size(); i++) detail::require(edgert_step_stats_get(handle_, i, &steps[i]));
    return steps;
  }

  const edgert_model &model() const noexcept { return *edgert_session_model(handle_); }
  edgert_session *get() noexcept { return handle_; } // for calls of edgert.h; still owned by this

private:
  template <class T> static void check(const tensor &info) {
    if (!detail::matches<T>(info.dtype()))
      detail::fail(EDGERT_ERROR_ARGUMENT, "'" + std::string(info.name()) + "' has elements of another type");
  }
  template <class T, class V> static span<T> typed(V *data, const tensor &info) {
    check<T>(info);
    return {static_cast<T *>(data), data ? info.bytes() / sizeof(T) : 0};
  }
  static const edgert_tensor *found(const edgert_tensor *raw, const char *kind) {
    if (!raw) detail::fail(EDGERT_ERROR_ARGUMENT, std::string("the model has no ") + kind + " of this index");
    return raw;
  }
  static std::uint32_t named(std::int32_t index, const char *kind, const std::string &name) {
    if (index < 0) detail::fail(EDGERT_ERROR_ARGUMENT, std::string("the model has no ") + kind + " '" + name + "'");
    return static_cast<std::uint32_t>(index);
  }

  edgert_session *handle_ = nullptr;
};

} // namespace edgert

#endif
