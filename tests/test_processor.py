import math
import os
import subprocess
import sys

import pytest

from diffusion.apps.config import CONF
from diffusion.processor import cores, quota


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, math.inf),
        ({"proc/self/cgroup": "0::/\n"}, math.inf),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, math.inf),
        (
            {
                "proc/self/cgroup": "0::/system.slice/job\n",
                "sys/fs/cgroup/system.slice/cpu.max": "400000 100000\n",
                "sys/fs/cgroup/system.slice/job/cpu.max": "max 100000\n",
            },
            4.0,
        ),
        (
            {
                "proc/self/cgroup": "12:memory:/x\n4:cpu,cpuacct:/docker/abc\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "60000\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            0.6,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu:/docker/abc\n",
                "sys/fs/cgroup/cpu/docker/abc/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/docker/abc/cpu.cfs_period_us": "100000\n",
            },
            math.inf,
        ),
    ],
)
def test_the_quota_is_the_tightest_of_the_control_groups(tmp_path, files, expected):
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert quota(tmp_path) == expected


@pytest.mark.slow
def test_a_process_has_the_cores_of_its_affinity_and_freed_memory_is_used_again():
    """Tensors of 1 to 40 MiB, which are freed together: without settle(), some 18,000 page faults a round.

    The largest, of 10,240 pages, may once find its place taken by something small, in any round: that is no return of
    memory, and eight rounds may hold it. Where the environment says that all large ones are to be mapped, they are.
    """
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("affinity is a matter of Linux")
    program = """if True:
        import os, resource
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        from diffusion.processor import settle
        settle()
        import torch
        given = [torch.ones(2**18 * size) for size in (1, 5, 9, 17, 40)]
        def faults_of_rounds():
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            for _ in range(8):
                made = [values.exp() for values in given]
                sum(float(values.sum()) for values in made)
                while made:
                    made.pop()
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        faults_of_rounds()
        print(torch.get_num_threads(), faults_of_rounds())
    """
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    command = [sys.executable, "-c", program]
    threads, faults = map(int, subprocess.check_output(command, env=environment, cwd=CONF.parent).split())
    assert threads == 1
    assert faults < 20_000
    environment |= {"MALLOC_MMAP_MAX_": "65536", "MALLOC_MMAP_THRESHOLD_": str(2**17)}
    _, faults = map(int, subprocess.check_output(command, env=environment, cwd=CONF.parent).split())
    assert faults > 100_000
    assert cores() <= len(os.sched_getaffinity(0))
