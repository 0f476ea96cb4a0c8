"""What a node tells of its machine beside the counts of its processes."""

from pathlib import Path

from toque.clusters.telemetry.metrics.machine import machine_metrics, oom_kills, parse_devices

SMI = "0, 87, 40536, 81559\n1, [N/A], 0, 81559\n"  # as nvidia-smi 550 prints two devices


def test_devices_are_parsed_and_what_one_does_not_tell_is_left_out() -> None:
    assert parse_devices(SMI) == [
        ("toque_gpu_busy_ratio", 0.87, "0"),
        ("toque_gpu_used_bytes", 40536 * 2.0**20, "0"),
        ("toque_gpu_size_bytes", 81559 * 2.0**20, "0"),
        ("toque_gpu_used_bytes", 0.0, "1"),
        ("toque_gpu_size_bytes", 81559 * 2.0**20, "1"),
    ]
    assert parse_devices("No devices were found\n") == []


def test_a_folder_that_is_not_here_has_no_disk(tmp_path: Path) -> None:
    found = {
        (each.name, each.labels["folder"]): each.value
        for metric in machine_metrics((), {"store": tmp_path, "log": tmp_path / "away"})
        for each in metric.samples
        if "folder" in each.labels
    }
    assert set(found) == {("toque_disk_free_bytes", "store"), ("toque_disk_size_bytes", "store")}
    assert 0 < found["toque_disk_free_bytes", "store"] <= found["toque_disk_size_bytes", "store"]


def test_what_the_kernel_killed_for_want_of_memory_is_counted(tmp_path: Path) -> None:
    (tmp_path / "vmstat").write_text("nr_free_pages 17\noom_kill 3\n")
    (found,) = oom_kills(tmp_path / "vmstat")
    assert [(each.name, each.value) for each in found.samples] == [("toque_oom_kills_total", 3.0)]
    assert oom_kills(tmp_path / "none") == []
