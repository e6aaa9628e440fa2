#pragma once
#include <sys/types.h>

void *memcpy(void *to, const void *from, size_t bytes);
void *memmove(void *to, const void *from, size_t bytes);
void *memset(void *data, int value, size_t bytes);
int memcmp(const void *first, const void *second, size_t bytes);
void *memchr(const void *data, int value, size_t bytes);
size_t strlen(const char *text);
char *strcpy(char *to, const char *from);
char *strncpy(char *to, const char *from, size_t bytes);
int strcmp(const char *first, const char *second);
int strncmp(const char *first, const char *second, size_t bytes);
char *strchr(const char *text, int character);
char *strrchr(const char *text, int character);
char *strstr(const char *text, const char *part);
size_t strspn(const char *text, const char *accepted);
size_t strcspn(const char *text, const char *rejected);
char *strdup(const char *text);
char *strerror(int number);
