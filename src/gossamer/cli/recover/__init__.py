"""``gossamer recover phase | planted | inr | mnist``: experiments in compressed sensing, as tables and pictures.

Each experiment computes a grid of cells in several processes. A folder keeps the cells, so a run can be resumed.
"""

from .digits import mnist
from .images import inr
from .phase_diagrams import phase
from .planted_networks import planted

COMMANDS = {"phase": phase, "planted": planted, "inr": inr, "mnist": mnist}
