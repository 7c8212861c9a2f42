/* The pool: workers that spin for a short while after a call, then park.
 *
 * One word, the ticket, holds a generation (high half) and the next task (low half).  An even generation is open: its
 * tasks are taken by counting up.  A caller closes the old generation (odd), writes the new job, and opens the next;
 * so whoever takes a task by compare-and-swap knows that the job it read belongs to that generation, and a call need
 * not wait for workers that still sleep.  One thread calls at a time, and a task does not call the pool.
 */
#include "../include/omnic_kernels.h"
#include "threads.h"

#include <stdatomic.h>
#include <stdlib.h>

/* About 0.1 ms of waiting: longer than the gap between two calls of a token, shorter than a time slice. */
#define SPINS 4000
/* The low half of the ticket counts tasks. */
#define LOW 0xffffffffull
#define MOST_TASKS 0x7fffffffll

typedef void (*task_function)(void *arg, int64_t i);

struct omnic_pool {
  _Alignas(64) _Atomic uint64_t ticket;
  _Alignas(64) _Atomic int64_t done;
  _Alignas(64) _Atomic(task_function) task;
  _Atomic(void *) arg;
  _Atomic int64_t first, tasks;
  _Atomic int stop;
  _Atomic int sleepers;
  int threads;
  omnic_lock lock;
  omnic_condition wake;
  omnic_thread workers[];
};

/* Take and run tasks of the open generation until none is left. */
static void work(omnic_pool *pool) {
  uint64_t ticket = atomic_load(&pool->ticket);
  for (;;) {
    task_function task = atomic_load_explicit(&pool->task, memory_order_relaxed);
    void *arg = atomic_load_explicit(&pool->arg, memory_order_relaxed);
    int64_t first = atomic_load_explicit(&pool->first, memory_order_relaxed);
    int64_t tasks = atomic_load_explicit(&pool->tasks, memory_order_relaxed);
    int64_t next = (int64_t)(ticket & LOW);
    if ((ticket >> 32 & 1) || next >= tasks) return;
    if (!atomic_compare_exchange_weak(&pool->ticket, &ticket, ticket + 1)) continue;
    task(arg, first + next);
    atomic_fetch_add(&pool->done, 1);
    ticket = atomic_load(&pool->ticket);
  }
}

static OMNIC_THREAD_RESULT worker(void *arg) {
  omnic_pool *pool = arg;
  uint64_t seen = 0;
  for (;;) {
    uint64_t generation = seen;
    for (int spin = 0; spin < SPINS; spin++) {
      generation = atomic_load(&pool->ticket) >> 32;
      if (generation != seen || atomic_load_explicit(&pool->stop, memory_order_relaxed)) break;
      omnic_pause();
    }
    if (generation == seen && !atomic_load(&pool->stop)) {
      omnic_lock_take(&pool->lock);
      atomic_fetch_add(&pool->sleepers, 1);
      while (atomic_load(&pool->ticket) >> 32 == seen && !atomic_load(&pool->stop))
        omnic_condition_wait(&pool->wake, &pool->lock);
      atomic_fetch_sub(&pool->sleepers, 1);
      omnic_lock_give(&pool->lock);
      generation = atomic_load(&pool->ticket) >> 32;
    }
    if (atomic_load(&pool->stop)) return 0;
    seen = generation;
    work(pool);
  }
}

omnic_pool *omnic_pool_create(int threads) {
  if (threads < 1) return NULL;
  size_t bytes = sizeof(omnic_pool) + (size_t)threads * sizeof(omnic_thread) + 64;
  void *raw = malloc(bytes + sizeof(void *));
  if (!raw) return NULL;
  /* aligned_alloc is not everywhere: align by hand, and keep what malloc gave before the pool. */
  omnic_pool *pool = (omnic_pool *)(((uintptr_t)raw + sizeof(void *) + 63) & ~(uintptr_t)63);
  ((void **)pool)[-1] = raw;
  atomic_init(&pool->ticket, 0);
  atomic_init(&pool->done, 0);
  atomic_init(&pool->task, NULL);
  atomic_init(&pool->arg, NULL);
  atomic_init(&pool->first, 0);
  atomic_init(&pool->tasks, 0);
  atomic_init(&pool->stop, 0);
  atomic_init(&pool->sleepers, 0);
  pool->threads = 1;
  omnic_lock_init(&pool->lock);
  omnic_condition_init(&pool->wake);
  for (int i = 1; i < threads; i++) {
    if (!omnic_thread_start(&pool->workers[i], worker, pool)) {
      omnic_pool_destroy(pool);
      return NULL;
    }
    pool->threads++;
  }
  return pool;
}

void omnic_pool_destroy(omnic_pool *pool) {
  if (!pool) return;
  omnic_lock_take(&pool->lock);
  atomic_store(&pool->stop, 1);
  omnic_condition_wake(&pool->wake);
  omnic_lock_give(&pool->lock);
  for (int i = 1; i < pool->threads; i++) omnic_thread_join(pool->workers[i]);
  omnic_condition_destroy(&pool->wake);
  omnic_lock_destroy(&pool->lock);
  free(((void **)pool)[-1]);
}

int omnic_pool_threads(const omnic_pool *pool) { return pool ? pool->threads : 1; }

static void run_some(omnic_pool *pool, task_function task, void *arg, int64_t first, int64_t tasks) {
  uint64_t generation = atomic_load(&pool->ticket) >> 32;
  atomic_store(&pool->ticket, ((generation + 1) | 1) << 32);
  atomic_store(&pool->task, task);
  atomic_store(&pool->arg, arg);
  atomic_store(&pool->first, first);
  atomic_store(&pool->tasks, tasks);
  atomic_store(&pool->done, 0);
  atomic_store(&pool->ticket, ((generation + 2) & ~1ull) << 32);
  if (atomic_load(&pool->sleepers)) {
    omnic_lock_take(&pool->lock);
    omnic_condition_wake(&pool->wake);
    omnic_lock_give(&pool->lock);
  }
  work(pool);
  for (int spin = 0; atomic_load(&pool->done) < tasks; spin++) {
    if (spin < SPINS)
      omnic_pause();
    else
      omnic_thread_yield();
  }
}

void omnic_pool_run(omnic_pool *pool, void (*task)(void *arg, int64_t i), void *arg, int64_t tasks) {
  if (!pool || pool->threads == 1 || tasks <= 1) {
    for (int64_t i = 0; i < tasks; i++) task(arg, i);
    return;
  }
  for (int64_t first = 0; first < tasks; first += MOST_TASKS)
    run_some(pool, task, arg, first, tasks - first < MOST_TASKS ? tasks - first : MOST_TASKS);
}
