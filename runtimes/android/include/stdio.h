#pragma once
#include <stdarg.h>
#include <sys/types.h>

#define EOF (-1)
#define SEEK_SET 0
#define SEEK_CUR 1
#define SEEK_END 2

typedef struct file FILE;
extern FILE *stdin, *stdout, *stderr;

FILE *fopen(const char *path, const char *mode);
int fclose(FILE *file);
size_t fread(void *data, size_t bytes, size_t count, FILE *file);
size_t fwrite(const void *data, size_t bytes, size_t count, FILE *file);
int fgetc(FILE *file);
char *fgets(char *text, int bytes, FILE *file);
int fputc(int character, FILE *file);
int fputs(const char *text, FILE *file);
int puts(const char *text);
int fflush(FILE *file);
int fseek(FILE *file, long offset, int origin);
long ftell(FILE *file);
int feof(FILE *file);
int ferror(FILE *file);
int fileno(FILE *file);
int remove(const char *path);
int rename(const char *from, const char *to);
int printf(const char *format, ...) __attribute__((format(printf, 1, 2)));
int fprintf(FILE *file, const char *format, ...) __attribute__((format(printf, 2, 3)));
int vfprintf(FILE *file, const char *format, va_list arguments);
int snprintf(char *text, size_t bytes, const char *format, ...) __attribute__((format(printf, 3, 4)));
int vsnprintf(char *text, size_t bytes, const char *format, va_list arguments);
int fscanf(FILE *file, const char *format, ...) __attribute__((format(scanf, 2, 3)));
int sscanf(const char *text, const char *format, ...) __attribute__((format(scanf, 2, 3)));
