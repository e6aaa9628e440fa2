package org.edgec.sample;

import java.awt.image.BufferedImage;
import java.io.File;
import java.io.FileInputStream;
import java.io.IOException;
import java.util.List;
import javax.imageio.ImageIO;

/** Names PNG files with the Android sample's classifier: MODEL RECIPE LABELS PICTURE ... */
public final class RunClassifier {
    private RunClassifier() {
    }

    public static void main(String[] arguments) throws IOException {
        Classifier classifier = new Classifier(arguments[0], 2, new FileInputStream(arguments[1]),
                new FileInputStream(arguments[2]));
        for (int i = 3; i < arguments.length; i++) {
            BufferedImage image = ImageIO.read(new File(arguments[i]));
            int width = image.getWidth();
            int height = image.getHeight();
            int[] pixels = image.getRGB(0, 0, width, height, null, 0, width);
            List<String> lines = classifier.look(pixels, width, height);
            String times = lines.remove(lines.size() - 1);
            System.out.println(new File(arguments[i]).getName() + ": " + String.join("; ", lines) + " (" + times + ")");
        }
        classifier.close();
    }
}
