"""Models as TensorFlow Lite files, for LiteRT and what else reads them."""
