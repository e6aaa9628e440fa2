"""What an artifact's file consists of: descriptor, manifest, coded weights, test vectors, signature."""
