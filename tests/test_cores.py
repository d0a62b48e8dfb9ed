import os

import pytest
import torch

from dae3d.cores import cgroup_quota, usable_cores, use_threads


def machine(root, group, **files):
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(group)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return cgroup_quota(root)


def test_docker_run_with_cpus_on_cgroups_2(tmp_path):
    assert machine(tmp_path, "0::/\n", cpu_dot_max="150000 100000\n") == 1.5


def test_the_tightest_of_the_groups_above_counts(tmp_path):
    files = {"job__cpu_dot_max": "400000 100000\n", "job__step__cpu_dot_max": "max 100000\n"}
    assert machine(tmp_path, "0::/job/step\n", cpu_dot_max="800000 100000", **files) == 4


def test_cgroups_1(tmp_path):
    files = {"cpu__cpu_dot_cfs_quota_us": "200000\n", "cpu__cpu_dot_cfs_period_us": "100000\n"}
    assert machine(tmp_path, "4:memory:/x\n2:cpu,cpuacct:/docker/abc\n0::/\n", **files) == 2


@pytest.mark.parametrize("text", ["max 100000\n", "", "-1 100000"])
def test_no_limit(tmp_path, text):
    assert machine(tmp_path, "0::/\n", cpu_dot_max=text) == float("inf")


def test_no_control_groups_at_all(tmp_path):
    assert cgroup_quota(tmp_path) == float("inf")


def test_threads_keep_to_what_may_be_used(monkeypatch):
    before = torch.get_num_threads()
    try:
        use_threads(3)
        assert torch.get_num_threads() == 3
        monkeypatch.setattr("dae3d.cores.cgroup_quota", lambda: 1.9)
        assert usable_cores() == 1
        use_threads(None)
        assert torch.get_num_threads() == 1
        monkeypatch.setattr("dae3d.cores.cgroup_quota", lambda: float("inf"))
        assert usable_cores() == len(os.sched_getaffinity(0))
    finally:
        torch.set_num_threads(before)
