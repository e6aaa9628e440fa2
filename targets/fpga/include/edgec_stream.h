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

// What requantisation needs of a channel: the bias, and the multiplier as factor · 2^-shift.
struct scaling {
  ap_int<32> bias;
  ap_uint<24> factor;
  ap_uint<6> shift;
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

// a · factor · 2^-shift, rounded to a float32 and then to an integer; anything above 510 where that is.
inline ap_uint<10> round_product(ap_uint<25> a, ap_uint<24> factor, int shift) {
#pragma HLS inline
  const int places = shift > 50 ? 50 : shift;
  const ap_uint<50> product = ap_uint<50>(a) * ap_uint<50>(factor);
  const ap_uint<50> floor = product >> places;
  const ap_uint<9> whole = floor > 511 ? ap_uint<9>(511) : ap_uint<9>(floor);
  const ap_uint<51> rest = product & ((ap_uint<51>(1) << places) - 1);
  const ap_int<52> distance = ap_int<52>(rest) - (ap_int<52>(1) << (places - 1));
  const int exponent = whole != 0 ? bit_length<9>(whole) - 1 : distance < 0 ? -2 : -1;
  const int place = places + exponent - 24;
  const ap_int<52> tolerance = place >= 0 ? ap_int<52>(ap_int<52>(1) << (place < 0 ? 0 : place)) : ap_int<52>(0);
  const bool tie = distance <= tolerance && distance >= -tolerance;
  const bool up = tie ? bool(whole[0]) : distance > 0;
  return ap_uint<10>(whole) + ap_uint<10>(up);
}

template <int ZERO, int LOW, int HIGH> element clamped(bool negative, ap_uint<10> magnitude) {
#pragma HLS inline
  const ap_int<12> whole = magnitude;
  const ap_int<12> moved = negative ? ap_int<12>(ZERO - whole) : ap_int<12>(ZERO + whole);
  return moved < LOW ? element(LOW) : moved > HIGH ? element(HIGH) : element(moved);
}

// From a sum of ACC bits, its bias in it, to a byte.
template <int ACC, int ZERO, int LOW, int HIGH> element requantise(ap_int<32> sum, ap_uint<24> factor, ap_uint<6> shift) {
#pragma HLS inline
  const bool negative = sum < 0;
  const ap_uint<32> magnitude = negative ? ap_uint<32>(-ap_int<33>(sum)) : ap_uint<32>(sum);
  if (ACC <= 25) return clamped<ZERO, LOW, HIGH>(negative, round_product(ap_uint<25>(magnitude), factor, shift));
  const int length = bit_length<32>(magnitude);
  const int dropped = length > 24 ? length - 24 : 0;
  const ap_uint<25> a = round_bits<32>(magnitude, dropped);
  return clamped<ZERO, LOW, HIGH>(negative, round_product(a, factor, int(shift) - dropped));
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
#pragma HLS array_reshape variable=lines dim=1 type=block factor=1
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

// One step of PE sums over SIMD products.
template <class Weight, int SIMD, int PE>
void accumulate(ap_int<32> (&sums)[PE], const word<SIMD>& a, const typename Weight::type (&weights)[PE][SIMD]) {
#pragma HLS inline
  for (int output = 0; output < PE; ++output) {
#pragma HLS unroll
    ap_int<32> total = 0;
    for (int lane = 0; lane < SIMD; ++lane) {
#pragma HLS unroll
      total += Weight::product(a.lane[lane], weights[output][lane]);
    }
    sums[output] += total;
  }
}

template <int PE, int ACC, int ZERO, int LOW, int HIGH>
word<PE> requantised(const ap_int<32> (&sums)[PE], const scaling (&scales)[PE]) {
#pragma HLS inline
  word<PE> results;
  for (int output = 0; output < PE; ++output) {
#pragma HLS unroll
    const ap_int<32> sum = sums[output] + scales[output].bias;
    results.lane[output] = requantise<ACC, ZERO, LOW, HIGH>(sum, scales[output].factor, scales[output].shift);
  }
  return results;
}

// For every pixel PE · NF sums over SIMD · KF products, weights on the chip. PIXELS · NF · KF steps.
template <class Weight, int PIXELS, int KF, int NF, int SIMD, int PE, int ACC, int ZERO, int LOW, int HIGH>
void matrix_vector(hls::stream<word<SIMD> >& in, hls::stream<word<PE> >& out,
                   const typename Weight::type (&weights)[NF * KF][PE][SIMD], const scaling (&scales)[NF][PE]) {
  word<SIMD> vector[KF];
#pragma HLS aggregate variable=vector compact=bit
  ap_int<32> sums[PE];
#pragma HLS array_partition variable=sums complete
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
    if (kf == 0) {
      for (int output = 0; output < PE; ++output) {
#pragma HLS unroll
        sums[output] = 0;
      }
    }
    accumulate<Weight, SIMD, PE>(sums, a, weights[nf * KF + kf]);
    if (++kf == KF) {
      out.write(requantised<PE, ACC, ZERO, LOW, HIGH>(sums, scales[nf]));
      kf = 0;
      nf = nf + 1 == NF ? 0 : nf + 1;
    }
  }
}

// The same with the weights of every step from a stream of bytes: output by output, lane by lane.
template <int PIXELS, int KF, int NF, int SIMD, int PE, int ACC, int ZERO, int LOW, int HIGH>
void matrix_vector_streamed(hls::stream<word<SIMD> >& in, hls::stream<word<PE> >& out,
                            hls::stream<word<PE * SIMD> >& weights, const scaling (&scales)[NF][PE]) {
  word<SIMD> vector[KF];
#pragma HLS aggregate variable=vector compact=bit
  ap_int<32> sums[PE];
#pragma HLS array_partition variable=sums complete
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
    ap_int<8> matrix[PE][SIMD];
#pragma HLS array_partition variable=matrix complete dim=0
    for (int output = 0; output < PE; ++output) {
#pragma HLS unroll
      if (kf == 0) sums[output] = 0;
      for (int lane = 0; lane < SIMD; ++lane) {
#pragma HLS unroll
        matrix[output][lane] = arrived.lane[output * SIMD + lane];
      }
    }
    accumulate<dsp_weight<8>, SIMD, PE>(sums, a, matrix);
    if (++kf == KF) {
      out.write(requantised<PE, ACC, ZERO, LOW, HIGH>(sums, scales[nf]));
      kf = 0;
      nf = nf + 1 == NF ? 0 : nf + 1;
    }
  }
}

