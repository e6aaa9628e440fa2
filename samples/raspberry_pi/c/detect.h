/* Boxes from the output of FastestDet (https://github.com/dog-qiuqiu/FastestDet) and detectors of its shape. */
#ifndef DETECT_H
#define DETECT_H

#include <stddef.h>

/* An object; left, top, right and bottom are shares of the picture's width and height. */
typedef struct box {
  int label;
  double score, left, top, right, bottom;
} box;

/* The boxes that score at least `threshold`, best first; answers how many.
 *
 * `grid` is [5 + classes, rows, columns]: for every cell how sure it is of an object, the centre's offset in cells
 * (through tanh), width and height as a share of the picture (through a sigmoid), and the share of each class. A cell's
 * score is objectness^0.6 · class^0.4. Of boxes of one class that overlap by more than 0.45 (intersection over union)
 * only the best stays. `found` has room for rows · columns boxes. */
size_t find_boxes(const float *grid, int classes, int rows, int columns, double threshold, box *found);

#endif
