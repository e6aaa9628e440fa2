/* Reads the part of TOML that recipes use: lines of KEY = "text", KEY = number, KEY = [number, ...], and comments. */
#include "recipe.h"
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { LINE_BYTES = 512 };

/* The one or up to three numbers of a value; answers how many. */
static int numbers(const char *path, const char *key, char *text, float found[3]) {
  int count = 0;
  bool is_list = *text == '[';
  for (char *place = is_list ? text + 1 : text; count < 3;) {
    char *end;
    found[count] = strtof(place, &end);
    if (end == place) break;
    count++;
    place = end + strspn(end, " \t");
    if (!is_list || *place != ',') break;
    place++;
  }
  if (count == 0) quit("'%s' has no number for %s", path, key);
  return count;
}

static void set_sizes(const char *path, const char *key, char *text, int *height, int *width) {
  float sides[3];
  int count = numbers(path, key, text, sides);
  *height = (int)sides[0];
  *width = (int)sides[count > 1];
  if (*height < 1 || *width < 1) quit("'%s' has a size for %s that is not positive", path, key);
}

static void set_channels(const char *path, const char *key, char *text, float channels[3]) {
  if (numbers(path, key, text, channels) == 1) channels[1] = channels[2] = channels[0];
}

static void set(recipe *how, const char *path, const char *key, char *text) {
  if (strcmp(key, "layout") == 0) {
    how->channels_last = strncmp(text, "\"NHWC\"", 6) == 0;
  } else if (strcmp(key, "order") == 0) {
    how->bgr = strncmp(text, "\"bgr\"", 5) == 0;
  } else if (strcmp(key, "resize") == 0) {
    set_sizes(path, key, text, &how->resize_height, &how->resize_width);
    how->shorter = *text == '[' ? 0 : how->resize_height;
  } else if (strcmp(key, "crop") == 0) {
    set_sizes(path, key, text, &how->crop_height, &how->crop_width);
  } else if (strcmp(key, "mean") == 0) {
    set_channels(path, key, text, how->mean);
  } else if (strcmp(key, "scale") == 0) {
    set_channels(path, key, text, how->scale);
  } else {
    quit("'%s' has a key '%s'; the keys are layout, order, resize, crop, mean, scale", path, key);
  }
}

recipe recipe_read(const char *path) {
  recipe how = {.scale = {1, 1, 1}};
  char line[LINE_BYTES];
  FILE *file = fopen(path, "r");
  if (!file) quit("'%s' cannot be read: %s", path, strerror(errno));
  while (fgets(line, sizeof line, file)) {
    char *key = line + strspn(line, " \t\r\n");
    if (*key == '#' || *key == '\0') continue;
    char *sign = strchr(key, '=');
    if (!sign) quit("'%s' has a line that is not KEY = VALUE: %s", path, key);
    key[strcspn(key, " \t=")] = '\0';
    set(&how, path, key, sign + 1 + strspn(sign + 1, " \t"));
  }
  fclose(file);
  return how;
}

static int larger(int a, int b) { return a > b ? a : b; }

/* The picture as the model sees it, before its numbers are changed. */
static picture sized(const recipe *how, const picture *image, int channels) {
  picture now = channels == 1 ? picture_grey(image) : picture_crop(image, 0, 0, image->width, image->height);
  int height = how->resize_height, width = how->resize_width;
  if (how->shorter) {
    double factor = (double)how->shorter / (now.width < now.height ? now.width : now.height);
    height = larger(how->shorter, (int)rint(now.height * factor));
    width = larger(how->shorter, (int)rint(now.width * factor));
  }
  if (height) {
    picture resized = picture_resize(&now, width, height);
    picture_free(&now);
    now = resized;
  }
  if (how->crop_height) {
    int left = (now.width - how->crop_width) / 2, top = (now.height - how->crop_height) / 2;
    if (now.width < how->crop_width || now.height < how->crop_height) quit("a picture is smaller than the recipe's crop");
    picture cropped = picture_crop(&now, left, top, how->crop_width, how->crop_height);
    picture_free(&now);
    now = cropped;
  }
  return now;
}

void recipe_apply(const recipe *how, const picture *image, const int64_t shape[4], float *input) {
  int channels = (int)shape[how->channels_last ? 3 : 1];
  if (channels != 1 && (channels != 3 || image->channels != 3)) quit("the model takes %d channels", channels);
  picture now = sized(how, image, channels);
  if (now.height != shape[how->channels_last ? 1 : 2] || now.width != shape[how->channels_last ? 2 : 3])
    quit("the recipe makes a picture of %d×%d pixels, and the model takes another size", now.width, now.height);
  size_t pixels = (size_t)now.width * (size_t)now.height, depth = (size_t)channels;
  for (size_t i = 0; i < pixels; i++) {
    for (size_t c = 0; c < depth; c++) {
      float value = now.pixels[i * depth + (how->bgr ? depth - 1 - c : c)];
      input[how->channels_last ? i * depth + c : c * pixels + i] = (value - how->mean[c]) * how->scale[c];
    }
  }
  picture_free(&now);
}