// Every channel's own filter over windows that come channel by channel. PIXELS · FOLDS · TAPS steps.
template <class Weight, int PIXELS, int FOLDS, int TAPS, int LANES, int ACC, int ZERO, int LOW, int HIGH>
void depthwise(hls::stream<word<LANES> >& in, hls::stream<word<LANES> >& out,
               const typename Weight::type (&weights)[FOLDS * TAPS][LANES], const scaling (&scales)[FOLDS][LANES]) {
  ap_int<32> sums[LANES];
#pragma HLS array_partition variable=sums complete
  int tap = 0, fold = 0;
  for (int step = 0; step < PIXELS * FOLDS * TAPS; ++step) {
#pragma HLS pipeline II=1
    const word<LANES> a = in.read();
    for (int lane = 0; lane < LANES; ++lane) {
#pragma HLS unroll
      const ap_int<32> before = tap == 0 ? ap_int<32>(0) : sums[lane];
      sums[lane] = before + Weight::product(a.lane[lane], weights[fold * TAPS + tap][lane]);
    }
    if (++tap == TAPS) {
      out.write(requantised<LANES, ACC, ZERO, LOW, HIGH>(sums, scales[fold]));
      tap = 0;
      fold = fold + 1 == FOLDS ? 0 : fold + 1;
    }
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
template <int PIXELS, int FOLDS, int TAPS, int LANES, int COUNT, int X_ZERO, int ZERO, int LOW, int HIGH>
void average_windows(hls::stream<word<LANES> >& in, hls::stream<word<LANES> >& out, const scaling (&scales)[COUNT]) {
  ap_int<32> sums[LANES];
#pragma HLS array_partition variable=sums complete
  int tap = 0, fold = 0, pixel = 0;
  for (int step = 0; step < PIXELS * FOLDS * TAPS; ++step) {
#pragma HLS pipeline II=1
    const word<LANES> a = in.read();
    const scaling scale = scales[COUNT == 1 ? 0 : pixel];
    word<LANES> means;
    for (int lane = 0; lane < LANES; ++lane) {
#pragma HLS unroll
      const ap_int<32> before = tap == 0 ? ap_int<32>(0) : sums[lane];
      sums[lane] = before + ap_int<32>(a.lane[lane]) - X_ZERO;
      means.lane[lane] = requantise<32, ZERO, LOW, HIGH>(sums[lane], scale.factor, scale.shift);
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

// The mean of tiles of KH × KW pixels every SH × SW, less X_ZERO, in running sums. H · W · C / LANES steps.
template <int H, int W, int C, int KH, int KW, int SH, int SW, int OH, int OW, int LANES, int X_ZERO, int ZERO, int LOW,
          int HIGH>
void average_tiles(hls::stream<word<LANES> >& in, hls::stream<word<LANES> >& out, const scaling& scale) {
  static const int FOLDS = C / LANES;
  ap_int<32> sums[OW * FOLDS][LANES];
#pragma HLS array_reshape variable=sums complete dim=2
#pragma HLS dependence variable=sums type=inter false
  int row = 0, column = 0, fold = 0;
  for (int step = 0; step < H * W * FOLDS; ++step) {
#pragma HLS pipeline II=1
    const word<LANES> a = in.read();
    const int oh = row / SH, ow = column / SW, kh = row % SH, kw = column % SW;
    if (oh < OH && ow < OW && kh < KH && kw < KW) {
      word<LANES> means;
      for (int lane = 0; lane < LANES; ++lane) {
#pragma HLS unroll
        const ap_int<32> before = kh == 0 && kw == 0 ? ap_int<32>(0) : sums[ow * FOLDS + fold][lane];
        const ap_int<32> sum = before + ap_int<32>(a.lane[lane]) - X_ZERO;
        sums[ow * FOLDS + fold][lane] = sum;
        means.lane[lane] = requantise<32, ZERO, LOW, HIGH>(sum, scale.factor, scale.shift);
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

// The float32 nearest to a number, as significand · 2^exponent with 24 bits; 0 for 0.
struct significand {
  ap_uint<25> bits;
  int exponent;
};

inline significand normalised(ap_uint<32> number) {
#pragma HLS inline
  const int length = bit_length<32>(number);
  const int dropped = length > 24 ? length - 24 : 0;
  const ap_uint<25> rounded = round_bits<32>(number, dropped);
  const int lacking = length == 0 || length > 24 ? 0 : 24 - length;
  significand result;
  result.bits = rounded << lacking;
  result.exponent = dropped - lacking;
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
      const ap_uint<50> scaled = ap_uint<50>(top.bits) << 25;
      const ap_uint<50> quotient = scaled / ap_uint<50>(bottom.bits);
      const bool remains = quotient * bottom.bits != scaled;
      const int dropped = quotient >= (1 << 25) ? 2 : 1;
      // one more bit holds what remains, so that it is no tie
      const ap_uint<32> doubled = ap_uint<32>(quotient) * 2 + ap_uint<32>(remains);
      const ap_uint<25> rounded = round_bits<32>(doubled, dropped + 1);
      const int exponent = top.exponent - bottom.exponent - 25 + dropped;
      word<1> share;
      share.lane[0] = clamped<ZERO, -128, 127>(false, round_product(rounded, FACTOR, SHIFT - exponent));
      out.write(share);
    }
  }
}

}  // namespace edgec

#endif
