/* Results on pictures, in white on red. */
#ifndef DRAW_H
#define DRAW_H

#include "detect.h"
#include "picture.h"

/* A copy that can be drawn on: in colour, and enlarged until it is at least 320 pixels wide. */
picture draw_begin(const picture *image);

/* Write `text` with its corner at (left, top), in capitals; answers where the next line begins. */
int draw_text(picture *image, int left, int top, const char *text);

/* A frame around `found`, and its label. */
void draw_box(picture *image, const box *found, const char *label);

#endif
