/* Artifact files: everything that can be checked is checked before the loader runs any of their code. */
#define _GNU_SOURCE
#define _FILE_OFFSET_BITS 64
#include "internal.h"

#if EDGERT_WITH_FILES

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <link.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Of <linux/memfd.h> and <linux/fcntl.h>, which older C libraries lack. */
#define CLOSE_ON_EXEC 1u
#define ALLOW_SEALING 2u
#define ADD_SEALS 1033
#define ALL_SEALS 0x0f /* no shrinking, growing, writing, unsealing */

typedef ElfW(Ehdr) elf_header;
typedef ElfW(Phdr) elf_segment;

typedef struct artifact {
  const char *path;
  int descriptor;
  uint64_t bytes; /* without a signature */
  elf_header header;
  bool is_signed;
  uint8_t signature[64];
  char copy[32]; /* what the loader is given instead of the path, if not empty */
} artifact;

static edgert_status unreadable(const artifact *file, const char *reason) {
  return edgert_fail(EDGERT_ERROR_FILE, "'%s' cannot be read: %s; check the path", file->path, reason);
}

static edgert_status malformed(const artifact *file, const char *reason) {
  return edgert_fail(EDGERT_ERROR_FORMAT,
                     "'%s' %s; compile the model again with: edgec compile MODEL.onnx -o MODEL.so, or copy the "
                     "file anew",
                     file->path, reason);
}

static edgert_status open_file(artifact *file) {
  struct stat info;
  file->descriptor = open(file->path, O_RDONLY | O_CLOEXEC);
  if (file->descriptor < 0) return unreadable(file, strerror(errno));
  if (fstat(file->descriptor, &info) != 0) return unreadable(file, strerror(errno));
  if (!S_ISREG(info.st_mode)) return unreadable(file, "it is not a regular file");
  file->bytes = (uint64_t)info.st_size;
  return EDGERT_OK;
}

static bool read_at(const artifact *file, uint64_t offset, void *data, size_t bytes) {
  uint8_t *next = data;
  while (bytes > 0) {
    ssize_t got = pread(file->descriptor, next, bytes, (off_t)offset);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return false;
    next += got;
    offset += (uint64_t)got;
    bytes -= (size_t)got;
  }
  return true;
}

/* Takes the signature off the end, if there is one. */
static edgert_status split_signature(artifact *file) {
  edgert_signature block;
  if (file->bytes < sizeof block) return EDGERT_OK;
  if (!read_at(file, file->bytes - sizeof block, &block, sizeof block))
    return unreadable(file, "it ends while it is being read");
  if (memcmp(block.magic, EDGERT_SIGNATURE_MAGIC, sizeof block.magic) != 0) return EDGERT_OK;
  memcpy(file->signature, block.signature, sizeof block.signature);
  file->is_signed = true;
  file->bytes -= sizeof block;
  return EDGERT_OK;
}

static const char *machine_name(unsigned machine) {
  switch (machine) {
    case EM_X86_64: return "x86_64";
    case EM_AARCH64: return "aarch64";
    case EM_ARM: return "armv7";
    default: return NULL;
  }
}

static edgert_status check_header(artifact *file) {
  const unsigned char class = sizeof(void *) == 8 ? ELFCLASS64 : ELFCLASS32;
  const char *own = edgert_arch_name(edgert_cpu_arch());
  elf_header *header = &file->header;
  if (file->bytes < sizeof *header + sizeof(edgert_trailer)) return malformed(file, "is too short for an artifact");
  if (!read_at(file, 0, header, sizeof *header)) return unreadable(file, "it ends while it is being read");
  if (memcmp(header->e_ident, ELFMAG, SELFMAG) != 0)
    return malformed(file, "is not an artifact: it is no shared object");
  const char *machine = machine_name(header->e_machine); /* at the same place in both ELF classes */
  if (header->e_ident[EI_DATA] != ELFDATA2LSB || !machine)
    return edgert_fail(EDGERT_ERROR_ARCH, "'%s' was built for a machine that edgec does not know, this is %s",
                       file->path, own);
  if (strcmp(machine, own) != 0)
    return edgert_fail(EDGERT_ERROR_ARCH,
                       "'%s' was built for %s and this machine is %s; compile it again with --target host or "
                       "with this machine's target",
                       file->path, machine, own);
  if (header->e_ident[EI_CLASS] != class || header->e_type != ET_DYN)
    return malformed(file, "is not an artifact: it is no shared object for this machine");
  return EDGERT_OK;
}

static edgert_status check_trailer(const artifact *file, edgert_trailer *trailer) {
  if (!read_at(file, file->bytes - sizeof *trailer, trailer, sizeof *trailer))
    return unreadable(file, "it ends while it is being read");
  if (memcmp(trailer->magic, EDGERT_TRAILER_MAGIC, sizeof trailer->magic) != 0)
    return malformed(file, "is truncated or is no artifact of edgec: it does not end in an artifact's trailer");
  uint64_t end = file->bytes - sizeof *trailer;
  if (trailer->manifest_bytes > end || trailer->manifest_offset > end - trailer->manifest_bytes)
    return malformed(file, "has a broken trailer");
  return EDGERT_OK;
}

