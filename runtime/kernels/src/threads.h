/* Threads, a lock and a condition of the system: POSIX, or Windows' own. */
#ifndef OMNIC_THREADS_H
#define OMNIC_THREADS_H

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>

typedef HANDLE omnic_thread;
typedef SRWLOCK omnic_lock;
typedef CONDITION_VARIABLE omnic_condition;
#define OMNIC_THREAD_RESULT DWORD WINAPI

static inline int omnic_thread_start(omnic_thread *thread, LPTHREAD_START_ROUTINE run, void *arg) {
  *thread = CreateThread(NULL, 0, run, arg, 0, NULL);
  return *thread != NULL;
}
static inline void omnic_thread_join(omnic_thread thread) {
  WaitForSingleObject(thread, INFINITE);
  CloseHandle(thread);
}
static inline void omnic_lock_init(omnic_lock *lock) { InitializeSRWLock(lock); }
static inline void omnic_lock_destroy(omnic_lock *lock) { (void)lock; }
static inline void omnic_lock_take(omnic_lock *lock) { AcquireSRWLockExclusive(lock); }
static inline void omnic_lock_give(omnic_lock *lock) { ReleaseSRWLockExclusive(lock); }
static inline void omnic_condition_init(omnic_condition *condition) { InitializeConditionVariable(condition); }
static inline void omnic_condition_destroy(omnic_condition *condition) { (void)condition; }
static inline void omnic_condition_wait(omnic_condition *condition, omnic_lock *lock) {
  SleepConditionVariableSRW(condition, lock, INFINITE, 0);
}
static inline void omnic_condition_wake(omnic_condition *condition) { WakeAllConditionVariable(condition); }
static inline void omnic_thread_yield(void) { SwitchToThread(); }
#else
#include <pthread.h>
#include <sched.h>

typedef pthread_t omnic_thread;
typedef pthread_mutex_t omnic_lock;
typedef pthread_cond_t omnic_condition;
#define OMNIC_THREAD_RESULT void *

static inline int omnic_thread_start(omnic_thread *thread, void *(*run)(void *), void *arg) {
  return pthread_create(thread, NULL, run, arg) == 0;
}
static inline void omnic_thread_join(omnic_thread thread) { pthread_join(thread, NULL); }
static inline void omnic_lock_init(omnic_lock *lock) { pthread_mutex_init(lock, NULL); }
static inline void omnic_lock_destroy(omnic_lock *lock) { pthread_mutex_destroy(lock); }
static inline void omnic_lock_take(omnic_lock *lock) { pthread_mutex_lock(lock); }
static inline void omnic_lock_give(omnic_lock *lock) { pthread_mutex_unlock(lock); }
static inline void omnic_condition_init(omnic_condition *condition) { pthread_cond_init(condition, NULL); }
static inline void omnic_condition_destroy(omnic_condition *condition) { pthread_cond_destroy(condition); }
static inline void omnic_condition_wait(omnic_condition *condition, omnic_lock *lock) {
  pthread_cond_wait(condition, lock);
}
static inline void omnic_condition_wake(omnic_condition *condition) { pthread_cond_broadcast(condition); }
static inline void omnic_thread_yield(void) { sched_yield(); }
#endif

/* Tell the core that this thread waits for another. */
static inline void omnic_pause(void) {
#if defined(__x86_64__) || defined(__i386__)
  __asm__ volatile("pause");
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}
#endif
