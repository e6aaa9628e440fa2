/* Runs a model on samples from a file.
 *
 * inputs.bin holds SAMPLES samples one after the other, each the dense inputs in the model's order; outputs.bin gets
 * the outputs in the same way, and stack.bin the most bytes of stack that a run has used (uint32). `model` is written
 * for the model at hand. Before and after every run there is a `yield`, for what counts instructions.
 */
#include "semihosting.h"

typedef struct tensor {
  void *data;
  size_t bytes;
} tensor;

extern const tensor inputs[], outputs[]; /* each ended by a NULL */
void run_model(void);

extern uint32_t stack_bottom[]; /* of the linker script */

#define PAINT 0xA5A5A5A5u
#define MARGIN 64u /* words below this function's frame that are left alone */

static void require(int condition, const char *sentence) {
  if (condition) return;
  semihosting_print(sentence);
  semihosting_exit(2);
}

__attribute__((noinline)) static uint32_t *paint_stack(void) {
  uint32_t *top = (uint32_t *)__builtin_frame_address(0) - MARGIN;
  for (uint32_t *word = stack_bottom; word < top; word++) *word = PAINT;
  return top;
}

static uint32_t stack_used(const uint32_t *top) {
  const uint32_t *word = stack_bottom;
  while (word < top && *word == PAINT) word++;
  return (uint32_t)((top - word) + MARGIN) * 4u;
}

__attribute__((noinline)) static void run(void) {
  __asm__ volatile("yield" ::: "memory");
  run_model();
  __asm__ volatile("yield" ::: "memory");
}

int main(void) {
  intptr_t from = semihosting_open("inputs.bin", SEMIHOSTING_READ_BINARY);
  intptr_t to = semihosting_open("outputs.bin", SEMIHOSTING_WRITE_BINARY);
  require(from != -1 && to != -1, "inputs.bin or outputs.bin cannot be opened\n");
  const uint32_t *top = paint_stack();
  for (uint32_t sample = 0; sample < SAMPLES; sample++) {
    for (const tensor *in = inputs; in->data; in++)
      require(semihosting_read(from, in->data, in->bytes), "inputs.bin ends too early\n");
    run();
    for (const tensor *out = outputs; out->data; out++)
      require(semihosting_write(to, out->data, out->bytes), "outputs.bin cannot be written\n");
  }
  const uint32_t used = stack_used(top);
  intptr_t report = semihosting_open("stack.bin", SEMIHOSTING_WRITE_BINARY);
  require(report != -1 && semihosting_write(report, &used, sizeof used), "stack.bin cannot be written\n");
  semihosting_close(to);
  semihosting_close(report);
  return 0;
}
