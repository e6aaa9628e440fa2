#include "picture.h"
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum { MOST_PIXELS = 1 << 28 };

void quit(const char *format, ...) {
  va_list arguments;
  fputs("edgert-vision: ", stderr);
  va_start(arguments, format);
  vfprintf(stderr, format, arguments);
  va_end(arguments);
  fputc('\n', stderr);
  exit(2);
}

void *allocate(size_t bytes) {
  void *memory = malloc(bytes ? bytes : 1);
  if (!memory) quit("out of memory");
  return memory;
}

picture picture_new(int width, int height, int channels) {
  if (width < 1 || height < 1 || width > MOST_PIXELS / height) quit("a picture of %d×%d pixels cannot be", width, height);
  return (picture){width, height, channels, allocate((size_t)width * (size_t)height * (size_t)channels)};
}

void picture_free(picture *image) {
  free(image->pixels);
  image->pixels = NULL;
}

static size_t byte_count(const picture *image) {
  return (size_t)image->width * (size_t)image->height * (size_t)image->channels;
}

/* ---- files ---- */

static bool ends_in(const char *path, const char *suffix) {
  size_t length = strlen(path), wanted = strlen(suffix);
  return length >= wanted && strcasecmp(path + length - wanted, suffix) == 0;
}

static bool is_jpeg(const char *path) { return ends_in(path, ".jpg") || ends_in(path, ".jpeg"); }

/* The next number of a PNM header, behind white space and comments. */
static int header_number(FILE *file, const char *path) {
  int c = fgetc(file), value = 0;
  while (c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '#') {
    if (c == '#')
      while (c != '\n' && c != EOF) c = fgetc(file);
    c = fgetc(file);
  }
  if (c < '0' || c > '9') quit("'%s' has a damaged header", path);
  for (; c >= '0' && c <= '9' && value < 1 << 20; c = fgetc(file)) value = 10 * value + c - '0';
  return value;
}

picture picture_read(const char *path) {
  if (is_jpeg(path)) return jpeg_read(path);
  FILE *file = fopen(path, "rb");
  if (!file) quit("'%s' cannot be read: %s", path, strerror(errno));
  int magic = fgetc(file) << 8;
  magic |= fgetc(file);
  if (magic != ('P' << 8 | '5') && magic != ('P' << 8 | '6')) quit("'%s' is no binary PPM, PGM or JPEG file", path);
  int width = header_number(file, path), height = header_number(file, path);
  if (header_number(file, path) != 255) quit("'%s' has not 8 bits a sample", path);
  picture image = picture_new(width, height, magic == ('P' << 8 | '6') ? 3 : 1);
  if (fread(image.pixels, 1, byte_count(&image), file) != byte_count(&image)) quit("'%s' is cut off", path);
  fclose(file);
  return image;
}

void picture_write(const picture *image, const char *path) {
  size_t bytes = strlen(path) + sizeof ".part";
  char *part = allocate(bytes);
  snprintf(part, bytes, "%s.part", path);
  FILE *file = fopen(part, "wb");
  if (!file) quit("'%s' cannot be written: %s", part, strerror(errno));
  if (is_jpeg(path)) {
    jpeg_write(image, file);
  } else {
    fprintf(file, "P%d\n%d %d\n255\n", image->channels == 3 ? 6 : 5, image->width, image->height);
    fwrite(image->pixels, 1, byte_count(image), file);
  }
  bool failed = ferror(file) != 0;
  if (fclose(file) != 0 || failed || rename(part, path) != 0) {
    remove(part);
    quit("'%s' cannot be written: %s", path, strerror(errno));
  }
  free(part);
}

static uint8_t clamp(int value) { return (uint8_t)(value < 0 ? 0 : value > 255 ? 255 : value); }

bool picture_read_yuv420(FILE *stream, picture *image) {
  size_t pixels = (size_t)image->width * (size_t)image->height, bytes = pixels * 3 / 2;
  uint8_t *frame = allocate(bytes);
  bool complete = fread(frame, 1, bytes, stream) == bytes;
  for (int y = 0; complete && y < image->height; y++) {
    for (int x = 0; x < image->width; x++) {
      size_t chroma = (size_t)(y / 2) * (size_t)(image->width / 2) + (size_t)(x / 2);
      int luma = 298 * (frame[(size_t)y * (size_t)image->width + (size_t)x] - 16) + 128;
      int u = frame[pixels + chroma] - 128, v = frame[pixels + pixels / 4 + chroma] - 128;
      uint8_t *pixel = image->pixels + 3 * ((size_t)y * (size_t)image->width + (size_t)x);
      pixel[0] = clamp((luma + 409 * v) >> 8);
      pixel[1] = clamp((luma - 100 * u - 208 * v) >> 8);
      pixel[2] = clamp((luma + 516 * u) >> 8);
    }
  }
  free(frame);
  return complete;
}

