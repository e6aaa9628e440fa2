package org.edgec.edgert;

import java.nio.charset.StandardCharsets;

/** What libedgert refuses: its sentence says what is wrong and what mends it. */
public final class EdgertException extends RuntimeException {
    private static final long serialVersionUID = 1;
    private final int status;

    EdgertException(int status, byte[] message) {
        super(new String(message, StandardCharsets.UTF_8));
        this.status = status;
    }

    /** The {@code edgert_status}, as {@code edgert.h} lists them. */
    public int status() {
        return status;
    }
}
