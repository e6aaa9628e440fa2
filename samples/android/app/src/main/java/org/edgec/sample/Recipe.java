package org.edgec.sample;

import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStream;
import java.io.InputStreamReader;
import java.nio.FloatBuffer;
import java.nio.charset.StandardCharsets;

/**
 * How a picture becomes an input: the TOML file that {@code edgec eval --preprocess} reads, of lines
 * {@code KEY = "text"}, {@code KEY = number} and {@code KEY = [number, ...]}.
 */
final class Recipe {
    private boolean channelsLast;
    private boolean bgr;
    /** The shorter side after resizing; 0 where {@link #resize} says both. */
    private int shorter;
    /** Height and width after resizing, and after cropping; null: as it is. */
    private int[] resize;
    private int[] crop;
    private float[] mean = {0, 0, 0};
    private float[] scale = {1, 1, 1};

    static Recipe read(InputStream stream) throws IOException {
        Recipe recipe = new Recipe();
        BufferedReader reader = new BufferedReader(new InputStreamReader(stream, StandardCharsets.UTF_8));
        try {
            for (String line = reader.readLine(); line != null; line = reader.readLine()) {
                String text = line.trim();
                if (!text.isEmpty() && !text.startsWith("#")) {
                    int sign = text.indexOf('=');
                    recipe.set(text.substring(0, Math.max(sign, 0)).trim(), text.substring(sign + 1).trim());
                }
            }
        } finally {
            reader.close();
        }
        return recipe;
    }

    private void set(String key, String value) {
        if (key.equals("layout")) {
            channelsLast = value.startsWith("\"NHWC\"");
        } else if (key.equals("order")) {
            bgr = value.startsWith("\"bgr\"");
        } else if (key.equals("resize")) {
            resize = sides(value);
            shorter = value.startsWith("[") ? 0 : resize[0];
        } else if (key.equals("crop")) {
            crop = sides(value);
        } else if (key.equals("mean")) {
            mean = numbers(value);
        } else if (key.equals("scale")) {
            scale = numbers(value);
        } else {
            throw new IllegalArgumentException("the recipe has no key '" + key + "'");
        }
    }

    private static float[] numbers(String value) {
        String text = value.startsWith("[") ? value.substring(1, value.indexOf(']')) : value.split("[ #]")[0];
        String[] parts = text.split(",");
        float[] found = new float[3];
        for (int i = 0; i < 3; i++) {
            found[i] = Float.parseFloat(parts[Math.min(i, parts.length - 1)].trim());
        }
        return found;
    }

    private static int[] sides(String value) {
        float[] found = numbers(value);
        return new int[] {(int) found[0], (int) found[1]};
    }

    /**
     * Writes a picture as the input of a model.
     *
     * @param argb its pixels, as a Bitmap has them
     * @param shape of the input: [1, C, H, W] or [1, H, W, C]
     */
    void apply(int[] argb, int width, int height, long[] shape, FloatBuffer input) {
        int channels = (int) shape[channelsLast ? 3 : 1];
        Picture now = Picture.of(argb, width, height, channels);
        if (resize != null) {
            int[] size = resize;
            if (shorter > 0) {
                double factor = (double) shorter / Math.min(width, height);
                size = new int[] {longer(height * factor), longer(width * factor)};
            }
            now = now.resized(size[1], size[0]);
        }
        if (crop != null) {
            now = now.cropped(crop[1], crop[0]);
        }
        if (now.height != shape[channelsLast ? 1 : 2] || now.width != shape[channelsLast ? 2 : 3]) {
            throw new IllegalArgumentException("the recipe makes a picture of another size than the model takes");
        }
        int pixels = now.width * now.height;
        for (int i = 0; i < pixels; i++) {
            for (int c = 0; c < channels; c++) {
                int value = now.samples[i * channels + (bgr ? channels - 1 - c : c)] & 0xff;
                input.put(channelsLast ? i * channels + c : c * pixels + i, (value - mean[c]) * scale[c]);
            }
        }
    }

    private int longer(double side) {
        return Math.max(shorter, (int) Math.rint(side));
    }
}
