/* edgert-run: runs an artifact on samples from a file; what `edgec run --device` starts on a device.
 *
 *   edgert-run MODEL.so --inputs FILE.bin --outputs FILE.bin [--count K] [--threads N] [--pin]
 *              [--warmup N] [--repeat N] [--profile FILE.json] [--no-steps] [--width BITS]
 *
 * FILE.bin holds K samples one after the other, each the dense inputs (or outputs) in the model's order and
 * byte layout. Without --count, K follows from the size of the inputs. The first sample is run `warmup` times
 * (0) without being measured; then every sample is run `repeat` times (1). The profile holds the wall time of
 * opening, of each measured run, and of each step over all measured runs; --no-steps leaves these out, since
 * reading the clock between them takes time, too. Exit code 2 and one sentence on
 * stderr tell an error; output files are written beside and then renamed.
 */
#define _POSIX_C_SOURCE 200809L
#define _FILE_OFFSET_BITS 64
#include <edgert/edgert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

typedef struct arguments {
  const char *model, *inputs, *outputs, *profile;
  unsigned long threads, repeat, warmup, count, width;
  bool pin, counted, no_steps;
} arguments;

/* A file that appears under its name only when it is complete. */
typedef struct pending_file {
  const char *path;
  char *part;
  FILE *stream;
} pending_file;

static pending_file outputs_file, profile_file;

__attribute__((noreturn, format(printf, 1, 2))) static void quit(const char *format, ...) {
  va_list arguments;
  fputs("edgert-run: ", stderr);
  va_start(arguments, format);
  vfprintf(stderr, format, arguments);
  va_end(arguments);
  fputc('\n', stderr);
  if (outputs_file.part) remove(outputs_file.part);
  if (profile_file.part) remove(profile_file.part);
  exit(2);
}

static void require(edgert_status status) {
  if (status != EDGERT_OK) quit("%s", edgert_last_error());
}

static void *allocate(size_t bytes) {
  void *memory = malloc(bytes ? bytes : 1);
  if (!memory) quit("out of memory");
  return memory;
}

/* ---- command line ---- */

static unsigned long parse_number(const char *flag, const char *text) {
  char *end;
  errno = 0;
  unsigned long value = strtoul(text, &end, 10);
  if (errno || *end || end == text || *text == '-') quit("%s needs a whole number, not '%s'", flag, text);
  return value;
}

static void parse_flag(arguments *parsed, const char *flag, const char *value) {
  if (!value) quit("%s needs a value", flag);
  if (strcmp(flag, "--inputs") == 0) parsed->inputs = value;
  else if (strcmp(flag, "--outputs") == 0) parsed->outputs = value;
  else if (strcmp(flag, "--profile") == 0) parsed->profile = value;
  else if (strcmp(flag, "--threads") == 0) parsed->threads = parse_number(flag, value);
  else if (strcmp(flag, "--repeat") == 0) parsed->repeat = parse_number(flag, value);
  else if (strcmp(flag, "--warmup") == 0) parsed->warmup = parse_number(flag, value);
  else if (strcmp(flag, "--width") == 0) parsed->width = parse_number(flag, value);
  else if (strcmp(flag, "--count") == 0) parsed->count = parse_number(flag, value), parsed->counted = true;
  else quit("unknown flag %s; the flags are --inputs --outputs --count --threads --pin --warmup --repeat --profile "
            "--no-steps --width", flag);
}

static arguments parse(int argc, char **argv) {
  arguments parsed = {.threads = 1, .repeat = 1};
  for (int i = 1; i < argc; i++) {
    if (strcmp(argv[i], "--pin") == 0) parsed.pin = true;
    else if (strcmp(argv[i], "--no-steps") == 0) parsed.no_steps = true;
    else if (strncmp(argv[i], "--", 2) == 0) parse_flag(&parsed, argv[i], argv[i + 1]), i++;
    else if (!parsed.model) parsed.model = argv[i];
    else quit("'%s' is one argument too many: there is one model", argv[i]);
  }
  if (!parsed.model || !parsed.inputs || !parsed.outputs)
    quit("usage: edgert-run MODEL.so --inputs FILE.bin --outputs FILE.bin [--count K] [--threads N] [--pin] "
         "[--warmup N] [--repeat N] [--profile FILE.json] [--no-steps] [--width BITS]");
  if (parsed.repeat == 0) quit("--repeat must be at least 1");
  if (parsed.threads == 0 || parsed.threads > EDGERT_MAX_THREADS)
    quit("--threads must be from 1 to %u", EDGERT_MAX_THREADS);
  return parsed;
}

/* ---- files ---- */

static void begin_file(pending_file *file, const char *path) {
  size_t bytes = strlen(path) + sizeof ".part";
  file->path = path;
  file->part = allocate(bytes);
  snprintf(file->part, bytes, "%s.part", path);
  file->stream = fopen(file->part, "wb");
  if (!file->stream) {
    free(file->part);
    file->part = NULL;
    quit("'%s' cannot be written: %s", path, strerror(errno));
  }
}

static void write_bytes(pending_file *file, const void *data, size_t bytes) {
  if (fwrite(data, 1, bytes, file->stream) != bytes)
    quit("'%s' cannot be written: %s", file->path, strerror(errno));
}

static void end_file(pending_file *file) {
  if (fclose(file->stream) != 0 || rename(file->part, file->path) != 0)
    quit("'%s' cannot be written: %s", file->path, strerror(errno));
  free(file->part);
  file->part = NULL;
}

