/* The descriptor inside every edgec artifact: what the compiler writes and libedgert reads.
 *
 * An artifact exports one symbol, `edgert_model_v1`, a constant `edgert_model`. Everything it points to
 * lives in the artifact's read-only data, so that processes share it. The layout is the ABI: fields are
 * only ever appended, and `abi_version` changes when one changes its meaning.
 *
 * The artifact file ends in an `edgert_trailer`: the SHA-256 of all bytes before the trailer's digest, and
 * where the manifest (JSON) stands in the file, so that tools read and check it without executing it.
 */
#ifndef EDGERT_MODEL_H
#define EDGERT_MODEL_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define EDGERT_ABI_VERSION 1u
#define EDGERT_MAX_RANK 8u
#define EDGERT_MODEL_SYMBOL "edgert_model_v1"
#define EDGERT_TRAILER_MAGIC "EDGERT-TRAILER-1" /* 16 bytes, no terminator in the file */

/* Element types; the values are those of onnx.TensorProto.DataType. */
typedef enum edgert_dtype {
  EDGERT_FLOAT32 = 1,
  EDGERT_UINT8 = 2,
  EDGERT_INT8 = 3,
  EDGERT_UINT16 = 4,
  EDGERT_INT16 = 5,
  EDGERT_INT32 = 6,
  EDGERT_INT64 = 7,
  EDGERT_BOOL = 9,
  EDGERT_FLOAT16 = 10,
  EDGERT_FLOAT64 = 11,
  EDGERT_UINT32 = 12,
  EDGERT_UINT64 = 13
} edgert_dtype;

/* Machine architectures; the artifact names the one it was built for. */
typedef enum edgert_arch {
  EDGERT_X86_64 = 1,
  EDGERT_AARCH64 = 2,
  EDGERT_ARMV7 = 3,
  EDGERT_CORTEX_M = 4
} edgert_arch;

/* CPU features an artifact may need, one bit each; a loader refuses an artifact whose bits it lacks. */
typedef enum edgert_cpu_feature {
  EDGERT_X86_AVX2 = 1 << 0,
  EDGERT_X86_FMA = 1 << 1,
  EDGERT_X86_AVX512F = 1 << 2,
  EDGERT_X86_AVX512BW = 1 << 3,
  EDGERT_X86_AVX512DQ = 1 << 4,
  EDGERT_X86_AVX512VL = 1 << 5,
  EDGERT_X86_AVX512VNNI = 1 << 6,
  EDGERT_X86_AVX512VBMI = 1 << 7,
  EDGERT_ARM_NEON = 1 << 16,
  EDGERT_ARM_FP16 = 1 << 17,
  EDGERT_ARM_DOTPROD = 1 << 18,
  EDGERT_ARM_I8MM = 1 << 19,
  EDGERT_ARM_DSP = 1 << 20, /* of Cortex-M */
  EDGERT_ARM_MVE = 1 << 21  /* Helium, with floats */
} edgert_cpu_feature;

/* An input or an output. Elements are dense, the last axis contiguous, in the ONNX model's own layout. */
typedef struct edgert_tensor {
  const char *name;
  uint64_t bytes;
  int64_t shape[EDGERT_MAX_RANK];
  uint32_t rank;
  uint32_t dtype;     /* edgert_dtype */
  float scale;        /* real = scale * (q - zero_point); 0 when the tensor is not quantised */
  int32_t zero_point;
} edgert_tensor;

/* One kernel call. `io` holds the pointers of all inputs, then of all outputs. Every one of `threads`
 * callers passes its own `thread`; each does its share, and the step is over when all have returned. */
typedef void (*edgert_step_fn)(uint8_t *arena, const uint8_t *weights, void *const *io, int32_t thread,
                               int32_t threads);

/* Names are offsets into the model's `strings`: a pointer each would cost a relocation at every load. */
typedef struct edgert_step {
  edgert_step_fn run;
  uint64_t macs;     /* multiply-accumulates of one call */
  uint32_t name;     /* the ONNX nodes it computes */
  uint32_t kernel;   /* the kernel's contract, e.g. "f32_conv_n1h7w7c64_k3x3s1x1d1x1i64__t2x7v2" */
  uint32_t parallel; /* 0: call once with threads = 1 */
  uint32_t reserved;
} edgert_step;

