#include "draw.h"
#include "font.h"
#include <ctype.h>
#include <string.h>

static const uint8_t red[] = {220, 40, 40}, white[] = {255, 255, 255};

enum { LEAST_WIDTH = 320, ROWS_A_PIXEL = 360 };

picture draw_begin(const picture *image) {
  picture large = picture_enlarge(image, (LEAST_WIDTH + image->width - 1) / image->width);
  if (large.channels == 3) return large;
  picture made = picture_new(large.width, large.height, 3);
  for (size_t i = 0; i < (size_t)large.width * (size_t)large.height; i++) memset(made.pixels + 3 * i, large.pixels[i], 3);
  picture_free(&large);
  return made;
}

static void fill(picture *image, int left, int top, int right, int bottom, const uint8_t colour[3]) {
  for (int y = top < 0 ? 0 : top; y < bottom && y < image->height; y++)
    for (int x = left < 0 ? 0 : left; x < right && x < image->width; x++)
      memcpy(image->pixels + 3 * ((size_t)y * (size_t)image->width + (size_t)x), colour, 3);
}

static int line_width(const picture *image) { return image->height / ROWS_A_PIXEL + 1; }

int draw_text(picture *image, int left, int top, const char *text) {
  int pixel = line_width(image), advance = (GLYPH_WIDTH + 1) * pixel, bottom = top + (GLYPH_HEIGHT + 4) * pixel;
  int width = (int)strlen(text) * advance + 3 * pixel;
  if (left + width > image->width) left = image->width > width ? image->width - width : 0;
  fill(image, left, top, left + width, bottom, red);
  for (int x = left + 2 * pixel; *text; text++, x += advance) {
    int letter = toupper((unsigned char)*text);
    if (letter < FIRST_GLYPH || letter > LAST_GLYPH) letter = '?';
    for (int row = 0; row < GLYPH_HEIGHT; row++)
      for (int column = 0; column < GLYPH_WIDTH; column++)
        if (glyphs[letter - FIRST_GLYPH][row] >> (GLYPH_WIDTH - 1 - column) & 1)
          fill(image, x + column * pixel, top + (row + 2) * pixel, x + (column + 1) * pixel, top + (row + 3) * pixel, white);
  }
  return bottom + pixel;
}

static int on_axis(double share, int extent) {
  return (int)((share < 0 ? 0 : share > 1 ? 1 : share) * (extent - 1));
}

void draw_box(picture *image, const box *found, const char *label) {
  int left = on_axis(found->left, image->width), right = on_axis(found->right, image->width) + 1;
  int top = on_axis(found->top, image->height), bottom = on_axis(found->bottom, image->height) + 1;
  int line = line_width(image);
  fill(image, left, top, right, top + line, red);
  fill(image, left, bottom - line, right, bottom, red);
  fill(image, left, top, left + line, bottom, red);
  fill(image, right - line, top, right, bottom, red);
  draw_text(image, left, top, label);
}
