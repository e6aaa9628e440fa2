/* Java's calls of libedgert: see Session.java. */
#include <edgert/edgert.h>
#include <jni.h>
#include <string.h>

#define METHOD(type, name) JNIEXPORT type JNICALL Java_org_edgec_edgert_Session_##name

enum { MOST_AXES = sizeof((edgert_tensor *)0)->shape / sizeof((edgert_tensor *)0)->shape[0] };

static edgert_session *session_of(jlong handle) { return (edgert_session *)(intptr_t)handle; }

/* A text as bytes: Java's own UTF-8 is another one, and text from files may be none at all. */
static jbyteArray bytes_of(JNIEnv *env, const char *text) {
  jsize count = (jsize)strlen(text);
  jbyteArray bytes = (*env)->NewByteArray(env, count);
  if (bytes) (*env)->SetByteArrayRegion(env, bytes, 0, count, (const jbyte *)text);
  return bytes;
}

/* Throws an EdgertException with the library's sentence. */
static void fail(JNIEnv *env, edgert_status status) {
  jbyteArray text = bytes_of(env, edgert_last_error());
  jclass class = text ? (*env)->FindClass(env, "org/edgec/edgert/EdgertException") : NULL;
  jmethodID create = class ? (*env)->GetMethodID(env, class, "<init>", "(I[B)V") : NULL;
  jobject error = create ? (*env)->NewObject(env, class, create, (jint)status, text) : NULL;
  if (error) (*env)->Throw(env, error);
}

METHOD(jstring, nativeVersion)(JNIEnv *env, jclass self) {
  (void)self;
  return (*env)->NewStringUTF(env, edgert_version());
}

METHOD(jlong, nativeOpen)(JNIEnv *env, jclass self, jbyteArray path, jint threads) {
  (void)self;
  jbyte *text = (*env)->GetByteArrayElements(env, path, NULL); /* ends with 0 */
  if (!text) return 0;
  edgert_options options = EDGERT_OPTIONS_DEFAULT;
  edgert_session *session = NULL;
  options.threads = threads < 1 ? UINT32_MAX : (uint32_t)threads; /* which open refuses with a sentence */
  options.flags = EDGERT_NO_IO_BUFFERS;
  edgert_status status = edgert_open((const char *)text, &options, &session);
  (*env)->ReleaseByteArrayElements(env, path, text, JNI_ABORT);
  if (status != EDGERT_OK) fail(env, status);
  return (jlong)(intptr_t)session;
}

METHOD(void, nativeClose)(JNIEnv *env, jclass self, jlong handle) {
  (void)env, (void)self;
  edgert_close(session_of(handle));
}

METHOD(jint, nativeCount)(JNIEnv *env, jclass self, jlong handle, jboolean of_outputs) {
  (void)env, (void)self;
  return (jint)(of_outputs ? edgert_output_count : edgert_input_count)(session_of(handle));
}

METHOD(jobject, nativeTensor)(JNIEnv *env, jclass self, jlong handle, jint index, jboolean of_outputs) {
  (void)self;
  const edgert_tensor *tensor = (of_outputs ? edgert_output : edgert_input)(session_of(handle), (uint32_t)index);
  jlong extents[MOST_AXES];
  for (uint32_t i = 0; i < tensor->rank; i++) extents[i] = tensor->shape[i];
  jclass class = (*env)->FindClass(env, "org/edgec/edgert/Tensor");
  jmethodID create = class ? (*env)->GetMethodID(env, class, "<init>", "([B[JIFI)V") : NULL;
  jbyteArray name = create ? bytes_of(env, tensor->name) : NULL;
  jlongArray shape = name ? (*env)->NewLongArray(env, (jsize)tensor->rank) : NULL;
  if (!shape) return NULL;
  (*env)->SetLongArrayRegion(env, shape, 0, (jsize)tensor->rank, extents);
  return (*env)->NewObject(env, class, create, name, shape, (jint)tensor->dtype, (jfloat)tensor->scale,
                           (jint)tensor->zero_point);
}

METHOD(void, nativeBind)(JNIEnv *env, jclass self, jlong handle, jint index, jobject buffer, jboolean is_output) {
  (void)self;
  void *data = (*env)->GetDirectBufferAddress(env, buffer);
  uint64_t bytes = (uint64_t)(*env)->GetDirectBufferCapacity(env, buffer);
  edgert_status status = is_output ? edgert_bind_output(session_of(handle), (uint32_t)index, data, bytes)
                                   : edgert_bind_input(session_of(handle), (uint32_t)index, data, bytes);
  if (status != EDGERT_OK) fail(env, status);
}

METHOD(void, nativeRun)(JNIEnv *env, jclass self, jlong handle) {
  (void)self;
  edgert_status status = edgert_run(session_of(handle));
  if (status != EDGERT_OK) fail(env, status);
}
