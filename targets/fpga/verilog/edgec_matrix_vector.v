// PE sums over SIMD products a cycle, weights on the chip: the engine of matrix_vector in edgec_stream.h.
//
// A vector of KF words comes once and is kept for NF passes, each of which ends with a word of PE sums. The weights
// are KF * NF words, word n * KF + k with output 0, lane 0 in its low bits. With TERMS a weight is so many signed
// powers of two of five bits each (present, negative, shift), else WIDTH bits of two's complement.
module edgec_matrix_vector #(
    parameter SIMD = 4,
    parameter PE = 2,
    parameter KF = 8,
    parameter NF = 4,
    parameter WIDTH = 8,
    parameter ACC = 20,
    parameter TERMS = 0,
    parameter DSP = 1,
    parameter STYLE = "block",
    parameter WEIGHTS = "weights.hex"
) (
    input clk,
    input reset,
    input in_valid,
    output in_ready,
    input [8*SIMD-1:0] in_data,
    output out_valid,
    input out_ready,
    output [ACC*PE-1:0] out_data
);
  localparam CODE = TERMS == 0 ? WIDTH : 5 * TERMS;
  localparam DEPTH = KF * NF;
  localparam KBITS = KF > 1 ? $clog2(KF) : 1;
  localparam NBITS = NF > 1 ? $clog2(NF) : 1;
  localparam DBITS = DEPTH > 1 ? $clog2(DEPTH) : 1;

  (* rom_style = STYLE, ram_style = STYLE *) reg [CODE*PE*SIMD-1:0] weights[0:DEPTH-1];
  (* ram_style = "distributed" *) reg [8*SIMD-1:0] vector[0:KF-1];
  initial $readmemh(WEIGHTS, weights);

  reg [KBITS-1:0] k;
  reg [NBITS-1:0] n;
  reg [DBITS-1:0] address;
  wire move = !out_valid || out_ready;
  wire fire = move && (n != 0 || in_valid);
  wire last_k = k == KF - 1;
  wire last_n = n == NF - 1;
  assign in_ready = move && n == 0;

  // fetch
  reg [CODE*PE*SIMD-1:0] w1;
  reg [8*SIMD-1:0] a1;
  reg valid1, first1, last1, valid2, first2, last2, valid3, first3, last3, valid4;
  always @(posedge clk) begin
    if (move) begin
      w1 <= weights[address];
      a1 <= n == 0 ? in_data : vector[k];
      valid1 <= fire;
      first1 <= k == 0;
      last1 <= last_k;
    end
    if (fire && n == 0) vector[k] <= in_data;
    if (reset) begin
      k <= 0;
      n <= 0;
      address <= 0;
      valid1 <= 0;
    end else if (fire) begin
      k <= last_k ? {KBITS{1'b0}} : k + 1'b1;
      address <= last_k && last_n ? {DBITS{1'b0}} : address + 1'b1;
      if (last_k) n <= last_n ? {NBITS{1'b0}} : n + 1'b1;
    end
  end

  always @(posedge clk) begin
    if (move) begin
      {first2, last2} <= {first1, last1};
      {first3, last3} <= {first2, last2};
      valid2 <= valid1;
      valid3 <= valid2;
      valid4 <= valid3 && last3;
    end
    if (reset) {valid2, valid3, valid4} <= 0;
  end
  assign out_valid = valid4;

  genvar output_, lane, term;
  generate
    for (output_ = 0; output_ < PE; output_ = output_ + 1) begin : outputs
      wire signed [16*SIMD-1:0] products;
      for (lane = 0; lane < SIMD; lane = lane + 1) begin : lanes
        wire signed [7:0] a = a1[8*lane+:8];
        wire [CODE-1:0] code = w1[CODE*(output_*SIMD+lane)+:CODE];
        reg signed [15:0] product;
        assign products[16*lane+:16] = product;
        if (TERMS > 0) begin : shifts
          (* keep *) wire signed [15:0] parts[0:TERMS];
          assign parts[0] = 0;
          for (term = 0; term < TERMS; term = term + 1) begin : terms
            wire signed [15:0] shifted = {{8{a[7]}}, a} << code[5*term+:3];
            wire negative = code[5*term+3];
            wire signed [15:0] signed_ = (shifted & {16{code[5*term+4]}}) ^ {16{negative}};
            assign parts[term+1] = parts[term] + signed_ + $signed({1'b0, negative});
          end
          always @(posedge clk) if (move) product <= parts[TERMS];
        end else if (DSP) begin : slice
          wire signed [WIDTH-1:0] w = code;
          always @(posedge clk) if (move) product <= a * w;
        end else begin : tables
          // one carry chain of ten bits a row of partial products, each leaving one bit of the product behind; the top
          // bit of two's complement counts negative
          (* keep *) wire signed [9:0] stage[0:WIDTH-1];
          wire [WIDTH-1:0] low;
          assign stage[0] = {{2{a[7]}}, a} & {10{code[0]}};
          assign low[0] = stage[0][0];
          for (term = 1; term < WIDTH; term = term + 1) begin : rows
            wire signed [9:0] row = {{2{a[7]}}, a} & {10{code[term]}};
            if (term == WIDTH - 1) assign stage[term] = (stage[term-1] >>> 1) - row;
            else assign stage[term] = (stage[term-1] >>> 1) + row;
            assign low[term] = stage[term][0];
          end
          wire signed [9+WIDTH-1:0] full = {stage[WIDTH-1], low[WIDTH-2:0]};
          always @(posedge clk) if (move) product <= full;
        end
      end

      reg signed [ACC-1:0] sum, total;
      integer place;
      reg signed [ACC-1:0] tree;
      always @* begin
        tree = 0;
        for (place = 0; place < SIMD; place = place + 1) tree = tree + $signed(products[16*place+:16]);
      end
      always @(posedge clk) begin
        if (move) begin
          sum <= tree;
          if (valid3) total <= first3 ? sum : total + sum;
        end
      end
      assign out_data[ACC*output_+:ACC] = total;
    end
  endgenerate
endmodule
