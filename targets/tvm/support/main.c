/* A program as an executable: token ids in, greedy token ids and times out.
 *
 *   NAME [-n COUNT] [-t THREADS] [-l LEVEL] WEIGHTS ID...
 *
 * Reads the file of weights, runs the ids as one prompt (in pieces of the longest call), then chooses the most likely
 * token COUNT times (64).  Prints `ids`, then seconds to open, for the prompt, and for each further token.
 */
#if defined(__linux__) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE
#endif
#include "omnic_program.h"

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
  return found == MAP_FAILED ? NULL : found;
#endif
}

static const omnic_function *forward(int64_t tokens) {
  const omnic_program *p = &omnic_program_table;
  const omnic_function *found = NULL;
  for (int64_t i = 0; i < p->functions; i++) {
    const omnic_function *f = &p->function[i];
    if (!strcmp(f->name, "forward") && f->tokens >= tokens && (!found || f->tokens < found->tokens)) found = f;
  }
  return found;
}

/* What a call reads and writes.  The arguments of `forward` are tokens, positions, start, length, rows and, with token
 * trees, parents; its results are named in the program, the logits first. */
typedef struct {
  int64_t *tokens, *positions, *parents, start, length, row;
  float *logits;
  void *in[MOST_ARGUMENTS], *out[MOST_ARGUMENTS];
} arguments;

static int prepare(arguments *a, const omnic_function *f) {
  const omnic_program *p = &omnic_program_table;
  size_t count = (size_t)p->chunk;
  a->tokens = calloc(count, sizeof *a->tokens);
  a->positions = calloc(count, sizeof *a->positions);
  a->parents = calloc(count, sizeof *a->parents);
  a->logits = calloc((size_t)p->vocab, sizeof *a->logits);
  if (!a->tokens || !a->positions || !a->parents || !a->logits) return 1;
  void *in[] = {a->tokens, a->positions, &a->start, &a->length, &a->row, a->parents};
  for (int i = 0; i < f->inputs && i < 6; i++) a->in[i] = in[i];
  a->out[0] = a->logits;
  for (int i = 1; i < f->results; i++) {
    a->out[i] = calloc(1, (size_t)omnic_program_table.result_bytes[i]);
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
  if (omnic_program_run(x, "forward", 1, count, 1, (const void *const *)a->in, a->out, states, NULL)) return -1;
  a->start += count;
  return best(a->logits, omnic_program_table.vocab);
}

static int failed(const char *what) {
  fprintf(stderr, "%s: %s\n", omnic_program_table.model, what);
  return 2;
}

static int generate(omnic_instance *x, const int64_t *prompt, int64_t count, int64_t wanted, double opened) {
  const omnic_program *p = &omnic_program_table;
  arguments a = {0};
  uint8_t *block = calloc(1, (size_t)p->row_bytes + 64);
  const omnic_function *f = forward(1);
  if (!block || !f || prepare(&a, f)) return failed("not enough memory");
  uint8_t *states = block + (64 - (uintptr_t)block % 64) % 64;
  double began = now();
  int64_t token = 0, at = 0, made = 0;
  for (; at < count; at += p->chunk) token = step(x, &a, prompt + at, omnic_min(count - at, p->chunk), states);
  double prefilled = now();
  printf("ids");
  for (; made < wanted && token >= 0; made++) {
    printf(" %lld", (long long)token);
    if (made + 1 == wanted || a.start >= p->capacity) break;
    token = step(x, &a, &token, 1, states);
  }
  double end = now();
  printf("\nlevel %s\nopen %.6f\nprompt %.6f\ntoken %.6f\n", omnic_level_name(omnic_program_level(x)), opened,
         prefilled - began, (end - prefilled) / (double)(made > 0 ? made : 1));
  return token < 0 ? failed("a call was refused") : 0;
}

int main(int argc, char **argv) {
  const omnic_program *p = &omnic_program_table;
  int64_t wanted = 64, threads = 1, level = -1;
  int at = 1;
  for (; at + 1 < argc && argv[at][0] == '-'; at += 2) {
    int64_t value = atoll(argv[at + 1]);
    if (!strcmp(argv[at], "-n")) wanted = value;
    else if (!strcmp(argv[at], "-t")) threads = value;
    else if (!strcmp(argv[at], "-l")) level = value;
    else return failed("unknown option; it takes -n COUNT, -t THREADS, -l LEVEL");
  }
  int64_t count = argc - at - 1, bytes = 0;
  if (count < 1) return failed("give the file of weights and at least one token id");
  if (count > p->capacity) return failed("the prompt is longer than the program's capacity");
  int64_t *prompt = calloc((size_t)count, sizeof *prompt);
  for (int64_t i = 0; prompt && i < count; i++) {
    char *end = NULL;
    prompt[i] = strtoll(argv[at + 1 + i], &end, 10);
    if (*end || prompt[i] < 0 || prompt[i] >= p->vocab) return failed("a token id is no number of the vocabulary");
  }
  double began = now();
  const uint8_t *file = mapped(argv[at], &bytes);
  if (!file) return failed("the file of weights cannot be read");
  omnic_instance *x = NULL;
  switch (omnic_program_open(file, bytes, (int)level, (int)threads, &x)) {
    case OMNIC_OK: break;
    case OMNIC_NO_LEVEL: return failed("this CPU lacks the instructions of that level");
    case OMNIC_BAD_FILE: return failed("the file is not the whole weights of this program");
    default: return failed("there are not enough threads or memory");
  }
  int code = prompt ? generate(x, prompt, count, wanted, now() - began) : failed("not enough memory");
  omnic_program_close(x);
  free(prompt);
  return code;
}