/* The SHA-256 of the first `end` bytes. */
static edgert_status digest_of(const artifact *file, uint64_t end, uint8_t digest[32]) {
  uint8_t chunk[8192];
  edgert_sha256 hash;
  edgert_sha256_start(&hash);
  for (uint64_t offset = 0; offset < end;) {
    size_t part = end - offset < sizeof chunk ? (size_t)(end - offset) : sizeof chunk;
    if (!read_at(file, offset, chunk, part)) return unreadable(file, "it ends while it is being read");
    edgert_sha256_add(&hash, chunk, part);
    offset += part;
  }
  edgert_sha256_finish(&hash, digest);
  return EDGERT_OK;
}

static edgert_status check_digest_of(const artifact *file, const edgert_trailer *trailer) {
  uint8_t digest[32];
  edgert_status status = digest_of(file, file->bytes - sizeof trailer->sha256, digest);
  if (status != EDGERT_OK || memcmp(digest, trailer->sha256, sizeof digest) == 0) return status;
  return edgert_fail(EDGERT_ERROR_DIGEST,
                     "'%s' is damaged: its SHA-256 is not the one that edgec wrote into it; copy the file anew "
                     "or compile the model again",
                     file->path);
}

/* Where `address` of the library loaded at `base` stands in the file; false if its segments do not say. */
static bool file_offset(const artifact *file, const void *base, const void *address, uint64_t *offset) {
  uint64_t place = (uint64_t)((uintptr_t)address - (uintptr_t)base);
  for (unsigned i = 0; i < file->header.e_phnum; i++) {
    elf_segment segment;
    if (!read_at(file, file->header.e_phoff + i * sizeof segment, &segment, sizeof segment)) return false;
    if (segment.p_type != PT_LOAD || place < segment.p_vaddr) continue;
    if (place - segment.p_vaddr >= segment.p_filesz) continue;
    *offset = segment.p_offset + (place - segment.p_vaddr);
    return true;
  }
  return false;
}

/* Whether the loaded descriptor comes from this very file, by its digest of weights and manifest. The loader
 * hands out what it already has under a name, even if the file has been replaced since. */
static bool is_from(const artifact *file, const edgert_model *model) {
  Dl_info info;
  uint64_t offset;
  uint8_t digest[sizeof model->sha256];
  if (!dladdr(model, &info) || !file_offset(file, info.dli_fbase, model->sha256, &offset)) return false;
  return read_at(file, offset, digest, sizeof digest) && memcmp(digest, model->sha256, sizeof digest) == 0;
}

/* The path with `detours` times "./" in front; with at least one, so that the loader never searches. */
static bool spell(const char *path, unsigned detours, char *text, size_t bytes) {
  bool absolute = path[0] == '/';
  size_t used = absolute ? 1 : 0;
  if (strlen(path) + 2 * detours + 1 > bytes) return false;
  text[0] = '/';
  for (unsigned i = 0; i < detours; i++, used += 2) memcpy(text + used, "./", 2);
  strcpy(text + used, path + absolute);
  return true;
}

static edgert_status load_spelling(const artifact *file, unsigned detours, void **library,
                                   const edgert_model **model) {
  char path[PATH_MAX];
  if (!spell(*file->copy ? file->copy : file->path, detours, path, sizeof path)) return unreadable(file, "its path is too long");
  *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!*library) {
    const char *reason = dlerror();
    return edgert_fail(EDGERT_ERROR_LOAD, "the dynamic loader refused '%s': %s", file->path,
                       reason ? reason : "no reason given");
  }
  *model = dlsym(*library, EDGERT_MODEL_SYMBOL);
  if (*model) return EDGERT_OK;
  dlclose(*library);
  return edgert_fail(EDGERT_ERROR_LOAD,
                     "'%s' exports no " EDGERT_MODEL_SYMBOL "; compile the model again, and do not strip its "
                     "dynamic symbols",
                     file->path);
}

static edgert_status load(const artifact *file, void **library, const edgert_model **model) {
  const unsigned spellings = 16; /* versions of one path that may be open at once */
  for (unsigned detours = 1; detours <= spellings; detours++) {
    edgert_status status = load_spelling(file, detours, library, model);
    if (status != EDGERT_OK || (*model)->abi_version != EDGERT_ABI_VERSION || is_from(file, *model)) return status;
    dlclose(*library);
  }
  return edgert_fail(EDGERT_ERROR_LOAD,
                     "older versions of '%s' are still open in this process; close their sessions, or write the "
                     "new artifact under another name",
                     file->path);
}

/* Everything but the signature, of a file that is open. */
static edgert_status check_content(artifact *file, bool check_digest) {
  edgert_trailer trailer;
  edgert_status status = split_signature(file);
  if (status == EDGERT_OK) status = check_header(file);
  if (status == EDGERT_OK) status = check_trailer(file, &trailer);
  if (status == EDGERT_OK && check_digest) status = check_digest_of(file, &trailer);
  return status;
}

