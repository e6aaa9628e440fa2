// The windows of a feature out of a line buffer: the engine of sliding_window in edgec_stream.h, square windows.
//
// Words of SIMD channels come pixel by pixel; for every output pixel K * K taps of C / SIMD words go out, FILL for
// taps outside the feature. While a row of windows goes out, the next rows come in.
module edgec_sliding_window #(
    parameter H = 8,
    parameter W = 8,
    parameter C = 4,
    parameter K = 3,
    parameter S = 1,
    parameter P = 1,
    parameter OH = 8,
    parameter OW = 8,
    parameter SIMD = 4,
    parameter FILL = 0,
    parameter STYLE = "block"
) (
    input clk,
    input reset,
    input in_valid,
    output in_ready,
    input [8*SIMD-1:0] in_data,
    output out_valid,
    input out_ready,
    output [8*SIMD-1:0] out_data
);
  localparam FOLDS = C / SIMD;
  localparam ROW = W * FOLDS;
  localparam ROWS = K + S < H ? K + S : (H > K ? H : K);
  localparam SIZE = ROWS * ROW;
  localparam NEEDED = (OH - 1) * S - P + K < H ? (OH - 1) * S - P + K : H;
  localparam FIRST = K - P < H ? K - P : H;
  localparam ABITS = $clog2(SIZE) + 1;
  localparam HBITS = $clog2(H + 2 * K + S + 1) + 1;
  localparam WBITS = $clog2(W + 2 * K + S + 1) + 1;
  localparam FBITS = FOLDS > 1 ? $clog2(FOLDS) : 1;
  localparam TBITS = K > 1 ? $clog2(K) : 1;
  localparam OHBITS = $clog2(OH + 1);
  localparam OWBITS = $clog2(OW + 1);
  localparam PBITS = $clog2(ROW + 1);

  (* ram_style = STYLE *) reg [8*SIMD-1:0] lines[0:SIZE-1];

  // arriving rows: up to the limit of the row of windows that goes out
  reg [HBITS-1:0] loaded, limit;
  reg [PBITS-1:0] load_place;
  reg [ABITS-1:0] load_address;
  wire reading = loaded != limit;
  assign in_ready = reading;
  wire arrive = reading && in_valid;
  wire row_arrives = arrive && load_place == ROW - 1;
  wire keep = loaded < NEEDED;

  // leaving windows
  reg [OHBITS-1:0] oh;
  reg [OWBITS-1:0] ow;
  reg [TBITS-1:0] kh, kw;
  reg [FBITS-1:0] fold;
  reg starting, emitting;
  reg signed [HBITS-1:0] row, first_row;
  reg signed [WBITS-1:0] column, first_column;
  reg [ABITS-1:0] slot, first_slot;
  reg signed [ABITS:0] place, first_place;
  wire covered = row >= 0 && row < H && column >= 0 && column < W;

  reg valid1, covered1;
  reg [8*SIMD-1:0] stored;
  wire move = !valid1 || out_ready;
  wire emit = emitting && move;
  wire last_fold = fold == FOLDS - 1;
  wire last_kw = kw == K - 1;
  wire last_kh = kh == K - 1;
  wire last_ow = ow == OW - 1;
  wire ends = emit && last_fold && last_kw && last_kh && last_ow;
  wire turn = !reading && !emitting && !starting;
  wire [ABITS:0] next_slot = slot + ROW;
  wire [ABITS:0] moved_slot = first_slot + S * ROW;
  assign out_valid = valid1;
  assign out_data = covered1 ? stored : {SIMD{FILL[7:0]}};

  always @(posedge clk) begin
    if (arrive && keep) lines[load_address] <= in_data;
    if (reset) begin
      loaded <= 0;
      load_place <= 0;
      load_address <= 0;
    end else if (turn && oh == OH) begin
      loaded <= 0;
      load_address <= 0;
    end else if (arrive) begin
      load_place <= load_place == ROW - 1 ? {PBITS{1'b0}} : load_place + 1'b1;
      load_address <= load_address == SIZE - 1 ? {ABITS{1'b0}} : load_address + 1'b1;
      if (row_arrives) loaded <= loaded + 1'b1;
    end
  end

  wire [ABITS-1:0] address = slot + place;
  always @(posedge clk) begin
    if (move) begin
      stored <= lines[address];
      covered1 <= covered;
      valid1 <= emitting;
    end
    if (reset) valid1 <= 0;
  end

  // the next row of windows: until it has gone out, what the row after it needs may come, or the rest of the feature
  localparam signed [HBITS-1:0] BEFORE = -P;
  always @(posedge clk) begin
    starting <= turn && oh != OH && !reset;
    if (reset || (turn && oh == OH)) begin
      oh <= 0;
      limit <= FIRST;
      first_row <= BEFORE;
      first_slot <= P % ROWS == 0 ? 0 : (ROWS - P % ROWS) * ROW;
    end else if (turn) begin
      oh <= oh + 1'b1;
      limit <= oh + 1 == OH || (oh + 1) * S - P + K > H ? H : (oh + 1) * S - P + K;
      if (oh != 0) begin
        first_row <= first_row + S;
        first_slot <= moved_slot >= SIZE ? moved_slot - SIZE : moved_slot;
      end
    end
    if (reset) emitting <= 0;
    else emitting <= starting || (emitting && !ends);
  end

  always @(posedge clk) begin
    if (starting) begin
      {ow, kh, kw, fold} <= 0;
      row <= first_row;
      slot <= first_slot;
      column <= -P;
      first_column <= -P;
      place <= -P * FOLDS;
      first_place <= -P * FOLDS;
    end
    if (emit) begin
      fold <= last_fold ? {FBITS{1'b0}} : fold + 1'b1;
      place <= place + 1'b1;
      if (last_fold) begin
        kw <= last_kw ? {TBITS{1'b0}} : kw + 1'b1;
        column <= last_kw ? first_column : column + 1'b1;
        if (last_kw) begin
          place <= first_place;
          kh <= last_kh ? {TBITS{1'b0}} : kh + 1'b1;
          row <= last_kh ? first_row : row + 1'b1;
          slot <= last_kh ? first_slot : next_slot >= SIZE ? next_slot - SIZE : next_slot;
          if (last_kh) begin
            ow <= ow + 1'b1;
            column <= first_column + S;
            first_column <= first_column + S;
            place <= first_place + S * FOLDS;
            first_place <= first_place + S * FOLDS;
          end
        end
      end
    end
  end
endmodule
