package org.edgec.edgert;

import java.nio.charset.StandardCharsets;
import java.util.Arrays;

/** An input or output of a model: {@code real = scale * (q - zeroPoint)}; the scale is 0 if it is not quantised. */
public final class Tensor {
    private final String name;
    private final long[] shape;
    private final DataType type;
    private final float scale;
    private final int zeroPoint;

    Tensor(byte[] name, long[] shape, int type, float scale, int zeroPoint) {
        this.name = new String(name, StandardCharsets.UTF_8);
        this.shape = shape;
        this.type = DataType.of(type);
        this.scale = scale;
        this.zeroPoint = zeroPoint;
    }

    public String name() {
        return name;
    }

    public long[] shape() {
        return shape.clone();
    }

    public DataType type() {
        return type;
    }

    public float scale() {
        return scale;
    }

    public int zeroPoint() {
        return zeroPoint;
    }

    /** The bytes of all elements. */
    public long bytes() {
        long count = type.bytes();
        for (long extent : shape) {
            count *= extent;
        }
        return count;
    }

    @Override
    public String toString() {
        return "'" + name + "' " + type + Arrays.toString(shape);
    }
}
