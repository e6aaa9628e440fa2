package org.edgec.sample;

import android.app.Activity;
import android.content.Intent;
import android.graphics.Bitmap;
import android.graphics.BitmapFactory;
import android.os.Bundle;
import android.view.View;
import android.widget.Button;
import android.widget.CompoundButton;
import android.widget.ImageView;
import android.widget.LinearLayout;
import android.widget.Switch;
import android.widget.TextView;
import java.io.IOException;
import java.io.InputStream;
import org.edgec.edgert.EdgertException;

/** Names a picture: the one in the package, or one that the user chooses; a switch takes the GPU. */
public final class PictureActivity extends Activity implements View.OnClickListener, CompoundButton.OnCheckedChangeListener {
    private static final int CHOOSE = 1;

    private ImageView view;
    private TextView text;
    private Switch gpu;
    private Bitmap picture;
    private Classifier classifier;

    @Override
    protected void onCreate(Bundle state) {
        super.onCreate(state);
        LinearLayout column = new LinearLayout(this);
        column.setOrientation(LinearLayout.VERTICAL);
        view = new ImageView(this);
        text = new TextView(this);
        gpu = new Switch(this);
        gpu.setText("GPU");
        gpu.setOnCheckedChangeListener(this);
        Button choose = new Button(this);
        choose.setText("Choose a picture");
        choose.setOnClickListener(this);
        column.addView(choose);
        column.addView(gpu);
        column.addView(text);
        column.addView(view);
        setContentView(column);
        try {
            picture = BitmapFactory.decodeStream(getAssets().open("picture.png"));
        } catch (IOException error) {
            text.setText(error.toString());
        }
        open(false);
    }

    @Override
    protected void onDestroy() {
        super.onDestroy();
        if (classifier != null) {
            classifier.close();
        }
    }

    @Override
    public void onCheckedChanged(CompoundButton button, boolean on) {
        open(on);
    }

    @Override
    public void onClick(View button) {
        startActivityForResult(new Intent(Intent.ACTION_GET_CONTENT).setType("image/*"), CHOOSE);
    }

    @Override
    protected void onActivityResult(int request, int result, Intent data) {
        if (request != CHOOSE || result != RESULT_OK) {
            return;
        }
        try {
            InputStream stream = getContentResolver().openInputStream(data.getData());
            try {
                picture = BitmapFactory.decodeStream(stream);
            } finally {
                stream.close();
            }
            look();
        } catch (IOException error) {
            text.setText(error.toString());
        }
    }

    /** Opens the artifact for the CPU or the GPU; what cannot be opened says so, and the other stays. */
    private void open(boolean onGpu) {
        try {
            String path = getApplicationInfo().nativeLibraryDir + "/libmodel_" + (onGpu ? "gpu" : "cpu") + ".so";
            Classifier opened = new Classifier(path, 4, getAssets().open("recipe.toml"), getAssets().open("labels.txt"));
            if (classifier != null) {
                classifier.close();
            }
            classifier = opened;
            look();
        } catch (EdgertException error) {
            text.setText(error.getMessage());
        } catch (IOException error) {
            text.setText(error.toString());
        }
    }

    private void look() {
        if (classifier == null || picture == null) {
            return;
        }
        int[] pixels = new int[picture.getWidth() * picture.getHeight()];
        picture.getPixels(pixels, 0, picture.getWidth(), 0, 0, picture.getWidth(), picture.getHeight());
        StringBuilder lines = new StringBuilder();
        for (String line : classifier.look(pixels, picture.getWidth(), picture.getHeight())) {
            lines.append(line).append('\n');
        }
        text.setText(lines);
        view.setImageBitmap(picture);
    }
}
