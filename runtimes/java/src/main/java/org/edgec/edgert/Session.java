package org.edgec.edgert;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;

/**
 * A compiled model, ready to run in this process. Close it when done.
 *
 * <pre>
 * try (Session session = Session.open(path, 4)) {
 *     session.input(0).asFloatBuffer().put(image);
 *     session.run();
 *     session.output(0).asFloatBuffer().get(scores);
 * }
 * </pre>
 *
 * <p>The kernels read and write direct buffers, without a copy: the session's own, or those that are bound instead. The
 * methods are synchronised, so that a session may be shared between threads; what its buffers hold is up to the caller.
 */
public final class Session implements AutoCloseable {
    static {
        System.loadLibrary("edgert_jni");
    }

    private final Tensor[] inputs;
    private final Tensor[] outputs;
    /** What the kernels read and write; kept here, so that it lives as long as the session. */
    private final ByteBuffer[] inputData;
    private final ByteBuffer[] outputData;
    private long handle;

    private Session(long handle) {
        this.handle = handle;
        this.inputs = tensors(handle, false);
        this.outputs = tensors(handle, true);
        this.inputData = new ByteBuffer[inputs.length];
        this.outputData = new ByteBuffer[outputs.length];
    }

    /**
     * Opens the artifact at a path.
     *
     * @param path what {@code edgec compile} wrote
     * @param threads how many share the work of a run, 1 to 64; the calling thread is one of them
     * @throws EdgertException if the file is no artifact, damaged, or not for this machine
     */
    public static Session open(String path, int threads) {
        Session session = new Session(nativeOpen((path + "\0").getBytes(StandardCharsets.UTF_8), threads));
        try {
            for (int i = 0; i < session.inputs.length; i++) {
                session.bindInput(i, buffer(session.inputs[i]));
            }
            for (int i = 0; i < session.outputs.length; i++) {
                session.bindOutput(i, buffer(session.outputs[i]));
            }
            return session;
        } catch (RuntimeException | Error error) {
            session.close();
            throw error;
        }
    }

    /** The version of libedgert. */
    public static String version() {
        return nativeVersion();
    }

    /** What a run reads, in the order of the ONNX model's inputs. */
    public Tensor[] inputs() {
        return inputs.clone();
    }

    /** What a run writes, in the order of the ONNX model's outputs. */
    public Tensor[] outputs() {
        return outputs.clone();
    }

    /** The buffer that runs read an input from, at its beginning, in the machine's byte order. */
    public synchronized ByteBuffer input(int index) {
        return view(inputData[index]);
    }

    /** The buffer that runs write an output to. */
    public synchronized ByteBuffer output(int index) {
        return view(outputData[index]);
    }

    /**
     * Lets runs read an input from another buffer.
     *
     * @param buffer a direct one; all of it, whatever its position and limit, must be of the input's bytes
     * @throws EdgertException if it has another size or alignment
     */
    public synchronized void bindInput(int index, ByteBuffer buffer) {
        nativeBind(opened(), index, direct(buffer), false);
        inputData[index] = buffer;
    }

    /** Lets runs write an output to another buffer: see {@link #bindInput}. */
    public synchronized void bindOutput(int index, ByteBuffer buffer) {
        if (buffer.isReadOnly()) {
            throw new IllegalArgumentException("an output cannot be written to a read-only buffer");
        }
        nativeBind(opened(), index, direct(buffer), true);
        outputData[index] = buffer;
    }

    /** One inference: reads all inputs, writes all outputs, and returns when done. */
    public synchronized void run() {
        nativeRun(opened());
    }

    /** Frees the model's memory and threads; closing twice is allowed. The buffers stay valid. */
    @Override
    public synchronized void close() {
        long old = handle;
        handle = 0;
        if (old != 0) {
            nativeClose(old);
        }
    }

    private long opened() {
        if (handle == 0) {
            throw new IllegalStateException("the session is closed; open the artifact again");
        }
        return handle;
    }

    private static ByteBuffer buffer(Tensor tensor) {
        if (tensor.bytes() > Integer.MAX_VALUE) {
            throw new IllegalArgumentException("a Java buffer cannot hold the " + tensor.bytes() + " bytes of " + tensor);
        }
        return ByteBuffer.allocateDirect((int) tensor.bytes()).order(ByteOrder.nativeOrder());
    }

    private static ByteBuffer view(ByteBuffer buffer) {
        ByteBuffer whole = buffer.duplicate().order(ByteOrder.nativeOrder());
        whole.clear();
        return whole;
    }

    private static ByteBuffer direct(ByteBuffer buffer) {
        if (!buffer.isDirect()) {
            throw new IllegalArgumentException("kernels read direct buffers only; take ByteBuffer.allocateDirect");
        }
        return buffer;
    }

    private static Tensor[] tensors(long handle, boolean ofOutputs) {
        Tensor[] found = new Tensor[nativeCount(handle, ofOutputs)];
        for (int i = 0; i < found.length; i++) {
            found[i] = nativeTensor(handle, i, ofOutputs);
        }
        return found;
    }

    private static native String nativeVersion();

    private static native long nativeOpen(byte[] path, int threads);

    private static native void nativeClose(long handle);

    private static native int nativeCount(long handle, boolean ofOutputs);

    private static native Tensor nativeTensor(long handle, int index, boolean ofOutputs);

    private static native void nativeBind(long handle, int index, ByteBuffer buffer, boolean isOutput);

    private static native void nativeRun(long handle);
}
