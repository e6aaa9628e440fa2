/* libedgert: runs a model that edgec compiled. C11, no dependency but the C library.
 *
 * Overview
 * --------
 * `edgec compile model.onnx --target rpi4 -o model.so` writes an artifact: kernels, weights and a descriptor
 * (`edgert/model.h`) in one shared object. This library checks it, gives it memory and calls its kernels:
 *
 *   open -> a session: one model with its own memory and threads
 *   write the inputs, run, read the outputs; any number of times
 *   close
 *
 *   #include <edgert/edgert.h>
 *   #include <stdio.h>
 *   #include <string.h>
 *
 *   int classify(const float *image, size_t image_bytes, float *logits, size_t logits_bytes) {
 *     edgert_options options = EDGERT_OPTIONS_DEFAULT;
 *     edgert_session *session = NULL;
 *     options.threads = 4;
 *     edgert_status status = edgert_open("model.so", &options, &session);
 *     if (status == EDGERT_OK) status = edgert_bind_input(session, 0, image, image_bytes);
 *     if (status == EDGERT_OK) status = edgert_bind_output(session, 0, logits, logits_bytes);
 *     if (status == EDGERT_OK) status = edgert_run(session);
 *     if (status != EDGERT_OK) fprintf(stderr, "%s\n", edgert_last_error());
 *     edgert_close(session);
 *     return status == EDGERT_OK ? 0 : -1;
 *   }
 *
 * Without binding, the session's own buffers hold the inputs and outputs:
 *
 *   memcpy(edgert_input_data(session, 0), image, edgert_input(session, 0)->bytes);
 *   edgert_run(session);
 *   const float *logits = edgert_output_data(session, 0);
 *
 * Errors
 * ------
 * Whatever can fail returns an `edgert_status`; 0 is success. `edgert_last_error` then has one sentence that
 * says what is wrong and what mends it. Nothing here prints, aborts or exits. A call that fails changes
 * nothing: a failed open leaves NULL in `*session`, a failed bind leaves the old binding. Queries (which
 * return no status) answer 0, NULL or -1 for a NULL session or an index out of range.
 *
 * Threads
 * -------
 * A session belongs to one thread at a time: calls on the same session must not overlap (a run that overlaps
 * another run of its session is refused with EDGERT_ERROR_BUSY). Different sessions, also of the same
 * artifact, may be used from different threads without any lock; they share code and weights. A session with
 * `threads` = n starts n - 1 workers at open; the thread that calls `edgert_run` does its share of the work.
 * With `threads` = 1 no thread is started. A fork does not take workers along: the child's runs are refused
 * with EDGERT_ERROR_THREADS, so open the session after the fork.
 *
 * Memory
 * ------
 * Everything is allocated at open and freed by close; run allocates nothing. One block holds the session, the
 * arena (the kernels' scratch memory) and the session's own input and output buffers; it comes from the heap
 * or, with `options.memory`, from the caller. What the queries return belongs to the session and lives until
 * close. What is bound belongs to the caller and must live until the next binding or close. Weights stay in the
 * artifact, which processes share; those of one that was compiled with --compress are decoded into the block at open.
 *
 * GPU
 * ---
 * An artifact for a GPU has its kernels as OpenCL C besides the processor's code. Open looks for the driver's
 * libOpenCL.so (EDGERT_OPENCL_LIBRARY names another), takes the first GPU it offers, or another device where it
 * has none (EDGERT_OPENCL_DEVICE: one whose name has that in it), and compiles the kernels; what the driver made
 * of them is kept in EDGERT_CACHE_DIR, or `edgert` in XDG_CACHE_HOME or ~/.cache, for the next open on this device
 * with this driver. Weights are copied to the GPU once. A run copies the inputs there and the outputs back, and the
 * profile then has the GPU's own times. The GPU's objects come from its driver, and not from `options.memory`.
 *
 * Without an operating system
 * ---------------------------
 * On a Cortex-M the library has no files, no threads and no heap: a model is linked into the program and opened with
 * edgert_open_model on memory that the caller gives (options.memory; edgert_memory_required says how much). It needs
 * memcpy, memset, memcmp, strcmp and strlen of the C library. The profile's times come from `edgert_clock_ns`, which
 * the program defines if it has a clock; without it they are 0.
 *
 * Alignment
 * ---------
 * The arena and the session's own buffers are aligned to EDGERT_ALIGNMENT. A bound pointer needs no more than
 * the alignment of its element type. Bound outputs must overlap neither each other nor any input.
 */
#ifndef EDGERT_EDGERT_H
#define EDGERT_EDGERT_H

#include <edgert/model.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define EDGERT_VERSION "0.1.0"
#define EDGERT_ALIGNMENT 64u   /* bytes; of own buffers, the arena, and memory that the caller gives */
#define EDGERT_MAX_THREADS 64u

#if defined(__GNUC__)
#define EDGERT_API __attribute__((visibility("default")))
#else
#define EDGERT_API
#endif

