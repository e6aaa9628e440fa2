/* A plugin of qemu-user (plugin API 1) that counts the instructions its guest executes.
 *
 *   qemu-aarch64 -plugin count_instructions.so,out=FILE,mark=NUMBER PROGRAM ...
 *
 * Whenever the guest makes the system call NUMBER, and once at its end, a line with the count so far is written
 * to FILE. The count is exact for one thread: every translated block adds its length as it is entered, and a
 * system call ends its block.
 *
 * Distributions package the emulator without a header for its plugins, so what is used of it is declared here.
 */
#include <inttypes.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

typedef uint64_t plugin_id;
typedef struct block block;
typedef struct emulator emulator;
enum { INLINE_ADD_U64 = 0 };

typedef void (*translated)(plugin_id id, block *translation);
typedef void (*ended)(plugin_id id, void *context);
typedef void (*called)(plugin_id id, unsigned cpu, int64_t number, uint64_t a1, uint64_t a2, uint64_t a3, uint64_t a4,
                       uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8);

size_t qemu_plugin_tb_n_insns(const block *translation);
void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id id, translated callback);
void qemu_plugin_register_vcpu_tb_exec_inline(block *translation, int operation, void *counter, uint64_t amount);
void qemu_plugin_register_vcpu_syscall_cb(plugin_id id, called callback);
void qemu_plugin_register_atexit_cb(plugin_id id, ended callback, void *context);

EXPORT int qemu_plugin_version = 1;
EXPORT int qemu_plugin_install(plugin_id id, const emulator *info, int argc, char **argv);

static uint64_t count;
static int64_t mark = -1;
static FILE *out;

static void write_count(void) { fprintf(out, "%" PRIu64 "\n", count); }

static void on_translation(plugin_id id, block *translation) {
  (void)id;
  qemu_plugin_register_vcpu_tb_exec_inline(translation, INLINE_ADD_U64, &count, qemu_plugin_tb_n_insns(translation));
}

static void on_call(plugin_id id, unsigned cpu, int64_t number, uint64_t a1, uint64_t a2, uint64_t a3, uint64_t a4,
                    uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8) {
  (void)id, (void)cpu, (void)a1, (void)a2, (void)a3, (void)a4, (void)a5, (void)a6, (void)a7, (void)a8;
  if (number == mark) write_count();
}

static void on_end(plugin_id id, void *context) {
  (void)id, (void)context;
  write_count();
  fclose(out);
}

/* Answers with nonzero, which ends the emulator, if an argument is missing or the file cannot be written. */
int qemu_plugin_install(plugin_id id, const emulator *info, int argc, char **argv) {
  (void)info;
  for (int i = 0; i < argc; i++) {
    if (strncmp(argv[i], "out=", 4) == 0) out = fopen(argv[i] + 4, "w");
    if (strncmp(argv[i], "mark=", 5) == 0) mark = strtoll(argv[i] + 5, NULL, 10);
  }
  if (!out || mark < 0) return 1;
  qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
  qemu_plugin_register_vcpu_syscall_cb(id, on_call);
  qemu_plugin_register_atexit_cb(id, on_end, NULL);
  return 0;
}