static edgert_status check_file(artifact *file, bool check_digest) {
  edgert_status status = open_file(file);
  return status == EDGERT_OK ? check_content(file, check_digest) : status;
}

/* ---- signed files ---- */

static edgert_status no_copy(const artifact *file) {
  return edgert_fail(EDGERT_ERROR_MEMORY, "no private copy of '%s' can be made: %s", file->path, strerror(errno));
}

static bool write_all(int descriptor, const uint8_t *data, size_t bytes) {
  while (bytes > 0) {
    ssize_t put = write(descriptor, data, bytes);
    if (put < 0 && errno == EINTR) continue;
    if (put <= 0) return false;
    data += put;
    bytes -= (size_t)put;
  }
  return true;
}

/* Puts a copy that nobody can change, in memory, into the file's place: what is verified is what is loaded. */
static edgert_status make_private(artifact *file) {
  uint8_t chunk[8192];
  int copy = (int)syscall(SYS_memfd_create, "edgert", CLOSE_ON_EXEC | ALLOW_SEALING);
  if (copy < 0) return no_copy(file);
  for (uint64_t offset = 0; offset < file->bytes;) {
    size_t part = file->bytes - offset < sizeof chunk ? (size_t)(file->bytes - offset) : sizeof chunk;
    bool there = read_at(file, offset, chunk, part);
    if (!there || !write_all(copy, chunk, part)) {
      edgert_status status = there ? no_copy(file) : unreadable(file, "it ends while it is being read");
      close(copy);
      return status;
    }
    offset += part;
  }
  close(file->descriptor);
  file->descriptor = copy;
  edgert_format(file->copy, sizeof file->copy, "/proc/self/fd/%u", (unsigned)copy);
  if (fcntl(copy, ADD_SEALS, ALL_SEALS) != 0) return no_copy(file);
  return EDGERT_OK;
}

static edgert_status check_signature(const artifact *file, const uint8_t public_key[32]) {
  uint8_t digest[32];
  if (!file->is_signed)
    return edgert_fail(EDGERT_ERROR_SIGNATURE, "'%s' is not signed; sign it with: edgec sign ARTIFACT --key KEY",
                       file->path);
  edgert_status status = digest_of(file, file->bytes, digest);
  if (status != EDGERT_OK || edgert_signature_is_valid(public_key, file->signature, digest)) return status;
  return edgert_fail(EDGERT_ERROR_SIGNATURE,
                     "'%s' does not bear the signature of the key that is trusted here: it was changed, or signed by "
                     "another",
                     file->path);
}

edgert_status edgert_load_signed(const char *path, const uint8_t public_key[32], int *descriptor, void **library,
                                 const edgert_model **model) {
  artifact file = {.path = path, .descriptor = -1};
  if (!edgert_verifies_signatures())
    return edgert_fail(EDGERT_ERROR_SIGNATURE,
                       "this libedgert was built without signatures; build it with -DEDGERT_SIGNATURES=openssl or sodium");
  edgert_status status = open_file(&file);
  if (status == EDGERT_OK) status = make_private(&file);
  if (status == EDGERT_OK) status = split_signature(&file);
  if (status == EDGERT_OK) status = check_signature(&file, public_key);
  if (status == EDGERT_OK) {
    file.bytes += sizeof(edgert_signature);
    status = check_content(&file, true);
  }
  if (status == EDGERT_OK) status = load(&file, library, model);
  *descriptor = status == EDGERT_OK ? file.descriptor : -1;
  if (status != EDGERT_OK && file.descriptor >= 0) close(file.descriptor);
  return status;
}

void edgert_close_descriptor(int descriptor) {
  if (descriptor >= 0) close(descriptor);
}

edgert_status edgert_load(const char *path, bool check_digest, void **library, const edgert_model **model) {
  artifact file = {.path = path, .descriptor = -1};
  edgert_status status = check_file(&file, check_digest);
  if (status == EDGERT_OK) status = load(&file, library, model);
  if (file.descriptor >= 0) close(file.descriptor);
  return status;
}

void edgert_unload(void *library) {
  if (library) dlclose(library);
}

#else

edgert_status edgert_load(const char *path, bool check_digest, void **library, const edgert_model **model) {
  (void)check_digest, (void)library, (void)model;
  return edgert_fail(EDGERT_ERROR_LOAD,
                     "this libedgert was built without files and cannot open '%s'; link the model into the program and "
                     "use edgert_open_model",
                     path);
}

edgert_status edgert_load_signed(const char *path, const uint8_t public_key[32], int *descriptor, void **library,
                                 const edgert_model **model) {
  (void)public_key;
  *descriptor = -1;
  return edgert_load(path, true, library, model);
}

void edgert_close_descriptor(int descriptor) { (void)descriptor; }

void edgert_unload(void *library) { (void)library; }

#endif
