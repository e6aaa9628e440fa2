#include "detect.h"
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>

static const double MOST_OVERLAP = 0.45;

static double sigmoid(double x) { return 1 / (1 + exp(-x)); }

static box box_of(const float *grid, int classes, int rows, int columns, int cell) {
  int cells = rows * columns, label = 0;
  for (int c = 1; c < classes; c++)
    if (grid[(5 + c) * cells + cell] > grid[(5 + label) * cells + cell]) label = c;
  double share = grid[(5 + label) * cells + cell], object = grid[cell];
  double x = (tanh(grid[cells + cell]) + cell % columns) / columns, width = sigmoid(grid[3 * cells + cell]);
  double y = (tanh(grid[2 * cells + cell]) + cell / columns) / rows, height = sigmoid(grid[4 * cells + cell]);
  double score = pow(object < 0 ? 0 : object, 0.6) * pow(share < 0 ? 0 : share, 0.4);
  return (box){label, score, x - width / 2, y - height / 2, x + width / 2, y + height / 2};
}

static int by_score(const void *first, const void *second) {
  double a = ((const box *)first)->score, b = ((const box *)second)->score;
  return (a < b) - (a > b);
}

static double overlap(const box *a, const box *b) {
  double width = fmin(a->right, b->right) - fmax(a->left, b->left);
  double height = fmin(a->bottom, b->bottom) - fmax(a->top, b->top);
  double both = fmax(0, width) * fmax(0, height);
  double areas = (a->right - a->left) * (a->bottom - a->top) + (b->right - b->left) * (b->bottom - b->top);
  return both / (areas - both);
}

size_t find_boxes(const float *grid, int classes, int rows, int columns, double threshold, box *found) {
  size_t count = 0, kept = 0;
  for (int cell = 0; cell < rows * columns; cell++) {
    box candidate = box_of(grid, classes, rows, columns, cell);
    if (candidate.score >= threshold) found[count++] = candidate;
  }
  qsort(found, count, sizeof *found, by_score);
  for (size_t i = 0; i < count; i++) {
    bool stays = true;
    for (size_t k = 0; k < kept && stays; k++)
      stays = found[k].label != found[i].label || overlap(&found[k], &found[i]) <= MOST_OVERLAP;
    if (stays) found[kept++] = found[i];
  }
  return kept;
}