/* What a call came to. The values are part of the ABI. */
typedef enum edgert_status {
  EDGERT_OK = 0,
  EDGERT_ERROR_ARGUMENT = 1,  /* NULL, an index out of range, an unknown flag, too many threads */
  EDGERT_ERROR_FILE = 2,      /* the file is missing or cannot be read */
  EDGERT_ERROR_FORMAT = 3,    /* not an artifact, or a truncated one */
  EDGERT_ERROR_DIGEST = 4,    /* the bytes are not those that edgec wrote */
  EDGERT_ERROR_ARCH = 5,      /* built for another architecture */
  EDGERT_ERROR_CPU = 6,       /* this CPU lacks a feature that the kernels need */
  EDGERT_ERROR_ABI = 7,       /* built for another version of the descriptor */
  EDGERT_ERROR_LOAD = 8,      /* the dynamic loader refused the file, or it has no descriptor */
  EDGERT_ERROR_MODEL = 9,     /* the descriptor contradicts itself */
  EDGERT_ERROR_ARENA = 10,    /* the caller's memory is too small or misaligned */
  EDGERT_ERROR_MEMORY = 11,   /* out of memory */
  EDGERT_ERROR_THREADS = 12,  /* threads could not be started, or the library was built without them */
  EDGERT_ERROR_SIZE = 13,     /* a bound buffer has not exactly the tensor's bytes */
  EDGERT_ERROR_ALIGNMENT = 14, /* a bound pointer is not aligned to its element type */
  EDGERT_ERROR_UNBOUND = 15,  /* run without own buffers, and an input or output is not bound */
  EDGERT_ERROR_BUSY = 16,     /* the session is running in another thread */
  EDGERT_ERROR_GPU = 17,      /* no OpenCL driver or device, or the driver refused a call */
  EDGERT_ERROR_GPU_BUILD = 18, /* the driver cannot compile the kernels; the sentence ends in its own words */
  EDGERT_ERROR_TEST = 19,     /* a result differs from that of the model's tests */
  EDGERT_ERROR_SIGNATURE = 20 /* not signed, or not by this key, or the library cannot tell */
} edgert_status;

/* Bits of `edgert_options.flags`. */
typedef enum edgert_flag {
  EDGERT_SKIP_DIGEST = 1 << 0,    /* open faster: do not check the SHA-256; only for files that you trust */
  EDGERT_PIN_BIG_CORES = 1 << 1,  /* keep the workers on the fastest cores; no effect where the system
                                     does not tell which these are (see edgert_pin_caller) */
  EDGERT_NO_IO_BUFFERS = 1 << 2,  /* no own input and output buffers: every one will be bound */
  EDGERT_ON_CPU = 1 << 3,         /* an artifact for a GPU: run it on the processor */
  EDGERT_FALLBACK_CPU = 1 << 4    /* an artifact for a GPU: do so where no GPU can be used */
} edgert_flag;

/* Start from EDGERT_OPTIONS_DEFAULT, which also lets a newer library know which fields this header had. */
typedef struct edgert_options {
  uint32_t struct_bytes; /* sizeof(edgert_options) */
  uint32_t threads;      /* that share the work of a run, the caller among them; 0 means 1 */
  uint32_t flags;        /* edgert_flag bits */
  uint32_t reserved;     /* 0 */
  void *memory;          /* NULL, or the block to use, aligned to edgert_memory_alignment */
  uint64_t memory_bytes; /* its size, at least edgert_memory_required */
} edgert_options;

#define EDGERT_OPTIONS_DEFAULT {(uint32_t)sizeof(edgert_options), 1u, 0u, 0u, NULL, 0u}

typedef struct edgert_session edgert_session;

/* Nanoseconds since any moment: called on a microcontroller, and defined by the program there if it wants a profile. */
uint64_t edgert_clock_ns(void);

/* The library's version, e.g. "0.1.0". */
EDGERT_API const char *edgert_version(void);

/* The name of a status, e.g. "EDGERT_ERROR_DIGEST"; "unknown status" for any other value. */
EDGERT_API const char *edgert_status_name(edgert_status status);

/* The sentence of the calling thread's last failed call, "" before the first. Valid until its next failure. */
EDGERT_API const char *edgert_last_error(void);

/* Open the artifact at `path`. The file's format, architecture and SHA-256 are checked before any of its
 * code is loaded; then the descriptor's version, its CPU features and its own consistency. `options` may be
 * NULL for the defaults. */
EDGERT_API edgert_status edgert_open(const char *path, const edgert_options *options, edgert_session **session);

/* Open the artifact at `path` only if the holder of the Ed25519 key `public_key` has signed it (edgec sign). A private
 * copy is made first, which nobody can change: the bytes whose signature is verified are those that are loaded. Needs
 * a library built with EDGERT_SIGNATURES, and Linux; the copy is held in memory as long as the session is open. */
EDGERT_API edgert_status edgert_open_signed(const char *path, const uint8_t public_key[32],
                                            const edgert_options *options, edgert_session **session);

