// Beats of an AXI4-Stream, for simulating an HLS project without the vendor's headers.
//
// Written from the public description of the structure; edgec's projects use no side channels but keep, strb and last.
#ifndef EDGEC_STUB_AP_AXI_SDATA_H
#define EDGEC_STUB_AP_AXI_SDATA_H

#include "ap_int.h"

template <int DATA, int USER, int ID, int DEST> struct ap_axiu {
  ap_uint<DATA> data;
  ap_uint<DATA / 8> keep;
  ap_uint<DATA / 8> strb;
  ap_uint<1> last;
};

#endif
