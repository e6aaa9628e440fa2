/* edgert-vision: names what a camera or picture files show, or finds objects in them.
 *
 *   edgert-vision MODEL.so --preprocess RECIPE.toml [--labels LABELS.txt] [--detect] [--threshold 0.65]
 *                 [--output PATH] [--threads N] (--yuv420 WIDTHxHEIGHT | PICTURE ...)
 *
 * MODEL.so is what `edgec compile` wrote, RECIPE.toml what `edgec eval --preprocess` reads. Pictures are .ppm, .pgm and,
 * with libjpeg, .jpg files. --yuv420 reads a camera's raw frames from standard input:
 *
 *   rpicam-vid -t 0 -n --codec yuv420 --width 640 --height 480 -o - | edgert-vision ... --yuv420 640x480
 *
 * Prints a line a picture, with the time of preparing and of inference, and at the end frames per second. --output is a
 * folder that gets a drawn NAME_seen.ppm for each picture file, or the file that each frame of the camera replaces.
 */
#define _POSIX_C_SOURCE 200809L
#include "detect.h"
#include "draw.h"
#include "recipe.h"
#include <edgert/edgert.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

enum { BEST = 3, TEXT_BYTES = 256 };

typedef struct options {
  const char *model, *preprocess, *labels, *output;
  double threshold;
  unsigned threads;
  int width, height; /* of the camera's frames; 0: files */
  bool detect;
  char **pictures;
  int picture_count;
} options;

typedef struct watcher {
  options given;
  recipe how;
  char **labels;
  int label_count;
  edgert_session *session;
} watcher;

/* ---- command line ---- */

static void parse_size(const char *text, int *width, int *height) {
  char rest;
  if (sscanf(text, "%dx%d%c", width, height, &rest) != 2 || *width < 2 || *height < 2 || *width % 2 || *height % 2)
    quit("--yuv420 needs WIDTHxHEIGHT, both even, not '%s'", text);
}

static void parse_flag(options *given, const char *flag, const char *value) {
  if (!value) quit("%s needs a value", flag);
  if (strcmp(flag, "--preprocess") == 0) given->preprocess = value;
  else if (strcmp(flag, "--labels") == 0) given->labels = value;
  else if (strcmp(flag, "--output") == 0) given->output = value;
  else if (strcmp(flag, "--threshold") == 0) given->threshold = strtod(value, NULL);
  else if (strcmp(flag, "--threads") == 0) given->threads = (unsigned)strtoul(value, NULL, 10);
  else if (strcmp(flag, "--yuv420") == 0) parse_size(value, &given->width, &given->height);
  else quit("unknown flag %s; the flags are --preprocess --labels --detect --threshold --output --threads --yuv420", flag);
}

static options parse(int argc, char **argv) {
  options given = {.threshold = 0.65, .threads = 1, .pictures = allocate((size_t)argc * sizeof(char *))};
  for (int i = 1; i < argc; i++) {
    if (strcmp(argv[i], "--detect") == 0) given.detect = true;
    else if (strncmp(argv[i], "--", 2) == 0) parse_flag(&given, argv[i], i + 1 < argc ? argv[i + 1] : NULL), i++;
    else if (!given.model) given.model = argv[i];
    else given.pictures[given.picture_count++] = argv[i];
  }
  if (!given.model || !given.preprocess || (given.width == 0) == (given.picture_count == 0))
    quit("usage: edgert-vision MODEL.so --preprocess RECIPE.toml [--labels LABELS.txt] [--detect] [--threshold SCORE] "
         "[--output PATH] [--threads N] (--yuv420 WIDTHxHEIGHT | PICTURE ...)");
  return given;
}

/* ---- the model ---- */

static void require(edgert_status status) {
  if (status != EDGERT_OK) quit("%s", edgert_last_error());
}

static void read_labels(watcher *self, const char *path) {
  char line[TEXT_BYTES];
  FILE *file = fopen(path, "r");
  if (!file) quit("'%s' cannot be read: %s", path, strerror(errno));
  while (fgets(line, sizeof line, file)) {
    line[strcspn(line, "\r\n")] = '\0';
    self->labels = realloc(self->labels, (size_t)(self->label_count + 1) * sizeof *self->labels);
    if (!self->labels || !(self->labels[self->label_count++] = strdup(line))) quit("out of memory");
  }
  fclose(file);
}

static void check_tensors(const watcher *self) {
  const edgert_tensor *input = edgert_input(self->session, 0), *output = edgert_output(self->session, 0);
  if (edgert_input_count(self->session) != 1 || !input || input->rank != 4 || input->dtype != EDGERT_FLOAT32)
    quit("'%s' takes no picture of float32", self->given.model);
  if (!output || output->dtype != EDGERT_FLOAT32) quit("'%s' gives no float32", self->given.model);
  if (self->given.detect && (output->rank != 4 || output->shape[1] < 6))
    quit("--detect needs an output [1, 5 + classes, rows, columns], which '%s' has not", self->given.model);
}

static watcher watcher_open(const options *given) {
  watcher self = {.given = *given, .how = recipe_read(given->preprocess)};
  edgert_options how = EDGERT_OPTIONS_DEFAULT;
  how.threads = given->threads;
  if (given->labels) read_labels(&self, given->labels);
  require(edgert_open(given->model, &how, &self.session));
  check_tensors(&self);
  return self;
}

