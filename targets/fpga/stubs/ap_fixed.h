// Fixed-point numbers of up to 64 bits, for simulating an HLS project without the vendor's headers.
//
// Written from the public description of the type: WIDTH bits, of which INTEGER stand before the point; conversions
// truncate toward minus infinity and wrap, which are the type's defaults.
#ifndef EDGEC_STUB_AP_FIXED_H
#define EDGEC_STUB_AP_FIXED_H

#include <cmath>

#include "ap_int.h"

namespace edgec_stub {

template <int WIDTH, int INTEGER, bool SIGNED> class fixed {
 public:
  fixed() {}
  fixed(double value) : raw_(static_cast<long long>(std::floor(std::ldexp(value, WIDTH - INTEGER)))) {}

  double to_double() const { return std::ldexp(static_cast<double>(raw_.value()), INTEGER - WIDTH); }
  operator double() const { return to_double(); }

 private:
  integer<WIDTH, SIGNED> raw_;
};

}  // namespace edgec_stub

template <int WIDTH, int INTEGER> using ap_fixed = edgec_stub::fixed<WIDTH, INTEGER, true>;
template <int WIDTH, int INTEGER> using ap_ufixed = edgec_stub::fixed<WIDTH, INTEGER, false>;

#endif
