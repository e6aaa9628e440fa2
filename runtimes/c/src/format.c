/* The part of printf that the library's sentences need: %s %u %x %llu %p %%.
 *
 * A microcontroller's printf takes more flash than the whole library, and its small variant has no %llu.
 */
#include "internal.h"

#include <stdarg.h>

typedef struct writer {
  char *text;
  size_t bytes, used;
} writer;

static void put(writer *to, char c) {
  if (to->used + 1 < to->bytes) to->text[to->used++] = c;
}

static void put_text(writer *to, const char *text) {
  while (*text) put(to, *text++);
}

static void put_number(writer *to, unsigned long long value, unsigned base) {
  char digits[24];
  unsigned count = 0;
  do {
    digits[count++] = "0123456789abcdef"[value % base];
    value /= base;
  } while (value);
  while (count) put(to, digits[--count]);
}

/* Writes the conversion that stands at `format` (after its %), and answers with what follows it. */
static const char *convert(writer *to, const char *format, va_list *arguments) {
  const char *text;
  switch (*format) {
    case 's':
      text = va_arg(*arguments, const char *);
      put_text(to, text ? text : "(null)");
      break;
    case 'u': put_number(to, va_arg(*arguments, unsigned), 10); break;
    case 'x': put_number(to, va_arg(*arguments, unsigned), 16); break;
    case 'l': /* %llu: nothing else with an l is used */
      put_number(to, va_arg(*arguments, unsigned long long), 10);
      return format + 3;
    case 'p':
      put_text(to, "0x");
      put_number(to, (uintptr_t)va_arg(*arguments, void *), 16);
      break;
    default: put(to, *format);
  }
  return format + 1;
}

size_t edgert_vformat(char *text, size_t bytes, const char *format, va_list *arguments) {
  writer to = {text, bytes, 0};
  while (*format) {
    if (*format == '%')
      format = convert(&to, format + 1, arguments);
    else
      put(&to, *format++);
  }
  if (bytes) text[to.used] = '\0';
  return to.used;
}

size_t edgert_format(char *text, size_t bytes, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  size_t used = edgert_vformat(text, bytes, format, &arguments);
  va_end(arguments);
  return used;
}
