/* Scalar operators that OpenCL C lacks or leaves open, for LANES lanes; the compiler instantiates this text for every
 * width that a program needs. NAME(f) is f with the width in its name, FLOAT and INT the types. The polynomials are
 * those of the processors (targets/cpu/math.py says where they come from), in the same order of operations, so that
 * a GPU that rounds as IEEE 754 says gives the same bits. */

static INT NAME(mask_nan)(FLOAT x) { return x != x; }

static FLOAT NAME(keep_max)(FLOAT a, FLOAT b) { return SELECT(SELECT(a, b, MASK(b > a)), b, MASK(b != b)); }

static FLOAT NAME(keep_min)(FLOAT a, FLOAT b) { return SELECT(SELECT(a, b, MASK(b < a)), b, MASK(b != b)); }

static INT NAME(floor_div)(INT a, INT b) {
  INT q = a / b;
  return q - SELECT((INT)(0), (INT)(1), MASK(q * b != a) & MASK((a < (INT)(0)) != (b < (INT)(0))));
}

static INT NAME(floor_mod)(INT a, INT b) { return a - NAME(floor_div)(a, b) * b; }

/* clamp(round_half_even(x), least, most); NaN becomes least. */
static INT NAME(saturate)(FLOAT x, float least, float most) {
  FLOAT whole = rint(x);
  FLOAT above = SELECT((FLOAT)(least), whole, MASK(whole > (FLOAT)(least)));
  return TO_INT(SELECT((FLOAT)(most), above, MASK(above < (FLOAT)(most))));
}

static FLOAT NAME(power_of_two)(INT n) { return AS_FLOAT((n + 127) << 23); }

static FLOAT NAME(exponential)(FLOAT x) {
  FLOAT high = (FLOAT)(89.0f), low = (FLOAT)(-104.0f);
  FLOAT clamped = SELECT(x, high, MASK(x > high));
  clamped = SELECT(clamped, low, MASK(clamped < low));
  FLOAT shifted = clamped * 1.44269504088896341f + 12582912.0f;
  FLOAT n = shifted - 12582912.0f;
  FLOAT r = clamped - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  FLOAT p = (FLOAT)(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  INT whole = AS_INT(shifted) - 0x4B400000;
  INT half_of_it = whole >> 1;
  return p * NAME(power_of_two)(half_of_it) * NAME(power_of_two)(whole - half_of_it);
}

static FLOAT NAME(logarithm)(FLOAT x) {
  INT subnormal = MASK(x < (FLOAT)(1.17549435e-38f));
  FLOAT scaled = SELECT(x, x * 8388608.0f, subnormal);
  INT exponent = (AS_INT(scaled) - 0x3F3504F3) >> 23;
  INT mantissa = AS_INT(scaled) - (exponent << 23);
  FLOAT f = AS_FLOAT(mantissa) - 1.0f;
  FLOAT e = TO_FLOAT(exponent) - SELECT((FLOAT)(0.0f), (FLOAT)(23.0f), subnormal);
  FLOAT square = f * f;
  FLOAT p = (FLOAT)(7.0376836292e-2f);
  p = p * f + -1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f + -1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f + -1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f + -2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  FLOAT rest = p * f * square + e * -2.12194440e-4f - square * 0.5f;
  FLOAT value = rest + f + e * 0.693359375f;
  value = SELECT(value, (FLOAT)(-INFINITY), MASK(x == (FLOAT)(0.0f)));
  value = SELECT(value, (FLOAT)(NAN), MASK(x < (FLOAT)(0.0f)));
  return SELECT(value, x, MASK(x == (FLOAT)(INFINITY)) | MASK(x != x));
}

static FLOAT NAME(logarithm_1p)(FLOAT x) {
  FLOAT u = x + 1.0f;
  FLOAT lost = (x - (u - 1.0f)) / u;
  FLOAT value = NAME(logarithm)(u);
  return SELECT(value + lost, value, MASK(u == (FLOAT)(INFINITY)) | MASK(u <= (FLOAT)(0.0f)));
}

static FLOAT NAME(sigmoid)(FLOAT x) {
  FLOAT e = NAME(exponential)(0.0f - fabs(x));
  return SELECT((FLOAT)(1.0f), e, MASK(x < (FLOAT)(0.0f))) / (e + 1.0f);
}

static FLOAT NAME(hyperbolic_tangent)(FLOAT x) {
  FLOAT magnitude = fabs(x), square = x * x;
  FLOAT near = (FLOAT)(-5.70498872745e-3f);
  near = near * square + 2.06390887954e-2f;
  near = near * square + -5.37397155531e-2f;
  near = near * square + 1.33314422036e-1f;
  near = near * square + -3.33332819422e-1f;
  near = near * square * x + x;
  FLOAT far = 1.0f - 2.0f / (NAME(exponential)(magnitude * 2.0f) + 1.0f);
  far = SELECT(far, 0.0f - far, MASK(x < (FLOAT)(0.0f)));
  return SELECT(far, near, MASK(magnitude < (FLOAT)(0.625f)));
}

static FLOAT NAME(error_function)(FLOAT x) {
  FLOAT magnitude = fabs(x), square = x * x;
  FLOAT near = (FLOAT)(8.316764433402568e-05f);
  near = near * square + -0.0008130010101012886f;
  near = near * square + 0.005199906416237354f;
  near = near * square + -0.026858940720558167f;
  near = near * square + 0.11283687502145767f;
  near = near * square + -0.37612631916999817f;
  near = near * square + 0.12837916612625122f;
  near = near * x + x;
  FLOAT t = SELECT(magnitude, (FLOAT)(4.0f), MASK(magnitude > (FLOAT)(4.0f)));
  FLOAT far = (FLOAT)(0.00021511080558411777f);
  far = far * t + -0.0032241935841739178f;
  far = far * t + 0.022919438779354095f;
  far = far * t + -0.10530756413936615f;
  far = far * t + -0.6356838345527649f;
  far = far * t + -1.1285245418548584f;
  far = 1.0f - NAME(exponential)(far * t);
  far = SELECT(far, 0.0f - far, MASK(x < (FLOAT)(0.0f)));
  return SELECT(far, near, MASK(magnitude < (FLOAT)(0.9f)));
}

/* The remainder that has the sign of b, even if it is zero. */
static FLOAT NAME(floor_remainder)(FLOAT a, FLOAT b) {
  FLOAT rest = fmod(a, b), zero = (FLOAT)(0.0f);
  INT wrong = (MASK(rest < zero) & MASK(b > zero)) | (MASK(rest > zero) & MASK(b < zero));
  return SELECT(SELECT(rest, fabs(rest) / b, MASK(rest == zero)), rest + b, wrong);
}

static FLOAT NAME(sign_of)(FLOAT x) {
  FLOAT zero = (FLOAT)(0.0f);
  FLOAT below = SELECT(zero, (FLOAT)(-1.0f), MASK(x < zero));
  return SELECT(SELECT(below, x, MASK(x != x)), (FLOAT)(1.0f), MASK(x > zero));
}

/* The nearest value that 16 bits can hold. */
static FLOAT NAME(half_rounded)(FLOAT x) {
  USHORT bits;
  VSTORE_HALF(x, 0, (half *)&bits);
  return VLOAD_HALF(0, (const half *)&bits);
}
