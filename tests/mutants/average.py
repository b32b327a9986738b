"""Averages of a model that are broken on purpose."""

from collections.abc import Callable

import torch

import gossamer as gs
from gossamer import laws


def _averaging(**methods: Callable) -> Callable[[], None]:
    return lambda: laws.check_average(gs.Rewirer, type("Bent", (gs.AveragedModel,), methods))


def _by_positions(model, *, decay=None):
    if decay is None:
        return torch.optim.swa_utils.AveragedModel(model)
    return torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(decay))


def _first_is_not_copied(mean, model):
    if not int(mean.n_averaged):
        mean.n_averaged += 1
    gs.AveragedModel.update_parameters(mean, model)


def _equal_for_all(mean, model):
    decay, mean.decay = mean.decay, None
    gs.AveragedModel.update_parameters(mean, model)
    mean.decay = decay


def _copies(mean, model):
    mean.n_averaged.zero_()
    gs.AveragedModel.update_parameters(mean, model)


def _born_large(mean, model):
    before = {name: layer.support for name, layer in gs.sparse_layers(mean.module).items()}
    gs.AveragedModel.update_parameters(mean, model)
    for name, layer in gs.sparse_layers(mean.module).items():
        born = before[name].find(layer.support.ids()) < 0
        with torch.no_grad():
            layer.values[born] = 1.0


def _values_only(mean, model):
    biases = {name: p.detach().clone() for name, p in mean.module.named_parameters() if name.endswith("bias")}
    gs.AveragedModel.update_parameters(mean, model)
    with torch.no_grad():
        for name, bias in biases.items():
            mean.module.get_parameter(name).copy_(bias)


AVERAGE = {
    "by position": lambda: laws.check_average(gs.Rewirer, _by_positions),
    "the first update is averaged too": _averaging(update_parameters=_first_is_not_copied),
    "the decay is not heeded": _averaging(update_parameters=_equal_for_all),
    "every update copies": _averaging(update_parameters=_copies),
    "the newborn do not begin at zero": _averaging(update_parameters=_born_large),
    "biases are left": _averaging(update_parameters=_values_only),
}
