"""Solvers of y = A x for a sparse x, one file per algorithm, each named after its function: ``from gossamer.recover
import niht``.

    iht, niht, aiht             thresholded gradient steps: ``loop.py`` is their loop
    htp, cosamp, omp            greedy choice of the support, least squares on it
    fista                       the Lasso: ``fista``, ``ista``
    basis_pursuit, reweighted   l1 under equality constraints: ``basis_pursuit``, ``reweighted_l1``
    amp                         approximate message passing
    result, thresholding        shared code: problem and result, H_s and the streamed gradient

This package exports no functions, because modules have the same names.
"""
