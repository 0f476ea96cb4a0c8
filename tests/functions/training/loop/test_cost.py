"""What a training cost."""

import math
import sys
from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError

from functions.runtime.context import context_of
from functions.runtime.receipt import Prices
from functions.training.loop.cost import ResourceMeter, ResourceUse
from functions.training.loop.process_group import SingleProcess

PRICES = Prices(currency="EUR", cpu_hour=0.5, gpu_hour=4.0, kwh=0.25)


def test_cost_is_hours_times_prices_and_energy():
    # 2 h x 0.5 + 1 h x 4 + 2 kWh x 0.25 = 5.5
    cost = ResourceUse(cpu_s=7200, gpu_s=3600, energy_j=7.2e6).cost(PRICES)
    assert (cost.cpu_hours, cost.gpu_hours, cost.energy_kwh) == (2, 1, 2)
    assert (cost.money, cost.currency) == (5.5, "EUR")


def test_energy_that_a_gpu_does_not_report_is_left_out_not_zero():
    silent = ResourceUse(3600, 3600, math.nan) + ResourceUse(3600, 3600, 100.0)
    assert silent.cost(PRICES).energy_kwh is None
    assert silent.cost(PRICES).money == pytest.approx(2 * 0.5 + 2 * 4.0)
    assert ResourceUse(3600).cost(None).model_dump(exclude_none=True) == {"cpu_hours": 1, "gpu_hours": 0}


def test_the_prices_are_the_users_by_the_environment(tmp_path):
    store = {"TOQUE_STORE": f"file://{tmp_path}"}
    assert context_of(store).prices is None
    prices = '{"currency": "EUR", "cpu_hour": 0.5, "gpu_hour": 4.0, "kwh": 0.25}'
    assert context_of(store | {"TOQUE_PRICES": prices}).prices == PRICES
    for wrong in ("{", '{"currency": "EUR"}', '{"currency": "EUR", "cpu_hour": -1, "gpu_hour": 0}'):
        with pytest.raises(ValidationError):
            context_of(store | {"TOQUE_PRICES": wrong})


class NotSupportedError(Exception):
    """As NVML says it."""


def driver(readings):
    """NVML of a GPU that has used so many millijoules, at each reading."""

    def read(handle):
        assert handle == "GPU-abc"
        reading = readings.pop(0)
        if reading is None:
            raise NotSupportedError
        return reading

    return SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda name: name,
        nvmlDeviceGetTotalEnergyConsumption=read,
        NVMLError_NotSupported=NotSupportedError,
    )


def test_a_gpus_energy_counter_is_read_before_and_after(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="abc"))
    monkeypatch.setitem(sys.modules, "pynvml", driver([1_000, 61_000]))
    spent = ResourceMeter("cuda:0", gpus=0.5).read()
    assert spent.energy_j == 60
    assert spent.gpu_s >= 0
    monkeypatch.setitem(sys.modules, "pynvml", driver([None, None]))
    assert math.isnan(ResourceMeter("cuda:0", gpus=1).read().energy_j)
    monkeypatch.setitem(sys.modules, "pynvml", None)  # not installed
    assert math.isnan(ResourceMeter("cuda:0", gpus=1).read().energy_j)
    assert ResourceMeter("cpu", gpus=0).read().energy_j == 0


def test_resource_use_of_the_workers_is_summed():
    assert ResourceUse(1, 2, 3).over(SingleProcess()) == ResourceUse(1, 2, 3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_of_this_machine_is_measured():
    meter = ResourceMeter("cuda", gpus=1)
    torch.randn(4096, 4096, device="cuda").square().sum().item()
    spent = meter.read()
    assert spent.gpu_s > 0
    assert math.isnan(spent.energy_j) or spent.energy_j >= 0
