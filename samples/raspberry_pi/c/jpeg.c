/* JPEG files through libjpeg, where CMake finds it. */
#include "picture.h"

#ifdef WITH_JPEG
#include <errno.h>
#include <string.h>
#include <jpeglib.h>

static const char *reading;

__attribute__((noreturn)) static void fail(j_common_ptr state) {
  char message[JMSG_LENGTH_MAX];
  state->err->format_message(state, message);
  quit("'%s' cannot be read: %s", reading, message);
}

picture jpeg_read(const char *path) {
  struct jpeg_decompress_struct state;
  struct jpeg_error_mgr errors;
  FILE *file = fopen(path, "rb");
  if (!file) quit("'%s' cannot be read: %s", path, strerror(errno));
  reading = path;
  state.err = jpeg_std_error(&errors);
  errors.error_exit = fail;
  jpeg_create_decompress(&state);
  jpeg_stdio_src(&state, file);
  jpeg_read_header(&state, TRUE);
  state.out_color_space = JCS_RGB;
  jpeg_start_decompress(&state);
  picture image = picture_new((int)state.output_width, (int)state.output_height, 3);
  while (state.output_scanline < state.output_height) {
    JSAMPROW row = image.pixels + (size_t)state.output_scanline * (size_t)image.width * 3;
    jpeg_read_scanlines(&state, &row, 1);
  }
  jpeg_finish_decompress(&state);
  jpeg_destroy_decompress(&state);
  fclose(file);
  return image;
}

void jpeg_write(const picture *image, FILE *stream) {
  struct jpeg_compress_struct state;
  struct jpeg_error_mgr errors;
  state.err = jpeg_std_error(&errors);
  jpeg_create_compress(&state);
  jpeg_stdio_dest(&state, stream);
  state.image_width = (JDIMENSION)image->width;
  state.image_height = (JDIMENSION)image->height;
  state.input_components = image->channels;
  state.in_color_space = image->channels == 3 ? JCS_RGB : JCS_GRAYSCALE;
  jpeg_set_defaults(&state);
  jpeg_set_quality(&state, 90, TRUE);
  jpeg_start_compress(&state, TRUE);
  while (state.next_scanline < state.image_height) {
    JSAMPROW row = image->pixels + (size_t)state.next_scanline * (size_t)image->width * (size_t)image->channels;
    jpeg_write_scanlines(&state, &row, 1);
  }
  jpeg_finish_compress(&state);
  jpeg_destroy_compress(&state);
}

#else

picture jpeg_read(const char *path) {
  quit("'%s' needs libjpeg, which was not there when this was built; apt-get install libjpeg-dev and build again, or "
       "give a .ppm file", path);
}

void jpeg_write(const picture *image, FILE *stream) {
  (void)image, (void)stream;
  quit("JPEG files need libjpeg, which was not there when this was built; apt-get install libjpeg-dev and build again, "
       "or write a .ppm file");
}

#endif
