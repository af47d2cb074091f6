"""Exact sparse rows: what a row has missed while its gradients were zero, made up for in a few steps.

A row that was last stepped at step s has missed steps s + 1 to n. Dense Adam with zero gradients would have multiplied
m and v at each of them by b1 = 1 - blend1 and b2 = 1 - blend2, p by its decay, and then moved p. All that it moved p by
is m times the sum over j of

    weight_j / (sqrt(v) + e_j)    with    weight_j = step_size_j * B1_j / sqrt(B2_j) * D_j,    e_j = eps_j / sqrt(B2_j)

where B1_j and B2_j are the products of b1 and b2 over steps s + 1 to j, and D_j that of the decays after step j. The
weights fade like (b1 / sqrt(b2))**j while the e_j hardly change. So a run of neighbouring j, over which they change
by no more than a tolerance, is replaced by the two-point Gauss quadrature of its weights: exact for a run of two steps,
and with an error of the fourth power of the tolerance for a longer one, whatever v is.
"""

from math import exp, log, sqrt

from fastadam.kernels.texts.update import compose

# What is kept of every step of a clock, in this order, float64.
HISTORY = ("step_size", "eps", "decay", "blend1", "blend2")
# Columns of `totals`: the sums of log(b1), log(b2) and log(decay) over all steps so far, and what these sums lack.
TOTALS = 6
# A factor of 0 counts as this, so that sums of logarithms stay finite.
SMALLEST = 1e-300


def make_up(p, m, v, decay, weight1, eps1, weight2, eps2, factor1, factor2):
    root = sqrt(v)
    p *= decay
    p -= m * (weight1 / (root + eps1) + weight2 / (root + eps2))
    m *= factor1
    v *= factor2


CATCH_UP = compose("catch_up", ("p", "m", "v"), make_up)
COLUMNS = len(CATCH_UP.scalars)


def nodes(last, now, history, totals, tolerance, cutoff, table):
    """Write the rows of `make_up`'s scalars for a row last stepped at step `last`; return how many.

    With an empty `table` they are only counted. `history[j]` is that of step j + 1, `totals[j]` sums up j steps.
    """
    count, points, first_eps, faded1, faded2 = 0, 0, 1.0, 1.0, 1.0
    sum0 = sum1 = sum2 = sum3 = 0.0
    for j in range(last, now):
        faded1 *= 1.0 - history[j, 3]
        faded2 *= sqrt(1.0 - history[j, 4])
        if faded1 <= cutoff * faded2:
            break
        eps = history[j, 1] / faded2
        if points >= 2 and abs(eps - first_eps) > tolerance * first_eps:
            count = close_run(table, count, first_eps, sum0, sum1, sum2, sum3)
            points = 0
        if points == 0:
            first_eps = eps
            sum0 = sum1 = sum2 = sum3 = 0.0
        weight = history[j, 0] * faded1 / faded2 * gap(totals, j + 1, now, 2)
        apart = eps - first_eps
        sum0 += weight
        sum1 += weight * apart
        sum2 += weight * apart**2
        sum3 += weight * apart**3
        points += 1
    # Also where no weight is left: decay and factors belong to the first and the last row.
    count = close_run(table, count, first_eps, sum0, sum1, sum2, sum3)
    if table.shape[0]:
        table[0, 0] = gap(totals, last, now, 2)
        table[count - 1, 5] = gap(totals, last, now, 0)
        table[count - 1, 6] = gap(totals, last, now, 1)
    return count


def close_run(table, count, first_eps, sum0, sum1, sum2, sum3):
    """Write the two-point Gauss quadrature with these moments about `first_eps` as row `count`."""
    if table.shape[0]:
        weight1, point1, weight2, point2 = sum0, 0.0, 0.0, 0.0
        spread = sum0 * sum2 - sum1 * sum1
        if sum0 > 0.0:
            point1 = sum1 / sum0
        if spread > 1e-13 * sum0 * sum2:
            # The nodes are the roots of the orthogonal polynomial x**2 + b * x + c.
            b = (sum1 * sum2 - sum0 * sum3) / spread
            c = (sum1 * sum3 - sum2 * sum2) / spread
            half = sqrt(max(b * b - 4.0 * c, 0.0)) / 2.0
            point1, point2 = -b / 2.0 + half, -b / 2.0 - half
            weight1 = (sum1 - sum0 * point2) / (point1 - point2)
            weight2 = sum0 - weight1
        table[count, 0] = 1.0
        table[count, 1] = weight1
        table[count, 2] = first_eps + point1
        table[count, 3] = weight2
        table[count, 4] = first_eps + point2
        table[count, 5] = 1.0
        table[count, 6] = 1.0
    return count + 1


def gap(totals, last, now, column):
    """The product of the factors of steps `last` + 1 to `now`."""
    return exp(totals[now, column] - totals[last, column] + (totals[now, column + 3] - totals[last, column + 3]))


def add_logs(totals, step, target):
    """Write into `target` the row of `totals` with those of one more step, a row of `HISTORY`, added."""
    _, _, decay, blend1, blend2 = step
    for column, factor in enumerate((1.0 - blend1, 1.0 - blend2, decay)):
        before, added = totals[column], log(max(factor, SMALLEST))
        total = before + added
        # What is lost in rounding the sum, exactly (Knuth).
        part = total - before
        target[column] = total
        target[column + 3] = totals[column + 3] + ((before - (total - part)) + (added - part))
