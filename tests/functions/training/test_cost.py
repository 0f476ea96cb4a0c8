"""What a training cost."""

import json
import math
import os
import shutil
import subprocess
import sys

import pytest
import torch
from pydantic import ValidationError

from tests.functions.runtime.cards.fake_driver import WATTS, fake_driver
from toque.functions.runtime.context import context_of
from toque.functions.runtime.receipt import Prices
from toque.functions.training.cost import ResourceMeter, ResourceUse
from toque.functions.training.loop.process_group import SingleProcess

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


METERS = """
import json, math, time
from types import SimpleNamespace
import torch
from toque.functions.training.cost import ResourceMeter
torch.cuda.is_available = lambda: True
torch.cuda.get_device_properties = lambda _: SimpleNamespace(uuid="fake-1")
meters = ResourceMeter("cuda:0", gpus=0.5), ResourceMeter("cpu", gpus=0)
time.sleep(0.5)  # whose joules are counted
half, none = (meter.read() for meter in meters)
print(json.dumps([half.gpu_s, half.energy_j if math.isfinite(half.energy_j) else None, none.energy_j]))
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="no compiler here for the library")
def test_a_gpus_energy_counter_is_read_before_and_after(tmp_path):
    def measured(silent=""):
        told = os.environ | fake_driver(tmp_path, cards=2, silent=silent)
        done = subprocess.run([sys.executable, "-c", METERS], env=told, check=True, capture_output=True)
        return json.loads(done.stdout)

    gpu_s, energy_j, of_cpu = measured()
    assert energy_j == pytest.approx(WATTS * gpu_s, rel=0.2)
    assert (gpu_s >= 0.25, of_cpu) == (True, 0)
    assert measured(silent="yes")[1] is None


def test_resource_use_of_the_workers_is_summed():
    assert ResourceUse(1, 2, 3).over(SingleProcess()) == ResourceUse(1, 2, 3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_of_this_machine_is_measured():
    meter = ResourceMeter("cuda", gpus=1)
    torch.randn(4096, 4096, device="cuda").square().sum().item()
    spent = meter.read()
    assert spent.gpu_s > 0
    assert math.isnan(spent.energy_j) or spent.energy_j >= 0