static FILE *open_inputs(arguments *parsed, uint64_t sample_bytes) {
  struct stat info;
  FILE *file = fopen(parsed->inputs, "rb");
  if (!file || fstat(fileno(file), &info) != 0)
    quit("'%s' cannot be read: %s", parsed->inputs, strerror(errno));
  uint64_t bytes = (uint64_t)info.st_size;
  if (!parsed->counted) parsed->count = sample_bytes ? (unsigned long)(bytes / sample_bytes) : 1;
  if (bytes != sample_bytes * parsed->count)
    quit("'%s' has %llu bytes, and a sample of this model has %llu: that is not %s%lu samples", parsed->inputs,
         (unsigned long long)bytes, (unsigned long long)sample_bytes, parsed->counted ? "" : "a whole number, as ",
         parsed->count);
  return file;
}

/* ---- runs ---- */

static uint64_t now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static uint64_t sample_bytes(const edgert_session *session) {
  uint64_t bytes = 0;
  for (uint32_t i = 0; i < edgert_input_count(session); i++) bytes += edgert_input(session, i)->bytes;
  return bytes;
}

static void read_sample(edgert_session *session, FILE *file, const char *path) {
  for (uint32_t i = 0; i < edgert_input_count(session); i++) {
    size_t bytes = (size_t)edgert_input(session, i)->bytes;
    if (fread(edgert_input_data(session, i), 1, bytes, file) != bytes)
      quit("'%s' cannot be read: it ends while it is being read", path);
  }
}

static void write_sample(const edgert_session *session) {
  for (uint32_t i = 0; i < edgert_output_count(session); i++)
    write_bytes(&outputs_file, edgert_output_data(session, i), (size_t)edgert_output(session, i)->bytes);
}

static void warm_up(edgert_session *session, const arguments *parsed) {
  for (unsigned long i = 0; i < parsed->warmup; i++) require(edgert_run(session));
  if (parsed->profile && !parsed->no_steps) require(edgert_profile(session, 1));
}

static void run_samples(edgert_session *session, const arguments *parsed, FILE *inputs, uint64_t *runs_ns) {
  for (unsigned long sample = 0; sample < parsed->count; sample++) {
    read_sample(session, inputs, parsed->inputs);
    if (sample == 0) warm_up(session, parsed);
    for (unsigned long i = 0; i < parsed->repeat; i++) {
      uint64_t start = now_ns();
      require(edgert_run(session));
      *runs_ns++ = now_ns() - start;
    }
    write_sample(session);
  }
}

/* ---- profile ---- */

static void write_json_string(FILE *stream, const char *text) {
  fputc('"', stream);
  for (const unsigned char *c = (const unsigned char *)text; *c; c++) {
    if (*c < 0x20 || *c == '"' || *c == '\\') fprintf(stream, "\\u%04x", *c);
    else fputc(*c, stream);
  }
  fputc('"', stream);
}

static void write_step(FILE *stream, const edgert_step_stats *stats) {
  fputs("{\"name\": ", stream);
  write_json_string(stream, stats->name);
  fputs(", \"kernel\": ", stream);
  write_json_string(stream, stats->kernel);
  fprintf(stream, ", \"macs\": %llu, \"calls\": %llu, \"total_ns\": %llu, \"min_ns\": %llu}",
          (unsigned long long)stats->macs, (unsigned long long)stats->calls, (unsigned long long)stats->total_ns,
          (unsigned long long)stats->min_ns);
}

static void write_profile(const edgert_session *session, const arguments *parsed, uint64_t open_ns,
                          const uint64_t *runs_ns) {
  begin_file(&profile_file, parsed->profile);
  FILE *stream = profile_file.stream;
  fprintf(stream, "{\"edgert\": \"%s\", \"threads\": %lu, \"open_ns\": %llu,\n \"runs_ns\": [", edgert_version(),
          parsed->threads, (unsigned long long)open_ns);
  for (unsigned long i = 0; i < parsed->count * parsed->repeat; i++)
    fprintf(stream, "%s%llu", i ? ", " : "", (unsigned long long)runs_ns[i]);
  fputs("],\n \"steps\": [", stream);
  for (uint32_t i = 0; !parsed->no_steps && i < edgert_step_count(session); i++) {
    edgert_step_stats stats;
    require(edgert_step_stats_get(session, i, &stats));
    fputs(i ? ",\n  " : "\n  ", stream);
    write_step(stream, &stats);
  }
  fputs("]}\n", stream);
  if (ferror(stream)) quit("'%s' cannot be written: %s", parsed->profile, strerror(errno));
  end_file(&profile_file);
}

int main(int argc, char **argv) {
  arguments parsed = parse(argc, argv);
  edgert_options options = EDGERT_OPTIONS_DEFAULT;
  edgert_session *session;
  options.threads = (uint32_t)parsed.threads;
  if (parsed.pin) {
    options.flags |= EDGERT_PIN_BIG_CORES;
    edgert_pin_caller(options.threads);
  }
  uint64_t start = now_ns();
  require(edgert_open(parsed.model, &options, &session));
  if (parsed.width) require(edgert_set_width(session, (uint32_t)parsed.width));
  uint64_t open_ns = now_ns() - start;
  FILE *inputs = open_inputs(&parsed, sample_bytes(session));
  uint64_t *runs_ns = allocate(parsed.count * parsed.repeat * sizeof *runs_ns);
  begin_file(&outputs_file, parsed.outputs);
  run_samples(session, &parsed, inputs, runs_ns);
  fclose(inputs);
  end_file(&outputs_file);
  if (parsed.profile) write_profile(session, &parsed, open_ns, runs_ns);
  free(runs_ns);
  edgert_close(session);
  return 0;
}