/* ---- what an artifact for a GPU has besides ---- */

typedef enum edgert_gpu_kind {
  EDGERT_GPU_KERNEL = 0,    /* a kernel of the source; operands in order, the output last */
  EDGERT_GPU_HOST = 1,      /* one of the model's own steps, on the processor */
  EDGERT_GPU_TO_DEVICE = 2, /* copy its one operand from the host's memory to the GPU's */
  EDGERT_GPU_TO_HOST = 3    /* and back */
} edgert_gpu_kind;

typedef enum edgert_gpu_space { EDGERT_GPU_ARENA = 0, EDGERT_GPU_WEIGHTS = 1, EDGERT_GPU_IO = 2 } edgert_gpu_space;

/* Weights as an image of four numbers a point, which spans all of them; kernels of a program that was built without
 * EDGERT_IMAGES take the buffer instead. */
typedef enum edgert_gpu_image {
  EDGERT_GPU_NO_IMAGE = 0,
  EDGERT_GPU_FLOATS = 1,
  EDGERT_GPU_HALVES = 2,
  EDGERT_GPU_BYTES = 3
} edgert_gpu_image;

/* A place in a buffer: the arena, the weights, or the input or output number `io` (inputs first). Of weights, `io` is
 * an edgert_gpu_image. Of the arena, it numbers the sub-buffer, from 1 on: no two overlap that one kernel takes, where
 * both begin at multiples of the plan's alignment; 0 is none, and `offset` is the arena's in any case. */
typedef struct edgert_gpu_operand {
  uint32_t space; /* edgert_gpu_space */
  uint32_t io;
  uint64_t offset; /* bytes */
  uint64_t bytes;
} edgert_gpu_operand;

/* `name`, `kernel` and `function` are offsets into the GPU part's own `strings`. */
typedef struct edgert_gpu_step {
  uint32_t kind;          /* edgert_gpu_kind */
  uint32_t name;          /* the ONNX nodes it computes, or what it copies */
  uint32_t kernel;        /* the kernel's contract */
  uint32_t function;      /* the kernel's name in the source */
  uint32_t operand;       /* the first of its operands */
  uint32_t operand_count;
  uint32_t items[3];      /* work items along each axis; more may be started to fill up the last groups */
  uint32_t group[3];      /* work items of a group; zeros leave it to the driver */
  uint32_t host;          /* EDGERT_GPU_HOST: the step of the model */
  uint32_t reserved;
  uint64_t macs;
} edgert_gpu_step;

/* The program as kernels in OpenCL C 1.2. A kernel takes, for every operand, a buffer and an offset in bytes
 * (uint). The arena of the GPU has the host's layout where any step runs on the host. */
typedef struct edgert_gpu {
  uint32_t struct_bytes; /* sizeof(edgert_gpu) when it was written */
  uint32_t step_count;
  const edgert_gpu_step *steps;
  const edgert_gpu_operand *operands;
  uint64_t operand_count;
  const char *strings;
  uint64_t strings_bytes;
  const char *source; /* `source_bytes` long without its terminator */
  uint64_t source_bytes;
  const uint8_t *weights;
  uint64_t weights_bytes;
  uint64_t arena_bytes;
} edgert_gpu;
#define EDGERT_REGION_AXES 6u

/* The elements that a step stores. */
typedef struct edgert_region {
  uint32_t dtype;  /* edgert_dtype; 0: this step is not checked by itself */
  uint32_t exact;  /* 1: equal to the last bit on every target */
  uint32_t place;  /* 0: the arena; i + 1: input or output i */
  uint32_t offset; /* bytes from there */
  uint32_t extents[EDGERT_REGION_AXES];
  int32_t strides[EDGERT_REGION_AXES]; /* elements */
} edgert_region;

/* What a step's region comes to in one test. */
typedef struct edgert_expected {
  uint32_t crc; /* CRC-32 (IEEE 802.3) of exact elements */
  float mean;   /* of the others; NaN: not compared */
  float rms;    /* root mean square */
} edgert_expected;

/* Test vectors. In `inputs` and `outputs` every tensor of every test starts at a multiple of 64 bytes. */
typedef struct edgert_tests {
  uint32_t count;
  float tolerance;               /* of floats, as a share of an output's range or of a step's rms */
  uint64_t exact_outputs;        /* bit i: output i is equal to the last bit on every target */
  const edgert_region *regions;  /* one per step */
  const edgert_expected *expected; /* one per test and step */
  const uint8_t *inputs;
  const uint8_t *outputs;
} edgert_tests;

