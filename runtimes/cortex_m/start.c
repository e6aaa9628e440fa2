/* From reset to main: the emulator has loaded code, constants and variables where they belong. */
#include "semihosting.h"

extern uint8_t stack_top[]; /* of the linker script */

int main(void);

#define CPACR (*(volatile uint32_t *)0xE000ED88u)
#define FULL_ACCESS_TO_FPU (0xFu << 20)

__attribute__((noreturn)) static void reset(void) {
  CPACR |= FULL_ACCESS_TO_FPU; /* and to Helium */
  __asm__ volatile("dsb\n isb");
  semihosting_exit(main());
}

__attribute__((noreturn)) static void fault(void) {
  semihosting_print("the processor faulted\n");
  semihosting_exit(3);
}

/* The stack, then reset, NMI and the faults of every kind. */
__attribute__((section(".vectors"), used)) const void *const vectors[] = {
    stack_top, (void *)reset, (void *)fault, (void *)fault, (void *)fault, (void *)fault, (void *)fault, (void *)fault,
};
