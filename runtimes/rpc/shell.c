/* What edgec loads into a TVM RPC server: a function that runs a script of the shell, as ssh and adb do of themselves.
 * It is called by TVM's own convention (tvm/ffi/c_api.h: TVMFFIAny, TVMFFISafeCallType), and links nothing of TVM. */
#define _POSIX_C_SOURCE 200809L
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

typedef struct any {
  int32_t type;
  uint32_t zero;
  union {
    int64_t number;
    const char *text;
  } value;
} any;

enum { TYPE_INT = 1, TYPE_TEXT = 8 }; /* kTVMFFIInt, kTVMFFIRawStr */
enum { NOT_STARTED = -1, OUT_OF_TIME = -2, WRONG_ARGUMENTS = -3 };

#define POLL_MS 5

__attribute__((visibility("default"))) int __tvm_ffi_edgec_shell(void *self, const any *arguments, int32_t count,
                                                                 any *result);

static void become_script(const char *script, const char *output, const char *errors) {
  const int flags = O_WRONLY | O_CREAT | O_TRUNC;
  int in = open("/dev/null", O_RDONLY), out = open(output, flags, 0600), err = open(errors, flags, 0600);
  setpgid(0, 0);
  if (in >= 0 && out >= 0 && err >= 0 && dup2(in, 0) == 0 && dup2(out, 1) == 1 && dup2(err, 2) == 2) {
    for (int each = 3; each < 1024; each++) close(each); /* the server's sockets */
    execl("/bin/sh", "sh", "-c", script, (char *)NULL);
  }
  _exit(127);
}

/* Its exit code, 128 and the signal's number as the shell has it, or one of the codes above. */
static int64_t run(const char *script, const char *output, const char *errors, int64_t most_ms) {
  const struct timespec pause = {0, POLL_MS * 1000000};
  int status = 0;
  pid_t child = fork();
  if (child < 0) return NOT_STARTED;
  if (child == 0) become_script(script, output, errors);
  for (int64_t waited = 0; waitpid(child, &status, WNOHANG) == 0; waited += POLL_MS) {
    if (most_ms > 0 && waited >= most_ms) {
      kill(-child, SIGKILL);
      waitpid(child, &status, 0);
      return OUT_OF_TIME;
    }
    nanosleep(&pause, NULL);
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* edgec_shell(script, file of the output, file of the errors, the most milliseconds or 0): see run. */
int __tvm_ffi_edgec_shell(void *self, const any *arguments, int32_t count, any *result) {
  (void)self;
  int fits = count == 4 && arguments[3].type == TYPE_INT;
  for (int32_t i = 0; fits && i < 3; i++) fits = arguments[i].type == TYPE_TEXT;
  result->type = TYPE_INT;
  result->zero = 0;
  result->value.number = !fits ? WRONG_ARGUMENTS
                               : run(arguments[0].value.text, arguments[1].value.text, arguments[2].value.text,
                                     arguments[3].value.number);
  return 0;
}