static void watcher_close(watcher *self) {
  edgert_close(self->session);
  for (int i = 0; i < self->label_count; i++) free(self->labels[i]);
  free(self->labels);
  free(self->given.pictures);
}

static void name(const watcher *self, int label, double score, const char *format, char text[TEXT_BYTES]) {
  char shown[32];
  snprintf(shown, sizeof shown, format, score);
  if (label < self->label_count) snprintf(text, TEXT_BYTES, "%s %s", self->labels[label], shown);
  else snprintf(text, TEXT_BYTES, "%d %s", label, shown);
}

/* ---- results ---- */

static void tell_boxes(const watcher *self, const float *output, picture *drawn) {
  const int64_t *shape = edgert_output(self->session, 0)->shape;
  char text[TEXT_BYTES];
  box *found = allocate((size_t)(shape[2] * shape[3]) * sizeof *found);
  size_t count = find_boxes(output, (int)shape[1] - 5, (int)shape[2], (int)shape[3], self->given.threshold, found);
  for (size_t i = 0; i < count; i++) {
    const box *b = &found[i];
    name(self, b->label, b->score, "%.2f", text);
    printf("%s%s at %.3f %.3f %.3f %.3f", i ? "; " : "", text, b->left, b->top, b->right, b->bottom);
    if (drawn) draw_box(drawn, b, text);
  }
  if (!count) printf("nothing");
  free(found);
}

/* The shares of the classes; logits go through a softmax. */
static void to_shares(const float *output, size_t count, double *shares) {
  double least = output[0], largest = output[0], sum = 0;
  for (size_t i = 0; i < count; i++) {
    least = fmin(least, output[i]);
    largest = fmax(largest, output[i]);
    sum += shares[i] = output[i];
  }
  if (least >= 0 && fabs(sum - 1) < 1e-3) return;
  sum = 0;
  for (size_t i = 0; i < count; i++) sum += shares[i] = exp(output[i] - largest);
  for (size_t i = 0; i < count; i++) shares[i] /= sum;
}

static void tell_classes(const watcher *self, const float *output, picture *drawn) {
  size_t count = (size_t)edgert_output(self->session, 0)->bytes / sizeof(float);
  char text[TEXT_BYTES];
  double *shares = allocate(count * sizeof *shares);
  int top = 0;
  to_shares(output, count, shares);
  for (int place = 0; place < BEST && place < (int)count; place++) {
    size_t best = 0;
    for (size_t i = 1; i < count; i++)
      if (shares[i] > shares[best]) best = i;
    name(self, (int)best, shares[best], "%.4f", text);
    printf("%s%s", place ? "; " : "", text);
    if (drawn) top = draw_text(drawn, 0, top, text);
    shares[best] = -1;
  }
  free(shares);
}

static double now_ms(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return 1e3 * (double)now.tv_sec + 1e-6 * (double)now.tv_nsec;
}

/* Run the model on a picture, tell what it found, and draw it into the file `path`, if there is one. */
static void look(const watcher *self, const char *title, const picture *image, const char *path) {
  double start = now_ms();
  recipe_apply(&self->how, image, edgert_input(self->session, 0)->shape, edgert_input_data(self->session, 0));
  double prepared = now_ms();
  require(edgert_run(self->session));
  double done = now_ms();
  picture drawn = {0};
  if (path) drawn = draw_begin(image);
  printf("%s: ", title);
  (self->given.detect ? tell_boxes : tell_classes)(self, edgert_output_data(self->session, 0), path ? &drawn : NULL);
  printf(" (prepared in %.2f ms, inferred in %.2f ms)\n", prepared - start, done - prepared);
  fflush(stdout);
  if (path) picture_write(&drawn, path);
  picture_free(&drawn);
}

static int look_at_files(const watcher *self) {
  const char *folder = self->given.output;
  if (folder && mkdir(folder, 0777) != 0 && errno != EEXIST)
    quit("the folder '%s' cannot be made: %s", folder, strerror(errno));
  for (int i = 0; i < self->given.picture_count; i++) {
    const char *path = self->given.pictures[i], *slash = strrchr(path, '/'), *title = slash ? slash + 1 : path;
    size_t bytes = (self->given.output ? strlen(self->given.output) : 0) + strlen(title) + sizeof "/_seen.ppm";
    char *output = allocate(bytes);
    int stem = (int)(strrchr(title, '.') ? strrchr(title, '.') - title : (long)strlen(title));
    picture image = picture_read(path);
    if (self->given.output) snprintf(output, bytes, "%s/%.*s_seen.ppm", self->given.output, stem, title);
    look(self, title, &image, self->given.output ? output : NULL);
    picture_free(&image);
    free(output);
  }
  return self->given.picture_count;
}

static int look_at_stream(const watcher *self) {
  picture frame = picture_new(self->given.width, self->given.height, 3);
  int count = 0;
  char title[32];
  while (picture_read_yuv420(stdin, &frame)) {
    snprintf(title, sizeof title, "frame %d", count++);
    look(self, title, &frame, self->given.output);
  }
  picture_free(&frame);
  return count;
}

int main(int argc, char **argv) {
  options given = parse(argc, argv);
  watcher self = watcher_open(&given);
  double start = now_ms();
  int count = given.width ? look_at_stream(&self) : look_at_files(&self);
  printf("%d pictures, %.1f frames/s\n", count, 1e3 * count / (now_ms() - start));
  watcher_close(&self);
  return 0;
}
