/* A program as an executable: token ids in, greedy token ids and times out.
 *
 *   NAME [-n COUNT] [-t THREADS] [-l LEVEL] WEIGHTS ID...
 *
 * Maps the file of weights, runs the ids as one prompt (in pieces of the longest call), then chooses the most likely
 * token COUNT times (64), fewer where the program's capacity ends.  LEVEL is a name (avx2) or -1, the best one.
 * Prints `ids`, the level, then seconds to open, for the prompt, and for each further token.
 * Exit code 2, and a line on standard error, before anything runs when it cannot.
 */
#if defined(__linux__) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE
#endif
#include "omnic_program.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#else
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

#define MOST_ARGUMENTS 16

static double now(void) {
  struct timespec t;
  timespec_get(&t, TIME_UTC);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Map a file for reading; NULL when that fails. */
static const uint8_t *mapped(const char *path, int64_t *bytes) {
#if defined(_WIN32)
  HANDLE file = CreateFileA(path, GENERIC_READ, FILE_SHARE_READ, NULL, OPEN_EXISTING, FILE_ATTRIBUTE_NORMAL, NULL);
  LARGE_INTEGER size;
  if (file == INVALID_HANDLE_VALUE || !GetFileSizeEx(file, &size)) return NULL;
  HANDLE view = CreateFileMappingA(file, NULL, PAGE_READONLY, 0, 0, NULL);
  *bytes = size.QuadPart;
  return view ? MapViewOfFile(view, FILE_MAP_READ, 0, 0, 0) : NULL;
#else
  struct stat about;
  int file = open(path, O_RDONLY);
  if (file < 0 || fstat(file, &about) || about.st_size == 0) return NULL;
  *bytes = about.st_size;
  void *found = mmap(NULL, (size_t)about.st_size, PROT_READ, MAP_SHARED, file, 0);
  close(file);
  if (found == MAP_FAILED) return NULL;
  posix_madvise(found, (size_t)about.st_size, POSIX_MADV_WILLNEED);
  return found;
#endif
}

/* Zeros on pages that take memory when they are first written to; NULL when there are none.  Not every calloc gives
 * such: some write the zeros. */
static uint8_t *blank(size_t bytes) {
#if defined(_WIN32)
  return VirtualAlloc(NULL, bytes, MEM_COMMIT | MEM_RESERVE, PAGE_READWRITE);
#else
  void *found = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return found == MAP_FAILED ? NULL : found;
#endif
}

/* The function that a call of `tokens` tokens runs; NULL when the program has none of that name. */
static const omnic_function *named(const char *name, int64_t tokens) {
  const omnic_program *p = &omnic_program_table;
  const omnic_function *found = NULL;
  for (int64_t i = 0; i < p->functions; i++) {
    const omnic_function *f = &p->function[i];
    if (!strcmp(f->name, name) && f->tokens >= tokens && (!found || f->tokens < found->tokens)) found = f;
  }
  return found;
}

/* What a call reads and writes.  The arguments are tokens, positions, start, length, rows and, with token trees,
 * parents.  `forward` gives the logits first; `greedy`, where the program has it, the most likely token and its logit. */
typedef struct {
  int64_t *tokens, *positions, *parents, start, length, row, token;
  float *logits, logit;
  const void *in[MOST_ARGUMENTS];
  void *out[MOST_ARGUMENTS];
  int greedy;
} arguments;

static int prepare(arguments *a, const omnic_function *f) {
  const omnic_program *p = &omnic_program_table;
  size_t count = (size_t)p->chunk;
  const omnic_function *greedy = named("greedy", 1);
  a->greedy = greedy && greedy->results == 2 && greedy->inputs == f->inputs;
  a->tokens = calloc(count, sizeof *a->tokens);
  a->positions = calloc(count, sizeof *a->positions);
  a->parents = calloc(count, sizeof *a->parents);
  a->logits = calloc((size_t)p->vocab, sizeof *a->logits);
  if (!a->tokens || !a->positions || !a->parents || !a->logits || f->results > MOST_ARGUMENTS) return 1;
  const void *in[] = {a->tokens, a->positions, &a->start, &a->length, &a->row, a->parents};
  for (int i = 0; i < f->inputs && i < 6; i++) a->in[i] = in[i];
  a->out[0] = a->logits;
  for (int i = 1; i < f->results; i++) {
    a->out[i] = calloc(1, (size_t)p->result_bytes[i]);
    if (!a->out[i]) return 1;
  }
  return 0;
}

static int64_t best(const float *logits, int64_t vocab) {
  int64_t found = 0;
  for (int64_t i = 1; i < vocab; i++)
    if (logits[i] > logits[found]) found = i;
  return found;
}

/* Run `count` tokens from `from`; returns the most likely next token, -1 on failure. */
static int64_t step(omnic_instance *x, arguments *a, const int64_t *from, int64_t count, uint8_t *states) {
  for (int64_t i = 0; i < count; i++) {
    a->tokens[i] = from[i];
    a->positions[i] = a->start + i;
    a->parents[i] = i - 1;
  }
  a->length = count, a->row = count - 1;
  void *token[] = {&a->token, &a->logit};
  int greedy = a->greedy && count == 1;
  if (omnic_program_run(x, greedy ? "greedy" : "forward", 1, count, 1, a->in, greedy ? token : a->out, states, NULL))
    return -1;
  a->start += count;
  return greedy ? a->token : best(a->logits, omnic_program_table.vocab);
}

static int failed(const char *what, ...) {
  va_list values;
  fprintf(stderr, "%s: ", omnic_program_table.model);
  va_start(values, what);
  vfprintf(stderr, what, values);
  va_end(values);
  fputc('\n', stderr);
  return 2;
}

static int generate(omnic_instance *x, const int64_t *prompt, int64_t count, int64_t wanted, double opened) {
  const omnic_program *p = &omnic_program_table;
  arguments a = {0};
  uint8_t *states = blank((size_t)p->row_bytes + 64);
  const omnic_function *f = named("forward", 1);
  if (!states || !f || prepare(&a, f)) return failed("not enough memory");
  double began = now();
  int64_t token = 0, at = 0, made = 0;
  for (; at < count && token >= 0; at += p->chunk)
    token = step(x, &a, prompt + at, omnic_min(count - at, p->chunk), states);
  double prefilled = now();
  if (token < 0) return failed("a call of the prompt was refused: there may not be enough memory");
  printf("ids");
  for (; token >= 0; token = step(x, &a, &token, 1, states)) {
    printf(" %lld", (long long)token);
    if (++made == wanted || a.start >= p->capacity) break;
  }
  double end = now();
  printf("\nlevel %s\nopen %.6f\nprompt %.6f\ntoken %.6f\n", omnic_level_name(omnic_program_level(x)), opened,
         prefilled - began, (end - prefilled) / (double)(made > 1 ? made - 1 : 1));
  return token < 0 ? failed("a call was refused") : fflush(stdout) ? failed("the output cannot be written") : 0;
}

/* The whole number that a word is; 0 when it is none or lies outside low..high. */
static int number(const char *word, int64_t low, int64_t high, int64_t *found) {
  char *end = NULL;
  *found = strtoll(word, &end, 10);
  return end != word && !*end && *found >= low && *found <= high;
}

/* The level of a name; -2 when there is none. */
static int level_named(const char *name) {
  if (!strcmp(name, "-1") || !strcmp(name, "best")) return -1;
  for (int level = OMNIC_GENERIC; level <= OMNIC_I8MM; level++)
    if (!strcmp(name, omnic_level_name(level))) return level;
  return -2;
}

int main(int argc, char **argv) {
  const omnic_program *p = &omnic_program_table;
  int64_t wanted = 64, threads = 1;
  int at = 1, level = -1;
  for (; at < argc && argv[at][0] == '-'; at += 2) {
    const char *option = argv[at], *value = at + 1 < argc ? argv[at + 1] : "";
    if (!strcmp(option, "-n")) {
      if (!number(value, 1, INT32_MAX, &wanted)) return failed("-n takes a number of tokens from 1, not '%s'", value);
    } else if (!strcmp(option, "-t")) {
      if (!number(value, 1, 1024, &threads)) return failed("-t takes 1 to 1024 threads, not '%s'", value);
    } else if (!strcmp(option, "-l")) {
      level = level_named(value);
      if (level < -1) return failed("-l takes the name of a level, not '%s'", value);
    } else {
      return failed("unknown option '%s'; it takes -n COUNT, -t THREADS, -l LEVEL", option);
    }
  }
  int64_t count = argc - at - 1, bytes = 0;
  if (count < 1) return failed("give the file of weights and at least one token id");
  if (count > p->capacity)
    return failed("the prompt has %lld tokens, and the program holds %lld", (long long)count, (long long)p->capacity);
  int64_t *prompt = calloc((size_t)count, sizeof *prompt);
  if (!prompt) return failed("not enough memory");
  for (int64_t i = 0; i < count; i++)
    if (!number(argv[at + 1 + i], 0, p->vocab - 1, &prompt[i]))
      return failed("'%s' is no token id: they are 0 to %lld", argv[at + 1 + i], (long long)p->vocab - 1);
  double began = now();
  const uint8_t *file = mapped(argv[at], &bytes);
  if (!file) return failed("the file of weights '%s' cannot be read", argv[at]);
  omnic_instance *x = NULL;
  switch (omnic_program_open(file, bytes, level, (int)threads, &x)) {
    case OMNIC_OK: break;
    case OMNIC_NO_LEVEL:
      return failed("this CPU, or this program, lacks the level %s; it would run %s", omnic_level_name(level),
                    omnic_level_name(omnic_best_level()));
    case OMNIC_BAD_FILE: return failed("'%s' is not the whole weights of this program", argv[at]);
    case OMNIC_NO_THREADS: return failed("the system does not give %lld threads", (long long)threads);
    default: return failed("there is not enough memory");
  }
  int code = generate(x, prompt, count, wanted, now() - began);
  omnic_program_close(x);
  free(prompt);
  return code;
}
