package org.edgec.edgert;

/** Types of elements, with the bytes of one. */
public enum DataType {
    FLOAT32(1, 4), UINT8(2, 1), INT8(3, 1), UINT16(4, 2), INT16(5, 2), INT32(6, 4), INT64(7, 8), BOOL(9, 1),
    FLOAT16(10, 2), FLOAT64(11, 8), UINT32(12, 4), UINT64(13, 8);

    private final int code;
    private final int bytes;

    DataType(int code, int bytes) {
        this.code = code;
        this.bytes = bytes;
    }

    /** The bytes of one element. */
    public int bytes() {
        return bytes;
    }

    /** The type with a code of {@code edgert_dtype}. */
    static DataType of(int code) {
        for (DataType type : values()) {
            if (type.code == code) {
                return type;
            }
        }
        throw new IllegalArgumentException("there is no element type " + code);
    }
}
