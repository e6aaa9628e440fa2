/* How pictures become inputs: the TOML file that `edgec compile` and `edgec eval` take as --preprocess. */
#ifndef RECIPE_H
#define RECIPE_H

#include "picture.h"

typedef struct recipe {
  bool channels_last, bgr;
  int shorter;                     /* side after resizing, 0: `resize` says it */
  int resize_height, resize_width; /* 0: not resized */
  int crop_height, crop_width;     /* 0: not cropped */
  float mean[3], scale[3];
} recipe;

recipe recipe_read(const char *path);

/* Write `image` as the input of shape [1, C, H, W] or [1, H, W, C]: (pixel − mean) · scale. */
void recipe_apply(const recipe *how, const picture *image, const int64_t shape[4], float *input);

#endif
