// Feeds an engine with COUNT words from a file, now and then pausing on both sides, and prints the RESULTS words that
// it answers with. ENGINE and its parameters are macros, so that one bench serves all.
`timescale 1ns / 1ps
module testbench;
  reg clk = 0, reset = 1;
  reg [`IN_BITS-1:0] inputs[0:`COUNT-1];
  reg [`IN_BITS-1:0] in_data = 0;
  reg in_valid = 0, out_ready = 0;
  wire in_ready, out_valid;
  wire [`OUT_BITS-1:0] out_data;
  reg [15:0] random = 16'hace1;
  integer sent = 0, received = 0, cycles = 0;

  `ENGINE #(`PARAMETERS) engine (
      .clk(clk), .reset(reset), .in_valid(in_valid), .in_ready(in_ready), .in_data(in_data), .out_valid(out_valid),
      .out_ready(out_ready), .out_data(out_data)
  );

  initial $readmemh(`INPUTS, inputs);
  always #5 clk = !clk;
  initial begin
    repeat (3) @(negedge clk);
    reset = 0;
    while (received < `RESULTS && cycles < `LIMIT) begin
      random = {random[14:0], random[15] ^ random[13] ^ random[12] ^ random[10]};
      in_valid = sent < `COUNT && (`PAUSES == 0 || random[1:0] != 0);
      in_data = in_valid ? inputs[sent] : 0;
      out_ready = `PAUSES == 0 || random[4:3] != 0;
      #1;
      if (in_valid && in_ready) sent = sent + 1;
      if (out_valid && out_ready) begin
        $display("%h", out_data);
        received = received + 1;
      end
      cycles = cycles + 1;
      @(negedge clk);
    end
    $display("cycles %0d", cycles);
    $finish;
  end
endmodule
