// From sums to bytes, one a cycle: requantise in edgec_stream.h with one lane. rounding.py has the proof.
//
// The channels' constants are GROUPS words of {offset, factor, bias}: 6, 24 and 32 bits.
module edgec_requantise #(
    parameter ACC = 20,
    parameter GROUPS = 16,
    parameter POINT = 32,
    parameter RANGE = 4,
    parameter ZERO = 0,
    parameter LOW = -128,
    parameter HIGH = 127,
    parameter STYLE = "distributed",
    parameter SCALES = "scales.hex"
) (
    input clk,
    input reset,
    input in_valid,
    output in_ready,
    input [ACC-1:0] in_data,
    output out_valid,
    input out_ready,
    output [7:0] out_data
);
  localparam WIDE = ACC > 25;
  localparam SPAN = WIDE ? RANGE + 9 : RANGE;
  localparam OBITS = SPAN > 1 ? $clog2(SPAN) : 1;
  localparam WIDTH = 48 + SPAN > POINT + 10 ? 48 + SPAN : POINT + 10;
  localparam GBITS = GROUPS > 1 ? $clog2(GROUPS) : 1;
  localparam MBITS = WIDE ? 32 : 24;

  (* rom_style = STYLE, ram_style = STYLE *) reg [61:0] scales[0:GROUPS-1];
  initial $readmemh(SCALES, scales);

  wire move = !out_valid || out_ready;
  assign in_ready = move;
  reg [GBITS-1:0] group;
  reg [6:0] valid;
  assign out_valid = valid[6];
  always @(posedge clk) begin
    if (reset) begin
      group <= 0;
      valid <= 0;
    end else if (move) begin
      valid <= {valid[5:0], in_valid};
      if (in_valid) group <= group == GROUPS - 1 ? {GBITS{1'b0}} : group + 1'b1;
    end
  end

  // 1: constants; 2: bias; 3: magnitude as a float32
  reg [61:0] scale1;
  reg signed [ACC-1:0] sum1, sum2;
  reg [23:0] factor2, factor3, a3;
  reg [OBITS-1:0] offset2, offset3, offset4;
  reg negative3, negative4, negative5, negative6;
  wire [MBITS-1:0] magnitude = sum2[ACC-1] ? -sum2 : sum2;
  wire [23:0] exact;
  wire [3:0] dropped;
  generate
    if (WIDE) begin : wide
      // drop the bits above 24, halves to even; a carry into bit 24 drops one more
      reg [3:0] excess;
      integer place;
      always @* begin
        excess = 0;
        for (place = 24; place < 32; place = place + 1) if (magnitude[place]) excess = place - 23;
      end
      wire [31:0] whole = magnitude >> excess;
      wire [31:0] rest = magnitude & ~(32'hffffffff << excess);
      wire [31:0] half = (32'd1 << excess) >> 1;
      wire up = excess != 0 && (rest > half || (rest == half && whole[0]));
      wire [24:0] rounded = whole[24:0] + up;
      assign exact = rounded[24] ? rounded[24:1] : rounded[23:0];
      assign dropped = excess + rounded[24];
    end else begin : narrow
      assign exact = magnitude;
      assign dropped = 0;
    end
  endgenerate

  // 4: product; 5: aligned, with the binary point at POINT; 6: rounded; 7: clamped
  reg [47:0] product4;
  reg [8:0] whole5;
  reg [POINT-1:0] rest5;
  reg [9:0] result6;
  reg signed [7:0] result7;
  assign out_data = result7;
  wire [WIDTH-1:0] aligned = {{(WIDTH - 48) {1'b0}}, product4} << offset4;
  wire [WIDTH-POINT-1:0] floor = aligned[WIDTH-1:POINT];

  reg signed [4:0] exponent;
  integer bit_;
  wire below = !rest5[POINT-1];
  always @* begin
    exponent = below ? -2 : -1;
    for (bit_ = 0; bit_ < 9; bit_ = bit_ + 1) if (whole5[bit_]) exponent = bit_;
  end
  // the distance to one half, and the largest that still is a tie
  wire [POINT-2:0] distance = below ? -rest5[POINT-2:0] : rest5[POINT-2:0];
  wire exactly_below = below && rest5[POINT-2:0] == 0;
  reg [POINT-1:0] tolerance;
  integer shift_;
  always @* begin
    tolerance = 0;
    for (shift_ = -2; shift_ < 9; shift_ = shift_ + 1)
      if (exponent == shift_ && POINT - 24 + shift_ >= 0) tolerance[POINT-24+shift_] = 1'b1;
  end
  wire tie = !exactly_below && distance <= tolerance;
  wire up6 = tie ? whole5[0] : !below && rest5[POINT-2:0] != 0;
  wire signed [11:0] moved = negative6 ? ZERO - $signed({2'b00, result6}) : ZERO + $signed({2'b00, result6});

  always @(posedge clk) begin
    if (move) begin
      scale1 <= scales[group];
      sum1 <= in_data;
      sum2 <= sum1 + $signed(scale1[31:0]);
      factor2 <= scale1[55:32];
      offset2 <= scale1[61:56];
      a3 <= exact;
      factor3 <= factor2;
      offset3 <= offset2 + dropped;
      negative3 <= sum2[ACC-1];
      product4 <= a3 * factor3;
      offset4 <= offset3;
      negative4 <= negative3;
      whole5 <= floor > 511 ? 9'd511 : floor[8:0];
      rest5 <= aligned[POINT-1:0];
      negative5 <= negative4;
      result6 <= whole5 + up6;
      negative6 <= negative5;
      result7 <= moved < LOW ? LOW : moved > HIGH ? HIGH : moved;
    end
  end
endmodule
