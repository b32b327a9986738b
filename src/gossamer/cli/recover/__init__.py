"""``gossamer recover phase | planted | inr | mnist``: what compressed sensing recovers, as tables and pictures.

Each is a grid of cells that are computed in processes and kept in a folder, so that a run can be resumed.
"""

from .digits import mnist
from .images import inr
from .phase_diagrams import phase
from .planted_networks import planted

COMMANDS = {"phase": phase, "planted": planted, "inr": inr, "mnist": mnist}
