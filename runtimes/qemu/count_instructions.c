/* A plugin of qemu (plugin API 1) that counts the instructions its guest executes.
 *
 *   qemu-aarch64 -plugin count_instructions.so,out=FILE,mark=NUMBER PROGRAM ...
 *   qemu-system-arm -plugin count_instructions.so,out=FILE,yield=on ...
 *
 * Whenever the guest makes the system call NUMBER, or executes a Thumb `yield`, and once at its end, a line with the
 * count so far is written to FILE. The count is exact for one thread: every translated block adds its length as it is
 * entered, and a system call ends its block; so does a `yield`.
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
typedef struct instruction instruction;
typedef struct emulator emulator;
enum { INLINE_ADD_U64 = 0, NO_REGISTERS = 0 };

typedef void (*translated)(plugin_id id, block *translation);
typedef void (*ended)(plugin_id id, void *context);
typedef void (*called)(plugin_id id, unsigned cpu, int64_t number, uint64_t a1, uint64_t a2, uint64_t a3, uint64_t a4,
                       uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8);

typedef void (*executed)(unsigned cpu, void *context);

size_t qemu_plugin_tb_n_insns(const block *translation);
instruction *qemu_plugin_tb_get_insn(const block *translation, size_t index);
const void *qemu_plugin_insn_data(const instruction *insn);
size_t qemu_plugin_insn_size(const instruction *insn);
void qemu_plugin_register_vcpu_insn_exec_cb(instruction *insn, executed callback, int registers, void *context);
void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id id, translated callback);
void qemu_plugin_register_vcpu_tb_exec_inline(block *translation, int operation, void *counter, uint64_t amount);
void qemu_plugin_register_vcpu_syscall_cb(plugin_id id, called callback);
void qemu_plugin_register_atexit_cb(plugin_id id, ended callback, void *context);

EXPORT int qemu_plugin_version = 1;
EXPORT int qemu_plugin_install(plugin_id id, const emulator *info, int argc, char **argv);

static uint64_t count;
static int64_t mark = -1;
static int mark_yields;
static FILE *out;

static void write_count(void) { fprintf(out, "%" PRIu64 "\n", count); }

static void on_yield(unsigned cpu, void *context) {
  (void)cpu, (void)context;
  write_count();
}

static int is_yield(const instruction *insn) {
  static const uint8_t yield[] = {0x10, 0xbf};
  return qemu_plugin_insn_size(insn) == sizeof yield && memcmp(qemu_plugin_insn_data(insn), yield, sizeof yield) == 0;
}

static void on_translation(plugin_id id, block *translation) {
  (void)id;
  for (size_t i = 0; mark_yields && i < qemu_plugin_tb_n_insns(translation); i++) {
    instruction *insn = qemu_plugin_tb_get_insn(translation, i);
    if (is_yield(insn)) qemu_plugin_register_vcpu_insn_exec_cb(insn, on_yield, NO_REGISTERS, NULL);
  }
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
    if (strcmp(argv[i], "yield=on") == 0) mark_yields = 1;
  }
  if (!out || (mark < 0 && !mark_yields)) return 1;
  qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
  if (mark >= 0) qemu_plugin_register_vcpu_syscall_cb(id, on_call);
  qemu_plugin_register_atexit_cb(id, on_end, NULL);
  return 0;
}
