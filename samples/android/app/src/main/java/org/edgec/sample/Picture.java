package org.edgec.sample;

/** Rows of pixels of 1 (grey) or 3 (red, green, blue) bytes. */
final class Picture {
    private static final int WEIGHT_BITS = 22;

    final int width;
    final int height;
    final int channels;
    final byte[] samples;

    private Picture(int width, int height, int channels) {
        this.width = width;
        this.height = height;
        this.channels = channels;
        this.samples = new byte[width * height * channels];
    }

    /** From the pixels of a Bitmap; grey is (19595 R + 38470 G + 7471 B + 32768) >> 16. */
    static Picture of(int[] argb, int width, int height, int channels) {
        Picture made = new Picture(width, height, channels);
        for (int i = 0; i < width * height; i++) {
            int red = argb[i] >> 16 & 0xff;
            int green = argb[i] >> 8 & 0xff;
            int blue = argb[i] & 0xff;
            if (channels == 1) {
                made.samples[i] = (byte) (19595 * red + 38470 * green + 7471 * blue + 32768 >> 16);
            } else {
                made.samples[3 * i] = (byte) red;
                made.samples[3 * i + 1] = (byte) green;
                made.samples[3 * i + 2] = (byte) blue;
            }
        }
        return made;
    }

    /**
     * Bilinear, over the whole area that a smaller picture's pixel covers: first the width, then the height; to the bit
     * what Pillow's resize gives for one after the other.
     */
    Picture resized(int newWidth, int newHeight) {
        Picture wide = new Picture(newWidth, height, channels);
        Picture made = new Picture(newWidth, newHeight, channels);
        int row = newWidth * channels;
        for (int c = 0; c < channels; c++) {
            resizeLines(this, width * channels, channels, c, height, width, wide, row, channels, newWidth);
        }
        for (int x = 0; x < row; x++) {
            resizeLines(wide, 0, row, x, 1, height, made, 0, row, newHeight);
        }
        return made;
    }

    /**
     * Resizes one axis of several lines.
     *
     * @param line bytes from line to line in {@code from}, and {@code step} from pixel to pixel along the axis
     * @param first where the first line begins
     * @param lines how many there are
     * @param size pixels of the axis before, and {@code newSize} after
     */
    private static void resizeLines(Picture from, int line, int step, int first, int lines, int size, Picture to,
            int newLine, int newStep, int newSize) {
        double scale = (double) size / newSize;
        double stretch = Math.max(scale, 1);
        double[] shares = new double[(int) Math.ceil(stretch) * 2 + 1];
        for (int i = 0; i < newSize; i++) {
            double centre = (i + 0.5) * scale;
            int begin = Math.max(0, (int) (centre - stretch + 0.5));
            int end = Math.min(size, (int) (centre + stretch + 0.5));
            double sum = 0;
            for (int k = begin; k < end; k++) {
                double distance = Math.abs((k - centre + 0.5) * (1 / stretch));
                shares[k - begin] = distance < 1 ? 1 - distance : 0;
                sum += shares[k - begin];
            }
            for (int y = 0; y < lines; y++) {
                int total = 1 << WEIGHT_BITS - 1;
                for (int k = begin; k < end; k++) {
                    int weight = (int) (0.5 + shares[k - begin] / sum * (1 << WEIGHT_BITS));
                    total += weight * (from.samples[first + y * line + k * step] & 0xff);
                }
                to.samples[first + y * newLine + i * newStep] = (byte) Math.min(255, total >> WEIGHT_BITS);
            }
        }
    }

    /** The centre. */
    Picture cropped(int newWidth, int newHeight) {
        int left = (width - newWidth) / 2;
        int top = (height - newHeight) / 2;
        if (left < 0 || top < 0) {
            throw new IllegalArgumentException("a picture is smaller than the recipe's crop");
        }
        Picture made = new Picture(newWidth, newHeight, channels);
        for (int y = 0; y < newHeight; y++) {
            int from = ((y + top) * width + left) * channels;
            System.arraycopy(samples, from, made.samples, y * newWidth * channels, newWidth * channels);
        }
        return made;
    }
}
