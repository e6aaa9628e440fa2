package org.edgec.sample;

import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStream;
import java.io.InputStreamReader;
import java.nio.FloatBuffer;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import org.edgec.edgert.DataType;
import org.edgec.edgert.Session;
import org.edgec.edgert.Tensor;

/** A model that names pictures, its recipe and its labels. Belongs to one thread at a time. */
public final class Classifier implements AutoCloseable {
    private static final int BEST = 3;

    private final Session session;
    private final Recipe recipe;
    private final List<String> labels = new ArrayList<String>();

    /**
     * Opens a model.
     *
     * @param path what {@code edgec compile} wrote
     * @param recipe as {@code edgec eval --preprocess} reads it; closed here, as are the labels, one a line
     */
    public Classifier(String path, int threads, InputStream recipe, InputStream labels) throws IOException {
        this.recipe = Recipe.read(recipe);
        BufferedReader reader = new BufferedReader(new InputStreamReader(labels, StandardCharsets.UTF_8));
        try {
            for (String line = reader.readLine(); line != null; line = reader.readLine()) {
                this.labels.add(line);
            }
        } finally {
            reader.close();
        }
        session = Session.open(path, threads);
        Tensor input = session.inputs()[0];
        if (input.type() != DataType.FLOAT32 || input.shape().length != 4) {
            session.close();
            throw new IllegalArgumentException("the model takes " + input + ", which is no picture of FLOAT32");
        }
    }

    /**
     * Names a picture.
     *
     * @param argb its pixels, as a Bitmap has them
     * @return a line for each of the likeliest classes, and one of times
     */
    public List<String> look(int[] argb, int width, int height) {
        long start = System.nanoTime();
        recipe.apply(argb, width, height, session.inputs()[0].shape(), session.input(0).asFloatBuffer());
        long prepared = System.nanoTime();
        session.run();
        long done = System.nanoTime();
        double[] shares = shares(session.output(0).asFloatBuffer());
        List<String> lines = new ArrayList<String>();
        for (int place = 0; place < Math.min(BEST, shares.length); place++) {
            int best = 0;
            for (int i = 1; i < shares.length; i++) {
                best = shares[i] > shares[best] ? i : best;
            }
            String label = best < labels.size() ? labels.get(best) : Integer.toString(best);
            lines.add(String.format(Locale.ROOT, "%s %.4f", label, shares[best]));
            shares[best] = -1;
        }
        lines.add(String.format(Locale.ROOT, "prepared in %.2f ms, inferred in %.2f ms", (prepared - start) / 1e6,
                (done - prepared) / 1e6));
        return lines;
    }

    @Override
    public void close() {
        session.close();
    }

    /** The shares of the classes; logits go through a softmax. */
    private static double[] shares(FloatBuffer output) {
        double[] values = new double[output.remaining()];
        double least = output.get(0);
        double largest = least;
        double sum = 0;
        for (int i = 0; i < values.length; i++) {
            values[i] = output.get(i);
            least = Math.min(least, values[i]);
            largest = Math.max(largest, values[i]);
            sum += values[i];
        }
        if (least >= 0 && Math.abs(sum - 1) < 1e-3) {
            return values;
        }
        sum = 0;
        for (int i = 0; i < values.length; i++) {
            values[i] = Math.exp(values[i] - largest);
            sum += values[i];
        }
        for (int i = 0; i < values.length; i++) {
            values[i] /= sum;
        }
        return values;
    }
}