/* ---- entropy-coded weights (edgec compile --compress) ----
 *
 * An edgert_coded, `table_count` tables, `run_count` edgert_coded_run, then the runs' codes, one after the other. A table
 * has the length in bits (at most EDGERT_CODE_BITS, 0: no code) of the canonical Huffman code of each byte value, 4 bits
 * each, of even values the lower ones. Codes are complete, ordered by length and then by value, and stand in a run from
 * its first byte's highest bit on; the bits after the last are 0. Bytes that no run has are 0. Integers are little endian. */

#define EDGERT_CODE_BITS 11u
#define EDGERT_CODE_TABLE_BYTES 128u
#define EDGERT_CODE_STORED 0xFFFFu

typedef struct edgert_coded {
  uint32_t table_count;
  uint32_t run_count;
} edgert_coded;

typedef struct edgert_coded_run {
  uint32_t offset; /* of the first byte, in the weights */
  uint32_t count;  /* bytes, at least 1 */
  uint32_t bytes;  /* of their code */
  uint16_t step;   /* from one to the next, at least 1 */
  uint16_t table;  /* EDGERT_CODE_STORED: the bytes as they are */
} edgert_coded_run;

/* A width of the weights that the model can be switched to: the functions of all its steps at it. */
typedef struct edgert_width {
  uint32_t bits;
  uint32_t reserved;
  const edgert_step_fn *run;
} edgert_width;

typedef struct edgert_model {
  uint32_t abi_version;  /* EDGERT_ABI_VERSION */
  uint32_t struct_bytes; /* sizeof(edgert_model) when it was written */
  const char *name;
  const char *target;    /* e.g. "rpi4" */
  const char *triple;    /* e.g. "aarch64-linux-gnu" */
  uint32_t arch;         /* edgert_arch */
  uint32_t cpu_features; /* edgert_cpu_feature bits that the kernels need */
  uint32_t input_count;
  uint32_t output_count;
  const edgert_tensor *inputs;
  const edgert_tensor *outputs;
  uint64_t arena_bytes;
  uint32_t arena_alignment; /* bytes, a power of two */
  uint32_t step_count;
  const edgert_step *steps;
  const char *strings; /* terminated names, one after the other */
  uint64_t strings_bytes;
  const uint8_t *weights; /* NULL where they are coded, so that a library that cannot decode them refuses the model */
  uint64_t weights_bytes;
  const char *manifest; /* JSON, `manifest_bytes` long without its terminator */
  uint64_t manifest_bytes;
  uint8_t sha256[32]; /* of the weights, as they are stored, followed by the manifest */
  /* Appended; there only if `struct_bytes` says so. */
  const edgert_gpu *gpu; /* the same model for a GPU, or NULL; `steps` are the processor's in any case */
  uint64_t state_bytes;  /* of the arena, from its start on: kept between runs, zero at first */
  const edgert_tests *tests; /* NULL without */
  const uint8_t *coded;  /* NULL, or an edgert_coded: then `weights` is NULL, and `weights_bytes` what it comes to */
  uint64_t coded_bytes;
  const edgert_width *widths; /* the first is that of `steps`; NULL where there is only one */
  uint32_t width_count;
  uint32_t reserved;
} edgert_model;

#define EDGERT_MODEL_LEAST_BYTES offsetof(edgert_model, gpu)

/* The last bytes of an artifact file. Integers are little endian. */
typedef struct edgert_trailer {
  uint8_t magic[16];
  uint64_t manifest_offset; /* in the file */
  uint64_t manifest_bytes;
  uint8_t sha256[32]; /* of every byte of the file before this field */
} edgert_trailer;

#define EDGERT_SIGNATURE_MAGIC "EDGERT-SIGNED-01" /* 16 bytes, no terminator in the file */

/* What a signed artifact has behind its trailer: Ed25519 of "edgec artifact, version 1", a zero byte, and the SHA-256
 * of every byte before this block. */
typedef struct edgert_signature {
  uint8_t signature[64];
  uint8_t magic[16];
} edgert_signature;

#ifdef __cplusplus
}
#endif

#endif
