// Channels that hold no more than their depth, for processes that each run in a thread: what a dataflow region on an
// FPGA does. A region that stands still for PATIENCE seconds ends the program with exit code 7.
#ifndef EDGEC_BOUNDED_STREAM_H
#define EDGEC_BOUNDED_STREAM_H

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <mutex>

namespace hls {

template <class Element> class stream {
 public:
  explicit stream(const char* name = "", std::size_t depth = 1 << 30) : name_(name), depth_(depth) {}

  void write(const Element& element) {
    std::unique_lock<std::mutex> lock(mutex_);
    wait(lock, [this] { return elements_.size() < depth_; }, "full");
    elements_.push_back(element);
    changed_.notify_all();
  }

  Element read() {
    std::unique_lock<std::mutex> lock(mutex_);
    wait(lock, [this] { return !elements_.empty(); }, "empty");
    const Element element = elements_.front();
    elements_.pop_front();
    changed_.notify_all();
    return element;
  }

 private:
  template <class Condition>
  void wait(std::unique_lock<std::mutex>& lock, Condition condition, const char* state) {
    // a process that waits for its turn waits long; one whose region stands still waits for ever
    if (!changed_.wait_for(lock, std::chrono::seconds(PATIENCE), condition)) {
      std::fprintf(stderr, "the channel '%s' stays %s\n", name_, state);
      std::_Exit(7);
    }
  }

  const char* name_;
  const std::size_t depth_;
  std::deque<Element> elements_;
  std::mutex mutex_;
  std::condition_variable changed_;
};

}  // namespace hls

#endif
