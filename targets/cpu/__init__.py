"""CPUs: x86-64 and ARM. A kernel contract goes in, a planned kernel with its packed weights comes out."""