/* ---- geometry ---- */

picture picture_grey(const picture *image) {
  picture grey = picture_new(image->width, image->height, 1);
  size_t count = byte_count(&grey);
  if (image->channels == 1) {
    memcpy(grey.pixels, image->pixels, count);
    return grey;
  }
  for (size_t i = 0; i < count; i++) {
    const uint8_t *rgb = image->pixels + 3 * i;
    grey.pixels[i] = (uint8_t)((19595u * rgb[0] + 38470u * rgb[1] + 7471u * rgb[2] + 32768u) >> 16);
  }
  return grey;
}

enum { WEIGHT_BITS = 22 };

/* For each place on an axis of the result: where on the source it begins to read, how many pixels, and their weights
 * in fixed point. */
typedef struct weights {
  int taps, *first, *count, *values;
} weights;

static weights weights_new(int source, int result) {
  double scale = (double)source / result, stretch = scale < 1 ? 1 : scale;
  weights made = {.taps = (int)ceil(stretch) * 2 + 1};
  made.first = allocate((size_t)result * sizeof(int));
  made.count = allocate((size_t)result * sizeof(int));
  made.values = allocate((size_t)result * (size_t)made.taps * sizeof(int));
  double *shares = allocate((size_t)made.taps * sizeof(double));
  for (int i = 0; i < result; i++) {
    double centre = (i + 0.5) * scale, sum = 0;
    int first = (int)(centre - stretch + 0.5), end = (int)(centre + stretch + 0.5);
    first = first < 0 ? 0 : first;
    end = end > source ? source : end;
    for (int k = 0; k < end - first; k++) {
      double distance = fabs((k + first - centre + 0.5) * (1 / stretch));
      shares[k] = distance < 1 ? 1 - distance : 0;
      sum += shares[k];
    }
    for (int k = 0; k < end - first; k++)
      made.values[i * made.taps + k] = (int)(0.5 + shares[k] / sum * (1 << WEIGHT_BITS));
    made.first[i] = first;
    made.count[i] = end - first;
  }
  free(shares);
  return made;
}

static void weights_free(weights *given) {
  free(given->first);
  free(given->count);
  free(given->values);
}

/* Resize one axis: `steps` are the bytes from pixel to pixel along it, in the source and in the result. */
static void resize_line(const uint8_t *source, size_t source_step, uint8_t *result, size_t result_step, int length,
                        const weights *by) {
  for (int i = 0; i < length; i++) {
    const int *values = by->values + i * by->taps;
    const uint8_t *from = source + (size_t)by->first[i] * source_step;
    int sum = 1 << (WEIGHT_BITS - 1);
    for (int k = 0; k < by->count[i]; k++) sum += values[k] * from[(size_t)k * source_step];
    result[(size_t)i * result_step] = clamp(sum >> WEIGHT_BITS);
  }
}

picture picture_resize(const picture *image, int width, int height) {
  picture wide = picture_new(width, image->height, image->channels), made = picture_new(width, height, image->channels);
  weights across = weights_new(image->width, width), down = weights_new(image->height, height);
  size_t channels = (size_t)image->channels, row = (size_t)width * channels;
  for (int y = 0; y < image->height; y++)
    for (size_t c = 0; c < channels; c++)
      resize_line(image->pixels + (size_t)y * (size_t)image->width * channels + c, channels,
                  wide.pixels + (size_t)y * row + c, channels, width, &across);
  for (size_t x = 0; x < row; x++) resize_line(wide.pixels + x, row, made.pixels + x, row, height, &down);
  weights_free(&across);
  weights_free(&down);
  picture_free(&wide);
  return made;
}

picture picture_crop(const picture *image, int left, int top, int width, int height) {
  picture made = picture_new(width, height, image->channels);
  size_t row = (size_t)width * (size_t)image->channels;
  for (int y = 0; y < height; y++) {
    size_t offset = (size_t)(y + top) * (size_t)image->width + (size_t)left;
    memcpy(made.pixels + (size_t)y * row, image->pixels + offset * (size_t)image->channels, row);
  }
  return made;
}

picture picture_enlarge(const picture *image, int factor) {
  picture made = picture_new(image->width * factor, image->height * factor, image->channels);
  size_t channels = (size_t)image->channels;
  for (int y = 0; y < made.height; y++)
    for (int x = 0; x < made.width; x++)
      memcpy(made.pixels + ((size_t)y * (size_t)made.width + (size_t)x) * channels,
             image->pixels + ((size_t)(y / factor) * (size_t)image->width + (size_t)(x / factor)) * channels, channels);
  return made;
}
