// The streaming layers of edgec's FPGA projects, as C++ templates for high-level synthesis.
//
// A feature travels pixel by pixel, row by row, its channels in words of a number of lanes. Every function here is one
// process of a dataflow region: a pipelined loop of one step a cycle, whose number of steps is in its comment.
#ifndef EDGEC_STREAM_H
#define EDGEC_STREAM_H

#include <ap_axi_sdata.h>
#include <ap_int.h>
#include <hls_stream.h>

namespace edgec {

typedef ap_int<8> element;
typedef ap_axiu<64, 0, 0, 0> beat;

// LANES neighbouring channels of a pixel.
template <int LANES> struct word {
  element lane[LANES];
};

// LANES sums of BITS bits, before they are requantised.
template <int LANES, int BITS> struct sums {
  ap_int<BITS> lane[LANES];
};

// What requantisation needs of a channel: the bias, and the multiplier as factor · 2^(offset - POINT), where POINT
// is the layer's.
struct scaling {
  ap_int<32> bias;
  ap_uint<24> factor;
  ap_uint<6> offset;
};

// ---- rounding: targets/fpga/rounding.py has the proof --------------------------------------------------------------

// The number of bits of a number.
template <int WIDTH> int bit_length(ap_uint<WIDTH> number) {
#pragma HLS inline
  int length = 0;
  for (int place = 0; place < WIDTH; ++place) {
#pragma HLS unroll
    if (number[place]) length = place + 1;
  }
  return length;
}

// number / 2^dropped to the nearest integer, halves to even.
template <int WIDTH> ap_uint<WIDTH> round_bits(ap_uint<WIDTH> number, int dropped) {
#pragma HLS inline
  if (dropped == 0) return number;
  const ap_uint<WIDTH> whole = number >> dropped;
  const ap_uint<WIDTH> rest = number - (whole << dropped);
  const ap_uint<WIDTH> half = ap_uint<WIDTH>(1) << (dropped - 1);
  const bool up = rest > half || (rest == half && whole[0]);
  return whole + ap_uint<WIDTH>(up);
}

// a · factor · 2^(offset - POINT), rounded to a float32 and then to an integer; anything above 510 where that is.
// The product is aligned so that the binary point stands at POINT; offset is below RANGE.
template <int POINT, int RANGE> ap_uint<10> round_product(ap_uint<24> a, ap_uint<24> factor, int offset) {
#pragma HLS inline
  const int WIDTH = 48 + RANGE > POINT + 10 ? 48 + RANGE : POINT + 10;
  const ap_uint<48> product = ap_uint<48>(a) * ap_uint<48>(factor);
  const ap_uint<WIDTH> aligned = ap_uint<WIDTH>(product) << offset;
  const ap_uint<WIDTH> floor = aligned >> POINT;
  const ap_uint<9> whole = floor > 511 ? ap_uint<9>(511) : ap_uint<9>(floor);
  const ap_uint<POINT> rest = aligned;
  const ap_int<POINT + 2> distance = ap_int<POINT + 2>(rest) - (ap_int<POINT + 2>(1) << (POINT - 1));
  const int exponent = whole != 0 ? bit_length<9>(whole) - 1 : distance < 0 ? -2 : -1;
  const int place = POINT - 24 + exponent;
  const ap_int<POINT + 2> one = place >= 0;
  const ap_int<POINT + 2> tolerance = one << (place < 0 ? 0 : place);
  const bool tie = distance <= tolerance && distance >= -tolerance;
  const bool up = tie ? bool(whole[0]) : distance > 0;
  return ap_uint<10>(whole) + ap_uint<10>(up);
}

// The float32 nearest to a number, as value · 2^exponent with a value below 2^24.
struct significand {
  ap_uint<24> value;
  int exponent;
};

// A value of at most 2^24 that rounding has left, with 2^24 itself as 2^23 · 2.
inline significand carried(ap_uint<25> value, int exponent) {
#pragma HLS inline
  significand result;
  result.value = value[24] ? ap_uint<24>(value >> 1) : ap_uint<24>(value);
  result.exponent = value[24] ? exponent + 1 : exponent;
  return result;
}

inline significand to_float(ap_uint<32> number) {
#pragma HLS inline
  const int length = bit_length<32>(number);
  const int dropped = length > 24 ? length - 24 : 0;
  return carried(ap_uint<25>(round_bits<32>(number, dropped)), dropped);
}

template <int ZERO, int LOW, int HIGH> element clamped(bool negative, ap_uint<10> magnitude) {
#pragma HLS inline
  const ap_int<12> whole = magnitude;
  const ap_int<12> moved = negative ? ap_int<12>(ZERO - whole) : ap_int<12>(ZERO + whole);
  return moved < LOW ? element(LOW) : moved > HIGH ? element(HIGH) : element(moved);
}

// From a sum that fits ACC bits, its bias in it, to a byte.
template <int ACC, int POINT, int RANGE, int ZERO, int LOW, int HIGH>
element rescale(ap_int<32> sum, ap_uint<24> factor, ap_uint<6> offset) {
#pragma HLS inline
  const bool negative = sum < 0;
  const ap_uint<32> magnitude = negative ? ap_uint<32>(-ap_int<33>(sum)) : ap_uint<32>(sum);
  if (ACC <= 25) {
    const ap_uint<24> exact = magnitude;
    return clamped<ZERO, LOW, HIGH>(negative, round_product<POINT, RANGE>(exact, factor, offset));
  }
  const significand a = to_float(magnitude);
  return clamped<ZERO, LOW, HIGH>(negative,
                                  round_product<POINT, RANGE + 9>(a.value, factor, int(offset) + a.exponent));
}

// ---- multipliers ---------------------------------------------------------------------------------------------------

// Weights of WIDTH bits, multiplied in DSP slices.
template <int WIDTH> struct dsp_weight {
  typedef ap_int<WIDTH> type;
  static ap_int<16> product(element a, type weight) {
#pragma HLS inline
    const ap_int<16> result = ap_int<16>(a) * ap_int<16>(weight);
#pragma HLS bind_op variable=result op=mul impl=dsp
    return result;
  }
};

// Weights of WIDTH bits, multiplied in lookup tables.
template <int WIDTH> struct lut_weight {
  typedef ap_int<WIDTH> type;
  static ap_int<16> product(element a, type weight) {
#pragma HLS inline
    const ap_int<16> result = ap_int<16>(a) * ap_int<16>(weight);
#pragma HLS bind_op variable=result op=mul impl=fabric
    return result;
  }
};

// Weights as sums of TERMS signed powers of two, five bits each: present, negative, and a shift of three bits.
template <int TERMS> struct shift_weight {
  typedef ap_uint<5 * TERMS> type;
  static ap_int<16> product(element a, type weight) {
#pragma HLS inline
    ap_int<16> result = 0;
    for (int term = 0; term < TERMS; ++term) {
#pragma HLS unroll
      const ap_uint<5> code = weight >> (5 * term);
      const ap_int<16> shifted = ap_int<16>(a) << int(code & 7);
      if (code[4]) result = code[3] ? ap_int<16>(result - shifted) : ap_int<16>(result + shifted);
    }
    return result;
  }
};

// ---- moving words --------------------------------------------------------------------------------------------------

// TO lanes from FROM, where FROM divides TO. WORDS · TO / FROM steps.
template <int FROM, int TO, int WORDS> void widen(hls::stream<word<FROM> >& in, hls::stream<word<TO> >& out) {
  word<TO> wide;
#pragma HLS array_partition variable=wide.lane complete
  int part = 0;
  for (int step = 0; step < WORDS * (TO / FROM); ++step) {
#pragma HLS pipeline II=1
    const word<FROM> narrow = in.read();
    for (int lane = 0; lane < FROM; ++lane) {
#pragma HLS unroll
      wide.lane[part * FROM + lane] = narrow.lane[lane];
    }
    if (++part == TO / FROM) {
      part = 0;
      out.write(wide);
    }
  }
}

// TO lanes from FROM, where TO divides FROM. WORDS · FROM / TO steps, WORDS counted at the input.
template <int FROM, int TO, int WORDS> void narrow(hls::stream<word<FROM> >& in, hls::stream<word<TO> >& out) {
  word<FROM> wide;
#pragma HLS array_partition variable=wide.lane complete
  int part = 0;
  for (int step = 0; step < WORDS * (FROM / TO); ++step) {
#pragma HLS pipeline II=1
    if (part == 0) wide = in.read();
    word<TO> small;
    for (int lane = 0; lane < TO; ++lane) {
#pragma HLS unroll
      small.lane[lane] = wide.lane[part * TO + lane];
    }
    out.write(small);
    part = part + 1 == FROM / TO ? 0 : part + 1;
  }
}

// A copy of every word for each of two readers. WORDS steps.
template <int LANES, int WORDS>
void duplicate(hls::stream<word<LANES> >& in, hls::stream<word<LANES> >& first, hls::stream<word<LANES> >& second) {
  for (int step = 0; step < WORDS; ++step) {
#pragma HLS pipeline II=1
    const word<LANES> copied = in.read();
    first.write(copied);
    second.write(copied);
  }
}

// The bytes of a frame, eight in a beat. BYTES steps.
template <int BYTES> void unpack(hls::stream<beat>& in, hls::stream<word<1> >& out) {
  ap_uint<64> data = 0;
  for (int step = 0; step < BYTES; ++step) {
#pragma HLS pipeline II=1
    if (step % 8 == 0) data = in.read().data;
    word<1> single;
    single.lane[0] = element(ap_uint<8>(data));
    out.write(single);
    data = data >> 8;
  }
}

// A frame of bytes in beats of eight, the last one marked. BYTES steps.
template <int BYTES> void pack(hls::stream<word<1> >& in, hls::stream<beat>& out) {
  ap_uint<64> data = 0;
  for (int step = 0; step < BYTES; ++step) {
#pragma HLS pipeline II=1
    const int place = step % 8;
    data.range(8 * place + 7, 8 * place) = ap_uint<8>(in.read().lane[0]);
    if (place == 7 || step == BYTES - 1) {
      beat full;
      full.data = data;
      full.keep = (1 << (place + 1)) - 1;
      full.strb = full.keep;
      full.last = step == BYTES - 1;
      out.write(full);
      data = 0;
    }
  }
}

// ---- layers --------------------------------------------------------------------------------------------------------

// The windows of a feature of H × W pixels, word by word, out of a line buffer of ROWS rows; FILL outside the feature.
// BY_CHANNEL gives all taps of a word of channels before the next, else all words of a tap before the next.
// FIRST · W · C / SIMD steps, then for every row of windows the larger of its words and those of the next rows to read.
template <int H, int W, int C, int KH, int KW, int SH, int SW, int DH, int DW, int PT, int PL, int OH, int OW, int SIMD,
          int ROWS, int FILL, bool BY_CHANNEL>
void sliding_window(hls::stream<word<SIMD> >& in, hls::stream<word<SIMD> >& out) {
  static const int FOLDS = C / SIMD;
  static const int ROW = W * FOLDS;
  static const int SPAN = (KH - 1) * DH + 1;
  static const int NEEDED = (OH - 1) * SH - PT + SPAN < H ? (OH - 1) * SH - PT + SPAN : H;
  static const int FIRST = SPAN - PT < 0 ? 0 : SPAN - PT < H ? SPAN - PT : H;
  word<SIMD> lines[ROWS][ROW];
#pragma HLS aggregate variable=lines compact=bit
#pragma HLS dependence variable=lines type=inter false

  int loaded = 0, load_slot = 0;
  for (int row = 0; row < FIRST; ++row) {
    for (int place = 0; place < ROW; ++place) {
#pragma HLS pipeline II=1
      lines[row % ROWS][place] = in.read();
    }
  }
  loaded = FIRST;
  load_slot = FIRST % ROWS;
  int start_slot = ((-PT) % ROWS + ROWS) % ROWS;
  for (int oh = 0; oh < OH; ++oh) {
    const int bound = (oh + 1) * SH - PT + SPAN;
    int wanted = oh + 1 == OH || bound > H ? H : bound;
    wanted = wanted < loaded ? loaded : wanted;
    const int reads = (wanted - loaded) * ROW;
    const int emits = OW * KH * KW * FOLDS;
    const int steps = reads > emits ? reads : emits;
    int read_row = loaded, read_place = 0;
    int ow = 0, kh = 0, kw = 0, fold = 0;
    for (int step = 0; step < steps; ++step) {
#pragma HLS pipeline II=1
      if (step < reads) {
        const word<SIMD> arrived = in.read();
        if (read_row < NEEDED) lines[load_slot][read_place] = arrived;
        if (++read_place == ROW) {
          read_place = 0;
          ++read_row;
          load_slot = load_slot + 1 == ROWS ? 0 : load_slot + 1;
        }
      }
      if (step < emits) {
        const int row = oh * SH - PT + kh * DH, column = ow * SW - PL + kw * DW;
        int slot = start_slot + kh * DH;
        slot = slot >= ROWS ? slot - ROWS : slot;
        const bool inside = row >= 0 && row < H && column >= 0 && column < W;
        const word<SIMD> stored = lines[slot][inside ? column * FOLDS + fold : 0];
        word<SIMD> tap;
        for (int lane = 0; lane < SIMD; ++lane) {
#pragma HLS unroll
          tap.lane[lane] = inside ? stored.lane[lane] : element(FILL);
        }
        out.write(tap);
        if (BY_CHANNEL) {
          if (++kw == KW) {
            kw = 0;
            if (++kh == KH) {
              kh = 0;
              if (++fold == FOLDS) {
                fold = 0;
                ++ow;
              }
            }
          }
        } else {
          if (++fold == FOLDS) {
            fold = 0;
            if (++kw == KW) {
              kw = 0;
              if (++kh == KH) {
                kh = 0;
                ++ow;
              }
            }
          }
        }
      }
    }
    loaded = wanted;
    start_slot = (start_slot + SH) % ROWS;
  }
}

// One step of PE totals over SIMD products; the first of a sum starts from 0.
template <class Weight, int SIMD, int PE, int ACC>
void accumulate(ap_int<ACC> (&totals)[PE], bool first, const word<SIMD>& a,
                const typename Weight::type (&weights)[PE][SIMD]) {
#pragma HLS inline
  for (int output = 0; output < PE; ++output) {
#pragma HLS unroll
    ap_int<ACC> total = 0;
    for (int lane = 0; lane < SIMD; ++lane) {
#pragma HLS unroll
      total += Weight::product(a.lane[lane], weights[output][lane]);
    }
    totals[output] = first ? total : ap_int<ACC>(totals[output] + total);
  }
}

template <int LANES, int ACC> sums<LANES, ACC> gathered(const ap_int<ACC> (&totals)[LANES]) {
#pragma HLS inline
  sums<LANES, ACC> result;
  for (int lane = 0; lane < LANES; ++lane) {
#pragma HLS unroll
    result.lane[lane] = totals[lane];
  }
  return result;
}

// For every pixel PE · NF sums over SIMD · KF products, weights on the chip. PIXELS · NF · KF steps.
template <class Weight, int PIXELS, int KF, int NF, int SIMD, int PE, int ACC>
void matrix_vector(hls::stream<word<SIMD> >& in, hls::stream<sums<PE, ACC> >& out,
                   const typename Weight::type (&weights)[NF * KF][PE][SIMD]) {
#pragma HLS array_reshape variable=weights complete dim=2
#pragma HLS array_reshape variable=weights complete dim=3
  word<SIMD> vector[KF];
#pragma HLS aggregate variable=vector compact=bit
  ap_int<ACC> totals[PE];
#pragma HLS array_partition variable=totals complete
  int kf = 0, nf = 0;
  for (int step = 0; step < PIXELS * NF * KF; ++step) {
#pragma HLS pipeline II=1
    word<SIMD> a;
    if (nf == 0) {
      a = in.read();
      vector[kf] = a;
    } else {
      a = vector[kf];
    }
    accumulate<Weight, SIMD, PE, ACC>(totals, kf == 0, a, weights[nf * KF + kf]);
    if (++kf == KF) {
      out.write(gathered<PE, ACC>(totals));
      kf = 0;
      nf = nf + 1 == NF ? 0 : nf + 1;
    }
  }
}

// The same with the weights of every step from a stream of bytes: output by output, lane by lane.
template <class Weight, int PIXELS, int KF, int NF, int SIMD, int PE, int ACC>
void matrix_vector_streamed(hls::stream<word<SIMD> >& in, hls::stream<sums<PE, ACC> >& out,
                            hls::stream<word<PE * SIMD> >& weights) {
  word<SIMD> vector[KF];
#pragma HLS aggregate variable=vector compact=bit
  ap_int<ACC> totals[PE];
#pragma HLS array_partition variable=totals complete
  int kf = 0, nf = 0;
  for (int step = 0; step < PIXELS * NF * KF; ++step) {
#pragma HLS pipeline II=1
    word<SIMD> a;
    if (nf == 0) {
      a = in.read();
      vector[kf] = a;
    } else {
      a = vector[kf];
    }
    const word<PE * SIMD> arrived = weights.read();
    typename Weight::type matrix[PE][SIMD];
#pragma HLS array_partition variable=matrix complete dim=0
    for (int place = 0; place < PE * SIMD; ++place) {
#pragma HLS unroll
      matrix[place / SIMD][place % SIMD] = arrived.lane[place];
    }
    accumulate<Weight, SIMD, PE, ACC>(totals, kf == 0, a, matrix);
    if (++kf == KF) {
      out.write(gathered<PE, ACC>(totals));
      kf = 0;
      nf = nf + 1 == NF ? 0 : nf + 1;
    }
  }
}

// Every channel's own filter over windows that come channel by channel. PIXELS · FOLDS · TAPS steps.
template <class Weight, int PIXELS, int FOLDS, int TAPS, int LANES, int ACC>
void depthwise(hls::stream<word<LANES> >& in, hls::stream<sums<LANES, ACC> >& out,
               const typename Weight::type (&weights)[FOLDS * TAPS][LANES]) {
#pragma HLS array_reshape variable=weights complete dim=2
  ap_int<ACC> totals[LANES];
#pragma HLS array_partition variable=totals complete
  int tap = 0, fold = 0;
  for (int step = 0; step < PIXELS * FOLDS * TAPS; ++step) {
#pragma HLS pipeline II=1
    const word<LANES> a = in.read();
    for (int lane = 0; lane < LANES; ++lane) {
#pragma HLS unroll
      const ap_int<ACC> before = tap == 0 ? ap_int<ACC>(0) : totals[lane];
      totals[lane] = before + Weight::product(a.lane[lane], weights[fold * TAPS + tap][lane]);
    }
    if (++tap == TAPS) {
      out.write(gathered<LANES, ACC>(totals));
      tap = 0;
      fold = fold + 1 == FOLDS ? 0 : fold + 1;
    }
  }
}

// Sums to bytes, TO of FROM at a time; GROUPS · TO channels. WORDS · FROM / TO steps, WORDS counted at the input.
template <int WORDS, int FROM, int TO, int GROUPS, int ACC, int POINT, int RANGE, int ZERO, int LOW, int HIGH>
void requantise(hls::stream<sums<FROM, ACC> >& in, hls::stream<word<TO> >& out, const scaling (&scales)[GROUPS][TO]) {
#pragma HLS array_reshape variable=scales complete dim=2
  sums<FROM, ACC> totals;
#pragma HLS array_partition variable=totals.lane complete
  int part = 0, group = 0;
  for (int step = 0; step < WORDS * (FROM / TO); ++step) {
#pragma HLS pipeline II=1
    if (part == 0) totals = in.read();
    word<TO> results;
    for (int lane = 0; lane < TO; ++lane) {
#pragma HLS unroll
      const scaling scale = scales[group][lane];
      const ap_int<32> sum = ap_int<32>(totals.lane[part * TO + lane]) + scale.bias;
      results.lane[lane] = rescale<ACC, POINT, RANGE, ZERO, LOW, HIGH>(sum, scale.factor, scale.offset);
    }
    out.write(results);
    part = part + 1 == FROM / TO ? 0 : part + 1;
    group = group + 1 == GROUPS ? 0 : group + 1;
  }
}

// Sums as they are, with their biases: one at a time, in four bytes, the low one first. WORDS · LANES steps.
template <int WORDS, int LANES, int GROUPS, int ACC>
void exact_sums(hls::stream<sums<LANES, ACC> >& in, hls::stream<word<4> >& out,
                const ap_int<32> (&biases)[GROUPS * LANES]) {
  sums<LANES, ACC> totals;
#pragma HLS array_partition variable=totals.lane complete
  int part = 0, channel = 0;
  for (int step = 0; step < WORDS * LANES; ++step) {
#pragma HLS pipeline II=1
    if (part == 0) totals = in.read();
    const ap_int<32> sum = ap_int<32>(totals.lane[part]) + biases[channel];
    word<4> split;
    for (int lane = 0; lane < 4; ++lane) {
#pragma HLS unroll
      split.lane[lane] = element(ap_uint<8>(ap_uint<32>(sum) >> (8 * lane)));
    }
    out.write(split);
    part = part + 1 == LANES ? 0 : part + 1;
    channel = channel + 1 == GROUPS * LANES ? 0 : channel + 1;
  }
}

// The largest of every window, which come channel by channel. WINDOWS · TAPS steps.
template <int WINDOWS, int TAPS, int LANES>
void max_pool(hls::stream<word<LANES> >& in, hls::stream<word<LANES> >& out) {
  word<LANES> largest;
#pragma HLS array_partition variable=largest.lane complete
  int tap = 0;
  for (int step = 0; step < WINDOWS * TAPS; ++step) {
#pragma HLS pipeline II=1
    const word<LANES> a = in.read();
    for (int lane = 0; lane < LANES; ++lane) {
#pragma HLS unroll
      if (tap == 0 || a.lane[lane] > largest.lane[lane]) largest.lane[lane] = a.lane[lane];
    }
    if (++tap == TAPS) {
      tap = 0;
      out.write(largest);
    }
  }
}

// The mean of every window, which come channel by channel, less X_ZERO; COUNT multipliers, one a pixel or one for all.
// PIXELS · FOLDS · TAPS steps.
template <int PIXELS, int FOLDS, int TAPS, int LANES, int COUNT, int X_ZERO, int POINT, int RANGE, int ZERO, int LOW,
          int HIGH>
void average_windows(hls::stream<word<LANES> >& in, hls::stream<word<LANES> >& out, const scaling (&scales)[COUNT]) {
  ap_int<32> totals[LANES];
#pragma HLS array_partition variable=totals complete
  int tap = 0, fold = 0, pixel = 0;
  for (int step = 0; step < PIXELS * FOLDS * TAPS; ++step) {
#pragma HLS pipeline II=1
    const word<LANES> a = in.read();
    const scaling scale = scales[COUNT == 1 ? 0 : pixel];
    word<LANES> means;
    for (int lane = 0; lane < LANES; ++lane) {
#pragma HLS unroll
      const ap_int<32> before = tap == 0 ? ap_int<32>(0) : totals[lane];
      totals[lane] = before + ap_int<32>(a.lane[lane]) - X_ZERO;
      means.lane[lane] = rescale<32, POINT, RANGE, ZERO, LOW, HIGH>(totals[lane], scale.factor, scale.offset);
    }
    if (++tap == TAPS) {
      out.write(means);
      tap = 0;
      if (++fold == FOLDS) {
        fold = 0;
        ++pixel;
      }
    }
  }
}

// The mean of tiles of KH × KW pixels every SH × SW, less X_ZERO, in running sums. 2 · H · W · C / LANES steps,
// for a sum is read, added to and written in one.
template <int H, int W, int C, int KH, int KW, int SH, int SW, int OH, int OW, int LANES, int X_ZERO, int POINT,
          int RANGE, int ZERO, int LOW, int HIGH>
void average_tiles(hls::stream<word<LANES> >& in, hls::stream<word<LANES> >& out, const scaling& scale) {
  static const int FOLDS = C / LANES;
  ap_int<32> sums[OW * FOLDS][LANES];
#pragma HLS array_reshape variable=sums complete dim=2
#pragma HLS bind_storage variable=sums type=ram_s2p impl=lutram
  int row = 0, column = 0, fold = 0;
  for (int step = 0; step < H * W * FOLDS; ++step) {
#pragma HLS pipeline II=2
    const word<LANES> a = in.read();
    const int oh = row / SH, ow = column / SW, kh = row % SH, kw = column % SW;
    if (oh < OH && ow < OW && kh < KH && kw < KW) {
      word<LANES> means;
      for (int lane = 0; lane < LANES; ++lane) {
#pragma HLS unroll
        const ap_int<32> before = kh == 0 && kw == 0 ? ap_int<32>(0) : sums[ow * FOLDS + fold][lane];
        const ap_int<32> sum = before + ap_int<32>(a.lane[lane]) - X_ZERO;
        sums[ow * FOLDS + fold][lane] = sum;
        means.lane[lane] = rescale<32, POINT, RANGE, ZERO, LOW, HIGH>(sum, scale.factor, scale.offset);
      }
      if (kh == KH - 1 && kw == KW - 1) out.write(means);
    }
    if (++fold == FOLDS) {
      fold = 0;
      if (++column == W) {
        column = 0;
        ++row;
      }
    }
  }
}

// (left · LEFT + right · RIGHT + OFFSET) >> SHIFT, plus ZERO, clamped. WORDS steps.
template <int WORDS, int LANES, int LEFT, int RIGHT, int OFFSET, int SHIFT, int ZERO, int LOW, int HIGH>
void add(hls::stream<word<LANES> >& left, hls::stream<word<LANES> >& right, hls::stream<word<LANES> >& out) {
  for (int step = 0; step < WORDS; ++step) {
#pragma HLS pipeline II=1
    const word<LANES> a = left.read(), b = right.read();
    word<LANES> sums;
    for (int lane = 0; lane < LANES; ++lane) {
#pragma HLS unroll
      const ap_int<32> terms = ap_int<32>(ap_int<32>(a.lane[lane]) * LEFT + ap_int<32>(b.lane[lane]) * RIGHT);
      const ap_int<32> moved = (ap_int<32>(terms + OFFSET) >> SHIFT) + ZERO;
      sums.lane[lane] = moved < LOW ? element(LOW) : moved > HIGH ? element(HIGH) : element(moved);
    }
    out.write(sums);
  }
}

// table[x + 128] of every byte. WORDS steps.
template <int WORDS, int LANES>
void lookup(hls::stream<word<LANES> >& in, hls::stream<word<LANES> >& out, const element (&table)[256]) {
  for (int step = 0; step < WORDS; ++step) {
#pragma HLS pipeline II=1
    const word<LANES> a = in.read();
    word<LANES> found;
    for (int lane = 0; lane < LANES; ++lane) {
#pragma HLS unroll
      found.lane[lane] = table[int(a.lane[lane]) + 128];
    }
    out.write(found);
  }
}

// The float32 nearest to a number, its value shifted to 24 bits; 0 for 0.
inline significand normalised(ap_uint<32> number) {
#pragma HLS inline
  significand result = to_float(number);
  const int length = bit_length<24>(result.value);
  const int lacking = length == 0 ? 0 : 24 - length;
  result.value = result.value << lacking;
  result.exponent -= lacking;
  return result;
}

// Shares of exponentials of a pixel's C channels: powers of the distance to the largest. PIXELS · 3 · C steps.
template <int PIXELS, int C, int FACTOR, int SHIFT, int ZERO>
void softmax(hls::stream<word<1> >& in, hls::stream<word<1> >& out, const ap_uint<31> (&powers)[256]) {
  element row[C];
  for (int pixel = 0; pixel < PIXELS; ++pixel) {
    element largest = -128;
    for (int channel = 0; channel < C; ++channel) {
#pragma HLS pipeline II=1
      const element a = in.read().lane[0];
      row[channel] = a;
      if (a > largest) largest = a;
    }
    ap_uint<32> total = 0;
    for (int channel = 0; channel < C; ++channel) {
#pragma HLS pipeline II=1
      total += powers[int(largest) - int(row[channel])];
    }
    const significand bottom = normalised(total);
    for (int channel = 0; channel < C; ++channel) {
#pragma HLS pipeline II=1
      const significand top = normalised(ap_uint<32>(powers[int(largest) - int(row[channel])]));
      const ap_uint<49> scaled = ap_uint<49>(top.value) << 25;
      const ap_uint<49> quotient = scaled / ap_uint<49>(bottom.value);
      const bool remains = ap_uint<49>(quotient * ap_uint<49>(bottom.value)) != scaled;
      const int dropped = quotient >= (1 << 25) ? 2 : 1;
      // one more bit holds what remains, so that it is no tie
      const ap_uint<32> doubled = ap_uint<32>(quotient) * 2 + ap_uint<32>(remains);
      const int exponent = top.exponent - bottom.exponent - 25 + dropped;
      const significand rounded = carried(ap_uint<25>(round_bits<32>(doubled, dropped + 1)), exponent);
      const int shift = SHIFT - rounded.exponent;
      const ap_uint<10> product = round_product<50, 51>(rounded.value, FACTOR, shift > 50 ? 0 : 50 - shift);
      word<1> share;
      share.lane[0] = clamped<ZERO, -128, 127>(false, product);
      out.write(share);
    }
  }
}

}  // namespace edgec

#endif
