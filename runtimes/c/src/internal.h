/* What the library's source files share with each other; nothing here is exported. */
#ifndef EDGERT_INTERNAL_H
#define EDGERT_INTERNAL_H

#include <edgert/edgert.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>

/* What the library is built with; a microcontroller has none of it. */
#if defined(__ARM_ARCH_PROFILE) && __ARM_ARCH_PROFILE == 'M'
#define EDGERT_WITH_SYSTEM 0
#else
#define EDGERT_WITH_SYSTEM 1
#endif
#ifndef EDGERT_WITH_THREADS
#define EDGERT_WITH_THREADS EDGERT_WITH_SYSTEM
#endif
#ifndef EDGERT_WITH_FILES /* artifacts are opened by their path; only they have coded weights */
#define EDGERT_WITH_FILES EDGERT_WITH_SYSTEM
#endif
#ifndef EDGERT_WITH_HEAP /* sessions take memory from malloc unless they are given some */
#define EDGERT_WITH_HEAP EDGERT_WITH_SYSTEM
#endif
#ifndef EDGERT_WITH_OPENCL /* artifacts for a GPU run there; needs the loader of EDGERT_WITH_FILES, and the heap */
#define EDGERT_WITH_OPENCL (EDGERT_WITH_FILES && EDGERT_WITH_HEAP)
#endif

/* error.c */

/* Keep the sentence for `edgert_last_error` and return `status`. */
__attribute__((format(printf, 2, 3))) edgert_status edgert_fail(edgert_status status, const char *format, ...);

/* format.c */

/* As snprintf and vsnprintf with %s %u %x %llu %p %%; they answer with what was written, without the terminator. */
__attribute__((format(printf, 3, 4))) size_t edgert_format(char *text, size_t bytes, const char *format, ...);
size_t edgert_vformat(char *text, size_t bytes, const char *format, va_list *arguments);

/* sha256.c: FIPS 180-4. */

typedef struct edgert_sha256 {
  uint32_t state[8];
  uint64_t length; /* bytes so far */
  uint8_t block[64];
} edgert_sha256;

void edgert_sha256_start(edgert_sha256 *hash);
void edgert_sha256_add(edgert_sha256 *hash, const void *data, size_t bytes);
void edgert_sha256_finish(edgert_sha256 *hash, uint8_t digest[32]);

/* cpu.c */

/* The edgert_arch this library was built for. */
uint32_t edgert_cpu_arch(void);
const char *edgert_arch_name(uint32_t arch);
/* edgert_cpu_feature bits of the CPU it runs on. */
uint32_t edgert_cpu_features(void);
/* Writes the names of `features`, with commas between them, into `text`. */
void edgert_feature_names(uint32_t features, char *text, size_t bytes);

/* affinity.c */

/* How many CPUs the calling thread may use; 0 if unknown. */
uint32_t edgert_cpu_count(void);
/* The speed of the slowest CPU that `threads` threads need when they take the fastest ones; all CPUs of that
 * speed count. 0 if no CPU's speed is known (all are 0). */
long edgert_least_speed(const long *speeds, int count, uint32_t threads);
uint64_t edgert_now_ns(void);

/* check.c */

/* Everything that must hold before a kernel of `model` may be called. */
edgert_status edgert_check_model(const edgert_model *model, bool check_digest);
/* The tests in `model`, NULL if there are none; older descriptors have no place for them. */
const edgert_tests *edgert_tests_of(const edgert_model *model);
/* Bytes of one element, 0 for an unknown dtype. */
uint32_t edgert_dtype_bytes(uint32_t dtype);

/* What the model has for a GPU, or NULL. */
const edgert_gpu *edgert_model_gpu(const edgert_model *model);
uint64_t edgert_model_state_bytes(const edgert_model *model);

/* decode.c */

/* The coded form of the weights of a model that has no other, else NULL. */
const uint8_t *edgert_model_coded(const edgert_model *model);
/* Decodes them into the model's `weights_bytes`. */
edgert_status edgert_decode(const edgert_model *model, uint8_t *weights);

/* The widths that the model can be switched between; 0 where there is only one. */
uint32_t edgert_width_count(const edgert_model *model);

/* artifact.c */

