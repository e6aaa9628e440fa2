// Integers of any width up to 128 bits, for simulating an HLS project without the vendor's headers.
//
// Written from the public description of the types: a value wraps at its width, and arithmetic happens in a type wide
// enough for the operands. Only what edgec's projects use is here.
#ifndef EDGEC_STUB_AP_INT_H
#define EDGEC_STUB_AP_INT_H

#include <cstdint>

namespace edgec_stub {

template <int WIDTH, bool SIGNED> class integer;

template <int BYTES, bool SIGNED> struct native;
template <> struct native<1, true> { typedef int8_t type; };
template <> struct native<1, false> { typedef uint8_t type; };
template <> struct native<2, true> { typedef int16_t type; };
template <> struct native<2, false> { typedef uint16_t type; };
template <> struct native<4, true> { typedef int32_t type; };
template <> struct native<4, false> { typedef uint32_t type; };
template <> struct native<8, true> { typedef int64_t type; };
template <> struct native<8, false> { typedef uint64_t type; };
template <> struct native<16, true> { typedef __int128 type; };
template <> struct native<16, false> { typedef unsigned __int128 type; };

template <int WIDTH, bool SIGNED> struct storage {
  static const int bytes = WIDTH <= 8 ? 1 : WIDTH <= 16 ? 2 : WIDTH <= 32 ? 4 : WIDTH <= 64 ? 8 : 16;
  typedef typename native<bytes, SIGNED>::type type;
};

// Bits high … low of an integer of at most 64, to read and to write.
template <int WIDTH, bool SIGNED> class bits {
  static_assert(WIDTH <= 64, "these stand-ins have no ranges of wider integers");

 public:
  bits(integer<WIDTH, SIGNED>& whole, int high, int low) : whole_(whole), high_(high), low_(low) {}

  operator uint64_t() const { return (static_cast<uint64_t>(whole_.value()) >> low_) & mask(); }

  bits& operator=(uint64_t value) {
    const uint64_t place = mask() << low_;
    whole_ = (static_cast<uint64_t>(whole_.value()) & ~place) | ((value << low_) & place);
    return *this;
  }

  template <int W, bool S> bits& operator=(const integer<W, S>& value) {
    return *this = static_cast<uint64_t>(value.value());
  }

  bits& operator=(const bits& other) { return *this = static_cast<uint64_t>(other); }

 private:
  uint64_t mask() const { return high_ - low_ == 63 ? ~uint64_t(0) : (uint64_t(1) << (high_ - low_ + 1)) - 1; }

  integer<WIDTH, SIGNED>& whole_;
  const int high_, low_;
};

template <int WIDTH, bool SIGNED> class integer {
  static_assert(WIDTH >= 1 && WIDTH <= 128, "these stand-ins hold 1 to 128 bits");

 public:
  typedef typename storage<WIDTH, SIGNED>::type type;
  static const int width = WIDTH;

  constexpr integer() : value_(0) {}
  constexpr integer(bool value) : value_(wrap(value)) {}
  constexpr integer(int value) : value_(wrap(value)) {}
  constexpr integer(unsigned value) : value_(wrap(value)) {}
  constexpr integer(long value) : value_(wrap(value)) {}
  constexpr integer(unsigned long value) : value_(wrap(value)) {}
  constexpr integer(long long value) : value_(wrap(value)) {}
  constexpr integer(unsigned long long value) : value_(wrap(value)) {}
  constexpr integer(__int128 value) : value_(wrap(value)) {}
  constexpr integer(unsigned __int128 value) : value_(wrap(value)) {}
  template <int W, bool S> constexpr integer(const integer<W, S>& other) : value_(wrap(other.value())) {}
  template <int W, bool S> integer(const bits<W, S>& other) : value_(wrap(static_cast<uint64_t>(other))) {}

  constexpr type value() const { return value_; }
  constexpr operator type() const { return value_; }

  template <class Other> integer& operator+=(const Other& other) { return *this = integer(value_ + other); }
  template <class Other> integer& operator-=(const Other& other) { return *this = integer(value_ - other); }
  integer& operator++() { return *this += 1; }

  bits<WIDTH, SIGNED> range(int high, int low) { return bits<WIDTH, SIGNED>(*this, high, low); }
  bits<WIDTH, SIGNED> range(int high, int low) const {
    return bits<WIDTH, SIGNED>(const_cast<integer&>(*this), high, low);
  }
  bool operator[](int place) const { return (value_ >> place) & 1; }

 private:
  // The low WIDTH bits, with the top one as the sign of a signed integer.
  template <class Other> static constexpr type wrap(Other other) {
    typedef typename native<WIDTH <= 64 ? 8 : 16, true>::type wide;
    typedef typename native<WIDTH <= 64 ? 8 : 16, false>::type bare;
    return SIGNED ? static_cast<type>(static_cast<wide>(static_cast<bare>(other) << (8 * sizeof(bare) - WIDTH)) >>
                                      (8 * sizeof(bare) - WIDTH))
                  : static_cast<type>(static_cast<bare>(other) << (8 * sizeof(bare) - WIDTH) >>
                                      (8 * sizeof(bare) - WIDTH));
  }

  type value_;
};

}  // namespace edgec_stub

template <int WIDTH> using ap_int = edgec_stub::integer<WIDTH, true>;
template <int WIDTH> using ap_uint = edgec_stub::integer<WIDTH, false>;

#endif
