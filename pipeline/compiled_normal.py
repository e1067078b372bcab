"""Quantiles of the normal distribution, compiled: algorithm AS241 (Wichura, 1988), to about 16 digits.

The operations are those of `statistics.NormalDist().inv_cdf`, in its order: the results are the same to the bit.
"""

import math

from pipeline.compiled import compiled

# Coefficients of a quotient of polynomials, highest power first; it is PPND16 in the paper
_MIDDLE = (
    (2509.0809287301226727, 33430.575583588128105, 67265.770927008700853, 45921.953931549871457)
    + (13731.693765509461125, 1971.5909503065514427, 133.14166789178437745, 3.3871328727963666080),
    (5226.4952788528545610, 28729.085735721942674, 39307.895800092710610, 21213.794301586595867)
    + (5394.1960214247511077, 687.18700749205790830, 42.313330701600911252, 1.0),
)
_TAIL = (
    (7.7454501427834140764e-4, 0.0227238449892691845833, 0.241780725177450611770, 1.27045825245236838258)
    + (3.64784832476320460504, 5.76949722146069140550, 4.63033784615654529590, 1.42343711074968357734),
    (1.05075007164441684324e-9, 5.475938084995344946e-4, 0.0151986665636164571966, 0.148103976427480074590)
    + (0.689767334985100004550, 1.67638483018380384940, 2.05319162663775882187, 1.0),
)
_FAR_TAIL = (
    (2.01033439929228813265e-7, 2.71155556874348757815e-5, 0.00124266094738807843860, 0.0265321895265761230930)
    + (0.296560571828504891230, 1.78482653991729133580, 5.46378491116411436990, 6.65790464350110377720),
    (2.04426310338993978564e-15, 1.42151175831644588870e-7, 1.84631831751005468180e-5, 7.86869131145613259100e-4)
    + (0.0148753612908506148525, 0.136929880922735805310, 0.599832206555887937690, 1.0),
)


@compiled
def normal_quantile(probability):
    """The value below which a standard normal variable lies with a probability, 0 < probability < 1."""
    q = probability - 0.5
    if abs(q) <= 0.425:
        r = 0.180625 - q * q
        return _polynomial(_MIDDLE[0], r) * q / _polynomial(_MIDDLE[1], r)
    r = math.sqrt(-math.log(probability if q <= 0 else 1.0 - probability))
    if r <= 5:
        value = _polynomial(_TAIL[0], r - 1.6) / _polynomial(_TAIL[1], r - 1.6)
    else:
        value = _polynomial(_FAR_TAIL[0], r - 5.0) / _polynomial(_FAR_TAIL[1], r - 5.0)
    return -value if q < 0 else value


@compiled
def _polynomial(coefficients, x):
    value = coefficients[0]
    for power in range(1, len(coefficients)):
        value = value * x + coefficients[power]
    return value
