// First-in, first-out channels, for simulating an HLS project without the vendor's headers.
//
// Written from the public description of the class. A channel here holds any number of elements: C simulation runs one
// process after the other, each to its end.
#ifndef EDGEC_STUB_HLS_STREAM_H
#define EDGEC_STUB_HLS_STREAM_H

#include <cstdio>
#include <cstdlib>
#include <deque>

namespace hls {

template <class Element> class stream {
 public:
  explicit stream(const char* name = "") : name_(name) {}
  stream(const stream&) = delete;
  stream& operator=(const stream&) = delete;

  bool empty() const { return elements_.empty(); }
  std::size_t size() const { return elements_.size(); }

  void write(const Element& element) { elements_.push_back(element); }
  void operator<<(const Element& element) { write(element); }

  Element read() {
    if (elements_.empty()) {
      std::fprintf(stderr, "the channel '%s' is read while it is empty\n", name_);
      std::exit(3);
    }
    const Element element = elements_.front();
    elements_.pop_front();
    return element;
  }
  void operator>>(Element& element) { element = read(); }
  void read(Element& element) { element = read(); }

 private:
  const char* name_;
  std::deque<Element> elements_;
};

}  // namespace hls

#endif
