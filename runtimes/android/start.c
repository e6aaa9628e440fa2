/* Where an executable for Android begins, as its C library expects it. */

typedef struct {
  void (**before)(void), (**constructors)(void), (**destructors)(void);
} initialisers;

__attribute__((noreturn)) void __libc_init(void *arguments, void (*at_exit)(void), int (*main)(int, char **, char **),
                                           const initialisers *functions);
int main(int argc, char **argv, char **environment);

static void (*none[])(void) = {(void (*)(void))-1, 0};

#ifdef __LP64__
#define LOADER "/system/bin/linker64"
#else
#define LOADER "/system/bin/linker"
#endif

/* The loader of the system; linked as a shared object, an executable would not name it. */
__attribute__((used, retain, section(".interp"))) static const char loader[] = LOADER;

/* Android wants the thread-local block of an executable for ARM aligned to 64 bytes (to 32 on 32 bits). */
__attribute__((used, retain, aligned(64))) static _Thread_local char alignment[64] = {1};

__attribute__((used)) static void start(void *arguments) {
  const initialisers functions = {none, none, none};
  __libc_init(arguments, 0, main, &functions);
}

#if defined(__aarch64__)
__asm__(".globl _start\n_start:\n  mov x29, #0\n  mov x30, #0\n  mov x0, sp\n  b start\n");
#elif defined(__arm__)
__asm__(".globl _start\n.type _start, %function\n_start:\n  mov fp, #0\n  mov lr, #0\n  mov r0, sp\n  b start\n");
#elif defined(__x86_64__)
__asm__(".globl _start\n_start:\n  xor %ebp, %ebp\n  mov %rsp, %rdi\n  and $-16, %rsp\n  call start\n");
#endif
