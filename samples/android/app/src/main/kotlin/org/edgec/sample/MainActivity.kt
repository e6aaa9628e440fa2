package org.edgec.sample

import android.Manifest
import android.content.pm.PackageManager
import android.graphics.Bitmap
import android.graphics.Matrix
import android.os.Bundle
import android.widget.Switch
import androidx.activity.ComponentActivity
import androidx.activity.result.contract.ActivityResultContracts
import androidx.camera.core.CameraSelector
import androidx.camera.core.ImageAnalysis
import androidx.camera.core.ImageProxy
import androidx.camera.core.Preview
import androidx.camera.lifecycle.ProcessCameraProvider
import androidx.camera.view.PreviewView
import androidx.core.content.ContextCompat
import java.io.IOException
import java.util.concurrent.ExecutorService
import java.util.concurrent.Executors
import org.edgec.edgert.EdgertException

/** Shows what the camera sees, the likeliest classes and how long an inference takes; a switch takes the GPU. */
class MainActivity : ComponentActivity() {
    private lateinit var preview: PreviewView
    private lateinit var overlay: OverlayView
    private lateinit var gpu: Switch
    private val worker: ExecutorService = Executors.newSingleThreadExecutor()

    /** Belong to [worker]'s thread. */
    private var classifier: Classifier? = null
    private var notice: String? = null

    private val permission = registerForActivityResult(ActivityResultContracts.RequestPermission()) { granted ->
        if (granted) startCamera() else overlay.show(listOf(getString(R.string.no_camera)))
    }

    override fun onCreate(state: Bundle?) {
        super.onCreate(state)
        setContentView(R.layout.activity_main)
        preview = findViewById(R.id.preview)
        overlay = findViewById(R.id.overlay)
        gpu = findViewById(R.id.gpu)
        gpu.setOnCheckedChangeListener { _, on -> open(on) }
        open(false)
        if (checkSelfPermission(Manifest.permission.CAMERA) == PackageManager.PERMISSION_GRANTED) {
            startCamera()
        } else {
            permission.launch(Manifest.permission.CAMERA)
        }
    }

    override fun onDestroy() {
        super.onDestroy()
        worker.execute { classifier?.close() }
        worker.shutdown()
    }

    /** Open the artifact for the CPU or the GPU; what cannot be opened says so, and the other stays. */
    private fun open(onGpu: Boolean) = worker.execute {
        if (onGpu) notice = null
        try {
            val path = "${applicationInfo.nativeLibraryDir}/libmodel_${if (onGpu) "gpu" else "cpu"}.so"
            val opened = Classifier(path, 4, assets.open("recipe.toml"), assets.open("labels.txt"))
            classifier?.close()
            classifier = opened
        } catch (error: EdgertException) {
            report(error, onGpu)
        } catch (error: IOException) {
            report(error, onGpu)
        }
    }

    private fun report(error: Exception, onGpu: Boolean) {
        val sentence = error.message ?: error.toString()
        notice = sentence
        runOnUiThread {
            overlay.show(listOf(sentence))
            if (onGpu) gpu.isChecked = false
        }
    }

    private fun startCamera() {
        val provider = ProcessCameraProvider.getInstance(this)
        provider.addListener({
            val shown = Preview.Builder().build()
            shown.setSurfaceProvider(preview.surfaceProvider)
            val analysis = ImageAnalysis.Builder()
                .setBackpressureStrategy(ImageAnalysis.STRATEGY_KEEP_ONLY_LATEST)
                .setOutputImageFormat(ImageAnalysis.OUTPUT_IMAGE_FORMAT_RGBA_8888)
                .build()
            analysis.setAnalyzer(worker) { image -> image.use(::look) }
            provider.get().unbindAll()
            provider.get().bindToLifecycle(this, CameraSelector.DEFAULT_BACK_CAMERA, shown, analysis)
        }, ContextCompat.getMainExecutor(this))
    }

    private fun look(image: ImageProxy) {
        val now = classifier ?: return
        val picture = upright(image)
        val pixels = IntArray(picture.width * picture.height)
        picture.getPixels(pixels, 0, picture.width, 0, 0, picture.width, picture.height)
        val lines = now.look(pixels, picture.width, picture.height) + listOfNotNull(notice)
        runOnUiThread { overlay.show(lines) }
    }

    private fun upright(image: ImageProxy): Bitmap {
        val turn = Matrix().apply { postRotate(image.imageInfo.rotationDegrees.toFloat()) }
        val frame = image.toBitmap()
        return Bitmap.createBitmap(frame, 0, 0, frame.width, frame.height, turn, true)
    }
}
