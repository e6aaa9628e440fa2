/* Pictures in memory, and in PNM and JPEG files. What fails prints a sentence and ends the program. */
#ifndef PICTURE_H
#define PICTURE_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

/* Rows of pixels from the top, each of 1 (grey) or 3 (red, green, blue) bytes. */
typedef struct picture {
  int width, height, channels;
  uint8_t *pixels;
} picture;

__attribute__((noreturn, format(printf, 1, 2))) void quit(const char *format, ...);
void *allocate(size_t bytes);

picture picture_new(int width, int height, int channels);
void picture_free(picture *image);

/* A .ppm, .pgm (binary) or, where built with libjpeg, a .jpg file. */
picture picture_read(const char *path);

/* A .ppm or .jpg file, which appears under its name when it is complete. */
void picture_write(const picture *image, const char *path);

/* The next frame of planar YUV 4:2:0 (BT.601, video range), as rpicam-vid --codec yuv420 writes it, as RGB; false at
 * the end of the stream. Both sides are even. */
bool picture_read_yuv420(FILE *stream, picture *image);

/* Grey as (19595 R + 38470 G + 7471 B + 32768) >> 16. */
picture picture_grey(const picture *image);

/* Bilinear, over the whole area that a smaller picture's pixel covers: first the width, then the height; to the bit
 * what Pillow's resize gives for one after the other. */
picture picture_resize(const picture *image, int width, int height);

picture picture_crop(const picture *image, int left, int top, int width, int height);

/* Each pixel `factor` times in both directions. */
picture picture_enlarge(const picture *image, int factor);

/* jpeg.c */
picture jpeg_read(const char *path);
void jpeg_write(const picture *image, FILE *stream);

#endif
