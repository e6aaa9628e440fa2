package org.edgec.sample

import android.content.Context
import android.graphics.Canvas
import android.graphics.Color
import android.graphics.Paint
import android.util.AttributeSet
import android.view.View

/** Lines of text over the camera's preview. */
class OverlayView(context: Context, attributes: AttributeSet?) : View(context, attributes) {
    private val text = Paint(Paint.ANTI_ALIAS_FLAG).apply {
        color = Color.WHITE
        textSize = 20 * resources.displayMetrics.scaledDensity
    }
    private val background = Paint().apply { color = Color.argb(160, 0, 0, 0) }
    private var lines: List<String> = emptyList()

    /** Show these lines from now on. */
    fun show(lines: List<String>) {
        this.lines = lines
        invalidate()
    }

    override fun onDraw(canvas: Canvas) {
        super.onDraw(canvas)
        val height = 1.4f * text.textSize
        for ((index, line) in lines.withIndex()) {
            val top = (index + 2) * height
            canvas.drawRect(0f, top, text.measureText(line) + height, top + height, background)
            canvas.drawText(line, height / 2, top + text.textSize, text)
        }
    }
}
