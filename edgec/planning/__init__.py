"""From the lowered program to the one that is compiled: steps fused and tiled, buffers given their places."""