/* Open a descriptor that is linked into the program: `extern const edgert_model edgert_model_v1;`. It must
 * outlive the session. */
EDGERT_API edgert_status edgert_open_model(const edgert_model *model, const edgert_options *options,
                                           edgert_session **session);

/* Stop the workers, free what open allocated, unload the artifact. NULL is allowed. */
EDGERT_API void edgert_close(edgert_session *session);

/* How many bytes `options.memory` must have to open `model` with `options` (whose memory fields are not
 * looked at), and at least how it must be aligned. For a file, `edgert_session_model` of a session that was
 * opened without it gives the model; its manifest has the numbers as well. */
EDGERT_API edgert_status edgert_memory_required(const edgert_model *model, const edgert_options *options,
                                                uint64_t *bytes);
EDGERT_API uint32_t edgert_memory_alignment(const edgert_model *model);

/* The descriptor behind a session: names, target, arena size, steps, manifest. */
EDGERT_API const edgert_model *edgert_session_model(const edgert_session *session);

/* What the session runs on: "CPU", or the name of the GPU. */
EDGERT_API const char *edgert_device(const edgert_session *session);

/* Inputs and outputs, in the order of the ONNX model's. */
EDGERT_API uint32_t edgert_input_count(const edgert_session *session);
EDGERT_API uint32_t edgert_output_count(const edgert_session *session);
EDGERT_API const edgert_tensor *edgert_input(const edgert_session *session, uint32_t index);
EDGERT_API const edgert_tensor *edgert_output(const edgert_session *session, uint32_t index);

/* The index of the input or output called `name`, -1 if there is none. */
EDGERT_API int32_t edgert_find_input(const edgert_session *session, const char *name);
EDGERT_API int32_t edgert_find_output(const edgert_session *session, const char *name);

/* The session's own buffer: write an input before a run, read an output after it. An input keeps its content
 * from run to run. NULL with EDGERT_NO_IO_BUFFERS. */
EDGERT_API void *edgert_input_data(edgert_session *session, uint32_t index);
EDGERT_API const void *edgert_output_data(const edgert_session *session, uint32_t index);

/* Let runs read an input from, or write an output to, the caller's memory instead, without a copy. `bytes`
 * must be the tensor's. `data` = NULL goes back to the own buffer (`bytes` is not looked at then). The memory stays
 * valid until another is bound or the session is closed: a GPU that shares the host's memory works in it, where it
 * begins with a cache line (64 bytes) and overlaps no other. */
EDGERT_API edgert_status edgert_bind_input(edgert_session *session, uint32_t index, const void *data,
                                           uint64_t bytes);
EDGERT_API edgert_status edgert_bind_output(edgert_session *session, uint32_t index, void *data,
                                            uint64_t bytes);

/* One inference: read all inputs, write all outputs, return when done. */
EDGERT_API edgert_status edgert_run(edgert_session *session);

/* Make zero what the model keeps from one run to the next, as it is after open: a new sequence begins. */
EDGERT_API edgert_status edgert_reset(edgert_session *session);

/* Run at `bits` a weight from now on: a model compiled with --quantize w4 --nested has 8, which it starts with, and 4,
 * for which the kernels read the upper halves of the same weights. Nothing is copied. */
EDGERT_API edgert_status edgert_set_width(edgert_session *session, uint32_t bits);
/* The bits it runs at; 0 for a model that cannot be switched. */
EDGERT_API uint32_t edgert_width_of(const edgert_session *session);

/* Run the tests inside the model (edgec compile --bundle-tests), step by step; the sentence of EDGERT_ERROR_TEST names
 * the first step that stores something else than the compiler's reference. `count`, unless NULL, gets how many tests
 * there are. Afterwards nothing is bound, and the own buffers hold the last test. Without tests: EDGERT_ERROR_ARGUMENT. */
EDGERT_API edgert_status edgert_selftest(edgert_session *session, uint32_t *count);

/* What the profile knows about one step (a kernel call), over all runs since it was last switched on. */
typedef struct edgert_step_stats {
  const char *name;   /* the ONNX nodes it computes */
  const char *kernel;
  uint64_t macs;      /* multiply-accumulates of one call */
  uint64_t calls;
  uint64_t total_ns;  /* wall time of all calls */
  uint64_t min_ns;    /* of the fastest call; 0 before the first */
} edgert_step_stats;

/* Switch the measuring of steps on (from zero) or off (the numbers stay). Off after open. Costs two readings
 * of the monotonic clock a step. */
EDGERT_API edgert_status edgert_profile(edgert_session *session, int on);
EDGERT_API uint32_t edgert_step_count(const edgert_session *session);
EDGERT_API edgert_status edgert_step_stats_get(const edgert_session *session, uint32_t index,
                                               edgert_step_stats *stats);

/* Keep the calling thread on the fastest cores, as many as `threads`. Returns 1 if that was done, 0 where the
 * system does not tell which these are or does not allow it. */
EDGERT_API int edgert_pin_caller(uint32_t threads);

#ifdef __cplusplus
}
#endif

#endif
