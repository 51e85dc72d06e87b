#include <stdint.h>

#define ROUND 12582912.0f /* 1.5 · 2^23: adding and taking it away again rounds to the nearest whole number */

/* e^x to about 1e-7 relative: x = n ln 2 + f, a polynomial in f, and n put into the exponent. Written without calls
 * and branches so that it becomes vector code; arguments are cut to where the result is a normal number. */
static inline float exp_(float x) {
    x = x < -87.0f ? -87.0f : x;
    x = x > 87.0f ? 87.0f : x;
    float k = (x * 1.44269504088896341f + ROUND) - ROUND;
    int32_t n = (int32_t)k;
    float f = (x - k * 0.693359375f) + k * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * f + 1.3981999507e-3f;
    p = p * f + 8.3334519073e-3f;
    p = p * f + 4.1665795894e-2f;
    p = p * f + 1.6666665459e-1f;
    p = p * f + 5.0000001201e-1f;
    p = p * f * f + f + 1.0f;
    union { int32_t i; float f; } power = {(n + 127) << 23};
    return p * power.f;
}
