/* A few workers that do one job together with the caller.
 *
 * A job is announced by a new ticket. Workers and the caller first spin for a moment, since the next step
 * mostly follows within microseconds, then sleep on a condition variable. Whoever sleeps says so under the
 * lock before it looks a last time; whoever announces looks for sleepers afterwards. Both sides are
 * sequentially consistent, so that one of them sees the other.
 */
#include "internal.h"

#if EDGERT_WITH_THREADS

#include <pthread.h>
#include <unistd.h>

#define SPIN_NS 50000u

typedef struct worker {
  pthread_t thread;
  edgert_pool *pool;
  int32_t index;
} worker;

struct edgert_pool {
  uint32_t threads;
  uint32_t started; /* workers that run */
  pid_t process;    /* that they run in */
  bool pin_big_cores;
  uint64_t spin_ns;
  edgert_job_fn job; /* NULL: stop */
  void *context;
  atomic_uint ticket;
  atomic_uint pending; /* workers that have not finished the job */
  atomic_uint sleepers;
  atomic_bool caller_sleeps;
  pthread_mutex_t lock;
  pthread_cond_t announced;
  pthread_cond_t finished;
  worker workers[];
};

size_t edgert_pool_bytes(uint32_t threads) {
  return sizeof(edgert_pool) + (threads - 1) * sizeof(worker);
}

static void relax(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  __asm__ volatile("yield");
#endif
}

/* Spins until `*value` differs from `old` (`equal` false) or equals it (true); false after `spin_ns`. */
static bool spin(const edgert_pool *pool, const atomic_uint *value, unsigned old, bool equal) {
  uint64_t start = 0;
  for (unsigned i = 0; (atomic_load(value) == old) != equal; i++) {
    relax();
    if (i % 32 != 31) continue;
    uint64_t now = edgert_now_ns();
    if (start == 0) start = now;
    if (now - start >= pool->spin_ns) return false;
  }
  return true;
}

static void await_ticket(edgert_pool *pool, unsigned seen) {
  if (spin(pool, &pool->ticket, seen, false)) return;
  pthread_mutex_lock(&pool->lock);
  atomic_fetch_add(&pool->sleepers, 1);
  while (atomic_load(&pool->ticket) == seen) pthread_cond_wait(&pool->announced, &pool->lock);
  atomic_fetch_sub(&pool->sleepers, 1);
  pthread_mutex_unlock(&pool->lock);
}

static void announce(edgert_pool *pool) {
  atomic_fetch_add(&pool->ticket, 1);
  if (atomic_load(&pool->sleepers) == 0) return;
  pthread_mutex_lock(&pool->lock);
  pthread_cond_broadcast(&pool->announced);
  pthread_mutex_unlock(&pool->lock);
}

static void finish(edgert_pool *pool) {
  if (atomic_fetch_sub(&pool->pending, 1) != 1 || !atomic_load(&pool->caller_sleeps)) return;
  pthread_mutex_lock(&pool->lock);
  pthread_cond_signal(&pool->finished);
  pthread_mutex_unlock(&pool->lock);
}

static void await_workers(edgert_pool *pool) {
  if (spin(pool, &pool->pending, 0, true)) return;
  pthread_mutex_lock(&pool->lock);
  atomic_store(&pool->caller_sleeps, true);
  while (atomic_load(&pool->pending) != 0) pthread_cond_wait(&pool->finished, &pool->lock);
  atomic_store(&pool->caller_sleeps, false);
  pthread_mutex_unlock(&pool->lock);
}

static void *work(void *argument) {
  const worker *self = argument;
  edgert_pool *pool = self->pool;
  if (pool->pin_big_cores) edgert_pin_caller(pool->threads);
  for (unsigned seen = 0;; seen++) {
    await_ticket(pool, seen);
    if (!pool->job) return NULL;
    pool->job(pool->context, self->index, (int32_t)pool->threads);
    finish(pool);
  }
}

static edgert_status start_workers(edgert_pool *pool) {
  for (uint32_t i = 0; i + 1 < pool->threads; i++) {
    worker *next = &pool->workers[i];
    *next = (worker){.pool = pool, .index = (int32_t)i + 1};
    if (pthread_create(&next->thread, NULL, work, next) != 0) {
      uint32_t got = pool->started + 1;
      edgert_pool_stop(pool);
      return edgert_fail(EDGERT_ERROR_THREADS,
                         "the system started only %u of %u threads; ask for fewer threads", got,
                         pool->threads);
    }
    pool->started++;
  }
  return EDGERT_OK;
}

edgert_status edgert_pool_start(edgert_pool *pool, uint32_t threads, bool pin_big_cores) {
  uint32_t cpus = edgert_cpu_count();
  pool->threads = threads;
  pool->started = 0;
  pool->process = getpid();
  pool->pin_big_cores = pin_big_cores;
  /* More threads than CPUs: who spins takes the CPU from whom it waits for. */
  pool->spin_ns = cpus != 0 && threads > cpus ? 0 : SPIN_NS;
  pool->job = NULL;
  atomic_init(&pool->ticket, 0);
  atomic_init(&pool->pending, 0);
  atomic_init(&pool->sleepers, 0);
  atomic_init(&pool->caller_sleeps, false);
  pthread_mutex_init(&pool->lock, NULL);
  pthread_cond_init(&pool->announced, NULL);
  pthread_cond_init(&pool->finished, NULL);
  return start_workers(pool);
}

edgert_status edgert_pool_check(const edgert_pool *pool) {
  if (pool->started == 0 || pool->process == getpid()) return EDGERT_OK;
  return edgert_fail(EDGERT_ERROR_THREADS,
                     "the session's threads stayed behind in the process that forked this one; open the session "
                     "after the fork");
}

void edgert_pool_run(edgert_pool *pool, edgert_job_fn job, void *context) {
  if (pool->started == 0) {
    job(context, 0, 1);
    return;
  }
  pool->job = job;
  pool->context = context;
  atomic_store(&pool->pending, pool->started);
  announce(pool);
  job(context, 0, (int32_t)pool->threads);
  await_workers(pool);
}

void edgert_pool_stop(edgert_pool *pool) {
  if (pool->process != getpid()) return;
  pool->job = NULL;
  announce(pool);
  for (uint32_t i = 0; i < pool->started; i++) pthread_join(pool->workers[i].thread, NULL);
  pthread_cond_destroy(&pool->finished);
  pthread_cond_destroy(&pool->announced);
  pthread_mutex_destroy(&pool->lock);
}

#else

struct edgert_pool {
  char unused;
};

size_t edgert_pool_bytes(uint32_t threads) {
  (void)threads;
  return sizeof(edgert_pool);
}

edgert_status edgert_pool_start(edgert_pool *pool, uint32_t threads, bool pin_big_cores) {
  (void)pool;
  (void)pin_big_cores;
  if (threads == 1) return EDGERT_OK;
  return edgert_fail(EDGERT_ERROR_THREADS,
                     "this libedgert was built without threads and %u were asked for; ask for 1, or build it "
                     "with -DEDGERT_THREADS=ON",
                     (unsigned)threads);
}

edgert_status edgert_pool_check(const edgert_pool *pool) {
  (void)pool;
  return EDGERT_OK;
}

void edgert_pool_run(edgert_pool *pool, edgert_job_fn job, void *context) {
  (void)pool;
  job(context, 0, 1);
}

void edgert_pool_stop(edgert_pool *pool) { (void)pool; }

#endif