/* Check the file, load it, find its descriptor. `*library` is the loader's handle. */
edgert_status edgert_load(const char *path, bool check_digest, void **library, const edgert_model **model);
/* The same of a private copy in memory whose signature is valid; `*descriptor` stays open as long as the library is. */
edgert_status edgert_load_signed(const char *path, const uint8_t public_key[32], int *descriptor, void **library,
                                 const edgert_model **model);
void edgert_close_descriptor(int descriptor);
void edgert_unload(void *library);

/* signature.c */

bool edgert_verifies_signatures(void);
/* Whether `signature` is that of an artifact of SHA-256 `digest` by the holder of `key`. */
bool edgert_signature_is_valid(const uint8_t key[32], const uint8_t signature[64], const uint8_t digest[32]);

/* pool.c */

typedef void (*edgert_job_fn)(void *context, int32_t thread, int32_t threads);
typedef struct edgert_pool edgert_pool;

/* Bytes of a pool of `threads`, workers included; it is aligned as malloc's memory is. */
size_t edgert_pool_bytes(uint32_t threads);
edgert_status edgert_pool_start(edgert_pool *pool, uint32_t threads, bool pin_big_cores);
/* Whether the workers are there: a fork does not take them along. */
edgert_status edgert_pool_check(const edgert_pool *pool);
/* Calls `job` once per thread, on the caller for thread 0, and returns when all have returned. */
void edgert_pool_run(edgert_pool *pool, edgert_job_fn job, void *context);
void edgert_pool_stop(edgert_pool *pool);

/* opencl.c: a model on a GPU. Without EDGERT_WITH_OPENCL, open fails and says so. */

typedef struct edgert_opencl edgert_opencl;
/* Runs step `index` of the model on the processor. */
typedef void (*edgert_host_fn)(void *context, uint32_t index);

edgert_status edgert_opencl_open(const edgert_model *model, edgert_opencl **gpu);
/* Makes the buffers of inputs and outputs, of which `own` are the session's (inputs first, or NULL), and the kernels. */
edgert_status edgert_opencl_prepare(edgert_opencl *gpu, void *const *own);
/* The caller's memory of input or output `io` is the caller's alone from now on; another may be bound. */
void edgert_opencl_forget(edgert_opencl *gpu, uint32_t io);
const char *edgert_opencl_device(const edgert_opencl *gpu);
/* One inference; `io` and `arena` are the host's. A GPU that shares the host's memory works in `io` itself, where it
 * begins with a cache line and nothing else overlaps it. With `stats`, every step is measured. */
edgert_status edgert_opencl_run(edgert_opencl *gpu, void *const *io, uint8_t *arena, edgert_step_stats *stats,
                                edgert_host_fn host, void *context);
void edgert_opencl_close(edgert_opencl *gpu);

/* opencl_cache.c: what a driver made of a source, by a key; `*bytes` is malloc's, NULL where there is none. */

void edgert_cache_read(const uint8_t key[32], uint8_t **bytes, size_t *size);
void edgert_cache_write(const uint8_t key[32], const uint8_t *bytes, size_t size);
/* session.c */

struct edgert_session {
  const edgert_model *model;
  void *library; /* the loader's handle; NULL for a linked-in model */
  int descriptor; /* of a signed artifact's copy, -1 of others */
  void *block;   /* what close frees; NULL if the caller gave the memory */
  uint8_t *arena;
  const uint8_t *weights; /* the model's, or decoded ones in the block */
  void **io;  /* what the kernels get: inputs, then outputs */
  void **own; /* the session's own buffers, in the same order; NULL without */
  edgert_step_stats *stats;
  const edgert_width *width; /* what the steps run at; NULL: the model's only one */
  edgert_pool *pool;
  edgert_opencl *gpu; /* NULL: it runs on the processor */
  atomic_flag running;
  bool profiling;
};

/* Every step, on the processor or the GPU; all inputs and outputs must be bound. */
edgert_status edgert_run_steps(edgert_session *session);
/* One step, on all threads of the session. */
void edgert_run_step(const edgert_session *session, const edgert_step *step);
/* Calls `work` unless the session is at work already, or its threads are gone. */
edgert_status edgert_exclusively(edgert_session *session, edgert_status (*work)(edgert_session *session));

#endif
