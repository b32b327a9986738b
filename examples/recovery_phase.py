"""How many measurements does a sparse vector need? The phase transition of three solvers, as text.

python examples/recovery_phase.py
"""

import torch

from gossamer import recover


def recovered(solver, n: int, m: int, s: int, seed: int) -> bool:
    """Whether a random s-sparse vector of n entries is found from m Gaussian measurements."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.zeros(n, dtype=torch.float64)
    x[torch.randperm(n, generator=rng)[:s]] = torch.randn(s, generator=rng, dtype=torch.float64)
    A = torch.randn(m, n, generator=rng, dtype=torch.float64) / m**0.5
    found = solver(A, A @ x, s)
    return bool((found.dense() - x).norm() <= 1e-3 * x.norm())


def main(n: int = 128, trials: int = 10) -> None:
    """Prints, for every number of measurements, how many of the trials succeed."""
    s = n // 16
    solvers = {"omp": recover.omp, "niht": recover.niht, "cosamp": recover.cosamp}
    print("measurements", *solvers, sep="  ")
    for m in range(3 * s, n // 2 + 1, s):
        hits = [sum(recovered(solve, n, m, s, seed) for seed in range(trials)) for solve in solvers.values()]
        print(f"{m:12}", *(f"{100 * h // trials:4} %" for h in hits))


if __name__ == "__main__":
    main()
