import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.Paths;
import java.util.Arrays;
import org.edgec.edgert.EdgertException;
import org.edgec.edgert.Session;
import org.edgec.edgert.Tensor;

/** Runs an artifact on raw samples, as {@code edgert-run} does, and tries what must be refused. */
public final class RunArtifact {
    private RunArtifact() {
    }

    public static void main(String[] arguments) throws IOException {
        Path inputs = Paths.get(arguments[1]);
        Path outputs = Paths.get(arguments[2]);
        byte[] samples = Files.readAllBytes(inputs);
        System.out.println("version " + Session.version());
        Session session = Session.open(arguments[0], Integer.parseInt(arguments[3]));
        System.out.println(Arrays.toString(session.inputs()) + " -> " + Arrays.toString(session.outputs()));
        Tensor input = session.inputs()[0];
        Tensor output = session.outputs()[0];
        int size = (int) input.bytes();
        ByteBuffer results = ByteBuffer.allocate(samples.length / size * (int) output.bytes());
        for (int at = 0; at < samples.length; at += size) {
            if (at % (2 * size) == 0) {
                session.input(0).put(samples, at, size);
            } else {
                ByteBuffer own = ByteBuffer.allocateDirect(size).order(ByteOrder.nativeOrder());
                own.put(samples, at, size);
                session.bindInput(0, own);
            }
            session.run();
            results.put(session.output(0));
        }
        Files.write(outputs, results.array());
        refuse(session, size);
        ByteBuffer kept = session.output(0);
        session.close();
        session.close();
        kept.putInt(0, 1);
        try {
            session.run();
        } catch (IllegalStateException error) {
            System.out.println("closed: " + error.getMessage());
        }
        for (String path : Arrays.copyOfRange(arguments, 4, arguments.length)) {
            try {
                Session.open(path, 1);
            } catch (EdgertException error) {
                System.out.println("status " + error.status() + ": " + error.getMessage());
            }
        }
    }

    private static void refuse(Session session, int size) {
        try {
            session.bindInput(0, ByteBuffer.allocateDirect(size + 4));
        } catch (EdgertException error) {
            System.out.println("status " + error.status() + ": " + error.getMessage());
        }
        try {
            session.bindInput(0, ByteBuffer.allocate(size));
        } catch (IllegalArgumentException error) {
            System.out.println("refused: " + error.getMessage());
        }
        try {
            session.bindOutput(0, ByteBuffer.allocateDirect(size).asReadOnlyBuffer());
        } catch (IllegalArgumentException error) {
            System.out.println("refused: " + error.getMessage());
        }
        try {
            session.input(1);
        } catch (ArrayIndexOutOfBoundsException error) {
            System.out.println("no input 1");
        }
    }
}
